"""A decoder learns a thing from masks, keeps what it knew, and a killed run goes on."""

import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor, Segmenter
from clipseg_np.checkpoints.locate import demo_folder
from clipseg_np.errors import InputError
from clipseg_np.learn.batches import Batches
from clipseg_np.learn.data import Data, read_data
from clipseg_np.learn.fine_tune import STATE_NAME, fine_tune
from clipseg_np.learn.optimizer import AdamW
from clipseg_np.learn.progress import unseen
from clipseg_np.masks.metrics import image_iou
from clipseg_np.nn.ops import Ops

from ..helpers.checkpoints import stored_arrays
from ..helpers.device_array import DeviceModule
from ..helpers.discs import discs

module = sys.modules[fine_tune.__module__]


@pytest.fixture
def tune(checkpoint, data, options, tmp_path, monkeypatch):
    """A function that fine-tunes on one thread, and evaluates after every two steps."""
    monkeypatch.setattr(module, "STEPS_BETWEEN", 2)

    def tune(name="out", model=checkpoint, **changes):
        segmenter = Segmenter.from_pretrained(model, threads=1)
        given = {"data": data, **options, **changes}
        return fine_tune(segmenter, given.pop("data"), tmp_path / name, **given)

    return tune


@pytest.fixture
def last_is_best(monkeypatch):
    """Few steps do harm; they count as better all the same."""
    monkeypatch.setattr(module, "best_of", lambda records: [*records][-1])


def files(folder):
    """The names and bytes of a folder's files, without the plot's, which needs matplotlib."""
    assert all(path.is_file() for path in folder.iterdir())
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}


def test_it_learns_to_mark_the_thing_in_images_that_it_has_not_seen(tune, tmp_path, checkpoint):
    before = files(checkpoint)
    result = tune(steps=80, batch_size=8)
    assert result.before["new_iou"] < 0.2 and result.after["new_iou"] > 0.5
    others = read_data(discs(tmp_path / "others", 8, seed=1), "a disc").examples
    segmenter = Segmenter.from_pretrained(result.path)
    ious = [image_iou(segmenter(e.image, "a disc")[0] > 0.5, e.read()) for e in others]
    assert np.mean(ious) > 0.4
    assert files(checkpoint) == before


def test_the_towers_stay_and_the_whole_decoder_learns(tune, checkpoint, last_is_best):
    old, new = stored_arrays(checkpoint), stored_arrays(tune().path)
    assert old.keys() == new.keys()
    same = {name for name in old if np.array_equal(old[name], new[name])}
    assert same == {name for name in old if not name.startswith("decoder.")}


def test_the_log_has_a_line_for_each_evaluation(tune, last_is_best):
    result = tune()
    records = [json.loads(line) for line in (result.path / "learning.jsonl").open()]
    assert [record["fold"] for record in records] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [record["step"] for record in records] == [0, 2, 3, 3, 5, 6, 6, 8, 9, 9, 11, 12]
    for number, record in enumerate(records):
        assert record["loss"] is None if number % 3 == 0 else record["loss"] > 0
        assert all(0 <= record[name] <= 1 for name in ("new_iou", "old_iou"))
    for part, (name, score) in product((0, 2), result.after.items()):
        mean = np.mean([record[name] for record in records[part::3]])
        assert (result.before, None, result.after)[part][name] == pytest.approx(mean, abs=1e-4)


def test_without_matplotlib_there_is_no_plot_but_a_warning(tune, monkeypatch, last_is_best):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match="pip install matplotlib"):
        assert not (tune().path / "learning.png").exists()


def test_one_seed_and_one_thread_repeat_a_run(tune, last_is_best):
    first = files(tune("a").path)
    assert files(tune("b").path) == first
    assert files(tune("c", seed=1).path) != first


@pytest.mark.parametrize("change", [{"pos_weight": 3}, {"focal": True}, {"rate": 0.02}])
def test_options_change_what_is_learned(tune, change, last_is_best):
    name = "decoder.film_mul.weight"
    assert not np.array_equal(
        stored_arrays(tune("a").path)[name], stored_arrays(tune("b", **change).path)[name]
    )


def test_the_mean_of_the_best_of_each_fold_is_written(tune, monkeypatch):
    """By scores that are made up; a later one may be a little lower."""
    states, scores = [], [0.5, 0.9, 0.6, 0.5, 0.9, 0.89, 0.5, 0.4, 0.3, 0.5, 0.7, 0.9]

    def scored(self, decoder, fold):
        arrays = decoder.film_mul.weight, decoder.layers[0].mlp.fc1.bias
        states.append([array.copy() for array in arrays])
        return {"new_iou": scores[len(states) - 1] - 0.25, "old_iou": 0.25}

    monkeypatch.setattr(Batches, "scores", scored)
    result = tune()
    best = [states[number] for number in (1, 5, 6, 11)]
    names = "decoder.film_mul.weight", "decoder.layers.0.mlp.fc1.bias"
    for name, arrays in zip(names, zip(*best)):
        array = stored_arrays(result.path)[name]
        np.testing.assert_allclose(array, np.mean(arrays, axis=0), atol=1e-6)
    assert result.after == {"new_iou": 0.5475, "old_iou": 0.25}
    for fold in range(4):
        np.testing.assert_array_equal(states[3 * fold][0], states[0][0])


def test_each_fold_begins_with_the_old_decoder_and_no_memory(tune, checkpoint, monkeypatch):
    old, folds, learn = stored_arrays(checkpoint), [], module.Learner.learn

    def watch(self, step, rate):
        if step % 3 == 0:
            folds.append(self.fold)
            memory = *self.optimizer.means.values(), *self.optimizer.squares.values()
            assert not any(array.any() for array in memory) and self.optimizer.steps == 0
            assert all(np.array_equal(a, old[name]) for name, a in self.arrays.items())
        learn(self, step, rate)

    monkeypatch.setattr(module.Learner, "learn", watch)
    tune()
    assert folds == [0, 1, 2, 3]


def test_best_of_takes_the_last_that_is_not_clearly_worse():
    records = [{"new_iou": score} for score in (0.3, 0.9, 1.0, 0.99, 0.97)]
    assert module.best_of(records) is records[3]


def test_only_folds_with_a_test_count_in_a_mean():
    assert module.mean_of([0.0, None, 0.5]) == 0.25 and module.mean_of([None]) is None


def test_a_run_that_learns_nothing_says_so(tune):
    with pytest.warns(UserWarning, match="nothing was learned"):
        tune(rate=1e-9, steps=2)


# What is written


def test_a_decoder_alone_gives_the_masks_of_the_whole(tune, checkpoint, folder, last_is_best):
    whole = Segmenter.from_pretrained(tune("a").path)
    result = tune("b", decoder_only=True)
    assert {path.suffix for path in result.path.parent.iterdir()} <= {
        ".safetensors",
        ".jsonl",
        ".png",
    }
    segmenter = Segmenter.from_pretrained(checkpoint, decoder=result.path)
    image, prompts = folder / "images" / "00.png", ["a disc", "red"]
    for ours, theirs in zip(segmenter(image, prompts), whole(image, prompts)):
        np.testing.assert_array_equal(ours, theirs)


def test_new_words_are_added_where_few_are_known(tune):
    base = Segmenter.from_pretrained(demo_folder())
    result = tune("whole", model=demo_folder(), steps=1, cache=None)
    assert Segmenter.from_pretrained(result.path).processor.words - base.processor.words == {"disc"}
    result = tune("alone", model=demo_folder(), steps=1, cache=None, decoder_only=True)
    own = Segmenter.from_pretrained(demo_folder(), decoder=result.path)
    assert own.processor.words - base.processor.words == {"disc"}


def test_the_words_of_a_decoder_below_stay_known(tune, data):
    below = tune("below", model=demo_folder(), steps=1, cache=None, decoder_only=True).path
    base = Segmenter.from_pretrained(demo_folder(), threads=1, decoder=below)
    others = Data([replace(e, prompts=("a heart",)) for e in data.examples], [])
    options = {"steps": 1, "batch_size": 4, "decoder_only": True}
    above = fine_tune(base, others, below.parent.parent / "above", **options).path
    known = Segmenter.from_pretrained(demo_folder(), decoder=above).processor.words
    assert {"disc", "heart"} <= known


@pytest.mark.oracle
def test_transformers_gives_the_same_masks(tune, folder, last_is_best):
    import torch
    from transformers import CLIPSegForImageSegmentation

    path = tune().path
    segmenter = Segmenter.from_pretrained(path)
    images, texts = [folder / "images" / "00.png"] * 2, ["a disc", "red"]
    inputs = segmenter.processor(texts, [np.asarray(Image.open(i)) for i in images], padding=True)
    tensors = {name: torch.tensor(np.asarray(values)) for name, values in inputs.items()}
    theirs = CLIPSegForImageSegmentation.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(**tensors, interpolate_pos_encoding=True).logits
    ours = segmenter.model(**inputs).logits
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


# Runs that were killed, and folders that are in use


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", [0, 1, 2, 4, 11])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tune, last, last_is_best):
    whole = files(tune("whole").path)

    def stop(parts, name):
        for step in parts:
            yield step
            if name == "learning" and step == last:
                raise Killed  # after the step

    with pytest.raises(Killed):
        tune("stopped", progress=stop)
    steps = []

    def watch(parts, name):
        steps.extend(parts if name == "learning" else [])
        return parts

    assert files(tune("stopped", progress=watch).path) == whole
    assert steps == list(range((last + 1) // 3 * 3, 12))


PLACES = [("save_weights", 1), ("save_weights", 2), ("write_log", 1), ("write_log", 2)]
PLACES += [("save_weights", 4), ("write_log", 5), ("write_plot", 1), ("written_together", 1)]


@pytest.mark.parametrize("place, count", PLACES)
def test_a_run_that_was_killed_where_it_writes_goes_on_with_the_same_bits(
    tune, tmp_path, monkeypatch, place, count, last_is_best
):
    whole, calls, write = files(tune("whole").path), [], getattr(module, place)

    def kill(*args, **kwargs):
        calls.append(place)
        if len(calls) == count:
            raise Killed
        return write(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, place, kill)
        tune("killed")
    # What a real kill may leave.
    (tmp_path / "killed" / ".part-1").mkdir(parents=True, exist_ok=True)
    assert files(tune("killed").path) == whole


@pytest.mark.slow
def test_a_process_killed_at_ten_random_moments_ends_with_the_same_bits(tmp_path, folder):
    """The official kill: SIGKILL, at any time after the process has begun to work."""

    def command(name):
        options = ["--steps", "40", "--batch-size", "4", "--threads", "1", "--prompt", "a disc"]
        output = [*options, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / name)]
        return [sys.executable, "-m", "clipseg_np", "fine-tune", str(folder), *output]

    start = time.monotonic()
    subprocess.run(command("whole"), check=True)
    seconds, kills, rng = time.monotonic() - start, 0, random.Random(0)
    while kills < 10:
        process = subprocess.Popen(command("killed"))
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 0.5) * seconds)
        kills += process.poll() is None
        process.kill()
        process.wait()
        written = {path.name for path in (tmp_path / "killed").glob("*")}
        if "config.json" in written and STATE_NAME not in written:
            shutil.rmtree(tmp_path / "killed")  # it was done: again from the beginning
    subprocess.run(command("killed"), check=True)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_the_state_of_another_run_is_refused_and_left(tune, tmp_path, data):
    def stop(parts, name):
        yield from parts[:4]
        raise Killed

    with pytest.raises(Killed):
        tune("out", progress=lambda parts, name: stop(parts, name) if name == "learning" else parts)
    before = files(tmp_path / "out")
    empty = [replace(e, read=lambda e=e: 1 - e.read()) for e in data.examples]
    changes = {"seed": 1}, {"rate": 0.1}, {"focal": True}, {"data": Data(empty, [])}
    for change in changes:
        with pytest.raises(InputError, match="is the state of a run with other data"):
            tune("out", **change)
    assert files(tmp_path / "out") == before


def test_another_run_that_has_written_meanwhile_is_not_replaced(tune, tmp_path):
    def beside(parts, name):
        """Another run begins later, and ends first."""
        for step in parts:
            if name == "learning" and step == 1:
                tune("out", seed=1)
            yield step

    with pytest.raises(InputError, match="out is there already; expected the name of a new"):
        tune("out", progress=beside)
    assert files(tmp_path / "out") == files(tune("alone", seed=1).path)


def test_a_damaged_state_is_reported(tune, tmp_path):
    (tmp_path / "out").mkdir()
    for content in (b"", b"\0" * 100, b"\x08" + b"\0" * 7 + b"{" * 100):
        (tmp_path / "out" / STATE_NAME).write_bytes(content)
        with pytest.raises(InputError, match="is damaged: remove it, or give another folder"):
            tune("out")


def test_a_folder_with_other_files_is_refused_before_anything_is_computed(tune, tmp_path):
    result = tune("out")
    for name in ("out", "mine"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=f"{name} is there already"):
            tune(name, cache=tmp_path / "none")
    assert (result.path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["steps", "batch_size", "rate", "pos_weight"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_options_out_of_range_are_refused(tune, name, value, tmp_path):
    with pytest.raises(InputError, match=f"{name} is {value}; expected"):
        tune(**{name: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options", [{"steps": 2.5}, {"steps": "3"}, {"batch_size": 2.5}, {"rate": "1"}, {"seed": "x"}]
)
def test_options_of_other_types_are_refused(tune, options, tmp_path):
    with pytest.raises(InputError, match=r" is .*; expected a (whole )?number"):
        tune(**options)
    assert not (tmp_path / "out").exists()


def test_numbers_may_be_of_numpy(tune):
    given = {"steps": 2, "batch_size": 4, "rate": 0.5, "pos_weight": 2.0, "seed": 3}
    types = np.int64, np.int32, np.float32, np.float16, np.uint8
    numbers = {name: kind(number) for kind, (name, number) in zip(types, given.items())}
    assert files(tune("a", **numbers).path) == files(tune("b", **given).path)


@pytest.mark.parametrize("change", [{"data": "discs"}, {"keep": "discs"}, {"keep": ""}])
def test_data_that_were_not_read_are_refused(tune, change):
    with pytest.raises(InputError, match=r"the data are '.*'; expected .*read_data\(\.\.\.\)"):
        tune(**change)


def test_the_focal_loss_has_no_weight_of_positives(tune, tmp_path):
    with pytest.raises(InputError, match="pos_weight is for the cross-entropy; leave it out"):
        tune(focal=True, pos_weight=3)
    assert not (tmp_path / "out").exists()


def test_any_whole_number_is_a_seed(tune, last_is_best):
    assert files(tune("a", seed=-1).path) == files(tune("b", seed=2**32 - 1).path)


def test_few_images_are_refused(tune, data):
    few = Data(data.examples[:3], [])
    for change in ({"data": few}, {"keep": few, "data": data}):
        with pytest.raises(InputError, match="3 images; expected 4 or more"):
            tune(**change)


def test_a_rate_that_is_too_high_is_reported(tune, tmp_path):
    with pytest.raises(InputError, match="no longer a number.*lower"):
        tune(rate=1e30)


def test_a_device_learns_the_same(tune, checkpoint, data, options, tmp_path, last_is_best):
    model = CLIPSegForImageSegmentation.from_pretrained(checkpoint, ops=Ops(DeviceModule()))
    segmenter = Segmenter(model, CLIPSegProcessor.from_pretrained(checkpoint))
    path = fine_tune(segmenter, data, tmp_path / "device", **options).path
    expected = stored_arrays(tune().path)
    for name, array in stored_arrays(path).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-3, err_msg=name)


def test_kept_examples_are_scored_by_their_own_masks(tune, keep, monkeypatch):
    place = "clipseg_np.learn.lessons.image_iou"
    monkeypatch.setattr(place, lambda mask, label: float(label.mean()))
    before = tune(keep=keep).before
    assert before["new_iou"] < 0.2 and before["old_iou"] > 0.8


def test_a_fold_without_a_test_of_the_old_has_no_score_of_it(batches, keep, tune):
    folds = batches().folds
    kept = Data([e for e in keep.examples if folds[e.image] in (1, 2)], [])
    made = batches(keep=kept)
    scores = [made.scores(made.model.decoder, fold)["old_iou"] for fold in range(4)]
    assert scores[0] is scores[3] is None and scores[1] > 0 and scores[2] > 0
    result = tune(keep=kept)
    assert result.before["old_iou"] == pytest.approx(np.mean(scores[1:3]), abs=1e-4)


def test_film_moves_as_in_other_coordinates(data, tmp_path):
    """A step of W and b, against one of W' and b'."""
    given = {"seed": 0, "folder": tmp_path, "progress": unseen}
    made = Batches(Segmenter.from_pretrained(threads=1, dtype="float64"), data, None, 8, **given)
    learner, (matrix, mean) = module.Learner(made, 0, None), made.coordinates
    layer, rng = learner.decoder.film_add, np.random.default_rng(0)
    names = "decoder.film_add.weight", "decoder.film_add.bias"
    other = {names[0]: layer.weight @ np.linalg.inv(matrix), names[1]: layer.bias.copy()}
    other[names[1]] += layer.weight @ mean
    optimizer = AdamW(other, weight_decay=0)
    learner.optimizer.weight_decay = 0
    for _ in range(3):
        d_weight, d_bias = rng.normal(size=layer.weight.shape), rng.normal(size=layer.bias.shape)
        # The other film layer's gradients change nothing here.
        zeros = {name.replace("add", "mul"): 0 * a for name, a in zip(names, (d_weight, d_bias))}
        learner._step({names[0]: d_weight, names[1]: d_bias, **zeros}, 1e-3)
        d_other = (d_weight - d_bias[:, None] * mean) @ matrix.T
        optimizer.step({names[0]: d_other, names[1]: d_bias}, 1e-3)
    embeddings = np.stack(list(made.embeddings.values()))
    expected = (embeddings - mean) @ matrix.T @ other[names[0]].T + other[names[1]]
    np.testing.assert_allclose(layer(embeddings), expected, rtol=1e-6, atol=1e-8)
