"""A model's pass, from images and prompts to logits, recorded as one CUDA graph for arrays of fixed shapes.

    run = recorded(model, pixel_values, input_ids)
    logits = run(other_pixel_values, other_ids)    # of the same shapes

The text tower runs on a stream of its own, beside the vision tower. Both read their ids and pixels
from where the recording put them; what each call is given is copied there.
"""

from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from ..backends.cuda_graph import CannotRecord, CudaGraph
from ..nn.ops import Array
from .clipseg import CLIPSegForImageSegmentation
from .input_checks import checked_pixels, checked_texts

MAX_GRAPHS = 4  # that a cache keeps


class RecordedPass:
    """Images (B,C,H,W) and P prompts to logits (P,H,W), for arrays of the shapes that it was recorded with."""

    def __init__(self, model: CLIPSegForImageSegmentation, pixel_values: Any, prompts: Any):
        ops, vision = model.ops, model.clip.vision_model
        self.model = model
        prompts = prompts if hasattr(prompts, "dtype") else np.asarray(prompts)
        self.takes_ids = prompts.dtype.kind in "iu"
        pixel_values = checked_pixels(model.floats(pixel_values), vision.config)
        prompts = self._checked(prompts)
        prompts = ops.asarray(prompts, None if self.takes_ids else model.dtype)
        # The graph reads this table: it must stay when the model keeps others in its place.
        self.positions = vision.embeddings.positions(*vision.grid(pixel_values))

        def forward(pixel_values: Array, prompts: Array) -> Array:
            # The first task is recorded on the capturing stream, the second on another.
            tasks = partial(model.encode_image, pixel_values), partial(embedded, model, prompts)
            return model.decode(*ops.parallel_for(tasks))

        self.graph = CudaGraph(ops, forward, pixel_values, prompts)

    def __call__(self, pixel_values: Any, prompts: Any) -> Array:
        """The logits, as an array of their own. Raises InputError for other shapes, and for ids outside the vocabulary."""
        return self.graph(pixel_values, self._checked(prompts))

    def _checked(self, prompts: Any) -> Any:
        if not self.takes_ids:
            return prompts
        return checked_texts(prompts, None, None, self.model.config.text_config)[0]


def embedded(model: CLIPSegForImageSegmentation, prompts: Array) -> Array:
    """Token ids (P,T), checked, to conditional embeddings; such embeddings as they are.  -> (P,projection_dim)"""
    if prompts.dtype.kind == "f":
        return prompts
    _, _, pooled = model.clip.text_model.encode(prompts)
    return model.clip.text_projection(pooled)


def recorded(model: CLIPSegForImageSegmentation, pixel_values: Any, prompts: Any) -> RecordedPass:
    """Record a pass for images (B,C,H,W) and prompts of these shapes.

    The prompts are token ids (P,T), whole numbers, which end with the end token and may be padded
    after it; or conditional embeddings (P,projection_dim). Raises InputError where the model's
    backend is not "cupy" or the pass cannot be recorded, and for inputs that the model refuses.
    """
    return RecordedPass(model, pixel_values, prompts)


class RecordedPasses:
    """A model's passes, each recorded once for its shapes; the MAX_GRAPHS last used are kept. For several threads."""

    def __init__(self, model: CLIPSegForImageSegmentation):
        self.model = model
        self.kept: dict[tuple, RecordedPass] = {}

    def __len__(self) -> int:
        return len(self.kept)

    def __call__(self, pixel_values: Array, prompts: Array) -> Array:
        key = pixel_values.shape, prompts.shape, prompts.dtype.kind
        with self.model.ops.lock:
            run = self.kept.pop(key, None)
            while len(self.kept) >= MAX_GRAPHS:  # before another takes memory
                del self.kept[next(iter(self.kept))]
            if run is None:
                run = self._recorded(pixel_values, prompts)
            self.kept[key] = run
            return run(pixel_values, prompts)

    def _recorded(self, *inputs: Array) -> RecordedPass:
        """Where the GPU's memory is short, without the others. Raises CannotRecord where that is not enough."""
        with suppress(MemoryError):
            return recorded(self.model, *inputs)
        self.kept.clear()
        try:
            return recorded(self.model, *inputs)
        except MemoryError as error:
            raise CannotRecord(f"the GPU's memory is too small for that: {error}") from error
