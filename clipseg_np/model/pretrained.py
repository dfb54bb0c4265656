"""Loading, saving and a random start, the same for the four public models."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic_files import written_whole
from ..backends.select import ops_for
from ..checkpoints.hub import MODEL
from ..checkpoints.locate import checkpoint_path
from ..checkpoints.weights import WEIGHTS_NAME, Checkpoint, give_back, save_weights
from ..errors import InputError
from ..nn.layers import Layer
from ..nn.ops import Ops
from ..nn.scope import Scope
from .config import CONFIG_NAME, CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig
from .random_init import RandomStart

if TYPE_CHECKING:
    from typing_extensions import Self  # a type checker knows it without the package


class PretrainedModel(Layer):
    """A model with a config, by the arithmetic of a backend or of `ops`.

    Its arrays come from a checkpoint, from a larger model (`scope`), or are drawn by `seed`.
    """

    config_class: type = CLIPSegConfig
    landmark: str  # one of the keys of this model, by which it is found in a larger checkpoint
    prefixes: tuple[str, ...] = ("",)  # of this model's keys there

    def __init__(
        self,
        config: CLIPSegConfig | CLIPSegTextConfig | CLIPSegVisionConfig,
        scope: Scope | None = None,
        *,
        seed: int = 0,
        backend: str = "numpy",
        dtype: str = "float32",
        ops: Ops | None = None,
    ):
        if not isinstance(config, self.config_class):
            expected, got = self.config_class.__name__, type(config).__name__
            raise InputError(f"{type(self).__name__} needs a {expected}; got {got}")
        if scope is None:
            ops = ops or ops_for(backend)
            scope = Scope(RandomStart(config, seed), ops, float_type(dtype, ops))
        super().__init__(scope)
        self.config: Any = config  # of config_class
        self.scope = scope

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """`forward`, as a record or, with return_dict=False, as the tuple of its fields."""
        output = super().__call__(*args, **kwargs)
        return output.to_tuple() if return_dict is False else output

    @property
    def dtype(self) -> np.dtype:
        """The type of every array and activation."""
        return np.dtype(self.scope.dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike,
        *,
        backend: str = "numpy",
        dtype: str = "float32",
        threads: int | None = None,
        local_files_only: bool = False,
        ops: Ops | None = None,
    ) -> "Self":
        """Load config.json and safetensors weights of float16, bfloat16, float32 or float64.

        A checkpoint is a folder, a hub id, or one .safetensors file with config.json beside it. A
        hub id that is not in the hub's cache is fetched, unless `local_files_only`. `threads` are
        those of the backend "numpy", by default one for each core. `ops` is the arithmetic itself,
        in place of a backend's name: Ops(jax.numpy) runs the readable code on JAX.

        Raises FileNotFoundError or InputError as checkpoint_path does and where the checkpoint does
        not fit (see checkpoints/weights.py), and InputError for an unknown backend or dtype.
        """
        ops = ops or ops_for(backend, threads)
        dtype = float_type(dtype, ops)
        path = checkpoint_path(folder_or_hub_id, local_files_only=local_files_only, needed=MODEL)
        config = cls.config_class.from_pretrained(path)
        checkpoint = Checkpoint(path, dtype, cls.landmark, cls.prefixes)
        model = cls(config, Scope(checkpoint, ops, dtype))
        checkpoint.finish()
        return model

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors, both or neither. transformers loads them too."""
        folder = Path(folder)
        with written_whole(folder / CONFIG_NAME) as config_file:
            config_file.write_text(self.config.to_json_string(), "utf-8")
            save_weights(folder / WEIGHTS_NAME, self.state_dict())

    def state_dict(self) -> dict[str, np.ndarray]:
        """This model's arrays by their dotted names in its own checkpoint."""
        arrays = self.scope.within(self.name)
        return {name: self.ops.to_numpy(array) for name, array in arrays.items()}

    def give_back_memory(self) -> None:
        """Free the memory of mapped weights. The next use reads them again, in milliseconds."""
        give_back(self.scope.within(self.name).values())

    def floats(self, values: Any) -> Any:
        """Values on this model's device, in its type."""
        return self.ops.asarray(values, dtype=self.dtype)


def float_type(dtype: Any, ops: Ops) -> np.dtype:
    """A type that the backend computes in, by name or type. Raises InputError for another."""
    with suppress(TypeError):
        if np.dtype(dtype).name in ops.FLOAT_TYPES:
            return np.dtype(dtype)
    raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(ops.FLOAT_TYPES)}")
