"""config.json as frozen dataclasses with transformers' field names and defaults.

Deviation: transformers accepts values with which no model can work, and fails later or not at all;
here they are refused with the field's name. Fields that concern only transformers (`architectures`,
`dtype`, ...) are kept in `other`, and written back: `dtype` as that of the weights beside it, the
others unchanged. A config of CLIP itself is read, too.
"""

import difflib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..atomic_files import write_json
from ..checkpoints.hub import CONFIG, hub_options
from ..checkpoints.locate import checkpoint_folder, read_json
from ..errors import InputError, naming
from ..habits import LOADING, SAVING, Habits, understands
from ..nn.ops import Ops

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_NAME = "config.json"
MAX_COUNT, MAX_NUMBER = 2**31 - 1, 1e30  # a larger one is a mistake, and overflows
LEGACY_EOS_TOKEN_ID = 2  # in old checkpoints, whose texts end at their highest token id
OUTPUT_FLAGS = ("output_attentions", "output_hidden_states")  # defaults of a call, in `other`
ABSENT = {**dict.fromkeys(OUTPUT_FLAGS, False), "return_dict": True}  # their values if not given
MIN_LIKENESS = 0.85  # of a misspelled name; transformers' own other names reach 0.84


def is_whole(value: Any) -> bool:
    """Whether this is a whole number. JSON's true and false, numbers to Python, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return is_whole(value) or isinstance(value, float)


def within(low: float, high: float, is_kind: Callable = is_number) -> Callable[[Any], bool]:
    return lambda value: is_kind(value) and low <= value <= high


# Each rule: a test of a field's value, and what the error says was expected.
Rule = tuple[Callable[[Any], bool], str]
COUNT = (within(1, MAX_COUNT, is_whole), f"a whole number of at least 1 and at most {MAX_COUNT}")
SIZE = (within(0, MAX_NUMBER), f"a number that is not negative and at most {MAX_NUMBER:g}")
NUMBER = (is_number, "a number")
DROPOUT = (within(0, 1), "a probability, from 0 to 1 (it plays no part here: nothing is dropped)")
ACTIVATION = (lambda value: value in Ops.ACTIVATIONS, f"one of {', '.join(Ops.ACTIVATIONS)}")
TOKEN_ID = (is_whole, "a whole number: one token's id")
ANY_TOKEN_ID = (lambda value: value is None or is_whole(value), TOKEN_ID[1])
FLAG = (lambda value: isinstance(value, bool), "true or false")


def ruled(default: Any, rule: Rule) -> Any:
    """A field with this default, whose value must keep the rule."""
    return field(default=default, metadata={"rule": rule})


def with_dtype(config: dict, dtype: str) -> dict:
    """config.json's object with another type where it or a tower's part names one.

    transformers 4 says torch_dtype.
    """
    changed = config | {name: dtype for name in ("dtype", "torch_dtype") if config.get(name)}
    for name in ("text_config", "vision_config"):
        if isinstance(part := config.get(name), dict):
            changed[name] = with_dtype(part, dtype)
    return changed


class _Config(Habits):
    """To and from dictionaries and JSON, the same for all three.

    An argument that is no field is kept in `other`, and is an attribute as well.
    """

    model_type = clip_type = ""
    # Two fields: a width, and a number of heads that divides it.
    width_and_heads = ("hidden_size", "num_attention_heads")

    def __init__(self, /, *values: Any, **named: Any):
        names = [each.name for each in fields(self)]
        named = dict(zip(names, values)) | named
        unknown = {name: named[name] for name in named.keys() - {*names, "model_type"}}
        for name in sorted(unknown):
            if unknown[name] and (near := self._nearest(name)):  # old files name 60 of no value
                warnings.warn(f"{name} is no field of {type(self).__name__}{near}", stacklevel=3)
        named["other"] = {**named.get("other", {}), **unknown}
        for each in fields(self):
            object.__setattr__(self, each.name, named.get(each.name, each.default))
        self.__post_init__()

    def __post_init__(self):
        for each in fields(self):
            is_right, expected = each.metadata.get("rule", (lambda value: True, ""))
            if not is_right(getattr(self, each.name)):
                self._refuse(each.name, expected)
        if self.other.get("return_dict") is False:
            self._refuse("return_dict", "true; write model(..., return_dict=False)")
        width, heads = self.width_and_heads
        if getattr(self, width) % getattr(self, heads):
            self._refuse(width, f"a multiple of {heads}, which is {getattr(self, heads)}")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            other = ABSENT | self.__dict__.get("other", {})
            return other[name] if name in other else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise FrozenInstanceError(
            f"a config cannot change: write from_pretrained(FOLDER, {name}={value!r}) or "
            f"dataclasses.replace(config, {name}={value!r})"
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Self":
        """From config.json's object. Raises InputError with the name of an impossible field."""
        cls._require_object(values)
        declared = values.get("model_type", cls.model_type)
        if declared not in (cls.model_type, cls.clip_type):
            # A whole model's config may be given for one tower.
            if declared in (CLIPSegConfig.model_type, CLIPSegConfig.clip_type):
                return getattr(CLIPSegConfig.from_dict(values), cls.base_config_key)
            raise InputError(
                f"model_type is {declared!r}; expected {cls.model_type!r} for {cls.__name__}"
            )
        named = dict(values)
        other = {key: named.pop(key) for key in ("other",) if key in named}
        return cls(**named, other=other)

    @classmethod
    def _nearest(cls, name: str) -> str:
        names = [each.name for each in fields(cls)]
        near = difflib.get_close_matches(name, names, 1, MIN_LIKENESS)
        return f"; is {near[0]} meant?" if near else ""

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
    @understands(LOADING)
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike, **options: Any) -> "Self":
        """From a checkpoint's config.json; a tower's config is found inside a whole model's.

        `options` are those of checkpoint_path, and fields with values that win over the file's.
        """
        folder = checkpoint_folder(folder_or_hub_id, needed=(CONFIG,), **hub_options(options))
        return cls.from_json_file(folder / CONFIG_NAME).with_values(**options)

    def with_values(self, **values: Any) -> "Self":
        """A config with these values in place of its own. Raises InputError for unknown names."""
        for name in values.keys() - {each.name for each in fields(self)} - {*OUTPUT_FLAGS}:
            raise InputError(
                f"{name} is neither an argument of from_pretrained nor a field of "
                f"{type(self).__name__}{self._nearest(name) or '; leave it out'}"
            )
        return replace(self, **values)

    @understands(SAVING)
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        write_json(Path(folder) / CONFIG_NAME, self.to_dict())

    def _refuse(self, name: str, expected: str) -> None:
        value = getattr(self, name)
        raise InputError(f"{type(self).__name__}: {name} is {value!r}; expected {expected}")


@dataclass(init=False)
class CLIPSegTextConfig(_Config):
    """The text tower. Texts are pooled at `eos_token_id`; 2 stands for the highest id."""

    model_type, clip_type = "clipseg_text_model", "clip_text_model"
    base_config_key = "text_config"

    vocab_size: int = ruled(49408, COUNT)
    hidden_size: int = ruled(512, COUNT)
    intermediate_size: int = ruled(2048, COUNT)
    num_hidden_layers: int = ruled(12, COUNT)
    num_attention_heads: int = ruled(8, COUNT)
    max_position_embeddings: int = ruled(77, COUNT)
    hidden_act: str = ruled("quick_gelu", ACTIVATION)
    layer_norm_eps: float = ruled(1e-5, SIZE)
    attention_dropout: float = ruled(0.0, DROPOUT)
    initializer_range: float = ruled(0.02, SIZE)
    initializer_factor: float = ruled(1.0, SIZE)
    pad_token_id: int | None = ruled(1, ANY_TOKEN_ID)
    bos_token_id: int | None = ruled(49406, ANY_TOKEN_ID)
    eos_token_id: int = ruled(49407, TOKEN_ID)
    other: dict = field(default_factory=dict, repr=False)


@dataclass(init=False)
class CLIPSegVisionConfig(_Config):
    """The vision tower. An image of another size than `image_size` gets interpolated positions."""

    model_type, clip_type = "clipseg_vision_model", "clip_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = ruled(768, COUNT)
    intermediate_size: int = ruled(3072, COUNT)
    num_hidden_layers: int = ruled(12, COUNT)
    num_attention_heads: int = ruled(12, COUNT)
    num_channels: int = ruled(3, COUNT)
    image_size: int = ruled(224, COUNT)
    patch_size: int = ruled(32, COUNT)
    hidden_act: str = ruled("quick_gelu", ACTIVATION)
    layer_norm_eps: float = ruled(1e-5, SIZE)
    attention_dropout: float = ruled(0.0, DROPOUT)
    initializer_range: float = ruled(0.02, SIZE)
    initializer_factor: float = ruled(1.0, SIZE)
    other: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.patch_size > self.image_size:
            self._refuse("patch_size", f"at most image_size, which is {self.image_size}")


@dataclass(init=False)
class CLIPSegConfig(_Config):
    """Both towers and the decoder.

    `extract_layers` are 0-based blocks of the vision tower; `conditional_layer` is the decoder
    layer before which the prompt modulates the tokens. `decoder_hidden_act` is kept and, as in the
    reference, not used: the decoder's activation is always relu.
    """

    model_type, clip_type = "clipseg", "clip"
    width_and_heads = ("reduce_dim", "decoder_num_attention_heads")

    # Configs; they may be given as dictionaries, or left out.
    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = ruled(512, COUNT)
    logit_scale_init_value: float = ruled(2.6592, NUMBER)
    initializer_factor: float = ruled(1.0, SIZE)
    extract_layers: tuple[int, ...] = (3, 6, 9)
    reduce_dim: int = ruled(64, COUNT)
    decoder_num_attention_heads: int = ruled(4, COUNT)
    decoder_attention_dropout: float = ruled(0.0, DROPOUT)
    decoder_hidden_act: str = "quick_gelu"
    decoder_intermediate_size: int = ruled(2048, COUNT)
    conditional_layer: int = 0
    use_complex_transposed_convolution: bool = ruled(False, FLAG)
    other: dict = field(default_factory=dict, repr=False)

    def __init__(self, /, *values: Any, **named: Any):
        """Old files repeat a tower in `text_config_dict`, which wins."""
        for tower in (CLIPSegTextConfig, CLIPSegVisionConfig):
            name = tower.base_config_key
            old = named.pop(f"{name}_dict", None)
            if old is not None:
                new = named.get(name) or {}
                tower._require_object(new)
                named[name] = {**new, **tower.from_dict(old).to_dict()}
        if named.get("model_type") == self.clip_type:
            # CLIP has no decoder: of the default's layers, those that its vision tower has.
            vision = CLIPSegVisionConfig.from_dict(named.get("vision_config") or {})
            layers = [n for n in type(self).extract_layers if n < vision.num_hidden_layers]
            named.setdefault("extract_layers", layers or [0])
        super().__init__(*values, **named)

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
        super().__post_init__()
        layers, last = self.extract_layers, self.vision_config.num_hidden_layers - 1
        is_list = isinstance(layers, (list, tuple)) and len(layers) > 0
        if not is_list or not all(is_whole(layer) and 0 <= layer <= last for layer in layers):
            expected = f"a list of the vision tower's layers, at least one, from 0 to {last}"
            self._refuse("extract_layers", expected)
        object.__setattr__(self, "extract_layers", tuple(layers))
        depth = len(layers)
        if not is_whole(self.conditional_layer) or self.conditional_layer not in range(depth):
            expected = f"one of the decoder's layers, 0 to {depth - 1}, or no prompt would be heard"
            self._refuse("conditional_layer", expected)
        if self.use_complex_transposed_convolution:
            if self.vision_config.patch_size < 4:
                self._refuse(
                    "use_complex_transposed_convolution",
                    "false for a patch_size below 4: the refined head upsamples twice by "
                    f"patch_size // 4, and patch_size is {self.vision_config.patch_size}",
                )
            if self.reduce_dim < 2:
                self._refuse("reduce_dim", "at least 2 for the refined head, which halves it")
