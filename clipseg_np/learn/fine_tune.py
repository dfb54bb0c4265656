"""A decoder of one's own: it learns what masks mark, and the towers stay as they are.

Half of each batch stands against forgetting: old prompts, with the old decoder's probabilities as
labels (Li and Hoiem, "Learning without forgetting", 2016), and examples that are kept, if any. Some
images are held out; the weights that do best on them are kept, and then tried on the way back to
the old ones (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022).

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
STEPS, BATCH, RATE, WARM_UP, STEPS_BETWEEN = 300, 16, 1e-3, 20, 20
HELD_OUT, MIN_IMAGES = 0.2, 4  # of the images
OLD, KEPT = 0.5, 0.5  # of a batch; of what is old
ABSENT = 0.25  # of the prompts, where that is known
SHARES = (1, 0.9, 0.8)  # of the way from the old weights to the best
MAX_SCORED = 64  # examples of each kind
MAX_MASKS = 512  # that are kept in memory
MIN_MARKED = 0.002  # of an image, for an old prompt
TRIED = 8  # old prompts for each image
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
    """The file or folder that was written, and the log's records of the old and new decoder."""

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
    for step in progress(range(run.optimizer.steps, steps), "learning"):
        run.learn(rate_at(step, steps, rate, WARM_UP))
        if (step + 1) % STEPS_BETWEEN == 0 or step + 1 == steps:
            run.evaluate()
    return run.finish(segmenter.processor, decoder_only)


class Lessons:
    """The batches of a run, and the held-out examples that it is scored by."""

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
        rng = np.random.default_rng(seed)
        (self.new, held_out), (self.kept, held_out_kept) = split(data, rng), split(keep, rng)
        new, kept = ([*part.examples, *part.absent] if part else [] for part in (data, keep))
        self.names = list(dict.fromkeys(text for e in new for text in e.prompts))
        known = segmenter.processor.words
        self.old_prompts = [*dict.fromkeys(e.prompts[0] for e in kept), *understood(known, rng)]
        self.old_prompts = [text for text in self.old_prompts if text not in self.names]
        texts = [*self.names, *self.old_prompts, *(text for e in kept for text in e.prompts)]
        texts = list(dict.fromkeys(texts))
        self.embeddings = dict(zip(texts, segmenter.embed(texts)))
        images = list(dict.fromkeys(example.image for example in new + kept))
        self.number = {image: number for number, image in enumerate(images)}
        options = {"is_reduced": False, "folder": cache, "progress": progress}
        processor = segmenter.processor.image_processor
        self.features = CachedFeatures(self.model, processor, images, **options)
        self.label = lru_cache(MAX_MASKS)(self._label)
        self.size = next(self.logits(self.model, [Entry(images[0], 0, texts[0])])).shape
        # Entries without examples, by whether the old decoder marks something.
        learned = self.new.examples + (self.kept.examples if keep else [])
        self.old = {True: [], False: []}
        for entry, label in self._old(learned, rng):
            self.old[label.any()].append(entry)
        # Entries and their labels (H,W): of what is new, and of what is old.
        marked = [(entry, y) for entry, y in self._old(held_out.examples, rng) if y.any()]
        old = self._tests(held_out_kept.examples) if keep else marked[:MAX_SCORED]
        self.tests = self._tests(held_out.examples), old

    def _label(self, example: Example) -> np.ndarray:
        """The share of each pixel that is the thing, NaN where that is unknown.  (H,W)"""
        share, ignored = example.target(self.size)
        return share if ignored is None else np.where(ignored, np.float32(np.nan), share)

    def _tests(self, examples: Sequence[Example]) -> list[tuple[Entry, np.ndarray]]:
        """Each example once and, while they are few, in other turns."""
        pairs = [(turn, e) for turn in range(self.features.turns) for e in examples][:MAX_SCORED]
        entries = [Entry(e.image, turn, e.prompts[0], e) for turn, e in pairs]
        return [(entry, turned(self.label(entry.example), entry.turn)) for entry in entries]

    def _old(self, examples: Sequence[Example], rng: np.random.Generator) -> list:
        """Old prompts for the examples' images, with the old decoder's masks; small ones are 0."""
        images = list(dict.fromkeys(example.image for example in examples))
        texts = rng.choice(self.old_prompts, (TRIED, len(images))).tolist()
        entries = [Entry(image, 0, text) for row in texts for image, text in zip(images, row)]
        masks = (x > 0 for x in self.logits(self.model, entries))
        masks = ((mask & (mask.mean() > MIN_MARKED)).astype("f") for mask in masks)
        return list(zip(entries, masks))

    def entries(self, step: int) -> list[list[Entry]]:
        """Those of a step's batch: old prompts, and examples."""
        rng = np.random.default_rng((self.seed, step))

        def one(values: Sequence) -> Any:
            return values[rng.integers(len(values))]

        num_old = int(OLD * self.batch_size)
        num_kept = int(KEPT * num_old) if self.kept else 0
        turns, old, examples = range(self.features.turns), [], []
        for place in range(self.batch_size):
            is_absent, turn = rng.random() < ABSENT, one(turns)
            if place < num_old - num_kept:
                entry = one(self.old[not is_absent] or self.old[is_absent])
                old.append(entry._replace(turn=turn))
            else:
                data = self.kept if place < num_old else self.new
                example = one(data.absent if is_absent and data.absent else data.examples)
                examples.append(Entry(example.image, turn, one(example.prompts), example))
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

    def scores(self, model: CLIPSegForImageSegmentation) -> dict[str, float]:
        """The mean IoU of what is new and of what is old; 0 where there is no test of it."""
        scores = {}
        for name, test in zip(("new_iou", "old_iou"), self.tests):
            logits = self.logits(model, [entry for entry, _ in test])
            pairs = (((x > 0) & ~np.isnan(y), y > 0.5) for x, (_, y) in zip(logits, test))
            scores[name] = round(float(np.mean([image_iou(*pair) for pair in pairs] or [0])), 4)
        return scores

    def mark(self) -> str:
        """A hash of all that the run learns from."""
        files = [file.name for files in self.features.files for file in files]
        sha = sha256(repr((files, list(self.embeddings), fingerprint(self.model))).encode())
        for entry, label in (pair for test in self.tests for pair in test):
            sha.update(repr(entry[:3]).encode())
            sha.update(np.ascontiguousarray(label))
        return sha.hexdigest()


def split(data: Data | None, rng: np.random.Generator) -> tuple:
    """The data of most images, to learn from, and those of the images that are held out."""
    if data is None:
        return None, None
    images = list(dict.fromkeys(example.image for example in data.examples))
    if len(images) < MIN_IMAGES:
        raise InputError(f"there are {len(images)} images; expected {MIN_IMAGES} or more")
    held_out = {images[n] for n in rng.permutation(len(images))[: round(HELD_OUT * len(images))]}
    parts = [
        [[e for e in kind if (e.image in held_out) == is_held_out] for is_held_out in (False, True)]
        for kind in (data.examples, data.absent)
    ]
    return tuple(Data(*pair, data.absence_known) for pair in zip(*parts))


def understood(known: frozenset[str], rng: np.random.Generator) -> list[str]:
    """Prompts of known words, alone and in pairs; where any is known, of common ones."""
    words = sorted(known)
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
        parts = "now", self.arrays, "best", self.best
        parts += "mean", self.optimizer.means, "square", self.optimizer.squares
        self.state = {
            f"{part}.{name}": array
            for part, arrays in zip(parts[::2], parts[1::2])
            for name, array in arrays.items()
        }
        self.records: list[dict[str, Any]] = []
        self.losses: list[float] = []
        if (output / STATE_NAME).is_file():
            self.go_on(output / STATE_NAME)
        else:
            self.evaluate()

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
        self.optimizer.steps = self.records[-1]["step"]
        for name, raw in tensors_of_file(path).items():
            self.state[name][...] = self.model.ops.asarray(raw.array)

    def learn(self, rate: float) -> None:
        """One step."""
        lessons, gradients, total = self.lessons, {}, 0.0
        for entries in lessons.entries(self.optimizer.steps):
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

    def evaluate(self) -> None:
        """Score the decoder, keep it if it is the best, and write the log and the state."""
        loss = round(float(np.mean(self.losses)), 4) if self.losses else None
        record = {"step": self.optimizer.steps, "loss": loss, **self.lessons.scores(self.model)}
        self.records.append(record)
        self.losses = []
        if record is best_of(self.records):
            for name, array in self.arrays.items():
                self.best[name][...] = array
        state = {name: self.model.ops.to_numpy(array) for name, array in self.state.items()}
        records = json.dumps(self.records)
        save_weights(self.output / STATE_NAME, state, mark=self.mark, records=records)
        write_log(self.output, self.records)

    def finish(self, processor: Any, decoder_only: bool) -> FineTuned:
        """Write the decoder that does best on what is held out, and remove the state."""
        step, tried = best_of(self.records)["step"], []
        for share in SHARES:
            self.mix(share)
            tried.append({"step": step, "share": share, **self.lessons.scores(self.model)})
        after, path, words = best_of(tried), self.output, words_of(self.lessons.names)
        self.mix(after["share"])
        if not step:
            warnings.warn("nothing was learned: the old decoder is best", stacklevel=3)
        write_log(path, [*self.records, after])
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
        return FineTuned(path, self.records[0], after)

    def mix(self, share: float) -> None:
        """Go a share of the way from the old decoder to the best."""
        for name, array in self.arrays.items():
            old = self.lessons.model.scope.arrays[name]
            array[...] = self.best[name] if share == 1 else old + share * (self.best[name] - old)


def best_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The record with the highest sum of both IoU; the first of several."""
    return max(records, key=lambda record: record["new_iou"] + record["old_iou"])
