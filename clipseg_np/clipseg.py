"""CLIPSeg: a small decoder that turns the vision tower's tokens and one prompt's vector into a mask.

Reference: Lüddecke and Ecker, "Image segmentation using text and image prompts" (CVPR 2022); the classes of
the same names in transformers' modeling_clipseg.py (5.23).

Deviations: the decoder knows the grid's height and width, so that pictures need not be square; one picture
may meet any number of prompts and is then encoded once; a prompt in two forms at once is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .clip import CLIPSegModel
from .config import CLIPSegConfig
from .errors import InputError
from .layers import DecoderLayer, Layer, Linear
from .ops import Array
from .outputs import CLIPSegDecoderOutput, CLIPSegImageSegmentationOutput
from .pretrained import PretrainedModel
from .weights import Scope


@dataclass(frozen=True)
class ImageFeatures:
    """All that the decoder needs of B pictures: tokens after each extracted layer, and the grid's (h, w)."""

    activations: tuple[Array, ...]  # (B,1+hw,D) each, in the order of config.extract_layers
    grid: tuple[int, int]

    def of(self, pictures: slice) -> "ImageFeatures":
        """Those of some pictures; one picture is all prompts'."""
        if len(self.activations[0]) == 1:
            return self
        return ImageFeatures(tuple(part[pictures] for part in self.activations), self.grid)


class Conv2d(Layer):
    """A convolution that keeps the size.  (B,C,h,w) -> (B,D,h,w)"""

    def __init__(self, at: Scope, inputs: int, outputs: int, kernel: int):
        super().__init__(at)
        self.weight = at.take("weight", (outputs, inputs, kernel, kernel))
        self.bias = at.take("bias", (outputs,))

    def forward(self, x: Array) -> Array:
        return self.ops.conv2d(x, self.weight, self.bias)


class ConvTranspose2d(Layer):
    """A transposed convolution with stride = kernel.  (B,C,h,w) -> (B,D,hp,wp)"""

    def __init__(self, at: Scope, inputs: int, outputs: int, kernel: int):
        super().__init__(at)
        self.weight = at.take("weight", (inputs, outputs, kernel, kernel))
        self.bias = at.take("bias", (outputs,))

    def forward(self, x: Array) -> Array:
        return self.ops.conv_transpose2d(x, self.weight, self.bias)


class RefinedHead(Layer):
    """The head of "refined" checkpoints: convolution, then two steps up.  (P,D,h,w) -> (P,1,h(p//4)²,w(p//4)²)

    The result is as large as the picture only for patches of 16 pixels. The steps are numbered as in the
    checkpoint, which counts the two relu between them.
    """

    def __init__(self, at: Scope, width: int, patch_size: int):
        super().__init__(at)
        self.steps = {
            0: Conv2d(at / 0, width, width, kernel=3),
            2: ConvTranspose2d(at / 2, width, width // 2, patch_size // 4),
            4: ConvTranspose2d(at / 4, width // 2, 1, patch_size // 4),
        }

    def __getitem__(self, step: int) -> Layer:
        return self.steps[step]

    def forward(self, x: Array) -> Array:
        x = self.ops.relu(self[0](x))
        x = self.ops.relu(self[2](x))
        return self[4](x)


class Decoder(Layer):
    """Tokens of the extracted layers, deepest first, and a prompt's vector, to logits.

    activations (B,1+hw,D) each, conditional_embeddings (P,projection_dim) -> logits (P,H,W); B is P or 1.
    They may have been through `reduced` before, for several calls at once.
    """

    def __init__(self, at: Scope, config: CLIPSegConfig):
        super().__init__(at)
        D, depth = config.reduce_dim, len(config.extract_layers)
        self.conditional_layer = config.conditional_layer
        self.film_mul = Linear(at / "film_mul", config.projection_dim, D)
        self.film_add = Linear(at / "film_add", config.projection_dim, D)
        self.reduces = [
            Linear(at / "reduces" / i, config.vision_config.hidden_size, D) for i in range(depth)
        ]
        self.layers = [
            DecoderLayer(
                at / "layers" / i,
                width=D,
                heads=config.decoder_num_attention_heads,
                hidden=config.decoder_intermediate_size,
                activation="relu",
                eps=config.vision_config.layer_norm_eps,
            )
            for i in range(depth)
        ]
        patch_size = config.vision_config.patch_size
        head = at / "transposed_convolution"
        if config.use_complex_transposed_convolution:
            self.transposed_convolution = RefinedHead(head, D, patch_size)
        else:
            self.transposed_convolution = ConvTranspose2d(head, D, 1, patch_size)

    def forward(
        self,
        activations: tuple[Array, ...],
        conditional_embeddings: Array,
        grid: tuple[int, int],
        *,
        are_reduced: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> CLIPSegDecoderOutput:
        attentions = [] if output_attentions else None
        hidden_states = []
        x = 0
        for i, tokens in enumerate(activations if are_reduced else self.reduced(activations)):
            x = tokens + x
            if i == self.conditional_layer:
                x = self.film(x, conditional_embeddings)
            if i == 0:
                hidden_states.append(x)
            x = self.layers[i](x, attentions)
            hidden_states.append(x)
        return CLIPSegDecoderOutput(
            logits=self.paint(x, grid),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def reduced(self, activations: tuple[Array, ...]) -> tuple[Array, ...]:
        """Tokens as wide as the decoder, deepest layer first; no prompt changes them."""
        return tuple(reduce(tokens) for reduce, tokens in zip(self.reduces, reversed(activations)))

    def film(self, x: Array, conditional_embeddings: Array) -> Array:
        """Feature-wise linear modulation (Perez et al., 2018).  (P or 1,T,D), (P,projection_dim) -> (P,T,D)"""
        multiply = self.film_mul(conditional_embeddings)[:, None, :]
        add = self.film_add(conditional_embeddings)[:, None, :]
        return multiply * x + add

    def paint(self, x: Array, grid: tuple[int, int]) -> Array:
        """Patch tokens, without the class token, to logits.  (P,1+hw,D) -> (P,h,w,D) -> (P,D,h,w) -> (P,H,W)"""
        P, _, D = x.shape
        cells = x[:, 1:].reshape(P, *grid, D).transpose(0, 3, 1, 2)
        return self.transposed_convolution(cells)[:, 0]


class CLIPSegForImageSegmentation(PretrainedModel):
    """Pictures and prompts to logits: one mask for each prompt."""

    landmark = "clip.logit_scale"

    def __init__(self, config: CLIPSegConfig, at: Scope | None = None, **start: Any):
        super().__init__(config, at, **start)
        self.clip = CLIPSegModel(config, self.at / "clip")
        self.decoder = Decoder(self.at / "decoder", config)

    def encode(self, pixel_values: Array, **prompts: Any) -> tuple[ImageFeatures, Array]:
        """What `encode_image` returns of the pictures, and `get_conditional_embeddings` of the prompts.

        As calling them one after the other; NumPy reads texts beside the picture.
        """
        embeddings = self.ops.aside(lambda: self.get_conditional_embeddings(**prompts))
        return self.encode_image(pixel_values), embeddings()

    def encode_image(self, pixel_values: Array) -> ImageFeatures:
        """(B,C,H,W) to what the decoder needs: the vision tower as far as the last extracted layer.

        A few pictures at a time, `ops.pictures_at_once`; a trace then holds what the tower returned each time.
        """
        vision = self.clip.vision_model
        pixel_values = vision.checked_pixels(pixel_values)
        grid = vision.grid(pixel_values)

        def some(part: slice) -> list[Array]:
            return vision.tokens(pixel_values[part], only=self.config.extract_layers)

        found = self.ops.each(some, len(pixel_values), self.ops.pictures_at_once)
        return ImageFeatures(tuple(self._joined(parts) for parts in zip(*found)), grid)

    def get_conditional_embeddings(
        self,
        batch_size: int | None = None,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        conditional_pixel_values: Array | None = None,
    ) -> Array:
        """Prompts, as token ids (P,T) or as pictures (P,C,H,W), to (P,projection_dim), not normalised.

        Raises InputError where there is no prompt, or both kinds, or not `batch_size` of them (if given).
        """
        if (input_ids is None) == (conditional_pixel_values is None):
            raise InputError(
                "expected one kind of prompt: input_ids, or conditional_pixel_values; got "
                f"{'neither' if input_ids is None else 'both'}"
            )
        if input_ids is not None:
            embeddings = self.clip.get_text_features(input_ids, attention_mask, position_ids)
        else:
            embeddings = self.clip.get_image_features(conditional_pixel_values)
        if batch_size is not None and len(embeddings) != batch_size:
            raise InputError(
                f"got {len(embeddings)} prompts; expected {batch_size}, one for each picture"
            )
        return embeddings

    def decode(self, features: ImageFeatures, conditional_embeddings: Array) -> Array:
        """One picture with P prompts, or B pictures with B prompts.  (P,projection_dim) -> logits (P,H,W)

        The decoder gets a few prompts at a time, `ops.prompts_at_once`, so that memory does not grow with their
        number; a trace then holds what it returned each time.
        """
        embeddings = self._checked_embeddings(features, conditional_embeddings)
        reduced = ImageFeatures(self.decoder.reduced(features.activations), features.grid)

        def some(part: slice) -> Array:
            tokens = reduced.of(part).activations
            return self.decoder(tokens, embeddings[part], reduced.grid, are_reduced=True).logits

        return self._joined(self.ops.each(some, len(embeddings), self.ops.prompts_at_once))

    def _joined(self, parts: Sequence[Array]) -> Array:
        return parts[0] if len(parts) == 1 else self.ops.xp.concatenate(parts)

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
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> CLIPSegImageSegmentationOutput:
        """pixel_values (B,C,H,W) and P prompts in one of three forms -> logits (P,H,W); B is P or 1.

        The prompts are input_ids (P,T), conditional_pixel_values (P,C,H,W), or conditional_embeddings
        (P,projection_dim). `labels`, numbers in 0 to 1 of the logits' shape, give the binary cross-entropy as
        `loss`. `pooled_output` is each picture's projected vector, for which the whole vision tower runs;
        `encode_image` and `decode` do without it. Raises InputError for shapes that do not fit.
        """
        if pixel_values is None:
            raise InputError("pixel_values are missing: expected pictures, (B,C,H,W)")
        pixel_values = self._floats(pixel_values)
        record = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        vision = self.clip.vision_model(
            pixel_values,
            interpolate_pos_encoding,
            output_attentions=output_attentions,
            output_hidden_states=True,
        )
        # hidden_states[0] is the first layer's input, so that layer i's output stands at i + 1.
        activations = tuple(vision.hidden_states[i + 1] for i in self.config.extract_layers)
        features = ImageFeatures(activations, self.clip.vision_model.grid(pixel_values))
        vision.pooler_output = self.clip.visual_projection(vision.pooler_output)
        if not output_hidden_states:
            vision.hidden_states = None
        if conditional_embeddings is None:
            conditional_embeddings = self.get_conditional_embeddings(
                None, input_ids, attention_mask, position_ids, conditional_pixel_values
            )
        elif input_ids is not None or conditional_pixel_values is not None:
            raise InputError("conditional_embeddings are given, and another kind of prompt besides")
        conditional_embeddings = self._checked_embeddings(features, conditional_embeddings)
        decoded = self.decoder(
            features.activations, conditional_embeddings, features.grid, **record
        )
        return CLIPSegImageSegmentationOutput(
            loss=None if labels is None else self._loss(decoded.logits, labels),
            logits=decoded.logits,
            conditional_embeddings=conditional_embeddings,
            pooled_output=vision.pooler_output,
            vision_model_output=vision,
            decoder_output=decoded,
        )

    def _checked_embeddings(self, features: ImageFeatures, conditional_embeddings: Array) -> Array:
        conditional_embeddings = self._floats(conditional_embeddings)
        B, D = len(features.activations[0]), self.config.projection_dim
        shape = conditional_embeddings.shape
        if len(shape) != 2 or shape[1] != D or shape[0] < 1:
            raise InputError(
                f"conditional embeddings have shape {shape}; expected (prompts, {D}) (projection_dim) "
                f"with at least one prompt"
            )
        if B not in (1, shape[0]):
            raise InputError(
                f"got {B} pictures and {shape[0]} prompts; expected as many prompts as pictures, or one picture"
            )
        return conditional_embeddings

    def _loss(self, logits: Array, labels: Array) -> Array:
        labels = self._floats(labels)
        if labels.shape != logits.shape:
            raise InputError(
                f"labels have shape {labels.shape}; expected the logits', {logits.shape}"
            )
        return self.ops.binary_cross_entropy(logits, labels)
