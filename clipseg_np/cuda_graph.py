"""A forward pass of fixed shapes, recorded once on the GPU and from then on started by one call.

A pass is some hundred kernels. For one picture the GPU is done with each before Python has asked for the next; a CUDA graph
asks for all of them at once.

    logits = recorded(model, pixel_values, conditional_embeddings)
    logits(other_pixel_values, other_embeddings)    # of the same shapes
"""

from collections.abc import Callable
from typing import Any

from .clipseg import CLIPSegForImageSegmentation
from .errors import InputError
from .ops import Array, Ops


def recorded(
    model: CLIPSegForImageSegmentation, pixel_values: Any, conditional_embeddings: Any
) -> "CudaGraph":
    """Pictures (B,C,H,W) and embeddings (P,projection_dim) to logits (P,H,W), for arrays of the shapes given here.

    Raises InputError where the model's backend is not "cupy" or the pass cannot be recorded.
    """

    def forward(pixel_values: Array, embeddings: Array) -> Array:
        return model.decode(model.encode_image(pixel_values), embeddings)

    examples = (model.ops.asarray(x, model.dtype) for x in (pixel_values, conditional_embeddings))
    return CudaGraph(model.ops, forward, *examples)


class CudaGraph:
    """A function of device arrays that neither waits for the GPU nor brings arrays there, recorded.

    It keeps what memory it needs. Not for several threads or streams at once.
    """

    def __init__(self, ops: Ops, function: Callable[..., Array], *examples: Array):
        if not hasattr(ops.xp, "cuda"):
            raise InputError("only a model on a GPU can be recorded: load it with backend='cupy'")
        cuda = ops.xp.cuda
        self.ops = ops
        # Memory of its own: what is recorded writes to the same places each time.
        self.memory = cuda.MemoryPool()
        self.stream = cuda.Stream(non_blocking=True)
        self.stream.wait_event(cuda.get_current_stream().record())
        with cuda.using_allocator(self.memory.malloc), self.stream:
            self.inputs = [ops.xp.array(example) for example in examples]
            for _ in range(2):  # compiles, allocates and fills tables: none of it can be recorded
                function(*self.inputs)
            self.stream.synchronize()
            self.stream.begin_capture()
            try:
                self.output = function(*self.inputs)
            except Exception as error:
                self.stream.end_capture()
                raise InputError(
                    f"this pass cannot be recorded as a CUDA graph: {error}"
                ) from error
            self.graph = self.stream.end_capture()

    def __call__(self, *arrays: Any) -> Array:
        """The function's result for arrays of the examples' shapes, as an array of its own. Raises InputError for others."""
        arrays = [self.ops.asarray(x) for x in arrays]
        shapes, expected = ([x.shape for x in xs] for xs in (arrays, self.inputs))
        if shapes != expected:
            raise InputError(f"recorded for arrays of shapes {expected}; got {shapes}: record anew")
        caller = self.ops.xp.cuda.get_current_stream()
        for own, given in zip(self.inputs, arrays):
            own[...] = given
        self.stream.wait_event(caller.record())
        self.graph.launch(self.stream)
        caller.wait_event(self.stream.record())
        return self.output.copy()
