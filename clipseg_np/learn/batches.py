"""What a decoder learns from: images and prompts, the masks that are right, old prompts among them.

Half of each batch stands against forgetting: examples that are kept, and old prompts on the images
at hand, with the old decoder's probabilities as labels (Li and Hoiem, "Learning without
forgetting", 2016). Half of the old prompts are made of the words that are most like the new ones.

A batch depends on the seed and the step's number alone.
"""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..masks.metrics import image_iou
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.learned_prompt import fingerprint
from ..model.outputs import ImageFeatures
from ..nn.ops import Array
from .data import Data, Example
from .features import CachedFeatures, Progress, turned

FOLDS = 4
OLD, KEPT = 0.5, 0.5  # of a batch; of what is old, where examples are kept
ABSENT = 0.25  # of the prompts, where that is known
MAX_SCORED = 64  # entries of each kind
MAX_MASKS, MAX_DECODED = 512, 8  # that are kept in memory; entries that are decoded together
MIN_MARKED = 0.002  # of an image, for an old prompt
TRIED, MAX_OLD = 8, 1024  # old prompts for each image, and for all
SCORES = "new_iou", "old_iou"
# Old prompts for a checkpoint that reads any language.
COMMON = (
    *("a person", "a face", "hair", "clothes", "an animal", "a dog", "a cat", "a bird", "the sky"),
    *("grass", "a tree", "a plant", "water", "a road", "a wall", "the floor", "a building"),
    *("a window", "a door", "a table", "a chair", "a bottle", "food", "a car", "text", "a box"),
)
PAIRS, NEAREST = 100, 4  # of words, for old prompts; words that are like a new prompt
RIDGE = 1e-4  # of the mean variance
RATE_OF_FILM = 20  # by which FiLM learns faster than the rest


class Entry(NamedTuple):
    """A prompt for one turn of an image; without an example, the old decoder says what is right."""

    image: Path
    turn: int
    text: str
    example: Example | None = None


class Whitening:
    """Other coordinates of embeddings, in which prompts that are almost alike lie apart.

    e' = (e - mean) A, with an A that makes the covariance of the rows of `embeddings` (n,D) the
    unit matrix, or nearly so. FiLM's W e + b is W' e' + b' there. In a checkpoint that knows few
    words, a new word's embedding may be 0.998 that of an old one.
    """

    def __init__(self, embeddings: np.ndarray):
        self.mean = embeddings.mean(axis=0, dtype=np.float64)
        values, vectors = np.linalg.eigh(np.cov(embeddings.T, dtype=np.float64))
        roots = np.sqrt(values + RIDGE * values.mean())
        self.into = RATE_OF_FILM * (vectors / roots) @ vectors.T
        self.back = (vectors * roots) @ vectors.T / RATE_OF_FILM

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        return (embeddings - self.mean) @ self.into

    def film(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W and b to W' and b'"""
        return weight @ self.back, bias + weight @ self.mean

    def film_back(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """W' and b' to W and b"""
        weight = weight @ self.into
        return weight, bias - weight @ self.mean


class Batches:
    """The batches of a run, and the examples that each fold holds out. Raises InputError for few.

    `whitening` is of the prompts of a checkpoint that knows few words; else it is None.
    """

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
        self.model, self.new, self.kept = segmenter.model, data, keep
        self.batch_size, self.seed, rng = batch_size, seed, np.random.default_rng(seed)
        self.folds: dict[Path, int] = {}
        for part in filter(None, (data, keep)):
            images = list(dict.fromkeys(example.image for example in part.examples))
            if len(images) < FOLDS:
                raise InputError(f"there are {len(images)} images; expected {FOLDS} or more")
            self.folds = dict(zip(images, rng.permutation(len(images)) % FOLDS)) | self.folds
        new, kept = ([*part.examples, *part.absent] if part else [] for part in (data, keep))
        self.names, kept_names = (
            list(dict.fromkeys(text for example in part for text in example.prompts))
            for part in (new, kept)
        )
        words = sorted(segmenter.processor.words)
        self.old_prompts = old_prompts(segmenter, words, self.names, rng) or [*COMMON, *kept_names]
        texts = list(dict.fromkeys([*self.names, *kept_names, *self.old_prompts]))
        rows = segmenter.embed(texts)
        self.embeddings = dict(zip(texts, rows))
        asked = [self.embeddings[text] for text in (*self.names, *self.old_prompts)]
        asked = self.model.ops.to_numpy(self.model.ops.xp.stack(asked))
        self.whitening = Whitening(asked) if words else None
        whitened = rows if not words else self.whitening(self.model.ops.to_numpy(rows))
        self.own_embeddings = dict(zip(texts, self.model.floats(whitened)))
        images = list(dict.fromkeys(example.image for example in new + kept))
        self.number = {image: number for number, image in enumerate(images)}
        options = {"is_reduced": False, "folder": cache, "progress": progress}
        processor = segmenter.processor.image_processor
        self.features = CachedFeatures(self.model, processor, images, **options)
        self.label = lru_cache(MAX_MASKS)(self._label)
        self.size = next(self.logits(self.model, [Entry(images[0], 0, texts[0])])).shape
        self.tests = lru_cache(1)(self._tests)
        # Old prompts for images, by whether the old decoder marks something.
        self.old: dict[bool, list[Entry]] = {True: [], False: []}
        entries = [Entry(image, 0, "") for image in self.folds for _ in range(TRIED)]
        entries = [entries[n] for n in rng.permutation(len(entries))[:MAX_OLD]]
        texts = rng.choice(self.old_prompts, len(entries)).tolist()
        entries = [entry._replace(text=text) for entry, text in zip(entries, texts)]
        for entry, logits in zip(entries, self.logits(self.model, entries)):
            self.old[bool((logits > 0).mean() > MIN_MARKED)].append(entry)

    def _label(self, example: Example) -> np.ndarray:
        """The share of each pixel that is the thing, NaN where that is unknown.  (H,W)"""
        share, ignored = example.target(self.size)
        return share if ignored is None else np.where(ignored, np.float32(np.nan), share)

    def _tests(self, fold: int) -> list[tuple[list[Entry], list[np.ndarray]]]:
        """What a fold holds out, and its labels (H,W): of what is new, and of what is old."""
        tests = []
        for data in filter(None, (self.new, self.kept)):
            held_out = [e for e in data.examples if self.folds[e.image] == fold]
            np.random.default_rng(fold).shuffle(held_out)
            # Each example once and, while they are few, in other turns.
            pairs = [(turn, e) for turn in range(self.features.turns) for e in held_out]
            entries = [Entry(e.image, turn, e.prompts[0], e) for turn, e in pairs[:MAX_SCORED]]
            tests.append((entries, [turned(self.label(e.example), e.turn) for e in entries]))
        if not self.kept:
            marked = [entry for entry in self.old[True] if self.folds[entry.image] == fold]
            entries = marked[:MAX_SCORED]
            tests.append((entries, [x > 0 for x in self.logits(self.model, entries)]))
        return tests

    def entries(self, fold: int, step: int) -> list[Entry]:
        """A step's batch; old prompts come first."""
        rng, entries = np.random.default_rng((self.seed, step)), []

        def one(number: int, *choices: Sequence) -> Any:
            """By turns, in an order that is drawn, of the first choice that is not held out."""
            learned = ([e for e in values if self.folds.get(e.image) != fold] for values in choices)
            values = next(filter(None, learned))
            lap, place = divmod(number, len(values))
            return values[np.random.default_rng((self.seed, lap)).permutation(len(values))[place]]

        num_old = int(OLD * self.batch_size)
        num_kept = int(KEPT * num_old) if self.kept else 0
        counts = num_old - num_kept, num_kept, self.batch_size - num_old
        for data, count in zip((None, self.kept, self.new), counts):
            for number in range(step * count, (step + 1) * count):
                is_absent, turn = rng.random() < ABSENT, int(rng.integers(self.features.turns))
                if data is None:
                    entry = one(number, self.old[not is_absent], self.old[is_absent])
                    entries.append(entry._replace(turn=turn))
                    continue
                example = one(number, data.absent if is_absent else (), data.examples)
                text = example.prompts[rng.integers(len(example.prompts))]
                entries.append(Entry(example.image, turn, text, example))
        return entries

    def inputs(self, model: Any, entries: Sequence[Entry]) -> tuple[list[Array], Array]:
        """Tokens (P,1+hw,D) of each layer, and a model's own embeddings (P,projection_dim)."""
        tokens = self.features.load([(self.number[e.image], e.turn) for e in entries])
        embeddings = self.embeddings if model is self.model else self.own_embeddings
        return tokens, self.model.ops.xp.stack([embeddings[e.text] for e in entries])

    def decoded(self, model: CLIPSegForImageSegmentation, entries: Sequence[Entry]) -> Array:
        """-> (P,H,W)"""
        tokens, embeddings = self.inputs(model, entries)
        return model.decode(ImageFeatures(tuple(tokens), self.features.grid), embeddings)

    def logits(
        self, model: CLIPSegForImageSegmentation, entries: Sequence[Entry]
    ) -> Iterator[np.ndarray]:
        """(H,W) for each entry, in main memory"""
        for start in range(0, len(entries), MAX_DECODED):
            some = entries[start : start + MAX_DECODED]
            yield from model.ops.to_numpy(self.decoded(model, some))

    def labels(self, entries: Sequence[Entry]) -> Array:
        """(P,H,W), 0 to 1 or NaN"""
        old = [entry for entry in entries if entry.example is None]
        rest = [turned(self.label(e.example), e.turn) for e in entries[len(old) :]]
        parts = [self.model.floats(np.stack(rest))] if rest else []
        if old:
            parts.insert(0, self.model.ops.sigmoid(self.decoded(self.model, old)))
        return self.model.ops.xp.concatenate(parts)

    def scores(self, model: CLIPSegForImageSegmentation, fold: int) -> dict[str, float]:
        """The mean IoU of what is new and of what is old; 0 where there is no test of it."""
        scores = {}
        for name, (entries, labels) in zip(SCORES, self.tests(fold)):
            pairs = zip(self.logits(model, entries), labels)
            ious = [image_iou((x > 0) & ~np.isnan(y), y > 0.5) for x, y in pairs]
            scores[name] = round(float(np.mean(ious or [0])), 4)
        return scores

    def mark(self) -> str:
        """A hash of all that a run learns from."""
        files = [file.name for files in self.features.files for file in files]
        sha = sha256(repr((files, list(self.embeddings), fingerprint(self.model))).encode())
        for entries, labels in self.tests(0):
            sha.update(repr([entry[:3] for entry in entries]).encode())
            sha.update(np.ascontiguousarray(labels))
        return sha.hexdigest()


def old_prompts(
    segmenter: Any, words: list[str], names: list[str], rng: np.random.Generator
) -> list[str]:
    """Prompts of known words; half of them hold a word that is like one of the names."""
    if not words:
        return []
    singles = [f"a {word}" for word in words]
    rows = segmenter.model.ops.to_numpy(segmenter.embed([*names, *singles]))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = (rows[: len(names)] @ rows[len(names) :].T).max(axis=0)
    near = [words[n] for n in np.argsort(-likeness)[: NEAREST * len(names)]]
    texts = [*singles, *(f"a {first} {second}" for first, second in rng.choice(words, (PAIRS, 2)))]
    drawn = zip(rng.choice(words, len(texts)), rng.choice(near, len(texts)))
    half = [f"a {word} {like}" if n % 4 else f"a {like}" for n, (word, like) in enumerate(drawn)]
    return texts + half
