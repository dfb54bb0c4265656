"""A decoder of one's own: it learns what masks mark, and the towers stay as they are.

FOLDS decoders learn, each without the images of its fold, and the result is their mean, which knows
more of the new and of the old than any of them (Wortsman et al., "Model soups", 2022). Half of each
batch stands against forgetting: examples that are kept, and old prompts with the old decoder's
probabilities as labels (Li and Hoiem, "Learning without forgetting", 2016).

A batch depends on the seed and the step's number alone. So a run that was killed goes on from its
last state, and on one thread ends with the same bits as one that was not.
"""

import copy
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from ..atomic_files import remove_parts, written_together
from ..checkpoints.decoder_file import DECODER_NAME, START, save_decoder
from ..checkpoints.weights import save_weights, tensors_of_file
from ..errors import InputError, MissingExtra
from ..masks.metrics import image_iou
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.learned_prompt import fingerprint
from ..model.outputs import ImageFeatures
from ..nn.ops import Array
from ..nn.scope import Scope
from ..text.known_words import words_of
from .data import Data, Example
from .features import CachedFeatures, Progress, turned, unseen
from .optimizer import AdamW, rate_at
from .progress import write_log, write_plot
from .step import cross_entropy, cross_entropy_and_dice, focal_and_dice, one_pass

STATE_NAME = "unfinished.safetensors"
FOLDS, STEPS, BATCH, RATE, WARM_UP, STEPS_BETWEEN = 4, 150, 8, 1e-3, 20, 50
OLD, KEPT = 0.5, 0.75  # of a batch; of what is old, where examples are kept
ABSENT = 0.25  # of the prompts, where that is known
NOISE = 0.02  # by which a later score may be lower
MAX_SCORED = 64  # entries of each kind
MAX_MASKS = 512  # that are kept in memory
MIN_MARKED = 0.002  # of an image, for an old prompt
TRIED, MAX_OLD = 8, 512  # old prompts for each image, and for all
MAX_LIKENESS = 0.98  # a cosine: decoders tell no prompts apart that are more alike
SCORES = "new_iou", "old_iou"
COMMON = (
    *("a person", "a face", "hair", "clothes", "an animal", "a dog", "a cat", "a bird", "the sky"),
    *("grass", "a tree", "a plant", "water", "a road", "a wall", "the floor", "a building"),
    *("a window", "a door", "a table", "a chair", "a bottle", "food", "a car", "text", "a box"),
)


class Entry(NamedTuple):
    """A prompt for one turn of an image; without an example, the old decoder says what is right."""

    image: Path
    turn: int
    text: str
    example: Example | None = None


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
    another folder, options out of range, fewer than MIN_IMAGES images, and as CachedFeatures does.
    """
    output = Path(output)
    numbers = {"steps": steps, "batch_size": batch_size, "rate": rate, "pos_weight": pos_weight}
    for name, number in numbers.items():
        if not 0 < number < np.inf:
            raise InputError(f"{name} is {number}; expected a number above 0")
    remove_parts(output)
    if output.exists() and any(output.iterdir()) and not (output / STATE_NAME).is_file():
        raise InputError(f"{output} is there already; expected the name of a new or empty folder")
    lessons = Lessons(segmenter, data, keep, batch_size, seed, cache, progress)
    about = numbers, focal, seed, decoder_only, lessons.mark()
    run = Run(lessons, output, sha256(repr(about).encode()).hexdigest())
    run.loss = focal_and_dice if focal else partial(cross_entropy_and_dice, pos_weight=pos_weight)
    for step in progress(range(run.step, FOLDS * steps), "learning"):
        fold, done = divmod(step, steps)
        if not done:
            run.begin(fold)
        run.learn(rate_at(done, steps, rate, WARM_UP))
        if (done + 1) % STEPS_BETWEEN == 0 or done + 1 == steps:
            run.evaluate()
            run.save(is_last=done + 1 == steps)
    return run.finish(segmenter.processor, decoder_only)


class Lessons:
    """The batches of a run, and the examples that each fold holds out."""

    def __init__(
        self,
        segmenter: Any,
        data: Data,
        keep: Data | None,
        batch_size: int,
        seed: int,
        cache: str | os.PathLike | None,
        progress: Progress,
    ):
        self.model, self.batch_size, self.seed = segmenter.model, batch_size, seed
        rng, self.folds = np.random.default_rng(seed), {}
        for part in filter(None, (data, keep)):
            images = list(dict.fromkeys(example.image for example in part.examples))
            if len(images) < FOLDS:
                raise InputError(f"there are {len(images)} images; expected {FOLDS} or more")
            folds = rng.permutation(len(images)) % FOLDS
            self.folds = dict(zip(images, folds.tolist())) | self.folds
        self.new, self.kept = data, keep
        new, kept = ([*part.examples, *part.absent] if part else [] for part in (data, keep))
        self.names = list(dict.fromkeys(text for e in new for text in e.prompts))
        old_prompts = [*(text for e in kept for text in e.prompts), *understood(segmenter, rng)]
        texts = list(dict.fromkeys([*self.names, *old_prompts]))
        self.old_prompts = texts[len(self.names) :]
        self.embeddings = dict(zip(texts, segmenter.embed(texts)))
        self._warn_of_likeness()
        images = list(dict.fromkeys(example.image for example in new + kept))
        self.number = {image: number for number, image in enumerate(images)}
        options = {"is_reduced": False, "folder": cache, "progress": progress}
        processor = segmenter.processor.image_processor
        self.features = CachedFeatures(self.model, processor, images, **options)
        self.label = lru_cache(MAX_MASKS)(self._label)
        self.size = next(self.logits(self.model, [Entry(images[0], 0, texts[0])])).shape
        self.old = self._old(list(self.folds), rng)

    def _warn_of_likeness(self) -> None:
        """Warn of new prompts that the model cannot tell from old ones."""
        rows = self.model.ops.to_numpy(self.model.ops.xp.stack(list(self.embeddings.values())))
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        likeness = rows[: len(self.names)] @ rows[len(self.names) :].T
        for name, row in zip(self.names, likeness):
            if row.max() > MAX_LIKENESS:
                warnings.warn(
                    f"to this checkpoint, {name!r} is the same as {self.old_prompts[row.argmax()]!r}"
                    f" (their cosine is {row.max():.2f}): both will mark the same",
                    stacklevel=4,
                )

    def _label(self, example: Example) -> np.ndarray:
        """The share of each pixel that is the thing, NaN where that is unknown.  (H,W)"""
        share, ignored = example.target(self.size)
        return share if ignored is None else np.where(ignored, np.float32(np.nan), share)

    def _old(self, images: list[Path], rng: np.random.Generator) -> dict[bool, list]:
        """Old prompts for images and the old decoder's masks, by whether these are of any size."""
        number = min(len(images) * TRIED, MAX_OLD)
        images = [images[n % len(images)] for n in rng.permutation(len(images) * TRIED)[:number]]
        texts = rng.choice(self.old_prompts, number).tolist()
        entries = [Entry(image, 0, text) for image, text in zip(images, texts)]
        self.masks = {e: x > 0 for e, x in zip(entries, self.logits(self.model, entries))}
        old = {True: [], False: []}
        for entry, mask in self.masks.items():
            old[bool(mask.mean() > MIN_MARKED)].append(entry)
        return old

    def tests(self, fold: int) -> list[list[tuple[Entry, np.ndarray]]]:
        """Entries that a fold holds out, of what is new and of what is old, and their labels."""
        turns = range(self.features.turns)
        tests = []
        for data in (self.new, self.kept):
            held_out = [e for e in data.examples if self.folds[e.image] == fold] if data else []
            np.random.default_rng(fold).shuffle(held_out)
            # Each example once and, while they are few, in other turns.
            pairs = [(turn, e) for turn in turns for e in held_out][:MAX_SCORED]
            entries = [Entry(e.image, turn, e.prompts[0], e) for turn, e in pairs]
            tests.append([(e, turned(self.label(e.example), e.turn)) for e in entries])
        if not self.kept:
            marked = [entry for entry in self.old[True] if self.folds[entry.image] == fold]
            tests[1] = [(entry, self.masks[entry]) for entry in marked[:MAX_SCORED]]
        return tests

    def entries(self, fold: int, step: int) -> list[list[Entry]]:
        """Those of a fold's batch: old prompts, and examples."""
        rng = np.random.default_rng((self.seed, fold, step))

        def one(*choices: Sequence) -> Any:
            """One of the first choice that the fold does not hold out all of."""
            learned = ([e for e in values if self.folds.get(e.image) != fold] for values in choices)
            values = next(filter(None, learned))
            return values[rng.integers(len(values))]

        num_old = int(OLD * self.batch_size)
        num_kept = int(KEPT * num_old) if self.kept else 0
        old, examples = [], []
        for place in range(self.batch_size):
            is_absent, turn = rng.random() < ABSENT, int(rng.integers(self.features.turns))
            if place < num_old - num_kept:
                entry = one(self.old[not is_absent], self.old[is_absent])
                old.append(entry._replace(turn=turn))
            else:
                data = self.kept if place < num_old else self.new
                example = one(data.absent if is_absent else (), data.examples)
                text = example.prompts[rng.integers(len(example.prompts))]
                examples.append(Entry(example.image, turn, text, example))
        return [entries for entries in (old, examples) if entries]

    def inputs(self, entries: Sequence[Entry]) -> tuple[list[Array], Array]:
        """Tokens (P,1+hw,D) of each layer, and embeddings (P,projection_dim)."""
        tokens = self.features.load([(self.number[e.image], e.turn) for e in entries])
        return tokens, self.model.ops.xp.stack([self.embeddings[e.text] for e in entries])

    def decoded(self, model: CLIPSegForImageSegmentation, tokens: list, embeddings: Array) -> Array:
        """-> (P,H,W)"""
        return model.decode(ImageFeatures(tuple(tokens), self.features.grid), embeddings)

    def logits(
        self, model: CLIPSegForImageSegmentation, entries: Sequence[Entry]
    ) -> Iterator[np.ndarray]:
        """(H,W) for each entry"""
        for start in range(0, len(entries), BATCH):
            inputs = self.inputs(entries[start : start + BATCH])
            yield from model.ops.to_numpy(self.decoded(model, *inputs))

    def scores(self, model: CLIPSegForImageSegmentation, fold: int) -> dict[str, float]:
        """The mean IoU of what is new and of what is old; 0 where there is no test of it."""
        scores = {}
        for name, test in zip(SCORES, self.tests(fold)):
            logits = self.logits(model, [entry for entry, _ in test])
            pairs = (((x > 0) & ~np.isnan(y), y > 0.5) for x, (_, y) in zip(logits, test))
            scores[name] = round(float(np.mean([image_iou(*pair) for pair in pairs] or [0])), 4)
        return scores

    def mark(self) -> str:
        """A hash of all that the run learns from."""
        files = [file.name for files in self.features.files for file in files]
        sha = sha256(repr((files, list(self.embeddings), fingerprint(self.model))).encode())
        for entry, label in (pair for test in self.tests(0) for pair in test):
            sha.update(repr(entry[:3]).encode())
            sha.update(np.ascontiguousarray(label))
        return sha.hexdigest()


def understood(segmenter: Any, rng: np.random.Generator) -> list[str]:
    """Prompts of known words, alone and in pairs; where any is known, of common ones."""
    words = sorted(segmenter.processor.words)
    pairs = rng.choice(words, (len(words), 2)).tolist() if words else []
    return [f"a {' '.join(words)}" for words in (*([word] for word in words), *pairs)] or [*COMMON]


class OwnDecoder:
    """The arrays of a model for a Scope, with writable copies of the decoder's."""

    def __init__(self, model: CLIPSegForImageSegmentation):
        self.arrays = model.scope.arrays

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        return self.arrays[name].copy() if name.startswith(START) else self.arrays[name]


class Run:
    """A decoder that learns, and all that a run needs to go on."""

    def __init__(self, lessons: Lessons, output: Path, mark: str):
        self.lessons, self.output, self.mark, model = lessons, output, mark, lessons.model
        scope = Scope(OwnDecoder(model), model.ops, model.dtype)
        self.model = CLIPSegForImageSegmentation(model.config, scope)
        self.arrays = {n: array for n, array in scope.arrays.items() if n.startswith(START)}
        self.optimizer = AdamW(self.arrays)
        self.best = {name: array.copy() for name, array in self.arrays.items()}
        self.sum = {name: array * 0 for name, array in self.arrays.items()}
        parts = {"now": self.arrays, "best": self.best, "sum": self.sum}
        parts |= {"mean": self.optimizer.means, "square": self.optimizer.squares}
        self.state = {f"{p}.{name}": array for p in parts for name, array in parts[p].items()}
        self.fold, self.step, self.losses = 0, 0, []
        self.records: list[dict[str, Any]] = []
        if (output / STATE_NAME).is_file():
            self.go_on(output / STATE_NAME)

    def go_on(self, path: Path) -> None:
        """Take the state of the same run."""
        with safe_open(path, framework="numpy") as file:
            about = file.metadata()
        if about.get("mark") != self.mark:
            raise InputError(
                f"{path} is the state of a run with other data, other options or another "
                f"checkpoint, and only the same run goes on: remove it, or give another folder"
            )
        self.records = json.loads(about["records"])
        self.fold, self.step = (self.records[-1][name] for name in ("fold", "step"))
        self.optimizer.steps = int(about["optimizer_steps"])
        for name, raw in tensors_of_file(path).items():
            self.state[name][...] = self.model.ops.asarray(raw.array)

    def begin(self, fold: int) -> None:
        """Start a fold with the old decoder."""
        self.fold, self.optimizer.steps = fold, 0
        for name, array in self.arrays.items():
            array[...] = self.lessons.model.scope.arrays[name]
            self.optimizer.means[name][...] = self.optimizer.squares[name][...] = 0
        self.evaluate()

    def learn(self, rate: float) -> None:
        """One step."""
        lessons, gradients, total = self.lessons, {}, 0.0
        for entries in lessons.entries(self.fold, self.step):
            tokens, embeddings = lessons.inputs(entries)
            if entries[0].example:
                labels = [turned(lessons.label(e.example), e.turn) for e in entries]
                labels, loss = self.model.floats(np.stack(labels)), self.loss
            else:
                labels = lessons.decoded(lessons.model, tokens, embeddings)
                labels, loss = self.model.ops.sigmoid(labels), cross_entropy
            options = {"is_reduced": False, "learns": self.arrays.__contains__, "loss": loss}
            grid, share = lessons.features.grid, len(entries) / lessons.batch_size
            found = one_pass(self.model.decoder, tokens, embeddings, labels, grid, **options)
            total += found.loss * share
            for name, gradient in found.gradients.items():
                gradients[name] = gradient * share + gradients.get(name, 0)
        if not np.isfinite(total):
            raise InputError("the loss is no longer a number: lower the rate")
        self.optimizer.step(gradients, rate)
        self.losses.append(total)
        self.step += 1

    def evaluate(self) -> None:
        """Score the decoder, and keep it if it is the fold's best."""
        loss = round(float(np.mean(self.losses)), 4) if self.losses else None
        record = {"fold": self.fold, "step": self.step, "loss": loss}
        self.records.append(record | self.lessons.scores(self.model, self.fold))
        self.losses = []
        if best_of(self.records, self.fold) is self.records[-1]:
            for name, array in self.arrays.items():
                self.best[name][...] = array

    def save(self, is_last: bool) -> None:
        """Add the best to the sum if the fold ends; write the state and the log."""
        for name, array in self.sum.items() if is_last else ():
            array += self.best[name] / FOLDS
        state = {name: self.model.ops.to_numpy(array) for name, array in self.state.items()}
        about = {"mark": self.mark, "records": json.dumps(self.records)}
        about["optimizer_steps"] = str(self.optimizer.steps)
        save_weights(self.output / STATE_NAME, state, **about)
        write_log(self.output, self.records)

    def finish(self, processor: Any, decoder_only: bool) -> FineTuned:
        """Write the mean of the folds' decoders, and remove the state."""
        for name, array in self.arrays.items():
            array[...] = self.sum[name]
        best = [best_of(self.records, fold) for fold in range(FOLDS)]
        first = [next(r for r in self.records if r["fold"] == fold) for fold in range(FOLDS)]
        before, after = (
            {name: round(float(np.mean([r[name] for r in records])), 4) for name in SCORES}
            for records in (first, best)
        )
        if sum(after.values()) <= sum(before.values()):
            warnings.warn("nothing was learned: the old decoder is better", stacklevel=3)
        path, words = self.output, words_of(self.lessons.names)
        write_log(path, self.records)
        try:
            write_plot(path, self.records)
        except MissingExtra as error:
            warnings.warn(f"there is no plot: {error}", stacklevel=3)
        if decoder_only:
            path = path / DECODER_NAME
            save_decoder(path, self.model.state_dict(), words)
        else:
            processor = copy.copy(processor)
            processor.words = processor.words and processor.words | set(words)
            with written_together(path) as part:
                self.model.save_pretrained(part)
                processor.save_pretrained(part)
        (self.output / STATE_NAME).unlink()
        return FineTuned(path, before, after)


def best_of(records: list[dict[str, Any]], fold: int) -> dict[str, Any]:
    """The fold's last record whose IoU, new and old, sum up to the highest less NOISE."""
    sums = {n: sum(r[s] for s in SCORES) for n, r in enumerate(records) if r["fold"] == fold}
    return records[max(n for n in sums if sums[n] >= max(sums.values()) - NOISE)]
