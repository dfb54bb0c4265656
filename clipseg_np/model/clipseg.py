"""CLIPSeg: a small decoder that makes a mask of the vision tower's tokens and a prompt's vector.

Reference: Lüddecke and Ecker, "Image segmentation using text and image prompts" (CVPR 2022); the
classes of the same names in transformers' modeling_clipseg.py (5.23).

Deviations: the decoder knows the grid's height and width, so that images need not be square; one
image may have any number of prompts and is encoded once; a prompt in two forms at once is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..nn import gradients
from ..nn.layers import ConvTranspose2d, DecoderLayer, Layer, Linear, RefinedHead
from ..nn.ops import Array
from ..nn.scope import Scope
from . import input_checks
from .batched import joined_slices
from .clip import CLIPSegModel
from .config import CLIPSegConfig
from .outputs import CLIPSegDecoderOutput, CLIPSegImageSegmentationOutput, ImageFeatures
from .pretrained import PretrainedModel


class Decoder(Layer):
    """Reduced tokens of the extracted layers, deepest first, and the prompts' vectors, to logits.

    (B,1+hw,D) a layer and conditional_embeddings (P,projection_dim) -> (P,H,W); B is P or 1.
    """

    is_unit = False

    def __init__(self, scope: Scope, config: CLIPSegConfig):
        super().__init__(scope)
        vision, D, depth = config.vision_config, config.reduce_dim, len(config.extract_layers)
        self.conditional_layer = config.conditional_layer
        self.film_mul = Linear(scope / "film_mul", config.projection_dim, D)
        self.film_add = Linear(scope / "film_add", config.projection_dim, D)
        self.reduces = [Linear(scope / "reduces" / i, vision.hidden_size, D) for i in range(depth)]
        sizes = D, config.decoder_num_attention_heads, config.decoder_intermediate_size
        arguments = *sizes, "relu", vision.layer_norm_eps
        self.layers = [DecoderLayer(scope / "layers" / i, *arguments) for i in range(depth)]
        head = scope / "transposed_convolution"
        if config.use_complex_transposed_convolution:
            self.transposed_convolution = RefinedHead(head, D, vision.patch_size)
        else:
            self.transposed_convolution = ConvTranspose2d(head, D, 1, vision.patch_size)

    def reduce(self, activations: Sequence[Array]) -> list[Array]:
        """Tokens with the decoder's D features, deepest layer first.  (B,1+hw,D) each"""
        return [layer(tokens) for layer, tokens in zip(self.reduces, reversed(activations))]

    def reduce_backward(self, d_reduced: Sequence[Array]) -> list[Array]:
        """Deepest layer first -> d_activations, (B,1+hw,D) each"""
        pairs = zip(self.reduces, d_reduced)
        return [layer.propagate(d_tokens) for layer, d_tokens in pairs][::-1]

    def learn_reduces(self, d_reduced: Sequence[Array], activations: Sequence[Array]) -> None:
        """The gradients of `reduces` alone, for activations that come from a frozen tower."""
        for layer, d_tokens, tokens in zip(self.reduces, d_reduced, reversed(activations)):
            layer.learn_from(d_tokens, tokens)

    def forward(
        self,
        reduced: Sequence[Array],
        conditional_embeddings: Array,
        grid: tuple[int, int],
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CLIPSegDecoderOutput:
        attentions = [] if output_attentions else None
        hidden_states, x = [], 0
        for i, tokens in enumerate(reduced):
            x = tokens + x
            if i == self.conditional_layer:
                x = self.film(x, conditional_embeddings)
            hidden_states = hidden_states or [x]
            x = self.layers[i](x, attentions)
            hidden_states.append(x)
        hidden_states = hidden_states if output_hidden_states else None
        return CLIPSegDecoderOutput(self.paint(x, grid), hidden_states, attentions)

    def backward(
        self, d_logits: Array, reduced: Sequence[Array], conditional_embeddings: Array, *_, **__
    ) -> tuple[list[Array], Array]:
        """(P,H,W) -> d_reduced, (B,1+hw,D) each, and d_conditional_embeddings"""
        d_x, d_reduced = self.paint_backward(d_logits), []
        for i in reversed(range(len(reduced))):
            d_x = self.layers[i].propagate(d_x)
            if i == self.conditional_layer:
                x = reduced[i] + (self.layers[i - 1].again() if i > 0 else 0)
                d_x, d_embeddings = self.film_backward(d_x, x, conditional_embeddings)
            d_reduced.append(gradients.unshare(d_x, len(reduced[i])))
        return d_reduced[::-1], d_embeddings

    def film(self, x: Array, conditional_embeddings: Array) -> Array:
        """FiLM (Perez et al., 2018): the prompt scales and shifts features.  -> (P,T,D)"""
        # (P,projection_dim) -> (P,D) -> (P,1,D)
        multiply = self.film_mul(conditional_embeddings)[:, None, :]
        add = self.film_add(conditional_embeddings)[:, None, :]
        return multiply * x + add

    def film_backward(
        self, d_y: Array, x: Array, conditional_embeddings: Array
    ) -> tuple[Array, Array]:
        """(P,T,D) -> d_x, of x's shape, and d_conditional_embeddings"""
        multiply = self.film_mul.forward(conditional_embeddings)[:, None, :]
        # (P,T,D) -> (P,D) -> (P,projection_dim)
        d_embeddings = self.film_mul.propagate((d_y * x).sum(axis=1))
        d_embeddings = d_embeddings + self.film_add.propagate(d_y.sum(axis=1))
        return gradients.unshare(d_y * multiply, len(x)), d_embeddings

    def paint(self, x: Array, grid: tuple[int, int]) -> Array:
        """Patch tokens to logits; the class token is dropped.  (P,1+hw,D) -> (P,H,W)"""
        P, _, D = x.shape
        # (P,1+hw,D) -> (P,hw,D) -> (P,h,w,D) -> (P,D,h,w)
        cells = x[:, 1:].reshape(P, *grid, D).transpose(0, 3, 1, 2)
        # (P,D,h,w) -> (P,1,H,W) -> (P,H,W)
        return self.transposed_convolution(cells)[:, 0]

    def paint_backward(self, d_logits: Array) -> Array:
        """(P,H,W) -> (P,1+hw,D)"""
        d_cells = self.transposed_convolution.propagate(d_logits[:, None])
        P, D, h, w = d_cells.shape
        # (P,D,h,w) -> (P,h,w,D) -> (P,hw,D) -> (P,1+hw,D): nothing depends on the class token
        d_patches = d_cells.transpose(0, 2, 3, 1).reshape(P, h * w, D)
        return self.ops.xp.pad(d_patches, ((0, 0), (1, 0), (0, 0)))


class CLIPSegForImageSegmentation(PretrainedModel):
    """Images and prompts to logits: one mask for each prompt."""

    landmark = "clip.logit_scale"
    derivable = ("loss", "logits", "conditional_embeddings", "pooled_output")

    def __init__(self, config: CLIPSegConfig, scope: Scope | None = None, **start: Any):
        super().__init__(config, scope, **start)
        self.clip = CLIPSegModel(config, self.scope / "clip")
        self.decoder = Decoder(self.scope / "decoder", config)

    def encode_image(self, pixel_values: Array) -> ImageFeatures:
        """(B,C,H,W) to the decoder's input. The vision tower runs up to the last extracted layer.

        It gets `ops.images_per_slice` images at a time; a trace keeps what it returned each time.
        """
        vision = self.clip.vision_model
        pixel_values = input_checks.checked_pixels(self.floats(pixel_values), vision.config)

        def activations(images: slice) -> list[Array]:
            return vision.tokens(pixel_values[images], only=self.config.extract_layers)

        outputs = joined_slices(self.ops, activations, len(pixel_values), self.ops.images_per_slice)
        return ImageFeatures(tuple(outputs), vision.grid(pixel_values))

    def get_conditional_embeddings(
        self,
        batch_size: int | None = None,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        conditional_pixel_values: Array | None = None,
    ) -> Array:
        """Prompts, as token ids (P,T) or images (P,C,H,W), to (P,projection_dim), not normalized.

        Raises InputError for no prompt, both kinds, or another number than `batch_size` (if given).
        """
        input_checks.require_one_kind_of_prompt(input_ids, conditional_pixel_values)
        if input_ids is not None:
            embeddings = self.clip.get_text_features(input_ids, attention_mask, position_ids)
        else:
            embeddings = self.clip.get_image_features(conditional_pixel_values)
        input_checks.require_batch_size(embeddings, batch_size)
        return embeddings

    def decode(self, features: ImageFeatures, conditional_embeddings: Array) -> Array:
        """One image with P prompts, or B images with B prompts.  (P,projection_dim) -> (P,H,W)

        The decoder gets `ops.prompts_per_slice` prompts at a time, so that their number costs no
        memory; a trace keeps what it returned each time.
        """
        B, embeddings = len(features.activations[0]), self.floats(conditional_embeddings)
        embeddings = input_checks.checked_embeddings(embeddings, B, self.config)
        reduced = self.decoder.reduce(features.activations)

        def logits(prompts: slice) -> list[Array]:
            # A single image is shared by all prompts.
            tokens = reduced if B == 1 else [layer[prompts] for layer in reduced]
            return [self.decoder(tokens, embeddings[prompts], features.grid).logits]

        return joined_slices(self.ops, logits, len(embeddings), self.ops.prompts_per_slice)[0]

    def forward(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        conditional_pixel_values: Array | None = None,
        conditional_embeddings: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        labels: Array | None = None,
        interpolate_pos_encoding: bool = True,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> CLIPSegImageSegmentationOutput:
        """pixel_values (B,C,H,W) and P prompts in one of 3 forms -> logits (P,H,W); B is P or 1.

        The prompts are input_ids (P,T), conditional_pixel_values (P,C,H,W), or
        conditional_embeddings (P,projection_dim). `loss` is the binary cross-entropy with `labels`,
        numbers from 0 to 1 of the logits' shape. `pooled_output` is each image's projected vector,
        for which the whole vision tower runs; `encode_image` and `decode` do without. Raises
        InputError for shapes that do not fit.
        """
        prompts = input_ids, attention_mask, position_ids, conditional_pixel_values
        input_checks.require_inputs(pixel_values, conditional_embeddings, prompts[0], prompts[-1])
        pixel_values = self.floats(pixel_values)
        options = {"output_attentions": output_attentions, "output_hidden_states": True}
        vision = self.clip.vision_model(pixel_values, interpolate_pos_encoding, **options)
        # hidden_states[0] is the first layer's input, hidden_states[i + 1] the output of layer i.
        activations = [vision.hidden_states[i + 1] for i in self.config.extract_layers]
        vision.pooler_output = self.clip.visual_projection(vision.pooler_output)
        if not self.clip.vision_model.flag("output_hidden_states", output_hidden_states):
            vision.hidden_states = None
        embeddings = conditional_embeddings
        if embeddings is None:
            embeddings = self.get_conditional_embeddings(None, *prompts)
        embeddings = self.floats(embeddings)
        input_checks.checked_embeddings(embeddings, len(activations[0]), self.config)
        reduced, grid = self.decoder.reduce(activations), self.clip.vision_model.grid(pixel_values)
        options["output_hidden_states"] = output_hidden_states
        decoded = self.decoder(reduced, embeddings, grid, **options)
        loss, logits, pooled = None, decoded.logits, vision.pooler_output
        if labels is not None:
            labels = input_checks.checked_labels(self.floats(labels), logits)
            loss = self.ops.binary_cross_entropy(logits, labels)
        return CLIPSegImageSegmentationOutput(loss, logits, embeddings, pooled, vision, decoded)

    def backward(
        self,
        d_y: Mapping[str, Any],
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        conditional_pixel_values: Array | None = None,
        conditional_embeddings: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        labels: Array | None = None,
        *_,
        **__,
    ) -> tuple[Array, Array | None]:
        """-> d_pixel_values, and the derivative by the prompts, which is None for token ids"""
        input_checks.require_loss(d_y, labels is not None, "labels")
        logits = self.decoder.transposed_convolution.again()[:, 0]
        d_logits = d_y.get("logits", 0 * logits)
        if "loss" in d_y:
            d_loss = gradients.binary_cross_entropy(self.ops, logits, self.floats(labels))
            d_logits = d_logits + d_y["loss"] * d_loss
        d_reduced, d_prompts = self.decoder.propagate(d_logits)
        d_prompts = d_prompts + d_y.get("conditional_embeddings", 0)
        # The vision tower's second call comes first.
        if input_ids is not None:
            d_prompts = self.clip.text_features_backward(d_prompts)
        elif conditional_pixel_values is not None:
            d_prompts = self.clip.image_features_backward(d_prompts)
        d_pooled = d_y.get("pooled_output", 0 * self.clip.visual_projection.again())
        d_pooled = self.clip.visual_projection.propagate(d_pooled)
        d_hidden_states = [0] * (len(self.clip.vision_model.encoder.layers) + 1)
        for i, d_tokens in zip(self.config.extract_layers, self.decoder.reduce_backward(d_reduced)):
            d_hidden_states[i + 1] = d_hidden_states[i + 1] + d_tokens
        d_vision = {"pooler_output": d_pooled, "hidden_states": d_hidden_states}
        return self.clip.vision_model.propagate(d_vision), d_prompts
