"""All the arithmetic of CLIPSeg, once, on an array module `xp`: NumPy, CuPy on a GPU, or jax.numpy.

A fast backend is a subclass that overrides single methods and returns the same numbers. Nothing
here knows a layer, a config or a weight's name. Every method keeps the float type of its input:
constants are Python numbers, which promote no array, and tables are cast to the input's type.

These letters stand for axes everywhere in this package:

    B  images (the batch)    T  tokens: of a text, or the class token and one for each patch
    P  prompts               D  features of a token's vector (`hidden_size`, `reduce_dim`)
    C  channels              N  attention heads, each d = D/N features wide
    H, W  pixels             h, w  rows and columns of patches     p  a patch's side in pixels
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import numpy as np

Array = Any  # an array of `xp`, such as numpy.ndarray
T = TypeVar("T")
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


class Ops:
    """Layer arithmetic on the arrays of `xp`."""

    FLOAT_TYPES = ("float32", "float64")  # in float16, a sum of many numbers loses the small ones
    ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "relu", "selu")
    # The most images and prompts that a model computes at a time, each of 10 MB or more; and its
    # workers.
    images_per_slice, prompts_per_slice, workers = 64, 64, 1
    # A fast backend's functions in place of `forward` and `backward`, by the layer's class.
    whole_layers: Mapping[type, Callable] = {}
    whole_backwards: Mapping[type, Callable] = {}

    def __init__(self, xp: ModuleType = np):
        self.xp = xp

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model maps its file and is not pickled: call from_pretrained again")

    def asarray(self, values: Any, dtype: Any = None) -> Array:
        """An array on this backend's device; no copy where it is one already."""
        values = in_main_memory(values) if self.xp is np else values
        return self.xp.asarray(values, dtype=dtype)

    def to_numpy(self, x: Array) -> np.ndarray:
        """The same values in main memory."""
        return in_main_memory(x)

    def run(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer.forward`, or a fast backend's function in its place."""
        if type(layer) in self.whole_layers:
            return self.whole_layers[type(layer)](self, layer, *args, **kwargs)
        return layer.forward(*args, **kwargs)

    def run_backward(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        """`layer.backward`, or a fast backend's function in its place."""
        if type(layer) in self.whole_backwards:
            return self.whole_backwards[type(layer)](self, layer, *args, **kwargs)
        return layer.backward(*args, **kwargs)

    def parallel_for(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """The results of independent tasks, in order. A fast backend runs several at a time."""
        return [task() for task in tasks]

    def memoize(self, function: Callable[..., Array]) -> Callable[..., Array]:
        """The function itself. A fast backend keeps its last results."""
        return function

    # Linear maps

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """x Wᵀ + b, with the weight as it is stored, (out, in).  (..., in) -> (..., out)"""
        y = x @ weight.T
        return y if bias is None else y + bias

    def patch_conv2d(self, x: Array, weight: Array) -> Array:
        """A convolution whose stride is its kernel: a reshape and a linear map of each patch.

        (B,C,H,W), (D,C,p,p) -> (B,D,h,w). Pixels past the last whole patch are not seen.
        """
        D, C, p, _ = weight.shape
        # (B,C,H,W) -> (B,h,w,Cpp) -> (B,h,w,D) -> (B,D,h,w)
        return self.linear(patches(x, p), weight.reshape(D, C * p * p)).transpose(0, 3, 1, 2)

    def conv2d(self, x: Array, weight: Array, bias: Array) -> Array:
        """A convolution that keeps the size (stride 1): a linear map of each cell's neighbors.

        (B,C,h,w), (D,C,k,k) with k odd, (D) -> (B,D,h,w)
        """
        (B, C, h, w), (D, _, k, _) = x.shape, weight.shape
        # (B,C,h,w) -> (C,B,h,w) -> (C,B,h+k-1,w+k-1)
        margin = (k // 2, k // 2)
        padded = self.xp.pad(x.transpose(1, 0, 2, 3), ((0, 0), (0, 0), margin, margin))
        # (C,B,h+k-1,w+k-1) -> (C,k,B,h,w+k-1) -> (C,k,k,B,h,w): the neighbors of each cell
        rows = self.xp.stack([padded[:, :, i : i + h] for i in range(k)], axis=1)
        neighbors = self.xp.stack([rows[..., j : j + w] for j in range(k)], axis=2)
        # (C,k,k,B,h,w) -> (Ckk,B,h,w) -> (B,h,w,Ckk) -> (B,h,w,D) -> (B,D,h,w)
        neighbors = neighbors.reshape(C * k * k, B, h, w).transpose(1, 2, 3, 0)
        return self.linear(neighbors, weight.reshape(D, C * k * k), bias).transpose(0, 3, 1, 2)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        """Transposed, stride = kernel: cells paint blocks.  (B,C,h,w), (C,D,p,p) -> (B,D,hp,wp)"""
        (B, C, h, w), (_, D, p, _) = x.shape, weight.shape
        # (B,h,w,C) -> (B,h,w,Dpp) -> (B,h,w,D,p,p) -> (B,D,h,p,w,p) -> (B,D,hp,wp)
        blocks = self.linear(x.transpose(0, 2, 3, 1), weight.reshape(C, D * p * p).T)
        blocks = blocks.reshape(B, h, w, D, p, p).transpose(0, 3, 1, 4, 2, 5)
        return blocks.reshape(B, D, h * p, w * p) + bias[:, None, None]

    def resize_bicubic(self, grid: Array, size: tuple[int, int]) -> Array:
        """A grid of vectors at another size, by cubic convolution.  (h,w,D), (h', w') -> (h',w',D)

        As torch's interpolate(mode="bicubic", align_corners=False, antialias=False): pixel centers
        at half numbers, the border repeated, a = -0.75 (Pillow: -0.5, and antialiased).
        """

        def along_first_axis(x: Array, new: int) -> Array:
            old, n, D = x.shape
            table = self.asarray(bicubic_weights(old, new), dtype=x.dtype)
            # (old,n,D) -> (nD,old) -> (nD,new) -> (new,n,D)
            return self.linear(x.reshape(old, n * D).T, table).T.reshape(new, n, D)

        tall = along_first_axis(grid, size[0])  # (h',w,D)
        return along_first_axis(tall.swapaxes(0, 1), size[1]).swapaxes(0, 1)

    # Normalization and attention

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """Rows of mean 0 and (biased) variance 1, then scaled and shifted.  (..., D) -> (..., D)"""
        centered = x - x.mean(axis=-1, keepdims=True)
        variance = (centered * centered).mean(axis=-1, keepdims=True)
        return centered / self.xp.sqrt(variance + eps) * weight + bias

    def softmax(self, x: Array) -> Array:
        """e^x / sum(e^x) along the last axis. The maximum is subtracted: nothing overflows."""
        e = self.xp.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        attentions: list | None = None,
    ) -> Array:
        """softmax(q kᵀ / sqrt(d)) v  (Vaswani et al., 2017).  Three (B,N,T,d) -> (B,N,T,d)

        `mask` (B,1,T,T) is True where a query (second to last axis) attends to a key (last axis).
        The weights (B,N,T,T) are appended to the list `attentions`, if there is one.
        """
        # The scale comes before the product, which could overflow in float16.
        scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
        if mask is not None:
            # The type's lowest number, not -inf: a row with every key masked is uniform, not NaN.
            lowest = self.xp.finfo(scores.dtype).min
            scores = self.xp.where(mask, scores, self.xp.asarray(lowest, dtype=scores.dtype))
        weights = self.softmax(scores)
        if attentions is not None:
            attentions.append(weights)
        return weights @ v

    # Activations

    def activation(self, name: str, x: Array) -> Array:
        """The activation of this name, one of ACTIVATIONS."""
        return getattr(self, name)(x)

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + e^-x), in a form that overflows on neither side."""
        e = self.xp.exp(-abs(x))
        return self.xp.where(x >= 0, self.xp.ones_like(e), e) / (1 + e)

    def quick_gelu(self, x: Array) -> Array:
        """x sigmoid(1.702 x): CLIP's approximation of gelu."""
        return x * self.sigmoid(1.702 * x)

    def gelu(self, x: Array) -> Array:
        """x times the normal distribution's integral up to x."""
        return 0.5 * x * (1 + self.erf(x * 0.5**0.5))

    def gelu_new(self, x: Array) -> Array:
        """GPT-2's tanh approximation of gelu."""
        return 0.5 * x * (1 + self.xp.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x)))

    def relu(self, x: Array) -> Array:
        return self.xp.maximum(x, 0)

    def selu(self, x: Array) -> Array:
        """scale (x if x > 0 else alpha (e^x - 1))   (Klambauer et al., 2017)"""
        negative = SELU_ALPHA * self.xp.expm1(self.xp.minimum(x, 0))
        return SELU_SCALE * self.xp.where(x > 0, x, negative)

    def erf(self, x: Array) -> Array:
        """The error function, to within 4e-16 in float64, by a Fourier series.

        It integrates bells e^(-x²) that stand 4 pi apart, so that up to |x| = 6 no other is felt.
        """
        x = self.xp.clip(x, -6, 6)
        series = 0
        for n in range(25, 0, -1):
            series = series + math.exp(-n * n / 16) / n * self.xp.sin(n / 2 * x)
        return (x / 2 + 2 * series) / math.pi

    # Losses

    def binary_cross_entropy(self, logits: Array, labels: Array, pos_weight: float = 1) -> Array:
        """The mean of -(w y log p + (1-y) log(1-p)) with p = sigmoid(logits), w = pos_weight."""
        return self.cross_entropies(logits, labels, pos_weight).mean()

    def cross_entropies(self, logits: Array, labels: Array, pos_weight: float = 1) -> Array:
        """Each pixel's, without forming p."""
        xp = self.xp
        rest = xp.log1p(xp.exp(-abs(logits)))
        losses = xp.maximum(logits, 0) - logits * labels + rest
        if pos_weight != 1:
            losses = losses + (pos_weight - 1) * labels * (xp.maximum(-logits, 0) + rest)
        return losses

    def dice(self, logits: Array, labels: Array) -> Array:
        """1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1), the mean over prompts.  (P,H,W) -> ()"""
        p, axes = self.sigmoid(logits), (-2, -1)
        overlap, total = (p * labels).sum(axis=axes), (p + labels).sum(axis=axes)
        return (1 - (2 * overlap + 1) / (total + 1)).mean()

    def focal(self, logits: Array, labels: Array, gamma: float = 2) -> Array:
        """The mean cross-entropy, weighed by (1 - p of the label)^gamma (Lin et al., 2017).

        `gamma` is at least 1.
        """
        p = self.sigmoid(logits)
        misses = p + labels - 2 * p * labels
        return (misses**gamma * self.cross_entropies(logits, labels)).mean()

    def cross_entropy(self, logits: Array, classes: Array) -> Array:
        """The mean of -log softmax(row)[class] over rows.  (n,K), (n) -> ()"""
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_sum = self.xp.log(self.xp.exp(shifted).sum(axis=-1))
        chosen = self.xp.take_along_axis(shifted, classes[:, None], axis=-1)[:, 0]
        return (log_sum - chosen).mean()


def in_main_memory(values: Any) -> np.ndarray:
    """Numbers as a NumPy array. A GPU's are copied, NumPy's own are not."""
    return values.get() if hasattr(values, "get") else np.asarray(values)


def patches(x: Array, p: int) -> Array:
    """(B,C,H,W) -> (B,C,h,p,w,p) -> (B,h,w,C,p,p) -> (B,h,w,Cpp)"""
    B, C, H, W = x.shape
    h, w = H // p, W // p
    blocks = x[:, :, : h * p, : w * p].reshape(B, C, h, p, w, p).transpose(0, 2, 4, 1, 3, 5)
    return blocks.reshape(B, h, w, C * p * p)


def split_heads(x: Array, num_heads: int) -> Array:
    """(B,T,D) -> (B,T,N,d) -> (B,N,T,d)"""
    B, T, D = x.shape
    return x.reshape(B, T, num_heads, D // num_heads).transpose(0, 2, 1, 3)


def join_heads(x: Array) -> Array:
    """(B,N,T,d) -> (B,T,N,d) -> (B,T,Nd)"""
    B, N, T, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, N * d)


def bicubic_weights(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """The matrix (new, old) that resizes `old` samples to `new` ones by cubic convolution.

    Keys, "Cubic convolution interpolation for digital image processing" (1981).
    """
    center = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(center).astype(int) - 1
    weights = np.zeros((new, old))
    for neighbor in range(4):
        index = first + neighbor
        distance = abs(center - index)
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weight = np.where(distance <= 1, near, far)
        # The border sample repeats beyond the border.
        inside = np.clip(index, 0, old - 1)
        weights = weights + weight[:, None] * (inside[:, None] == np.arange(old))
    return weights
