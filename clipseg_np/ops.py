"""All the arithmetic of CLIPSeg, once, in terms of an array module `xp`: NumPy, or CuPy on a GPU.

This is the readable truth. A backend that can do better overrides single methods in a subclass, with
the same name, signature and result. Nothing here knows a layer, a config or a weight's name.

Every method keeps the float type of its input: constants are Python numbers, which do not promote an
array, and tables are cast to the input's type. Axis letters are explained in `config.py`.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy

Array = Any  # a numpy.ndarray or a cupy.ndarray

SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


class Ops:
    """Layer arithmetic on the arrays of `xp`."""

    FLOAT_TYPES = ("float32", "float64")  # sums in float16 would lose what they sum
    ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "relu", "selu")
    pictures_at_once = prompts_at_once = 64  # each takes 10 MB or more on its way

    def __init__(self, xp: ModuleType = numpy):
        self.xp = xp
        self._tables: dict[tuple, Array] = {}

    # Arrays in and out

    def asarray(self, values: Any, dtype: Any = None) -> Array:
        """An array on this backend's device; no copy where it is one already."""
        values = in_main_memory(values) if self.xp is numpy else values
        return self.xp.asarray(values, dtype=dtype)

    def to_numpy(self, x: Array) -> numpy.ndarray:
        """The same values as a NumPy array in main memory."""
        return in_main_memory(x)

    # In what order

    def each(self, work: Callable[[slice], Any], length: int, at_once: int) -> list:
        """What `work` returns for slices that make up 0 to `length`, each `at_once` long or shorter, in order."""
        return [work(part) for part in slices(0, length, at_once)]

    def aside(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Work whose result is not needed yet, as a function that returns it: here, one that does it then."""
        return work

    # Linear maps

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """x Wᵀ + b, with the weight as it is stored, (out, in).  (..., in) -> (..., out)"""
        y = x @ weight.T
        return y if bias is None else y + bias

    def linears(self, x: Array, maps: Sequence[tuple[Array, Array | None]]) -> list[Array]:
        """Several linear maps of the same, each a weight and a bias.  (..., in) -> (..., out) each"""
        return [self.linear(x, weight, bias) for weight, bias in maps]

    def linear_activated(
        self, x: Array, weight: Array, bias: Array | None, activation: str
    ) -> Array:
        """The activation of a linear map.  (..., in) -> (..., out)"""
        return self.activation(activation, self.linear(x, weight, bias))

    def mlp(
        self,
        x: Array,
        widen: tuple[Array, Array | None],
        narrow: tuple[Array, Array | None],
        activation: str,
    ) -> Array:
        """Two linear maps, each a weight and a bias, with an activation between.  (..., D) -> (..., D)"""
        return self.linear(self.linear_activated(x, *widen, activation), *narrow)

    def embedding(self, ids: Array, table: Array) -> Array:
        """One row of the table for each id.  (...), (V, D) -> (..., D)"""
        return table[ids]

    def patch_conv2d(self, x: Array, weight: Array) -> Array:
        """A convolution whose stride is its kernel: each patch is seen once, so it is a reshape and a linear map.

        (B,C,H,W), (D,C,p,p) -> (B,D,h,w) with h = H//p, w = W//p; pixels past the last whole patch are
        not seen, as in any convolution without padding.
        """
        (B, C, H, W), (D, _, p, _) = x.shape, weight.shape
        h, w = H // p, W // p
        patches = x[:, :, : h * p, : w * p].reshape(B, C, h, p, w, p).transpose(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(B, h, w, C * p * p)
        return self.linear(patches, weight.reshape(D, C * p * p)).transpose(0, 3, 1, 2)

    def conv2d(self, x: Array, weight: Array, bias: Array) -> Array:
        """A convolution with stride 1, padded to keep the size: a linear map of each cell's neighbours.

        (B,C,h,w), (D,C,k,k) with k odd, (D) -> (B,D,h,w)
        """
        (B, C, h, w), (D, _, k, _) = x.shape, weight.shape
        margin = k // 2
        padded = self.xp.zeros((C, B, h + 2 * margin, w + 2 * margin), dtype=x.dtype)
        padded[:, :, margin : margin + h, margin : margin + w] = x.transpose(1, 0, 2, 3)
        c, b, row, column = padded.strides
        around = self.xp.lib.stride_tricks.as_strided(
            padded, (C, k, k, B, h, w), (c, row, column, b, row, column)
        )
        cells = around.reshape(C * k * k, B, h, w).transpose(1, 2, 3, 0)  # copied once
        y = self.linear(cells, weight.reshape(D, C * k * k), bias)
        return y.transpose(0, 3, 1, 2)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        """A transposed convolution whose stride is its kernel: each cell paints one block, unflipped.

        (B,C,h,w), (C,D,p,p), (D) -> (B,D,hp,wp): again a linear map and a reshape.
        """
        (B, C, h, w), (_, D, p, _) = x.shape, weight.shape
        blocks = self.linear(x.transpose(0, 2, 3, 1), weight.reshape(C, D * p * p).T)
        blocks = blocks.reshape(B, h, w, D, p, p).transpose(0, 3, 1, 4, 2, 5)
        return blocks.reshape(B, D, h * p, w * p) + bias[:, None, None]

    def residual(self, x: Array, branch: Array) -> Array:
        """x + branch, in whose place the sum may stand: nobody else may need the branch.  (...), (...) -> (...)"""
        return x + branch

    # Normalisation and attention

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """Each row to mean 0 and (biased) variance 1, then scaled and shifted.  (..., D) -> (..., D)"""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred / self.xp.sqrt(variance + eps) * weight + bias

    def softmax(self, x: Array) -> Array:
        """Along the last axis, with the maximum subtracted so that nothing overflows."""
        e = self.xp.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        allowed: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        """softmax(q kᵀ / sqrt(d)) v, three times (B,H,T,d) -> (B,H,T,d)   ("Attention is all you need", 3.2.1)

        `allowed` (B,1,T,T) is True where a query (second to last axis) may see a key (last axis).
        `attentions` is a list to which the weights (B,H,T,T) are appended, for a caller who asks for them.
        """
        # Scaled before the product: in float16 it could overflow.
        scores = (query * query.shape[-1] ** -0.5) @ key.swapaxes(-1, -2)
        if allowed is not None:
            # The type's lowest number, not -inf: a row in which nothing is allowed becomes uniform, not NaN.
            lowest = self.xp.finfo(scores.dtype).min
            scores = self.xp.where(allowed, scores, self.xp.asarray(lowest, dtype=scores.dtype))
        weights = self.softmax(scores)
        if attentions is not None:
            attentions.append(weights)
        return weights @ value

    def multi_head_attention(
        self,
        x: Array,
        projections: Sequence[tuple[Array, Array | None]],
        heads: int,
        allowed: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        """Attention among x's own tokens, by several heads that see D / heads features each.  (B,T,in) -> (B,T,D)

        `projections` are the weights (D,in) and biases (D) that make queries, keys and values of x.
        """
        query, key, value = (split_heads(y, heads) for y in self.linears(x, projections))
        return joined_heads(self.attention(query, key, value, allowed, attentions))

    # Activations

    def activation(self, name: str, x: Array) -> Array:
        """One of ACTIVATIONS, by the name that a config gives it."""
        return getattr(self, name)(x)

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + e^-x), written so that neither side overflows."""
        e = self.xp.exp(-abs(x))
        return self.xp.where(x >= 0, self.xp.ones_like(e), e) / (1 + e)

    def quick_gelu(self, x: Array) -> Array:
        """x sigmoid(1.702 x): CLIP's approximation of gelu."""
        return x * self.sigmoid(1.702 * x)

    def gelu(self, x: Array) -> Array:
        """x times the normal distribution's integral up to x: x (1 + erf(x / sqrt 2)) / 2."""
        return 0.5 * x * (1 + self.erf(x * 0.5**0.5))

    def gelu_new(self, x: Array) -> Array:
        """GPT-2's tanh approximation of gelu."""
        return 0.5 * x * (1 + self.xp.tanh((2 / numpy.pi) ** 0.5 * (x + 0.044715 * x * x * x)))

    def relu(self, x: Array) -> Array:
        return self.xp.maximum(x, 0)

    def selu(self, x: Array) -> Array:
        """scale (x if x > 0 else alpha (e^x - 1))   (Klambauer et al., 2017)"""
        negative = SELU_ALPHA * self.xp.expm1(self.xp.minimum(x, 0))
        return SELU_SCALE * self.xp.where(x > 0, x, negative)

    def erf(self, x: Array) -> Array:
        """The error function, to within 1e-15 in float64  (Abramowitz and Stegun, 7.1.6 and 7.1.14).

        Up to |x| = 2, a series whose terms have one sign, so that nothing cancels:
        erf x = 2/sqrt(pi) x e^(-x²) (1 + 2x²/3 (1 + 2x²/5 (1 + ...))). Beyond, a continued fraction:
        1 - erf x = e^(-x²)/sqrt(pi) / (x + 1/2 / (x + 2/2 / (x + 3/2 / ...))), which is nothing from 6 on.
        """
        inner = self.xp.clip(x, -2, 2)
        square = inner * inner
        series = self.xp.ones_like(x)
        for odd in range(81, 1, -2):
            series = 1 + series * square * (2 / odd)
        near = 2 / numpy.pi**0.5 * inner * self.xp.exp(-square) * series

        outer = self.xp.clip(abs(x), 2, 6)
        fraction = outer
        for k in range(50, 0, -1):
            fraction = outer + k / 2 / fraction
        far = 1 - self.xp.exp(-outer * outer) / (numpy.pi**0.5 * fraction)
        return self.xp.where(abs(x) <= 2, near, self.xp.copysign(far, x))

    # Resizing position embeddings

    def resize_bicubic(self, grid: Array, size: tuple[int, int]) -> Array:
        """A grid of vectors at another size, by cubic convolution.  (h,w,D), (h', w') -> (h',w',D)

        As torch's interpolate(mode="bicubic", align_corners=False, antialias=False): a = -0.75, pixel
        centres at half numbers, and the border repeated. (Pillow's bicubic differs: a = -0.5, antialiased.)
        """

        def along_first_axis(x: Array, new: int) -> Array:  # (old,n,D) -> (new,n,D)
            old, n, D = x.shape
            table = self.bicubic_table(old, new, x.dtype)
            return self.linear(x.reshape(old, n * D).T, table).T.reshape(new, n, D)

        tall = along_first_axis(grid, size[0])  # (h',w,D)
        return along_first_axis(tall.swapaxes(0, 1), size[1]).swapaxes(0, 1)

    def bicubic_table(self, old: int, new: int, dtype: Any) -> Array:
        """`bicubic_weights`, on this backend's device, and kept there.  -> (new, old)"""
        key = old, new, numpy.dtype(dtype)
        if key not in self._tables:
            self._tables[key] = self.asarray(bicubic_weights(old, new), dtype=dtype)
        return self._tables[key]

    # Losses

    def binary_cross_entropy(self, logits: Array, labels: Array) -> Array:
        """The mean of -(y log p + (1-y) log(1-p)), with p = sigmoid(logits), without ever forming p."""
        losses = (
            self.xp.maximum(logits, 0) - logits * labels + self.xp.log1p(self.xp.exp(-abs(logits)))
        )
        return losses.mean()

    def cross_entropy(self, logits: Array, classes: Array) -> Array:
        """The mean of -log softmax(row)[class] over rows.  (N,K), (N) -> ()"""
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_sum = self.xp.log(self.xp.exp(shifted).sum(axis=-1))
        chosen = self.xp.take_along_axis(shifted, classes[:, None], axis=-1)[:, 0]
        return (log_sum - chosen).mean()


def in_main_memory(values: Any) -> numpy.ndarray:
    """Numbers as a NumPy array: a GPU's are copied, NumPy's own are not."""
    return values.get() if hasattr(values, "get") else numpy.asarray(values)


def split_heads(x: Array, heads: int) -> Array:
    """(B,T,D) -> (B,T,H,D/H) -> (B,H,T,D/H)"""
    B, T, D = x.shape
    return x.reshape(B, T, heads, D // heads).transpose(0, 2, 1, 3)


def joined_heads(x: Array) -> Array:
    """(B,H,T,d) -> (B,T,H,d) -> (B,T,Hd)"""
    B, H, T, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * d)


def slices(start: int, stop: int, at_once: int) -> list[slice]:
    """Those that make up `start` to `stop`, in order, so long each or shorter."""
    return [slice(i, min(i + at_once, stop)) for i in range(start, stop, at_once)]


def bicubic_weights(old: int, new: int, a: float = -0.75) -> numpy.ndarray:
    """The matrix (new, old) that resizes a line of `old` samples to `new` ones by cubic convolution.

    Keys, "Cubic convolution interpolation for digital image processing" (1981).
    """
    centre = (numpy.arange(new) + 0.5) * (old / new) - 0.5
    first = numpy.floor(centre).astype(int) - 1
    weights = numpy.zeros((new, old))
    for neighbour in range(4):
        index = first + neighbour
        distance = abs(centre - index)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        inside = numpy.clip(
            index, 0, old - 1
        )  # the border sample stands for all that lies beyond it
        numpy.add.at(weights, (numpy.arange(new), inside), numpy.where(distance <= 1, near, far))
    return weights
