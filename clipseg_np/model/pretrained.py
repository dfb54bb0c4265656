"""Loading, saving and a random start, the same for the four public models."""

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic_files import write_json, written_together
from ..backends.select import ops_for
from ..checkpoints.decoder_file import on_top
from ..checkpoints.hub import MODEL, hub_options
from ..checkpoints.locate import checkpoint_path
from ..checkpoints.weights import (
    WEIGHTS_NAME,
    Checkpoint,
    Raw,
    give_back,
    save_weights,
    stored_tensors,
)
from ..errors import InputError
from ..habits import FEATURES, LOADING, SAVING, Habits, understands
from ..nn.layers import Layer
from ..nn.ops import Ops
from ..nn.scope import Scope
from .config import (
    CONFIG_NAME,
    OUTPUT_FLAGS,
    CLIPSegConfig,
    CLIPSegTextConfig,
    CLIPSegVisionConfig,
    with_dtype,
)
from .random_init import RandomStart

if TYPE_CHECKING:
    from typing_extensions import Self  # a type checker knows it without the package


class PretrainedModel(Habits, Layer):
    """A model with a config, by the arithmetic of a backend or of `ops`.

    Its arrays come from a checkpoint, from a larger model (`scope`), or are drawn by `seed`.
    """

    config_class: type = CLIPSegConfig
    is_unit = False
    main_input_name: str
    training = False
    landmark: str  # one of the keys of this model, by which it is found in a larger checkpoint
    prefixes: tuple[str, ...] = ("",)  # of this model's keys there
    derivable: tuple[str, ...]  # the outputs by which `propagate` takes derivatives

    def __init__(
        self,
        config: CLIPSegConfig | CLIPSegTextConfig | CLIPSegVisionConfig,
        scope: Scope | None = None,
        *,
        seed: int = 0,
        backend: str = "numpy",
        dtype: Any = "float32",
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

    def __init_subclass__(cls) -> None:
        """Habits of transformers that differ by model, kept out of the formulas' files."""
        sees = cls.config_class is CLIPSegVisionConfig
        cls.main_input_name = "pixel_values" if sees else "input_ids"
        for name in {"get_text_features", "get_image_features"} & vars(cls).keys():
            setattr(cls, name, understands(FEATURES)(vars(cls)[name]))

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """`forward`, as a record or, with return_dict=False, as the tuple of its fields.

        output_attentions and output_hidden_states are the config's if they are not given.
        """
        kwargs |= {name: self.flag(name, kwargs.get(name)) for name in OUTPUT_FLAGS}
        output = super().__call__(*args, **kwargs)
        return output.to_tuple() if return_dict is False else output

    def propagate(self, d_y: Mapping[str, Any]) -> Any:
        """`backward` of the last call inside `learning()`; `d_y` has derivatives by output's name.

        Outputs that are not named have the derivative 0. Raises InputError for an unknown name.
        """
        for name in d_y.keys() - set(self.derivable):
            known = ", ".join(self.derivable)
            raise InputError(f"a derivative by {name!r} is given; expected some of {known}")
        return super().propagate(d_y)

    def flag(self, name: str, value: bool | None) -> bool | None:
        """The value, or for None that of this model's config.json."""
        return self.config.other.get(name) if value is None else value

    @property
    def dtype(self) -> np.dtype:
        """The type of every array and activation."""
        return np.dtype(self.scope.dtype)

    @property
    def device(self) -> str:
        """The name "cuda" with the backend "cupy", else "cpu"."""
        return "cuda" if self.ops.xp.__name__ == "cupy" else "cpu"

    def to(self, *wanted: Any, non_blocking: bool = False, **named: Any) -> "Self":
        """The model itself, if it is on this device and in this type. Raises InputError if not."""
        own = {self.device, self.dtype.name}
        for value in (*wanted, *named.values()):
            if value is not None and type_name(value).partition(":")[0] not in own:
                raise InputError(
                    f"this model computes on {self.device!r} in {self.dtype}, not in {value!r}; "
                    f"write from_pretrained(..., backend='cupy') for an NVIDIA GPU, and dtype= "
                    f"for the type"
                )
        return self

    def eval(self) -> "Self":
        """The model itself: there is no dropout."""
        return self

    def train(self, mode: bool = True) -> "Self":
        """The model itself for mode=False. Raises InputError for True, with the way to train."""
        if mode:
            raise InputError(
                "there is no such mode: use `clipseg-np fine-tune` or `clipseg-np learn-prompt`; a "
                "loop of your own gets every gradient inside `with clipseg_np.learning()`"
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Self":
        """As train."""
        return self.train(requires_grad)

    cpu, cuda = partialmethod(to, "cpu"), partialmethod(to, "cuda")
    half, bfloat16 = partialmethod(to, "float16"), partialmethod(to, "bfloat16")
    float, double = partialmethod(to, "float32"), partialmethod(to, "float64")

    def num_parameters(self) -> int:
        """The number of numbers in all arrays."""
        return sum(array.size for array in self.scope.within(self.name).values())

    @classmethod
    def from_config(cls, config: Any, **start: Any) -> "Self":
        """A random start, as by the constructor."""
        return cls(config, **start)

    @classmethod
    @understands(LOADING)
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike,
        *,
        config: Any = None,
        backend: str = "numpy",
        dtype: Any = "float32",
        threads: int | None = None,
        ops: Ops | None = None,
        decoder: str | os.PathLike | None = None,
        **options: Any,
    ) -> "Self":
        """Load config.json and safetensors weights of float16, bfloat16, float32 or float64.

        A checkpoint is a folder, a hub id, or one .safetensors file with config.json beside it.
        `threads` are those of the backend "numpy", by default one for each core; with more than
        one, equal calls may differ in the last bits. `ops` is the arithmetic itself, in place of a
        backend's name: Ops(jax.numpy) runs the readable code on JAX. `decoder` is a file whose
        decoder takes the place of the checkpoint's (see checkpoints/decoder_file.py). `dtype` may
        be PyTorch's, or "auto", the one that the config names. `options` are those of
        checkpoint_path, such as local_files_only, and fields of the config, which win over
        config.json's; `config` takes that file's place.

        Weights are mapped: as long as the model is used, their file may be replaced by another of
        its name, but not overwritten in place (as `cp` does), which changes or ends the process.

        Raises FileNotFoundError or InputError as checkpoint_path does and where the checkpoint does
        not fit (see checkpoints/weights.py), and InputError for an unknown backend or dtype.
        """
        ops = ops or ops_for(backend, threads)
        is_auto = isinstance(dtype, str) and dtype == "auto"
        dtype = float_type(None if is_auto else dtype, ops)
        hub = hub_options(options)
        path = checkpoint_path(folder_or_hub_id, needed=MODEL, **hub)
        if config is None:
            config = cls.config_class.from_pretrained(path)
        elif not isinstance(config, cls.config_class):
            config = cls.config_class.from_pretrained(config, **hub)
        config = config.with_values(**options)
        named = config.other.get("dtype") or config.other.get("torch_dtype")
        if is_auto and named in ops.FLOAT_TYPES:
            dtype = np.dtype(named)
        tensors = stored_tensors(path)
        if decoder is not None:
            tensors = on_top(tensors, decoder)
        return cls.from_tensors(path, tensors, config, ops, dtype)

    @classmethod
    def from_tensors(
        cls,
        source: str | os.PathLike,
        tensors: dict[str, Raw],
        config: Any,
        ops: Ops,
        dtype: np.dtype,
    ) -> "Self":
        """A model of all tensors of `source`. Raises InputError as Checkpoint does."""
        checkpoint = Checkpoint(source, tensors, dtype, cls.landmark, cls.prefixes)
        model = cls(config, Scope(checkpoint, ops, dtype))
        checkpoint.finish()
        return model

    @understands(SAVING)
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors, both or neither. transformers loads them too.

        Models that were loaded from older files in `folder` keep their weights.
        """
        with written_together(Path(folder)) as part:
            write_json(part / CONFIG_NAME, with_dtype(self.config.to_dict(), self.dtype.name))
            save_weights(part / WEIGHTS_NAME, self.state_dict())

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


def type_name(value: Any) -> str:
    """The name of a type, NumPy's or PyTorch's, as "float32"; of a device, its own, as "cuda:0"."""
    with suppress(TypeError, ValueError):
        return np.dtype(value).name
    return f"cuda:{value}" if isinstance(value, int) else str(value).removeprefix("torch.")


def float_type(dtype: Any, ops: Ops) -> np.dtype:
    """A type that the backend computes in, by name or type. Raises InputError for another."""
    name = "float32" if dtype is None else type_name(dtype)
    if name in ops.FLOAT_TYPES:
        return np.dtype(name)
    known = ", ".join(ops.FLOAT_TYPES)
    raise InputError(f"dtype is {dtype!r}; expected one of {known}, in which this backend computes")
