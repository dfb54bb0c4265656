"""A decoder of one's own: it learns what masks mark, and the towers stay as they are.

FOLDS decoders learn, each without the images of its fold, and the result is their mean, which knows
more of the new and of the old than any of them (Wortsman et al., "Model soups", 2022). What stands
against forgetting is in batches.py.

A run that was killed goes on from its last state, and on one thread ends with the same bits as one
that was not.
"""

import copy
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from ..atomic_files import remove_parts, written_together
from ..checkpoints.decoder_file import DECODER_NAME, START, save_decoder
from ..checkpoints.weights import save_weights, tensors_of_file
from ..errors import InputError, MissingExtra
from ..model.clipseg import CLIPSegForImageSegmentation
from ..nn.ops import Array
from ..nn.scope import Scope
from ..text.known_words import words_of
from .batches import FOLDS, SCORES, Batches
from .data import Data
from .features import Progress, unseen
from .optimizer import AdamW, rate_at
from .progress import write_log, write_plot
from .step import cross_entropy_and_dice, focal_and_dice, one_pass

STATE_NAME = "unfinished.safetensors"
STEPS, BATCH, RATE, WARM_UP, STEPS_BETWEEN = 150, 8, 1e-3, 20, 50
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
    batches = Batches(segmenter, data, keep, batch_size, seed, cache, progress)
    about = numbers, focal, seed, decoder_only, batches.mark()
    run = Run(batches, output, sha256(repr(about).encode()).hexdigest())
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


class OwnDecoder:
    """The arrays of a model for a Scope, with writable copies of the decoder's."""

    def __init__(self, model: CLIPSegForImageSegmentation):
        self.arrays = model.scope.arrays

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        return self.arrays[name].copy() if name.startswith(START) else self.arrays[name]


class Run:
    """A decoder that learns, and all that a run needs to go on."""

    def __init__(self, batches: Batches, output: Path, mark: str):
        self.batches, self.output, self.mark, model = batches, output, mark, batches.model
        scope = Scope(OwnDecoder(model), model.ops, model.dtype)
        self.model = CLIPSegForImageSegmentation(model.config, scope)
        self.arrays = {n: array for n, array in scope.arrays.items() if n.startswith(START)}
        self.optimizer = AdamW(self.arrays)
        if batches.whitening:
            self._set_film(batches.whitening.film)
        self.start = {name: array.copy() for name, array in self.arrays.items()}
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
            array[...] = self.start[name]
            self.optimizer.means[name][...] = self.optimizer.squares[name][...] = 0
        self.model.ops.forget_weights()
        self.evaluate()

    def _set_film(self, changed: Callable) -> None:
        """Change the coordinates of the embeddings that FiLM takes."""
        for layer in (self.model.decoder.film_mul, self.model.decoder.film_add):
            arrays = layer.weight, layer.bias
            for array, new in zip(arrays, changed(*map(self.model.ops.to_numpy, arrays))):
                array[...] = self.model.floats(new)

    def learn(self, rate: float) -> None:
        """One step."""
        entries = self.batches.entries(self.fold, self.step)
        inputs, labels = self.batches.inputs(self.model, entries), self.batches.labels(entries)
        options = {"is_reduced": False, "learns": self.arrays.__contains__, "loss": self.loss}
        grid = self.batches.features.grid
        found = one_pass(self.model.decoder, *inputs, labels, grid, **options)
        if not np.isfinite(found.loss):
            raise InputError("the loss is no longer a number: lower the rate")
        self.optimizer.step(found.gradients, rate)
        self.losses.append(found.loss)
        self.step += 1

    def evaluate(self) -> None:
        """Score the decoder, and keep it if it is the fold's best."""
        loss = round(float(np.mean(self.losses)), 4) if self.losses else None
        record = {"fold": self.fold, "step": self.step, "loss": loss}
        self.records.append(record | self.batches.scores(self.model, self.fold))
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
        if self.batches.whitening:
            self._set_film(self.batches.whitening.film_back)
        best = [best_of(self.records, fold) for fold in range(FOLDS)]
        first = [next(r for r in self.records if r["fold"] == fold) for fold in range(FOLDS)]
        before, after = (
            {name: round(float(np.mean([r[name] for r in records])), 4) for name in SCORES}
            for records in (first, best)
        )
        if after["new_iou"] <= before["new_iou"]:
            warnings.warn("nothing was learned: held-out images say so", stacklevel=3)
        path, words = self.output, words_of(self.batches.names)
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
    """The fold's last record whose IoU of the new is the highest less NOISE."""
    scores = {n: r["new_iou"] for n, r in enumerate(records) if r["fold"] == fold}
    return records[max(n for n in scores if scores[n] >= max(scores.values()) - NOISE)]
