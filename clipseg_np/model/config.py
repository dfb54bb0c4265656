"""What a checkpoint's config.json says, as frozen dataclasses with transformers' field names and defaults.

Deviation: transformers accepts values with which no model can work, and fails later or not at all;
here they are refused with the field's name. Fields that concern only transformers (`architectures`,
`dtype`, ...) are kept in `other`, and written back as they came.
"""

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_files import write_json
from ..checkpoints.hub import CONFIG
from ..checkpoints.locate import checkpoint_folder, read_json
from ..errors import InputError, naming
from ..nn.ops import Ops

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_NAME = "config.json"
LARGEST_COUNT, LARGEST_NUMBER = 2**31 - 1, 1e30  # more is a mistake, and overflows
LEGACY_EOS_TOKEN_ID = 2  # what old checkpoints say; the end of a text is then its highest token id


def is_whole(value: Any) -> bool:
    """Whether this is a whole number; JSON's true and false, which Python counts as numbers, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_whole(value) or isinstance(value, float)


class _Config:
    """To and from dictionaries and JSON, the same for all three."""

    model_type = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Self":
        """From a config.json's object. Raises InputError with the field's name for an impossible value."""
        cls._require_object(values)
        declared = values.get("model_type", cls.model_type)
        if declared != cls.model_type:
            # A whole model's config may be given for one tower.
            if declared == CLIPSegConfig.model_type:
                return getattr(CLIPSegConfig.from_dict(values), cls.base_config_key)
            raise InputError(
                f"model_type is {declared!r}; expected {cls.model_type!r} for {cls.__name__}"
            )
        known = {f.name for f in fields(cls)} - {"other"}
        named = {name: value for name, value in values.items() if name in known}
        other = {
            name: value for name, value in values.items() if name not in known | {"model_type"}
        }
        return cls(**named, other=other)

    @classmethod
    def _require_object(cls, values: Any) -> None:
        if not isinstance(values, dict):
            raise InputError(f"a {cls.__name__} is made from an object, not from {values!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "other"}
        for name, value in values.items():
            if isinstance(value, _Config):
                values[name] = value.to_dict()
            elif isinstance(value, tuple):
                values[name] = list(value)
        return {**self.other, **values, "model_type": self.model_type}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json_file(cls, path: str | os.PathLike) -> "Self":
        with naming(path):
            return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_pretrained(
        cls, folder_or_hub_id: str | os.PathLike, *, local_files_only: bool = False
    ) -> "Self":
        """From the config.json of a checkpoint; a tower's config is found inside a whole model's."""
        folder = checkpoint_folder(
            folder_or_hub_id, local_files_only=local_files_only, needed=(CONFIG,)
        )
        return cls.from_json_file(folder / CONFIG_NAME)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        write_json(Path(folder) / CONFIG_NAME, self.to_dict())

    def _refuse(self, name: str, expected: str) -> None:
        raise InputError(
            f"{type(self).__name__}: {name} is {getattr(self, name)!r}; expected {expected}"
        )

    def _require_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not is_whole(value) or not 1 <= value <= LARGEST_COUNT:
                self._refuse(name, f"a whole number of at least 1 and at most {LARGEST_COUNT}")

    def _require_numbers(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not is_number(value):
                self._refuse(name, "a number")
            if not 0 <= value <= LARGEST_NUMBER:
                self._refuse(name, f"a number that is not negative and at most {LARGEST_NUMBER:g}")

    def _require_dropout(self, name: str) -> None:
        self._require_numbers(name)
        if getattr(self, name) > 1:
            self._refuse(
                name, "a probability, from 0 to 1 (it plays no part here: nothing is trained)"
            )

    def _require_heads(self, width: str, heads: str) -> None:
        if getattr(self, width) % getattr(self, heads):
            self._refuse(width, f"a multiple of {heads}, which is {getattr(self, heads)}")

    def _require_activation(self, name: str) -> None:
        if getattr(self, name) not in Ops.ACTIVATIONS:
            self._refuse(name, f"one of {', '.join(Ops.ACTIVATIONS)}")

    def _require_tower(self) -> None:
        """What the text and the vision tower have in common."""
        self._require_counts(
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
        )
        self._require_heads("hidden_size", "num_attention_heads")
        self._require_activation("hidden_act")
        self._require_numbers("layer_norm_eps", "initializer_range", "initializer_factor")
        self._require_dropout("attention_dropout")


@dataclass(frozen=True)
class CLIPSegTextConfig(_Config):
    """The text tower. `eos_token_id` says where a text is pooled; 2 is the old checkpoints' way (see model/clip.py)."""

    model_type = "clipseg_text_model"
    base_config_key = "text_config"

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    other: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self._require_tower()
        self._require_counts("vocab_size", "max_position_embeddings")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is None and name != "eos_token_id":
                continue
            if not is_whole(value):
                self._refuse(name, "a whole number: one token's id")


@dataclass(frozen=True)
class CLIPSegVisionConfig(_Config):
    """The vision tower. Images of other sizes than `image_size` (pixels) get interpolated positions."""

    model_type = "clipseg_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0
    other: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self._require_tower()
        self._require_counts("num_channels", "image_size", "patch_size")
        if self.patch_size > self.image_size:
            self._refuse("patch_size", f"at most image_size, which is {self.image_size}")


@dataclass(frozen=True)
class CLIPSegConfig(_Config):
    """Both towers and the decoder.

    `extract_layers` are 0-based blocks of the vision tower; `conditional_layer` is the decoder
    layer before which the prompt modulates the tokens. `decoder_hidden_act` is kept and, as in the
    reference, not used: the decoder's activation is always relu.
    """

    model_type = "clipseg"

    # Configs; they may be given as dictionaries, or left out.
    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0
    extract_layers: tuple[int, ...] = (3, 6, 9)
    reduce_dim: int = 64
    decoder_num_attention_heads: int = 4
    decoder_attention_dropout: float = 0.0
    decoder_hidden_act: str = "quick_gelu"
    decoder_intermediate_size: int = 2048
    conditional_layer: int = 0
    use_complex_transposed_convolution: bool = False
    other: dict = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Self":
        """As for the towers; old files repeat a tower's values in `text_config_dict`, which then wins."""
        cls._require_object(values)
        values = dict(values)
        for tower in (CLIPSegTextConfig, CLIPSegVisionConfig):
            name = tower.base_config_key
            old = values.pop(f"{name}_dict", None)
            if old is not None:
                new = values.get(name) or {}
                tower._require_object(new)
                values[name] = {**new, **tower.from_dict(old).to_dict()}
        return super().from_dict(values)

    @classmethod
    def from_text_vision_configs(
        cls, text_config: CLIPSegTextConfig, vision_config: CLIPSegVisionConfig, **kwargs: Any
    ) -> "CLIPSegConfig":
        """A whole model's config around two towers'."""
        return cls(text_config=text_config, vision_config=vision_config, **kwargs)

    def __post_init__(self):
        for tower in (CLIPSegTextConfig, CLIPSegVisionConfig):
            name = tower.base_config_key
            value = getattr(self, name)
            if not isinstance(value, tower):
                object.__setattr__(self, name, tower.from_dict(value or {}))
        self._require_counts(
            "projection_dim",
            "reduce_dim",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        )
        self._require_heads("reduce_dim", "decoder_num_attention_heads")
        self._require_numbers("initializer_factor")
        self._require_dropout("decoder_attention_dropout")
        if not is_number(self.logit_scale_init_value):
            self._refuse("logit_scale_init_value", "a number")
        self._require_extract_layers()
        depth = len(self.extract_layers)
        if not is_whole(self.conditional_layer) or self.conditional_layer not in range(depth):
            self._refuse(
                "conditional_layer",
                f"one of the {depth} decoder layers, 0 to {depth - 1}: the prompt "
                f"would otherwise never be heard",
            )
        if not isinstance(self.use_complex_transposed_convolution, bool):
            self._refuse("use_complex_transposed_convolution", "true or false")
        if self.use_complex_transposed_convolution:
            if self.vision_config.patch_size < 4:
                self._refuse(
                    "use_complex_transposed_convolution",
                    "false for a patch_size below 4: the refined "
                    f"head upsamples twice by patch_size // 4, and patch_size is {self.vision_config.patch_size}",
                )
            if self.reduce_dim < 2:
                self._refuse("reduce_dim", "at least 2 for the refined head, which halves it")

    def _require_extract_layers(self) -> None:
        layers = self.extract_layers
        last = self.vision_config.num_hidden_layers - 1
        if not isinstance(layers, (list, tuple)) or not layers:
            self._refuse("extract_layers", "a list of at least one layer's number")
        for layer in layers:
            if not is_whole(layer) or not 0 <= layer <= last:
                self._refuse(
                    "extract_layers", f"whole numbers from 0 to {last}, the vision tower's layers"
                )
        object.__setattr__(self, "extract_layers", tuple(layers))
