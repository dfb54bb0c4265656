"""A model's pass, from images and prompts to logits, recorded as a CUDA graph for fixed shapes.

    run = recorded(model, pixel_values, input_ids)
    logits = run(other_pixel_values, other_ids)    # of the same shapes

The text tower runs on a stream of its own, beside the vision tower. Both read the arrays of the
recording, to which each call copies its own.
"""

from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from ..backends.cuda_graph import CannotRecord, CudaGraph
from ..nn.ops import Array
from .clipseg import CLIPSegForImageSegmentation
from .input_checks import checked_pixels, checked_texts

MAX_GRAPHS = 4


class RecordedPass:
    """Images (B,C,H,W) and P prompts to logits (P,H,W), recorded for arrays of these shapes.

    The prompts are token ids (P,T), whole numbers, which end with the end token and may be padded
    after it; or conditional embeddings (P,projection_dim). Raises InputError where the model's
    backend is not "cupy" or the pass cannot be recorded, and for inputs that the model refuses.
    """

    def __init__(self, model: CLIPSegForImageSegmentation, pixel_values: Any, prompts: Any):
        ops, vision = model.ops, model.clip.vision_model
        self.model = model
        prompts = prompts if hasattr(prompts, "dtype") else np.asarray(prompts)
        self.takes_ids = prompts.dtype.kind in "iu"
        pixel_values = checked_pixels(model.floats(pixel_values), vision.config)
        prompts = self._checked(prompts)
        prompts = ops.asarray(prompts, None if self.takes_ids else model.dtype)
        # The graph reads this table, which the model may drop for another.
        self.positions = vision.embeddings.positions(*vision.grid(pixel_values))

        def forward(pixel_values: Array, prompts: Array) -> Array:
            # The first task is recorded on the capturing stream, the second on another.
            tasks = partial(model.encode_image, pixel_values), partial(embedded, model, prompts)
            return model.decode(*ops.parallel_for(tasks))

        self.graph = CudaGraph(ops, forward, pixel_values, prompts)

    def __call__(self, pixel_values: Any, prompts: Any) -> Array:
        """The logits, a new array. Raises InputError for other shapes or an unknown token id."""
        return self.graph(pixel_values, self._checked(prompts))

    def _checked(self, prompts: Any) -> Any:
        if not self.takes_ids:
            return prompts
        return checked_texts(prompts, None, None, self.model.config.text_config)[0]


def embedded(model: CLIPSegForImageSegmentation, prompts: Array) -> Array:
    """Checked token ids (P,T) to conditional embeddings (P,projection_dim), or these unchanged."""
    if prompts.dtype.kind == "f":
        return prompts
    _, _, pooled = model.clip.text_model.encode([prompts, None, None])
    return model.clip.text_projection(pooled)


recorded = RecordedPass


class RecordedPasses:
    """A model's passes for the MAX_GRAPHS shapes last used, in `kept`; threads may share them."""

    def __init__(self, model: CLIPSegForImageSegmentation):
        self.model = model
        self.kept: dict[tuple, RecordedPass] = {}

    def __call__(self, pixel_values: Array, prompts: Array) -> Array:
        key = pixel_values.shape, prompts.shape, prompts.dtype.kind
        with self.model.ops.lock:
            run = self.kept.pop(key, None)
            # One goes before another takes memory.
            while len(self.kept) >= MAX_GRAPHS:
                del self.kept[next(iter(self.kept))]
            if run is None:
                run = self._recorded(pixel_values, prompts)
            self.kept[key] = run
            return run(pixel_values, prompts)

    def _recorded(self, *inputs: Array) -> RecordedPass:
        """Drops the others where the GPU's memory is short, or raises CannotRecord."""
        with suppress(MemoryError):
            return recorded(self.model, *inputs)
        self.kept.clear()
        try:
            return recorded(self.model, *inputs)
        except MemoryError as error:
            raise CannotRecord(f"the GPU's memory is too small for that: {error}") from error
