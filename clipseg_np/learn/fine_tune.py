"""A decoder of one's own: it learns what masks mark, and the towers stay as they are.

Against forgetting, a part of each batch is old: examples that are kept from earlier or, without
them, old prompts on the new images, whose masks are the old decoder's (Li and Hoiem, "Learning
without forgetting", 2016). Some images are held out; the weights that do best on them are kept.

A batch depends on the seed and the step's number alone. So a run that was killed goes on from its
last state, and on one thread ends with the same bits as one that was not.
"""

import copy
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from .step import Loss, cross_entropy, cross_entropy_and_dice, focal_and_dice, one_pass

STATE_NAME = "unfinished.safetensors"
STEPS, BATCH, RATE, WARM_UP, STEPS_BETWEEN = 200, 8, 1e-3, 20, 20
HELD_OUT, MIN_IMAGES = 0.2, 4  # of the images
OLD = 0.5  # of a batch
KEPT = 0.5  # of what is old
ABSENT = 0.2  # of the prompts
MAX_SCORED = 64  # held-out examples of each kind
MAX_MASKS = 512  # that are kept in memory
OLD_PROMPTS, TRIED = 64, 8  # made of known words; for each image
# For a checkpoint that reads any language.
COMMON = (
    *("a person", "a face", "hair", "clothes", "an animal", "a dog", "a cat", "a bird", "the sky"),
    *("grass", "a tree", "a plant", "water", "a road", "a wall", "the floor", "a building"),
    *("a window", "a door", "a table", "a chair", "a bottle", "food", "a car", "text", "a box"),
)


class Entry(NamedTuple):
    """A prompt for one turn of an image; without an example, the old decoder's mask is right."""

    image: Path
    turn: int
    text: str
    example: Example | None


@dataclass(frozen=True)
class FineTuned:
    """The file or folder that was written, and the log's records of the old and new decoder."""

    path: Path
    before: dict[str, Any]
    after: dict[str, Any]


class OwnDecoder:
    """The arrays of a model for a Scope, with writable copies of the decoder's."""

    def __init__(self, model: CLIPSegForImageSegmentation):
        self.arrays = model.scope.arrays

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        return self.arrays[name].copy() if name.startswith(START) else self.arrays[name]


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
    loss = focal_and_dice if focal else partial(cross_entropy_and_dice, pos_weight=pos_weight)
    for step in progress(range(run.optimizer.steps, steps), "learning"):
        run.learn(rate_at(step, steps, rate, WARM_UP), loss)
        if (step + 1) % STEPS_BETWEEN == 0 or step + 1 == steps:
            run.evaluate()
    return run.finish(segmenter, decoder_only)


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
        self.new, new_held_out = split(data, rng)
        self.kept, kept_held_out = split(keep, rng) if keep else (None, None)
        examples = [*data.examples, *data.absent]
        self.names = list(dict.fromkeys(text for e in examples for text in e.prompts))
        kept = [*keep.examples, *keep.absent] if keep else []
        self.old_prompts = list(dict.fromkeys(e.prompts[0] for e in kept))
        self.old_prompts += old_prompts(segmenter.processor.words, self.names, rng)
        examples += kept
        texts = [*(text for e in examples for text in e.prompts), *self.old_prompts]
        texts = list(dict.fromkeys(texts))
        self.embeddings = dict(zip(texts, segmenter.embed(texts)))
        images = list(dict.fromkeys(e.image for e in examples))
        self.number = {image: number for number, image in enumerate(images)}
        processor = segmenter.processor.image_processor
        options = {"is_reduced": False, "folder": cache, "progress": progress}
        self.features = CachedFeatures(self.model, processor, images, **options)
        self.label = lru_cache(MAX_MASKS)(self._label)
        (first,) = self.logits(self.model, [Entry(images[0], 0, texts[0], None)])
        self.size = first.shape
        learned = [*self.new.examples, *(self.kept.examples if keep else [])]
        nothing = [Entry(e.image, 0, self.old_prompts[0], None) for e in learned]
        self.marked = [entry for entry, _ in self._marked(learned, rng)] or nothing
        # Entries and their labels (H,W): of what is new, and of what is old.
        new = self._tests(new_held_out.examples)
        old = (
            self._tests(kept_held_out.examples)
            if keep
            else self._marked(new_held_out.examples, rng)
        )
        self.tests = new, old[:MAX_SCORED]

    def _label(self, example: Example) -> np.ndarray:
        """The share of each pixel that is the thing, NaN where that is unknown.  (H,W)"""
        share, ignored = example.target(self.size)
        return share if ignored is None else np.where(ignored, np.float32(np.nan), share)

    def _tests(self, examples: Sequence[Example]) -> list[tuple[Entry, np.ndarray]]:
        """Each once and, while there are few, in other turns."""
        pairs = [(turn, e) for turn in range(self.features.turns) for e in examples][:MAX_SCORED]
        return [
            (Entry(e.image, turn, e.prompts[0], e), turned(self.label(e), turn))
            for turn, e in pairs
        ]

    def _marked(self, examples: Sequence[Example], rng: np.random.Generator) -> list:
        """Old prompts of which the old decoder marks something in the images, and the masks."""
        entries = []
        for image in dict.fromkeys(example.image for example in examples):
            texts = rng.choice(self.old_prompts, TRIED).tolist()
            entries += [Entry(image, 0, text, None) for text in dict.fromkeys(texts)]
        masks = ((x > 0).astype("f") for x in self.logits(self.model, entries))
        found = [(entry, mask) for entry, mask in zip(entries, masks) if mask.mean() > 0.002]
        return [found[n] for n in rng.permutation(len(found))]

    def entries(self, step: int) -> list[Entry]:
        """Those of a step's batch; the ones whose masks are the old decoder's come first."""
        rng, entries = np.random.default_rng((self.seed, step)), []

        def one(values: Sequence) -> Any:
            return values[rng.integers(len(values))]

        num_old = int(OLD * self.batch_size)
        num_kept = int(KEPT * num_old) if self.kept else 0
        for place in range(self.batch_size):
            is_absent, turn = rng.random() < ABSENT, one(range(self.features.turns))
            if place < num_old - num_kept:
                image, _, text, _ = one(self.marked)
                text = one(self.old_prompts) if is_absent else text
                entries.append(Entry(image, turn, text, None))
            else:
                data = self.kept if place < num_old else self.new
                example = one(data.absent if is_absent and data.absent else data.examples)
                entries.append(Entry(example.image, turn, one(example.prompts), example))
        return entries

    def inputs(self, entries: Sequence[Entry]) -> tuple[list[Array], Array]:
        """Tokens (P,1+hw,D) of each layer, and embeddings (P,projection_dim)."""
        tokens = self.features.load([(self.number[e.image], e.turn) for e in entries])
        return tokens, self.model.ops.xp.stack([self.embeddings[e.text] for e in entries])

    def labels(self, entries: Sequence[Entry], tokens: list[Array], embeddings: Array) -> Array:
        """(P,H,W), 0 to 1 or NaN; of old prompts the old decoder's probabilities."""
        if entries[0].example is None:
            features = ImageFeatures(tuple(tokens), self.features.grid)
            return self.model.ops.sigmoid(self.model.decode(features, embeddings))
        labels = [turned(self.label(entry.example), entry.turn) for entry in entries]
        return self.model.floats(np.stack(labels))

    def logits(
        self, model: CLIPSegForImageSegmentation, entries: Sequence[Entry]
    ) -> Iterator[np.ndarray]:
        """(H,W) for each entry"""
        for start in range(0, len(entries), BATCH):
            tokens, embeddings = self.inputs(entries[start : start + BATCH])
            features = ImageFeatures(tuple(tokens), self.features.grid)
            yield from model.ops.to_numpy(model.decode(features, embeddings))

    def scores(self, model: CLIPSegForImageSegmentation) -> list[float]:
        """The mean IoU of what is new and of what is old; 0 where there is no test of it."""
        scores = []
        for test in self.tests:
            logits = self.logits(model, [entry for entry, _ in test])
            pairs = [((x > 0) & ~np.isnan(y), y > 0.5) for x, (_, y) in zip(logits, test)]
            ious = [image_iou(*pair) for pair in pairs]
            scores.append(round(float(np.mean(ious or [0])), 4))
        return scores

    def mark(self) -> str:
        """A hash of all that the run learns from."""
        entries = [file.name for files in self.features.files for file in files]
        sha = sha256(repr((entries, self.old_prompts, list(self.embeddings))).encode())
        sha.update(fingerprint(self.model).encode())
        for entry, label in (pair for test in self.tests for pair in test):
            sha.update(repr(entry[:3]).encode())
            sha.update(np.ascontiguousarray(label))
        return sha.hexdigest()


def split(data: Data, rng: np.random.Generator) -> list[Data]:
    """The data of most images, to learn from, and those of the images that are held out."""
    images = list(dict.fromkeys(example.image for example in data.examples))
    if len(images) < MIN_IMAGES:
        raise InputError(f"there are {len(images)} images; expected {MIN_IMAGES} or more")
    number = max(1, round(HELD_OUT * len(images)))
    held_out = {images[n] for n in rng.permutation(len(images))[:number]}
    return [
        Data(
            [e for e in data.examples if (e.image in held_out) == is_held_out],
            [e for e in data.absent if (e.image in held_out) == is_held_out],
            data.absence_known,
        )
        for is_held_out in (False, True)
    ]


def old_prompts(known: frozenset[str], names: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Prompts that the old decoder understands."""
    if not known:
        return [text for text in COMMON if text not in names]
    words = sorted(known - set(words_of(names)))
    pairs = rng.choice(words, (OLD_PROMPTS, 2)).tolist()
    return [*(f"a {word}" for word in words), *(f"a {' '.join(pair)}" for pair in pairs)]


class Run:
    """A decoder that learns, and all that a run needs to go on."""

    def __init__(self, lessons: Lessons, output: Path, mark: str):
        self.lessons, self.output, self.mark = lessons, output, mark
        model = lessons.model
        scope = Scope(OwnDecoder(model), model.ops, model.dtype)
        self.model = CLIPSegForImageSegmentation(model.config, scope)
        arrays = {n: array for n, array in scope.arrays.items() if n.startswith(START)}
        self.optimizer = AdamW(arrays)
        self.best = {name: array.copy() for name, array in arrays.items()}
        self.parts = {
            "now": arrays,
            "best": self.best,
            "mean": self.optimizer.means,
            "square": self.optimizer.squares,
        }
        self.records: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self._load()

    def _load(self) -> None:
        """Take the state of the same run, or evaluate the start."""
        state = self.output / STATE_NAME
        if not state.is_file():
            self.evaluate()
            return
        with safe_open(state, framework="numpy") as file:
            about = file.metadata()
        if about.get("mark") != self.mark:
            raise InputError(
                f"{self.output} holds the state of a run with other data, other options or another "
                f"checkpoint, and only the same run goes on: remove it, or give another folder"
            )
        self.records = json.loads(about["records"])
        self.optimizer.steps = self.records[-1]["step"]
        for key, raw in tensors_of_file(state).items():
            part, _, name = key.partition(".")
            self.parts[part][name][...] = self.model.ops.asarray(raw.array)

    def learn(self, rate: float, loss: Loss) -> None:
        """One step."""
        lessons, step = self.lessons, self.optimizer.steps
        grid, learns = lessons.features.grid, self.optimizer.arrays.__contains__
        gradients, total = defaultdict(float), 0.0
        entries = lessons.entries(step)
        for is_old in (True, False):
            part = [entry for entry in entries if (entry.example is None) == is_old]
            if not part:
                continue
            tokens, embeddings = lessons.inputs(part)
            labels, share = lessons.labels(part, tokens, embeddings), len(part) / len(entries)
            options = {
                "is_reduced": False,
                "learns": learns,
                "loss": cross_entropy if is_old else loss,
            }
            found = one_pass(self.model.decoder, tokens, embeddings, labels, grid, **options)
            total += found.loss * share
            for name, gradient in found.gradients.items():
                gradients[name] = gradients[name] + gradient * share
        if not np.isfinite(total):
            raise InputError(f"at step {step}, the loss is no longer a number: lower the rate")
        self.optimizer.step(gradients, rate)
        self.losses.append(total)

    def evaluate(self) -> None:
        """Score the decoder, keep it if it is the best, and write the log and the state."""
        new, old = self.lessons.scores(self.model)
        loss = round(float(np.mean(self.losses)), 4) if self.losses else None
        record = {"step": self.optimizer.steps, "loss": loss, "new_iou": new, "old_iou": old}
        self.records.append(record)
        self.losses = []
        if record is best_of(self.records):
            for name, array in self.optimizer.arrays.items():
                self.best[name][...] = array
        state = {
            f"{part}.{name}": self.model.ops.to_numpy(array)
            for part, arrays in self.parts.items()
            for name, array in arrays.items()
        }
        records = json.dumps(self.records)
        save_weights(self.output / STATE_NAME, state, mark=self.mark, records=records)
        write_log(self.output, self.records)

    def finish(self, segmenter: Any, decoder_only: bool) -> FineTuned:
        """Write the best decoder, and remove the state."""
        for name, array in self.optimizer.arrays.items():
            array[...] = self.best[name]
        write_log(self.output, self.records)
        words = words_of(self.lessons.names)
        before, after = self.records[0], best_of(self.records)
        try:
            write_plot(self.output, self.records)
        except MissingExtra as error:
            warnings.warn(f"no plot: {error}", stacklevel=3)
        path = self.output
        if decoder_only:
            path = path / DECODER_NAME
            save_decoder(path, self.model.state_dict(), words)
        else:
            processor = copy.copy(segmenter.processor)
            processor.words = processor.words and processor.words | set(words)
            with written_together(self.output) as part:
                self.model.save_pretrained(part)
                processor.save_pretrained(part)
        (self.output / STATE_NAME).unlink()
        return FineTuned(path, before, after)


def best_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The record with the highest sum of both IoU; the first of several."""
    return max(records, key=lambda record: record["new_iou"] + (record["old_iou"] or 0))
