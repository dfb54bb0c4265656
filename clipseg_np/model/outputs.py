"""Outputs of models and processors: records and dictionaries that read as transformers' do."""

from collections.abc import Iterator, Mapping, Sequence
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

    def to(self, *place: Any, **options: Any) -> "Features":
        """These features: a model brings its inputs to its device, in its type."""
        return self


@dataclass
class Output(Mapping):
    """A record read by attribute, key or position. A field that is None has no key or position."""

    def __post_init__(self):
        for name, value in self._present().items():
            if isinstance(value, list):
                setattr(self, name, tuple(value))

    def _present(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        """The fields that are not None, in order; as in transformers, a record becomes a tuple."""
        values = self._present().values()
        return tuple(v.to_tuple() if isinstance(v, Output) else v for v in values)


@dataclass
class BaseModelOutputWithPooling(Output):
    """The output of a tower."""

    last_hidden_state: Array | None = None  # (B,T,D)
    pooler_output: Array | None = None  # (B,D); in CLIPSegModel's outputs (B,projection_dim)
    hidden_states: Sequence[Array] | None = None  # the first layer's input, each layer's output
    attentions: Sequence[Array] | None = None  # (B,N,T,T) for each layer


@dataclass
class CLIPSegOutput(Output):
    """The output of CLIPSegModel. `image_embeds` and `text_embeds` have length 1."""

    loss: Array | None = None  # (), with return_loss
    logits_per_image: Array | None = None  # (B,P)
    logits_per_text: Array | None = None  # (P,B)
    text_embeds: Array | None = None  # (P,projection_dim)
    image_embeds: Array | None = None  # (B,projection_dim)
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


@dataclass
class CLIPSegDecoderOutput(Output):
    """The output of the decoder."""

    logits: Array | None = None  # (P,H,W), before the sigmoid
    hidden_states: Sequence[Array] | None = None  # the first layer's input, each layer's output
    attentions: Sequence[Array] | None = None  # (P,N,T,T) for each layer


@dataclass
class CLIPSegImageSegmentationOutput(Output):
    """The output of CLIPSegForImageSegmentation."""

    loss: Array | None = None  # (), with labels
    logits: Array | None = None  # (P,H,W), before the sigmoid
    conditional_embeddings: Array | None = None  # (P,projection_dim)
    pooled_output: Array | None = None  # (B,projection_dim)
    vision_model_output: BaseModelOutputWithPooling | None = None
    decoder_output: CLIPSegDecoderOutput | None = None


@dataclass(frozen=True)
class ImageFeatures:
    """The decoder's input of B images: tokens after each extracted layer, and the grid's (h, w)."""

    activations: tuple[Array, ...]  # (B,1+hw,D) each, in the order of config.extract_layers
    grid: tuple[int, int]
