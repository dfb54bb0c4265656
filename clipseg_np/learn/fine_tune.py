"""A decoder of one's own: it learns what masks mark, and the towers stay as they are.

FOLDS decoders learn, each without the images of its fold, and the result is their mean, which knows
more of the new and of the old than any of them (Wortsman et al., "Model soups", 2022). What stands
against forgetting is in batches.py.

A run that was killed goes on after its last whole fold; on one thread, it ends with the same bits
as one that was not.
"""

import copy
import json
import os
import warnings
from collections.abc import Iterable
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ..atomic_files import remove_parts, require_new_folder, written_together
from ..checkpoints.decoder_file import DECODER_NAME, START, save_decoder
from ..checkpoints.weights import file_metadata, save_weights, tensors_of_file
from ..errors import InputError, MissingExtra
from ..model.clipseg import CLIPSegForImageSegmentation, Decoder
from ..model.input_checks import require
from ..nn.ops import Array, in_main_memory
from ..nn.scope import Scope
from ..text.known_words import words_of
from .batches import SCORES, Batches
from .data import Data
from .lessons import FOLDS, checked
from .optimizer import AdamW, rate_at
from .progress import Progress, unseen, write_log, write_plot
from .step import Loss, cross_entropy_and_dice, focal_and_dice, one_pass

FILM = f"{START}film_mul.weight", f"{START}film_add.weight"
STATE_NAME = "unfinished.safetensors"
STEPS, BATCH, RATE, WARM_UP, STEPS_BETWEEN = 200, 8, 1e-3, 20, 50
NOISE = 0.02  # by which a later score may be lower


class FineTuned(NamedTuple):
    """The file or folder that was written, and each IoU of the old decoder and of the folds'."""

    path: Path
    before: dict[str, Any]
    after: dict[str, Any]


def fine_tune(
    segmenter: Any,
    data: Data,
    output: str | os.PathLike,
    *,
    keep: Data | None = None,
    decoder_only: bool = False,
    steps: int = STEPS,
    batch_size: int = BATCH,
    rate: float = RATE,
    pos_weight: float = 1,
    focal: bool = False,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
    progress: Progress = unseen,
) -> FineTuned:
    """Train a copy of the decoder of a segment.Segmenter, and write it to the folder `output`.

    keep: examples of what the decoder must not forget. decoder_only: write the decoder alone, not
    a whole checkpoint. rate: that of AdamW, at its highest. pos_weight: how often a thing's pixel
    counts in the cross-entropy; focal: the focal loss in its place. cache: see CachedFeatures.

    The folder also gets a log and, where there is matplotlib, a plot of the loss and both IoU. It
    is new, empty, or holds the state of the same run, which then goes on. Raises InputError for
    another folder, options out of range, fewer than FOLDS images, and as CachedFeatures does.
    """
    output, state = Path(output), Path(output, STATE_NAME)
    parts = [data] if keep is None else [data, keep]
    steps, batch_size, rate, pos_weight, seed = checked(
        parts, steps=steps, batch_size=batch_size, rate=rate, pos_weight=pos_weight, seed=seed
    )
    if focal and pos_weight != 1:
        raise InputError("pos_weight is for the cross-entropy; leave it out with focal")
    remove_parts(output)
    if not state.is_file():
        require_new_folder(output)
    batches = Batches(segmenter, data, keep, batch_size, seed=seed, folder=cache, progress=progress)
    loss = focal_and_dice if focal else partial(cross_entropy_and_dice, pos_weight=pos_weight)
    about = steps, batch_size, rate, pos_weight, seed, focal, decoder_only, batches.mark()
    mark = sha256(repr(about).encode()).hexdigest()
    mean, records = read_state(state, mark)
    start = steps * len({record["fold"] for record in records})
    for number in progress(range(start, FOLDS * steps), "learning"):
        fold, step = divmod(number, steps)
        if step == 0:
            learner = Learner(batches, fold, loss)
            learner.evaluate(number)
        learner.learn(number, rate_at(step, steps, rate, WARM_UP))
        is_last = step + 1 == steps
        if is_last or (step + 1) % STEPS_BETWEEN == 0:
            learner.evaluate(number + 1)
        if is_last:
            mean = {n: mean.get(n, 0) + array / FOLDS for n, array in learner.best.items()}
            records += learner.records
            read_state(state, mark)  # another run may have written to the folder meanwhile
            save_weights(state, mean, mark=mark, records=json.dumps(records))
            write_log(output, records)
    write_log(output, records)
    try:
        write_plot(output, records)
    except MissingExtra as error:
        warnings.warn(f"there is no plot: {error}", stacklevel=2)
    by_fold = [[record for record in records if record["fold"] == fold] for fold in range(FOLDS)]
    scored = [own[0] for own in by_fold], [best_of(own) for own in by_fold]
    before, after = ({n: mean_of(r[n] for r in part) for n in SCORES} for part in scored)
    if after["new_iou"] <= before["new_iou"]:
        warnings.warn("nothing was learned: held-out images say so", stacklevel=2)
    model, words = segmenter.model, segmenter.processor.words | set(words_of(batches.names))
    arrays, path = model.state_dict() | mean, output
    if decoder_only:
        path = output / DECODER_NAME
        save_decoder(path, arrays, words)
    else:
        processor = copy.copy(segmenter.processor)
        processor.words = processor.words and words
        with written_together(output) as part:
            CLIPSegForImageSegmentation(model.config, scope_of(arrays, model)).save_pretrained(part)
            processor.save_pretrained(part)
    state.unlink()
    return FineTuned(path, before, after)


class Learner:
    """A copy of the decoder, which learns without a fold; `best` holds its best arrays."""

    def __init__(self, batches: Batches, fold: int, loss: Loss):
        self.batches, self.fold, self.loss, model = batches, fold, loss, batches.model
        copies = {n: a.copy() for n, a in model.scope.arrays.items() if n.startswith(START)}
        scope = scope_of(copies, model)
        self.decoder, self.arrays = Decoder(scope / "decoder", model.config), scope.arrays
        matrix, self.mean = batches.coordinates or (None, None)
        self.optimizer = AdamW(self.arrays, coordinates=dict.fromkeys(FILM, matrix))
        self.losses: list[float] = []
        self.records: list[dict[str, Any]] = []

    def learn(self, step: int, rate: float) -> None:
        """One step."""
        batches, entries = self.batches, self.batches.batch(self.fold, step)
        rows = batches.rows(entry.text for entry in entries)
        inputs = batches.tokens(entries), rows, batches.targets(entries), batches.features.grid
        result = one_pass(self.decoder, *inputs, is_reduced=False, loss=self.loss)
        require(np.isfinite(result.loss), "the loss is no longer a number: lower the rate")
        self._step(result.gradients, rate)
        self.losses.append(result.loss)

    def _step(self, gradients: dict[str, Array], rate: float) -> None:
        """One of the optimizer's. FiLM's W e + b is W' A (e - mean) + b' where W' and b' learn."""
        films = [(name, name.replace("weight", "bias")) for name in FILM if self.mean is not None]
        weights = {name: self.arrays[name].copy() for name, _ in films}
        for name, bias in films:
            gradients[name] = gradients[name] - gradients[bias][:, None] * self.mean
        self.optimizer.step(gradients, rate)
        for name, bias in films:
            self.arrays[bias] -= (self.arrays[name] - weights[name]) @ self.mean

    def evaluate(self, step: int) -> None:
        """Score the decoder, and keep it if it is the best."""
        loss = round(float(np.mean(self.losses)), 4) if self.losses else None
        record = {"fold": self.fold, "step": step, "loss": loss}
        self.records.append(record | self.batches.scores(self.decoder, self.fold))
        self.losses = []
        if best_of(self.records) is self.records[-1]:
            self.best = {n: np.array(in_main_memory(a)) for n, a in self.arrays.items()}


def scope_of(arrays: dict[str, Array], model: CLIPSegForImageSegmentation) -> Scope:
    """The root of a model like `model` with these arrays."""
    source = SimpleNamespace(take=lambda name, shape: arrays[name])
    return Scope(source, model.ops, model.dtype)


def read_state(state: Path, mark: str) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The sum of the folds' arrays, and the records. Raises InputError for another run's folder."""
    if not state.is_file():
        require_new_folder(state.parent)
        return {}, []
    advice = "remove it, or give another folder"
    try:
        about = file_metadata(state)
    except InputError as error:
        raise InputError(f"{state} is damaged: {advice}") from error
    fault = f"{state} is the state of a run with other data, other options or another checkpoint"
    require(about.get("mark") == mark, f"{fault}, and only the same run goes on: {advice}")
    mean = {name: raw.array for name, raw in tensors_of_file(state).items()}
    return mean, json.loads(about["records"])


def mean_of(scores: Iterable[float | None]) -> float | None:
    """The mean of those that there are, if any."""
    known = [score for score in scores if score is not None]
    return round(float(np.mean(known)), 4) if known else None


def best_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """A fold's last record whose IoU of the new is the highest less NOISE."""
    least = max(record["new_iou"] for record in records) - NOISE
    return [record for record in records if record["new_iou"] >= least][-1]
