"""CLIP: a text tower and a vision tower that meet in one space.

Reference: Radford et al., "Learning transferable visual models from natural language supervision" (2021);
the classes of the same names in transformers' modeling_clipseg.py (5.23).

Deviations: pictures whose height and width differ are as welcome as square ones; `get_text_features` and
`get_image_features` return the projected array; hidden states are returned only when asked for.
"""

from collections.abc import Sequence
from typing import Any

from .config import (
    LEGACY_EOS_TOKEN_ID,
    CLIPSegConfig,
    CLIPSegTextConfig,
    CLIPSegVisionConfig,
)
from .errors import InputError
from .input_checks import checked_texts
from .layers import Embedding, EncoderLayer, Layer, LayerNorm, Linear
from .ops import Array
from .outputs import BaseModelOutputWithPooling, CLIPSegOutput
from .pretrained import PretrainedModel
from .weights import Scope

MAX_GRIDS = 8  # whose position embeddings are kept: 1.5 MB each for the official size


class TextEmbeddings(Layer):
    """Token ids to vectors: what a token is, plus where it stands.  (P,T) -> (P,T,D)"""

    def __init__(self, at: Scope, config: CLIPSegTextConfig):
        super().__init__(at)
        D = config.hidden_size
        self.token_embedding = Embedding(at / "token_embedding", config.vocab_size, D)
        self.position_embedding = Embedding(
            at / "position_embedding", config.max_position_embeddings, D
        )

    def forward(self, input_ids: Array, position_ids: Array) -> Array:
        return self.token_embedding(input_ids) + self.position_embedding(position_ids)


class PatchEmbedding(Layer):
    """Each patch of pixels to a vector.  (B,C,H,W) -> (B,D,h,w)"""

    def __init__(self, at: Scope, config: CLIPSegVisionConfig):
        super().__init__(at)
        p = config.patch_size
        self.weight = at.take("weight", (config.hidden_size, config.num_channels, p, p))

    def forward(self, pixel_values: Array) -> Array:
        return self.ops.patch_conv2d(pixel_values, self.weight)


class VisionEmbeddings(Layer):
    """A picture to tokens: the class token, then the patches row by row.  (B,C,H,W) -> (B,1+hw,D)"""

    def __init__(self, at: Scope, config: CLIPSegVisionConfig):
        super().__init__(at)
        D = config.hidden_size
        self.side = (
            config.image_size // config.patch_size
        )  # of the grid that the positions were learned on
        self.class_embedding = at.take("class_embedding", (D,))
        self.patch_embedding = PatchEmbedding(at / "patch_embedding", config)
        self.position_embedding = Embedding(at / "position_embedding", self.side**2 + 1, D)
        self.resized: dict[tuple[int, int], Array] = {}

    def forward(self, pixel_values: Array) -> Array:
        patches = self.patch_embedding(pixel_values)
        B, D, h, w = patches.shape
        tokens = self.ops.xp.empty((B, 1 + h * w, D), dtype=patches.dtype)
        tokens[:, 0] = self.class_embedding
        tokens[:, 1:] = patches.reshape(B, D, h * w).transpose(0, 2, 1)
        tokens += self.positions(h, w)
        return tokens

    def positions(self, h: int, w: int) -> Array:
        """Position embeddings for a grid of h by w patches; the class token's is kept apart.  (1+hw,D)

        Those of the last MAX_GRIDS grids are kept.
        """
        table = self.position_embedding.weight
        if (h, w) == (self.side, self.side):
            return table
        found = self.resized.get((h, w))
        if found is None:
            D = table.shape[1]
            grid = self.ops.resize_bicubic(table[1:].reshape(self.side, self.side, D), (h, w))
            found = self.ops.xp.concatenate([table[:1], grid.reshape(h * w, D)])
            for oldest in list(self.resized)[: len(self.resized) + 1 - MAX_GRIDS]:
                self.resized.pop(oldest, None)
            self.resized[h, w] = found
        return found


class Encoder(Layer):
    """Pre-norm transformer layers.  (B,T,D) -> the input and each layer's output, (B,T,D) each"""

    def __init__(self, at: Scope, config: CLIPSegTextConfig | CLIPSegVisionConfig):
        super().__init__(at)
        self.layers = [
            EncoderLayer(
                at / "layers" / i,
                width=config.hidden_size,
                heads=config.num_attention_heads,
                hidden=config.intermediate_size,
                activation=config.hidden_act,
                eps=config.layer_norm_eps,
            )
            for i in range(config.num_hidden_layers)
        ]

    def forward(
        self,
        x: Array,
        allowed: Array | None = None,
        attentions: list | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Array]:
        """`only` asks for the outputs of these layers, and ends the work after the last of them."""
        wanted = range(-1, len(self.layers)) if only is None else only  # -1: the input
        hidden_states = {-1: x}
        for i in range(max(wanted) + 1):
            x = self.layers[i](x, allowed, attentions)
            if i in wanted:
                hidden_states[i] = x
        return [hidden_states[i] for i in wanted]


class CLIPSegTextModel(PretrainedModel):
    """The text tower: token ids to one vector for each token, and one for the text."""

    config_class = CLIPSegTextConfig
    landmark = "embeddings.token_embedding.weight"
    prefixes = ("clip.text_model.", "text_model.", "")

    def __init__(self, config: CLIPSegTextConfig, at: Scope | None = None, **start: Any):
        super().__init__(config, at, **start)
        self.embeddings = TextEmbeddings(self.at / "embeddings", config)
        self.encoder = Encoder(self.at / "encoder", config)
        self.final_layer_norm = LayerNorm(
            self.at / "final_layer_norm", config.hidden_size, config.layer_norm_eps
        )

    def forward(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPooling:
        """input_ids (P,T); attention_mask (P,T), 0 at padding; position_ids (P,T) or (1,T).

        A token sees itself and those before it, save padding. `hidden_states` end before the final norm.
        Raises InputError for ids outside the vocabulary, too long a text, or shapes that do not fit. All is checked in
        main memory, to which arrays of a GPU are copied.
        """
        texts = checked_texts(input_ids, attention_mask, position_ids, self.config)
        texts = [None if part is None else self.ops.asarray(part) for part in texts]
        attentions = [] if output_attentions else None
        hidden_states = self.tokens(*texts, attentions)
        last = self.final_layer_norm(hidden_states[-1])
        return BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=self.pooled(last, texts[0]),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def tokens(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        attentions: list | None = None,
    ) -> list[Array]:
        """The first layer's input and each layer's output, (P,T,D) each, for arrays that are checked already.

        Nothing here waits for a GPU.
        """
        if position_ids is None:
            position_ids = self.ops.xp.arange(input_ids.shape[1])[None]
        x = self.embeddings(input_ids, position_ids)
        return self.encoder(x, self._allowed(attention_mask, input_ids.shape[1]), attentions)

    def pooled(self, last: Array, input_ids: Array) -> Array:
        """The vector at each text's end.  (P,T,D) -> (P,D)"""
        return last[self.ops.xp.arange(len(last)), self._end_of_text(input_ids)]

    def _end_of_text(self, input_ids: Array) -> Array:
        """Its first end token; the highest id where the config is an old one.  (P,T) -> (P)"""
        if self.config.eos_token_id == LEGACY_EOS_TOKEN_ID:
            return input_ids.argmax(axis=-1)
        return (input_ids == self.config.eos_token_id).argmax(axis=-1)

    def _allowed(self, attention_mask: Array | None, T: int) -> Array:
        """True where a token may see another: (1,1,T,T) or, with padding, (P,1,T,T)."""
        order = self.ops.xp.arange(T)
        causal = (order[None, :] <= order[:, None])[None, None]
        if attention_mask is None:
            return causal
        return causal & (attention_mask != 0)[:, None, None, :]


class CLIPSegVisionModel(PretrainedModel):
    """The vision tower: pixels to one vector for each patch, and one for the picture."""

    config_class = CLIPSegVisionConfig
    landmark = "embeddings.class_embedding"
    prefixes = ("clip.vision_model.", "vision_model.", "")

    def __init__(self, config: CLIPSegVisionConfig, at: Scope | None = None, **start: Any):
        super().__init__(config, at, **start)
        D, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = VisionEmbeddings(self.at / "embeddings", config)
        self.pre_layrnorm = LayerNorm(
            self.at / "pre_layrnorm", D, eps
        )  # misspelt in every checkpoint
        self.encoder = Encoder(self.at / "encoder", config)
        self.post_layernorm = LayerNorm(self.at / "post_layernorm", D, eps)

    def forward(
        self,
        pixel_values: Array,
        interpolate_pos_encoding: bool = True,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPooling:
        """pixel_values (B,C,H,W), of any height and width that hold a patch.

        Pixels past the last whole patch are not seen. Raises InputError for other shapes, and for another size
        than the config's image_size where `interpolate_pos_encoding` is False.
        """
        if not interpolate_pos_encoding:
            self._require_own_size(pixel_values)
        attentions = [] if output_attentions else None
        hidden_states = self.tokens(pixel_values, attentions=attentions)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states[-1],
            pooler_output=self.post_layernorm(hidden_states[-1][:, 0]),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def tokens(
        self,
        pixel_values: Array,
        attentions: list | None = None,
        only: Sequence[int] | None = None,
    ) -> list[Array]:
        """The first layer's input and each layer's output, or those of `only` these layers.  (B,1+hw,D) each"""
        x = self.pre_layrnorm(self.embeddings(self.checked_pixels(pixel_values)))
        return self.encoder(x, None, attentions, only)

    def grid(self, pixel_values: Array) -> tuple[int, int]:
        """Rows and columns of patches in pictures (B,C,H,W)."""
        p = self.config.patch_size
        return pixel_values.shape[-2] // p, pixel_values.shape[-1] // p

    def checked_pixels(self, pixel_values: Array) -> Array:
        pixel_values = self._floats(pixel_values)
        C, p = self.config.num_channels, self.config.patch_size
        shape = pixel_values.shape
        if len(shape) != 4 or shape[0] < 1 or shape[1] != C or min(shape[2:]) < p:
            raise InputError(
                f"pixel values have shape {shape}; expected (images, {C}, height, width) with at least one "
                f"image and one patch of {p} by {p} pixels (num_channels and patch_size of config.json; "
                f"preprocessor_config.json has a picture's size)"
            )
        return pixel_values

    def _require_own_size(self, pixel_values: Array) -> None:
        side = self.config.image_size
        if tuple(pixel_values.shape[-2:]) != (side, side):
            height, width = pixel_values.shape[-2:]
            raise InputError(
                f"the picture is {height} by {width} pixels; without interpolate_pos_encoding it must be "
                f"{side} by {side} (image_size)"
            )


class CLIPSegModel(PretrainedModel):
    """Both towers and their projections into one space, where a picture lies near its description."""

    landmark = "logit_scale"
    prefixes = ("clip.", "")

    def __init__(self, config: CLIPSegConfig, at: Scope | None = None, **start: Any):
        super().__init__(config, at, **start)
        text, vision = config.text_config, config.vision_config
        self.text_model = CLIPSegTextModel(text, self.at / "text_model")
        self.vision_model = CLIPSegVisionModel(vision, self.at / "vision_model")
        self.visual_projection = Linear(
            self.at / "visual_projection", vision.hidden_size, config.projection_dim, bias=False
        )
        self.text_projection = Linear(
            self.at / "text_projection", text.hidden_size, config.projection_dim, bias=False
        )
        self.logit_scale = self.at.take("logit_scale", ())

    def get_text_features(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
    ) -> Array:
        """(P,T) -> (P,projection_dim), not normalised"""
        return self.text_projection(
            self.text_model(input_ids, attention_mask, position_ids).pooler_output
        )

    def get_image_features(
        self, pixel_values: Array, interpolate_pos_encoding: bool = True
    ) -> Array:
        """(B,C,H,W) -> (B,projection_dim), not normalised"""
        return self.visual_projection(
            self.vision_model(pixel_values, interpolate_pos_encoding).pooler_output
        )

    def forward(
        self,
        input_ids: Array,
        pixel_values: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        return_loss: bool = False,
        interpolate_pos_encoding: bool = True,
        *,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> CLIPSegOutput:
        """How well each of B pictures fits each of P texts: cosines times e^logit_scale.

        `return_loss` asks for the contrastive loss, which takes picture i and text i for a pair and needs B = P.
        As in the reference, the towers' outputs hold the projected vectors as their pooler_output.
        """
        record = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        vision = self.vision_model(pixel_values, interpolate_pos_encoding, **record)
        text = self.text_model(input_ids, attention_mask, position_ids, **record)
        vision.pooler_output = self.visual_projection(vision.pooler_output)
        text.pooler_output = self.text_projection(text.pooler_output)
        image_embeds = self._unit(vision.pooler_output)
        text_embeds = self._unit(text.pooler_output)
        logits_per_text = text_embeds @ image_embeds.T * self.ops.xp.exp(self.logit_scale)
        return CLIPSegOutput(
            loss=self._contrastive_loss(logits_per_text) if return_loss else None,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=vision,
        )

    def _unit(self, x: Array) -> Array:
        """Rows at length 1.  (n,D) -> (n,D)"""
        return x / self.ops.xp.sqrt((x * x).sum(axis=-1, keepdims=True))

    def _contrastive_loss(self, logits: Array) -> Array:
        """The mean of the two cross-entropies: of finding each text's picture, and each picture's text."""
        P, B = logits.shape
        if P != B:
            raise InputError(
                f"return_loss takes as many texts as pictures, in pairs; got {P} and {B}"
            )
        pairs = self.ops.xp.arange(P)
        return (self.ops.cross_entropy(logits, pairs) + self.ops.cross_entropy(logits.T, pairs)) / 2
