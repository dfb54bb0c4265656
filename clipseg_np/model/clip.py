"""CLIP: a text tower and a vision tower that meet in one space.

Reference: Radford et al., "Learning transferable visual models from natural language supervision"
(2021); the classes of the same names in transformers' modeling_clipseg.py (5.23).

Deviations: an image need not be square; `get_text_features` and `get_image_features` return the
projected array; hidden states are returned only on request.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..nn import gradients
from ..nn.layers import Embedding, Encoder, Layer, LayerNorm, Linear, PatchEmbedding
from ..nn.ops import Array
from ..nn.scope import Scope
from . import input_checks
from .config import LEGACY_EOS_TOKEN_ID, CLIPSegConfig, CLIPSegTextConfig, CLIPSegVisionConfig
from .outputs import BaseModelOutputWithPooling, CLIPSegOutput
from .pretrained import PretrainedModel


class TextEmbeddings(Layer):
    """Token ids to vectors: the token's, plus its position's.  (P,T) -> (P,T,D)"""

    is_unit = False

    def __init__(self, scope: Scope, config: CLIPSegTextConfig):
        super().__init__(scope)
        D, max_T = config.hidden_size, config.max_position_embeddings
        self.token_embedding = Embedding(scope / "token_embedding", config.vocab_size, D)
        self.position_embedding = Embedding(scope / "position_embedding", max_T, D)

    def forward(self, input_ids: Array, position_ids: Array) -> Array:
        return self.token_embedding(input_ids) + self.position_embedding(position_ids)

    def backward(self, d_y: Array, input_ids: Array, position_ids: Array) -> None:
        self.token_embedding.propagate(d_y)
        self.position_embedding.propagate(gradients.unshare(d_y, len(position_ids)))


class GridPositions(Embedding):
    """Positions of the class token and of any grid of patches, learned on a square grid."""

    def __init__(self, scope: Scope, side: int, embedding_dim: int):
        super().__init__(scope, 1 + side**2, embedding_dim)
        self.side = side

    def forward(self, h: int, w: int) -> Array:
        """-> (1+hw,D): the class token's position, then those of h by w patches, row by row"""
        side, D = self.side, self.weight.shape[1]
        if (h, w) == (side, side):
            return self.weight
        grid = self.ops.resize_bicubic(self.weight[1:].reshape(side, side, D), (h, w))
        return self.ops.xp.concatenate([self.weight[:1], grid.reshape(h * w, D)])

    def backward(self, d_y: Array, h: int, w: int) -> None:
        self.learn(weight=lambda: self._d_weight(d_y, (h, w)))

    def _d_weight(self, d_y: Array, grid: tuple[int, int]) -> Array:
        """(1+hw,D) -> (1+side²,D)"""
        side, D = self.side, d_y.shape[1]
        if grid == (side, side):
            return d_y
        d_grid = gradients.resize_bicubic(self.ops, d_y[1:].reshape(*grid, D), (side, side))
        return self.ops.xp.concatenate([d_y[:1], d_grid.reshape(side**2, D)])


class VisionEmbeddings(Layer):
    """Images to tokens: the class token, then the patches row by row.  (B,C,H,W) -> (B,1+hw,D)"""

    is_unit = False

    def __init__(self, scope: Scope, config: CLIPSegVisionConfig):
        super().__init__(scope)
        D, p = config.hidden_size, config.patch_size
        self.class_embedding = scope.take("class_embedding", (D,))
        self.patch_embedding = PatchEmbedding(scope / "patch_embedding", config.num_channels, D, p)
        side = config.image_size // p
        self.position_embedding = GridPositions(scope / "position_embedding", side, D)
        self.positions = self.ops.memoize(self.position_embedding.forward)

    def forward(self, pixel_values: Array) -> Array:
        patches = self.patch_embedding(pixel_values)
        B, D, h, w = patches.shape
        # (B,D,h,w) -> (B,D,hw) -> (B,hw,D)
        patches = patches.reshape(B, D, h * w).transpose(0, 2, 1)
        class_tokens = self.ops.xp.broadcast_to(self.class_embedding, (B, 1, D))
        # (B,1,D) and (B,hw,D) -> (B,1+hw,D)
        tokens = self.ops.xp.concatenate([class_tokens, patches], axis=1)
        return tokens + self.positions(h, w)

    def backward(self, d_y: Array, pixel_values: Array) -> Array:
        (B, _, H, W), (D, _, p, _) = pixel_values.shape, self.patch_embedding.weight.shape
        h, w = H // p, W // p
        # The memo's positions are going to change.
        self.positions = self.ops.memoize(self.position_embedding.forward)
        self.learn(class_embedding=lambda: d_y[:, 0].sum(axis=0))
        self.position_embedding.backward(d_y.sum(axis=0), h, w)
        # (B,hw,D) -> (B,D,hw) -> (B,D,h,w)
        d_patches = d_y[:, 1:].transpose(0, 2, 1).reshape(B, D, h, w)
        return self.patch_embedding.propagate(d_patches)


class CLIPSegTextModel(PretrainedModel):
    """The text tower: token ids to one vector for each token, and one for the text."""

    config_class = CLIPSegTextConfig
    landmark = "embeddings.token_embedding.weight"
    prefixes = ("clip.text_model.", "text_model.", "")
    derivable = ("last_hidden_state", "pooler_output", "hidden_states")

    def __init__(self, config: CLIPSegTextConfig, scope: Scope | None = None, **start: Any):
        super().__init__(config, scope, **start)
        D, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = TextEmbeddings(self.scope / "embeddings", config)
        self.encoder = Encoder(self.scope / "encoder", config)
        self.final_layer_norm = LayerNorm(self.scope / "final_layer_norm", D, eps)

    def forward(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """input_ids (P,T); attention_mask (P,T), 0 at padding; position_ids (P,T) or (1,T).

        A token attends to itself and to the tokens before it, except padding. `hidden_states` end
        before the final norm. Raises InputError as input_checks.checked_texts does.
        """
        texts = input_checks.checked_texts(input_ids, attention_mask, position_ids, self.config)
        texts = [None if array is None else self.ops.asarray(array) for array in texts]
        attentions = [] if output_attentions else None
        hidden_states, last, pooled = self.encode(texts, attentions)
        hidden_states = hidden_states if output_hidden_states else None
        return BaseModelOutputWithPooling(last, pooled, hidden_states, attentions)

    def encode(
        self, texts: Sequence[Array | None], attentions: list | None = None
    ) -> tuple[list[Array], Array, Array]:
        """Hidden states and last hidden state, (P,T,D) each, and pooled output, (P,D).

        `texts` are input_ids, attention_mask and position_ids, checked, on the model's device. A
        text is pooled at its first end token; with an old config, at its highest id.
        """
        input_ids, attention_mask, position_ids = texts
        order = self.ops.xp.arange(input_ids.shape[1])
        x = self.embeddings(input_ids, order[None] if position_ids is None else position_ids)
        # True where a token attends to another: (1,1,T,T) or, with padding, (P,1,T,T)
        mask = (order[None, :] <= order[:, None])[None, None]
        if attention_mask is not None:
            mask = mask & (attention_mask != 0)[:, None, None, :]
        hidden_states = self.encoder(x, mask, attentions)
        last = self.final_layer_norm(hidden_states[-1])
        return hidden_states, last, last[self.ops.xp.arange(len(last)), self._ends(input_ids)]

    def _ends(self, input_ids: Array) -> Array:
        """The place of the token at which each text is pooled.  (P,T) -> (P)"""
        eos = self.config.eos_token_id
        return (input_ids if eos == LEGACY_EOS_TOKEN_ID else input_ids == eos).argmax(axis=-1)

    def backward(self, d_y: Mapping[str, Any], input_ids: Array, *_, **__) -> None:
        ids = self.ops.asarray(input_ids)
        ids = ids.reshape(-1, ids.shape[-1])
        (P, T), D, xp = ids.shape, self.config.hidden_size, self.ops.xp
        d_pooled = d_y.get("pooler_output", xp.zeros((P, D), dtype=self.dtype))
        is_end = xp.arange(T) == self._ends(ids)[:, None]
        # (P,T,1) and (P,1,D) -> (P,T,D)
        d_last = is_end[:, :, None] * d_pooled[:, None, :] + d_y.get("last_hidden_state", 0)
        *d_earlier, d_x = d_y.get("hidden_states", [0] * (len(self.encoder.layers) + 1))
        d_x = d_x + self.final_layer_norm.propagate(d_last)
        self.embeddings.propagate(self.encoder.propagate([*d_earlier, d_x]))


class CLIPSegVisionModel(PretrainedModel):
    """The vision tower: pixels to one vector for each patch, and one for the image."""

    config_class = CLIPSegVisionConfig
    landmark = "embeddings.class_embedding"
    prefixes = ("clip.vision_model.", "vision_model.", "")
    derivable = ("last_hidden_state", "pooler_output", "hidden_states")

    def __init__(self, config: CLIPSegVisionConfig, scope: Scope | None = None, **start: Any):
        super().__init__(config, scope, **start)
        D, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = VisionEmbeddings(self.scope / "embeddings", config)
        # Misspelt in every checkpoint.
        self.pre_layrnorm = LayerNorm(self.scope / "pre_layrnorm", D, eps)
        self.encoder = Encoder(self.scope / "encoder", config)
        self.post_layernorm = LayerNorm(self.scope / "post_layernorm", D, eps)

    def forward(
        self,
        pixel_values: Array,
        interpolate_pos_encoding: bool = True,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """pixel_values (B,C,H,W), of any height and width that hold a patch.

        Pixels past the last whole patch are not seen. Raises InputError for other shapes, and for
        another size than the config's image_size where `interpolate_pos_encoding` is False.
        """
        pixel_values = input_checks.checked_pixels(self.floats(pixel_values), self.config)
        if not interpolate_pos_encoding:
            input_checks.require_own_size(pixel_values, self.config)
        attentions = [] if output_attentions else None
        hidden_states = self.tokens(pixel_values, attentions=attentions)
        last, pooled = hidden_states[-1], self.post_layernorm(hidden_states[-1][:, 0])
        hidden_states = hidden_states if output_hidden_states else None
        return BaseModelOutputWithPooling(last, pooled, hidden_states, attentions)

    def backward(self, d_y: Mapping[str, Any], pixel_values: Array, *_, **__) -> Array:
        """-> d_pixel_values, (B,C,H,W)"""
        (h, w), B = self.grid(self.floats(pixel_values)), len(pixel_values)
        D = self.config.hidden_size
        d_pooled = d_y.get("pooler_output", self.ops.xp.zeros((B, D), dtype=self.dtype))
        d_class = self.post_layernorm.propagate(d_pooled)[:, None]
        # (B,1,D) -> (B,1+hw,D)
        d_last = self.ops.xp.pad(d_class, ((0, 0), (0, h * w), (0, 0)))
        *d_earlier, d_x = d_y.get("hidden_states", [0] * (len(self.encoder.layers) + 1))
        d_x = d_x + d_last + d_y.get("last_hidden_state", 0)
        return self.tokens_backward([*d_earlier, d_x])

    def tokens(
        self, pixel_values: Array, attentions: list | None = None, only: Sequence[int] = ()
    ) -> list[Array]:
        """The hidden states, or the outputs of `only` these layers.  (B,1+hw,D) each"""
        pixel_values = input_checks.checked_pixels(self.floats(pixel_values), self.config)
        x = self.pre_layrnorm(self.embeddings(pixel_values))
        return self.encoder(x, None, attentions, only)

    def tokens_backward(self, d_hidden_states: Sequence[Array]) -> Array:
        """As many as `tokens` returned, 0 for some -> d_pixel_values"""
        d_x = self.encoder.propagate(d_hidden_states)
        return self.embeddings.propagate(self.pre_layrnorm.propagate(d_x))

    def grid(self, pixel_values: Array) -> tuple[int, int]:
        """Rows and columns of patches in images (B,C,H,W)."""
        p = self.config.patch_size
        return pixel_values.shape[-2] // p, pixel_values.shape[-1] // p


class CLIPSegModel(PretrainedModel):
    """Both towers, and projections into a space where an image lies near its description."""

    landmark = "logit_scale"
    prefixes = ("clip.", "")
    derivable = ("loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds")

    def __init__(self, config: CLIPSegConfig, scope: Scope | None = None, **start: Any):
        super().__init__(config, scope, **start)
        text, vision, D = config.text_config, config.vision_config, config.projection_dim
        scope = self.scope
        self.text_model = CLIPSegTextModel(text, scope / "text_model")
        self.vision_model = CLIPSegVisionModel(vision, scope / "vision_model")
        self.visual_projection = Linear(scope / "visual_projection", vision.hidden_size, D, False)
        self.text_projection = Linear(scope / "text_projection", text.hidden_size, D, False)
        self.logit_scale = scope.take("logit_scale", ())

    def get_text_features(
        self, input_ids: Array, attention_mask: Array = None, position_ids: Array = None
    ) -> Array:
        """(P,T) -> (P,projection_dim), not normalized. Errors as of the text tower."""
        text = self.text_model(input_ids, attention_mask, position_ids)
        return self.text_projection(text.pooler_output)

    def text_features_backward(self, d_features: Array) -> None:
        """(P,projection_dim). Token ids have no derivative."""
        d_pooled = self.text_projection.propagate(d_features)
        self.text_model.propagate({"pooler_output": d_pooled})

    def get_image_features(
        self, pixel_values: Array, interpolate_pos_encoding: bool = True
    ) -> Array:
        """(B,C,H,W) -> (B,projection_dim), not normalized. Errors as of the vision tower."""
        vision = self.vision_model(pixel_values, interpolate_pos_encoding)
        return self.visual_projection(vision.pooler_output)

    def image_features_backward(self, d_features: Array) -> Array:
        """(B,projection_dim) -> d_pixel_values, (B,C,H,W)"""
        d_pooled = self.visual_projection.propagate(d_features)
        return self.vision_model.propagate({"pooler_output": d_pooled})

    def forward(
        self,
        input_ids: Array,
        pixel_values: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        return_loss: bool = False,
        interpolate_pos_encoding: bool = True,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CLIPSegOutput:
        """B images and P texts to the cosine of each pair, times e^logit_scale.

        input_ids (P,T), pixel_values (B,C,H,W); the rest as in both towers. `return_loss` adds the
        contrastive loss, for which image i and text i are a pair and B = P. As in the reference,
        the towers' outputs hold the projected vectors as their pooler_output. Raises InputError as
        the towers do, and for `return_loss` where B is not P.
        """
        options = {"output_attentions": output_attentions}
        options["output_hidden_states"] = output_hidden_states
        vision = self.vision_model(pixel_values, interpolate_pos_encoding, **options)
        text = self.text_model(input_ids, attention_mask, position_ids, **options)
        vision.pooler_output = self.visual_projection(vision.pooler_output)
        text.pooler_output = self.text_projection(text.pooler_output)
        image_embeds, text_embeds = map(self._unit, (vision.pooler_output, text.pooler_output))
        # (P,B)
        logits = text_embeds @ image_embeds.T * self.ops.xp.exp(self.logit_scale)
        loss = self._contrastive_loss(logits) if return_loss else None
        return CLIPSegOutput(loss, logits.T, logits, text_embeds, image_embeds, text, vision)

    def backward(
        self,
        d_y: Mapping[str, Any],
        input_ids: Array,
        pixel_values: Array,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        return_loss: bool = False,
        *_,
        **__,
    ) -> Array:
        """-> d_pixel_values, (B,C,H,W)"""
        input_checks.require_loss(d_y, return_loss, "return_loss")
        text, image = self.text_projection.again(), self.visual_projection.again()
        text_embeds, image_embeds = self._unit(text), self._unit(image)
        scale = self.ops.xp.exp(self.logit_scale)
        # (P,B)
        logits = text_embeds @ image_embeds.T * scale
        d_logits = d_y.get("logits_per_text", 0) + d_y.get("logits_per_image", 0 * logits.T).T
        if "loss" in d_y:
            d_logits = d_logits + d_y["loss"] * self._contrastive_gradient(logits)
        self.learn(logit_scale=lambda: (d_logits * logits).sum())
        d_text = d_logits @ image_embeds * scale + d_y.get("text_embeds", 0)
        d_image = d_logits.T @ text_embeds * scale + d_y.get("image_embeds", 0)
        self.text_features_backward(gradients.unit(d_text, text))
        return self.image_features_backward(gradients.unit(d_image, image))

    def _unit(self, x: Array) -> Array:
        """Rows scaled to length 1.  (n,D) -> (n,D)"""
        return x / self.ops.xp.sqrt((x * x).sum(axis=-1, keepdims=True))

    def _contrastive_loss(self, logits: Array) -> Array:
        """The mean of two cross-entropies: of each text's image, and of each image's text."""
        input_checks.require_pairs(logits)
        pairs = self.ops.xp.arange(len(logits))
        losses = [self.ops.cross_entropy(rows, pairs) for rows in (logits, logits.T)]
        return self.ops.xp.stack(losses).mean()

    def _contrastive_gradient(self, logits: Array) -> Array:
        """The derivative of `_contrastive_loss`.  (P,B)"""
        pairs = self.ops.xp.arange(len(logits))
        texts, images = (gradients.cross_entropy(self.ops, x, pairs) for x in (logits, logits.T))
        return (texts + images.T) / 2
