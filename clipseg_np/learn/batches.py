"""A decoder learns from new prompts with their masks, and from old ones against forgetting.

Half of each batch is old: examples that are kept, and old prompts on the images at hand, with the
old decoder's probabilities as labels (Li and Hoiem, "Learning without forgetting", 2016). Half of
the old prompts are made of the words that are most like the new ones.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np

from ..backends.threads import slices
from ..model.clipseg import Decoder
from ..model.learned_prompt import fingerprint
from ..nn.ops import Array, in_main_memory
from .data import Data, Example
from .lessons import Entry, Lessons

OLD, KEPT = 0.5, 0.5  # of a batch; of what is old, where examples are kept
MAX_SCORED = 64  # entries of each kind
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


class Batches(Lessons):
    """The batches of a run, and what scores a decoder.

    `old` holds old prompts on images, as examples without masks: `examples` are those for which the
    old decoder marks something. FiLM learns in `coordinates`, if not None: see `far_apart`.
    """

    def __init__(self, segmenter: Any, data: Data, keep: Data | None, batch_size: int, **options):
        parts = [data, keep] if keep else [data]
        super().__init__(segmenter, parts, is_reduced=False, **options)
        self.new, self.kept, self.batch_size = data, keep or Data([], []), batch_size
        self.names, kept_names = (
            list(dict.fromkeys(t for e in (*part.examples, *part.absent) for t in e.prompts))
            for part in (data, self.kept)
        )
        words = sorted(segmenter.processor.words)
        texts = old_prompts(segmenter, words, self.names, self.rng) or [*COMMON, *kept_names]
        prompts = list(dict.fromkeys([*self.names, *kept_names, *texts]))
        self.embeddings, self.coordinates = dict(zip(prompts, segmenter.embed(prompts))), None
        if words:
            rows = in_main_memory(self.rows([*self.names, *texts]))
            self.coordinates = tuple(map(self.model.floats, far_apart(rows)))
        self.tests = lru_cache(1)(self._tests)
        self.old = Data([], [])
        images = [image for image in self.folds for _ in range(TRIED)]
        images = [images[n] for n in self.rng.permutation(len(images))[:MAX_OLD]]
        pairs = zip(images, self.rng.choice(texts, len(images)).tolist())
        entries = [Entry(Example(image, (text,), None), 0, text) for image, text in pairs]
        for part in slices(len(entries), MAX_SCORED):
            marked = self.decoded(self.model.decoder, entries[part]) > 0
            shares = in_main_memory(marked.mean(axis=(1, 2)))
            for entry, share in zip(entries[part], shares):
                is_marked = share > MIN_MARKED
                (self.old.examples if is_marked else self.old.absent).append(entry.example)

    def rows(self, texts: Iterable[str]) -> Array:
        """-> (P,projection_dim)"""
        return self.model.ops.xp.stack([self.embeddings[text] for text in texts])

    def decoded(self, decoder: Decoder, entries: Sequence[Entry]) -> Array:
        """-> (P,H,W)"""
        return self.logits(decoder, entries, self.rows(entry.text for entry in entries))

    def batch(self, fold: int, step: int) -> list[Entry]:
        """A step's entries; old prompts come first."""
        rng, num_old = np.random.default_rng((self.seed, step)), int(OLD * self.batch_size)
        num_kept = int(KEPT * num_old) if self.kept.examples else 0
        counts = num_old - num_kept, num_kept, self.batch_size - num_old
        parts = zip((self.old, self.kept, self.new), counts)
        return [e for data, n in parts for e in self.entries(data, n, fold, step, rng)]

    def targets(self, entries: Sequence[Entry]) -> Array:
        """(P,H,W), 0 to 1 or NaN: for old prompts, the old decoder's; for others, the masks."""
        old = [entry for entry in entries if entry.example.read is None]
        parts = [self.model.ops.sigmoid(self.decoded(self.model.decoder, old))] if old else []
        if entries[len(old) :]:
            parts.append(self.model.floats(self.labels(entries[len(old) :])))
        return self.model.ops.xp.concatenate(parts)

    def scores(self, decoder: Decoder, fold: int) -> dict[str, float | None]:
        """The mean IoU of what is new and of what is old; None where there is no test of it."""
        scores = dict.fromkeys(SCORES)
        for name, (entries, labels) in zip(SCORES, self.tests(fold)):
            if entries:
                ious = self.ious(self.decoded(decoder, entries), labels)
                scores[name] = round(float(ious.mean()), 4)
        return scores

    def _tests(self, fold: int) -> list[tuple[list[Entry], np.ndarray]]:
        """The entries that a fold holds out, new ones and old ones, and their labels (P,H,W)"""
        parts = self.new, self.kept if self.kept.examples else self.old
        tests = [self.held_out(part, fold, MAX_SCORED) for part in parts]
        return [(part, in_main_memory(self.targets(part)) if part else None) for part in tests]

    def mark(self) -> str:
        """A hash of all that a run learns from."""
        files = [file.name for files in self.features.files for file in files]
        mark = sha256(repr((files, list(self.embeddings), fingerprint(self.model))).encode())
        for part in (self.new.examples, self.new.absent, self.kept.examples, self.kept.absent):
            mark.update(repr([(self.number[e.image], e.prompts) for e in part]).encode())
            for example in part:
                mark.update(self.label(example).tobytes())
        return mark.hexdigest()


def far_apart(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix A (D,D), and the mean of embeddings (n,D), for coordinates A (e - mean).

    Prompts that are almost alike lie apart there: the covariance is the unit matrix, or nearly so.
    In a checkpoint that knows few words, a new word's embedding may be 0.998 that of an old one.
    """
    values, vectors = np.linalg.eigh(np.cov(embeddings.T, dtype=np.float64))
    roots = np.sqrt(values + RIDGE * values.mean())
    return RATE_OF_FILM * (vectors / roots) @ vectors.T, embeddings.mean(axis=0)


def old_prompts(
    segmenter: Any, words: list[str], names: list[str], rng: np.random.Generator
) -> list[str]:
    """Prompts of known words; half of them hold a word that is like one of the names."""
    if not words:
        return []
    singles = [f"a {word}" for word in words]
    rows = in_main_memory(segmenter.embed([*names, *singles]))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = (rows[: len(names)] @ rows[len(names) :].T).max(axis=0)
    near = [words[n] for n in np.argsort(-likeness)[: NEAREST * len(names)]]
    texts = [*singles, *(f"a {first} {second}" for first, second in rng.choice(words, (PAIRS, 2)))]
    drawn = zip(rng.choice(words, len(texts)), rng.choice(near, len(texts)))
    half = [f"a {word} {like}" if n % 4 else f"a {like}" for n, (word, like) in enumerate(drawn)]
    return texts + half
