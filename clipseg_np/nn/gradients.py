"""The derivatives of `Ops`, in order: from the loss's derivative by a result to that by an input.

`d_y` is the derivative of the loss by `y`: an array of y's shape. Each function is pure, and works
on any array module; `ops` is the backend, where one needs it. A function of an operation's name is
the derivative by its input x; one of a longer name is that by its weight.
"""

import numpy as np

from .ops import SELU_ALPHA, SELU_SCALE, Array, Ops, bicubic_weights, patches


def sum_rows(d_y: Array) -> Array:
    """By b, which was added to every row.  (..., D) -> (D)"""
    return d_y.reshape(-1, d_y.shape[-1]).sum(axis=0)


def sum_cells(d_y: Array) -> Array:
    """By b, which was added to every cell.  (B,D,h,w) -> (D)"""
    return d_y.sum(axis=(0, 2, 3))


def unshare(d_x: Array, B: int) -> Array:
    """By tokens that all prompts shared, if B is 1: the sum.  (P,T,D) -> (B,T,D)"""
    return d_x if len(d_x) == B else d_x.sum(axis=0, keepdims=True)


# Linear maps


def linear(d_y: Array, weight: Array) -> Array:
    """By x, of y = x Wᵀ + b.  (..., out) -> (..., in)"""
    return d_y @ weight


def linear_weight(d_y: Array, x: Array) -> Array:
    """By W.  (..., out), (..., in) -> (out, in)"""
    return d_y.reshape(-1, d_y.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def patch_conv2d(ops: Ops, d_y: Array, weight: Array, shape: tuple[int, ...]) -> Array:
    """The transposed convolution; 0 for pixels that were not seen.  (B,D,h,w) -> (B,C,H,W)"""
    (_, C, H, W), (_, _, h, w), p = shape, d_y.shape, weight.shape[-1]
    d_x = ops.conv_transpose2d(d_y, weight, ops.xp.zeros(C, dtype=d_y.dtype))
    return ops.xp.pad(d_x, ((0, 0), (0, 0), (0, H - h * p), (0, W - w * p)))


def patch_conv2d_weight(d_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
    """That of a linear map of each patch.  (B,D,h,w), (B,C,H,W) -> (D,C,p,p)"""
    return linear_weight(cells(d_y), patches(x, shape[-1])).reshape(shape)


def conv2d(ops: Ops, d_y: Array, weight: Array) -> Array:
    """The convolution of d_y with the kernel turned by half a turn.  (B,D,h,w) -> (B,C,h,w)"""
    turned = weight[:, :, ::-1, ::-1].swapaxes(0, 1)
    return ops.conv2d(d_y, turned, ops.xp.zeros(len(turned), dtype=d_y.dtype))


def conv2d_weight(ops: Ops, d_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
    """For each place in the kernel, that of a linear map.  (B,D,h,w), (B,C,h,w) -> (D,C,k,k)"""
    (*_, k), (*_, h, w), margin = shape, x.shape, (shape[-1] // 2, shape[-1] // 2)
    padded = ops.xp.pad(x, ((0, 0), (0, 0), margin, margin))
    shifted = [padded[:, :, i : i + h, j : j + w] for i in range(k) for j in range(k)]
    # kk of (D,C) -> (D,C,kk) -> (D,C,k,k)
    weights = [linear_weight(cells(d_y), cells(neighbor)) for neighbor in shifted]
    return ops.xp.stack(weights, axis=-1).reshape(shape)


def conv_transpose2d(ops: Ops, d_y: Array, weight: Array) -> Array:
    """The convolution with the same weight.  (B,D,hp,wp), (C,D,p,p) -> (B,C,h,w)"""
    return ops.patch_conv2d(d_y, weight)


def conv_transpose2d_weight(d_y: Array, x: Array, shape: tuple[int, ...]) -> Array:
    """As `patch_conv2d_weight`: here x has the cells, and d_y the patches.  -> (C,D,p,p)"""
    return patch_conv2d_weight(x, d_y, shape)


def resize_bicubic(ops: Ops, d_y: Array, size: tuple[int, int]) -> Array:
    """By the grid of this size, with both tables transposed.  (h',w',D) -> (h,w,D)"""
    pairs = zip(size, d_y.shape)
    rows, columns = (ops.asarray(bicubic_weights(*pair), dtype=d_y.dtype) for pair in pairs)
    return ops.xp.einsum("Hh,Ww,HWD->hwD", rows, columns, d_y)


def embedding(ops: Ops, d_y: Array, ids: Array, count: int) -> Array:
    """By the table, a linear map of vectors that are 1 at the id.  (..., D), (...) -> (count,D)"""
    is_id = ids.reshape(-1, 1) == ops.xp.arange(count)
    return linear_weight(is_id.astype(d_y.dtype), d_y)


def cells(x: Array) -> Array:
    """(B,C,h,w) -> (B,h,w,C)"""
    return x.transpose(0, 2, 3, 1)


# Normalization and attention


def layer_norm(d_y: Array, x: Array, weight: Array, eps: float) -> Array:
    """A change of a row's mean or size is lost: it is taken off.  (..., D) -> (..., D)"""
    normal, deviation = normalized(x, eps)
    d_normal = d_y * weight
    size = (d_normal * normal).mean(axis=-1, keepdims=True)
    return (d_normal - d_normal.mean(axis=-1, keepdims=True) - size * normal) / deviation


def layer_norm_weight(d_y: Array, x: Array, eps: float) -> Array:
    """(..., D) -> (D)"""
    return sum_rows(d_y * normalized(x, eps)[0])


def normalized(x: Array, eps: float) -> tuple[Array, Array]:
    """Rows of mean 0 and variance 1, and the deviations that they were divided by."""
    centered = x - x.mean(axis=-1, keepdims=True)
    deviation = ((centered * centered).mean(axis=-1, keepdims=True) + eps) ** 0.5
    return centered / deviation, deviation


def unit(d_y: Array, x: Array) -> Array:
    """By x, of y = x / |x|: a change of the length is lost.  (..., D) -> (..., D)"""
    length = (x * x).sum(axis=-1, keepdims=True) ** 0.5
    y = x / length
    return (d_y - y * (y * d_y).sum(axis=-1, keepdims=True)) / length


def softmax(d_y: Array, y: Array) -> Array:
    """By x, of y = softmax(x): what all of a row gain alike is lost.  (..., T) -> (..., T)"""
    return y * (d_y - (y * d_y).sum(axis=-1, keepdims=True))


def attention(
    d_y: Array, q: Array, k: Array, v: Array, weights: Array, mask: Array | None
) -> tuple[Array, Array, Array]:
    """By q, k and v, of y = weights @ v.  (B,N,T,d) -> three (B,N,T,d)"""
    d_scores = softmax(d_y @ v.swapaxes(-1, -2), weights)
    if mask is not None:
        # Where a row is all masked, its weights are not 0.
        d_scores = d_scores * mask
    d_scores = d_scores * q.shape[-1] ** -0.5
    return d_scores @ k, d_scores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ d_y


# Activations


def activation(ops: Ops, name: str, d_y: Array, x: Array) -> Array:
    """By x, of the activation of this name."""
    return ACTIVATIONS[name](ops, d_y, x)


def quick_gelu(ops: Ops, d_y: Array, x: Array) -> Array:
    s = ops.sigmoid(1.702 * x)
    return d_y * (s + 1.702 * x * s * (1 - s))


def gelu(ops: Ops, d_y: Array, x: Array) -> Array:
    """The normal distribution's integral up to x, and x times its density."""
    density = ops.xp.exp(-0.5 * x * x) * (2 * np.pi) ** -0.5
    return d_y * (0.5 * (1 + ops.erf(x * 0.5**0.5)) + x * density)


def gelu_new(ops: Ops, d_y: Array, x: Array) -> Array:
    scale = (2 / np.pi) ** 0.5
    t = ops.xp.tanh(scale * (x + 0.044715 * x * x * x))
    d_inner = scale * (1 + 3 * 0.044715 * x * x)
    return d_y * 0.5 * (1 + t + x * (1 - t * t) * d_inner)


def relu(ops: Ops, d_y: Array, x: Array) -> Array:
    return d_y * (x > 0)


def selu(ops: Ops, d_y: Array, x: Array) -> Array:
    negative = SELU_ALPHA * ops.xp.exp(ops.xp.minimum(x, 0))
    return d_y * SELU_SCALE * ops.xp.where(x > 0, ops.xp.ones_like(x), negative)


ACTIVATIONS = {one.__name__: one for one in (quick_gelu, gelu, gelu_new, relu, selu)}

# Losses: by the logits, of the shape of the labels


def binary_cross_entropy(ops: Ops, logits: Array, labels: Array, pos_weight: float = 1) -> Array:
    """p - y, the excess of each probability, over the number of pixels.

    A label of 1 counts `pos_weight` times.
    """
    p = ops.sigmoid(logits)
    return (p - labels + (pos_weight - 1) * labels * (p - 1)) / logits.size


def dice(ops: Ops, logits: Array, labels: Array) -> Array:
    p, axes = ops.sigmoid(logits), (-2, -1)
    overlap = (p * labels).sum(axis=axes, keepdims=True)
    total = (p + labels).sum(axis=axes, keepdims=True)
    d_p = ((2 * overlap + 1) / (total + 1) - 2 * labels) / (total + 1)
    return d_p * p * (1 - p) / len(logits)


def focal(ops: Ops, logits: Array, labels: Array, gamma: float = 2) -> Array:
    """By the product rule, of the weight and of the cross-entropy."""
    p = ops.sigmoid(logits)
    misses = p + labels - 2 * p * labels
    d_misses = (1 - 2 * labels) * p * (1 - p)
    losses = ops.cross_entropies(logits, labels)
    slope = gamma * misses ** (gamma - 1) * d_misses * losses + misses**gamma * (p - labels)
    return slope / logits.size


def cross_entropy(ops: Ops, logits: Array, classes: Array) -> Array:
    """(n,K), (n) -> (n,K)"""
    is_class = classes[:, None] == ops.xp.arange(logits.shape[-1])
    return (ops.softmax(logits) - is_class) / len(logits)
