"""What the models and the processors return: records and dictionaries that read as transformers' do."""

from dataclasses import dataclass, fields
from typing import Any

from ..nn.ops import Array


class Features(dict):
    """A dictionary whose keys are attributes too: `inputs["input_ids"]` is `inputs.input_ids`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here; there are: {', '.join(self)}") from None


@dataclass
class Output:
    """A record read by attribute, by key or by position; fields that are None count only by attribute."""

    def __post_init__(self):
        for name, value in self.items():
            if isinstance(value, list):
                setattr(self, name, tuple(value))

    def _present(self) -> dict[str, Any]:
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def keys(self):
        return self._present().keys()

    def values(self):
        return self._present().values()

    def items(self):
        return self._present().items()

    def __iter__(self):
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def __contains__(self, name: str) -> bool:
        return name in self._present()

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return self._present()[key]
        return self.to_tuple()[key]

    def get(self, name: str, default: Any = None) -> Any:
        return self._present().get(name, default)

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order; a record inside becomes a tuple too, as in transformers."""
        values = self._present().values()
        return tuple(v.to_tuple() if isinstance(v, Output) else v for v in values)


@dataclass
class BaseModelOutputWithPooling(Output):
    """What a tower returns."""

    last_hidden_state: Array | None = None  # (B,T,D)
    pooler_output: Array | None = (
        None  # (B,D); projected, (B,projection_dim), inside CLIPSegModel's outputs
    )
    hidden_states: tuple[Array, ...] | None = (
        None  # the first layer's input, then each layer's output
    )
    attentions: tuple[Array, ...] | None = None  # (B,H,T,T) for each layer


@dataclass
class CLIPSegOutput(Output):
    """What CLIPSegModel returns; `image_embeds` and `text_embeds` have length 1."""

    loss: Array | None = None  # (), with return_loss
    logits_per_image: Array | None = None  # (B,P)
    logits_per_text: Array | None = None  # (P,B)
    text_embeds: Array | None = None  # (P,projection_dim)
    image_embeds: Array | None = None  # (B,projection_dim)
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


@dataclass
class CLIPSegDecoderOutput(Output):
    """What the decoder returns."""

    logits: Array | None = None  # (P,H,W), before the sigmoid
    hidden_states: tuple[Array, ...] | None = (
        None  # the first layer's input, then each layer's output
    )
    attentions: tuple[Array, ...] | None = None  # (P,H,T,T) for each layer


@dataclass
class CLIPSegImageSegmentationOutput(Output):
    """What CLIPSegForImageSegmentation returns."""

    loss: Array | None = None  # (), with labels
    logits: Array | None = None  # (P,H,W), before the sigmoid
    conditional_embeddings: Array | None = None  # (P,projection_dim)
    pooled_output: Array | None = None  # (B,projection_dim)
    vision_model_output: BaseModelOutputWithPooling | None = None
    decoder_output: CLIPSegDecoderOutput | None = None


@dataclass(frozen=True)
class ImageFeatures:
    """All that the decoder needs of B images: tokens after each extracted layer, and the grid's (h, w)."""

    activations: tuple[Array, ...]  # (B,1+hw,D) each, in the order of config.extract_layers
    grid: tuple[int, int]
