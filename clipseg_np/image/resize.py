"""Resizing an image or a map: a weight matrix along each side, and nothing else.

`resize` gives the bytes of Pillow's `Image.resize`, which prepares CLIPSeg's images. Pillow
computes in 32-bit fixed point. The same whole numbers stay far below 2**53 here, so float64 matrix
products hold them exactly, in any order of summation, and BLAS can do the work. Two deviations:
channels are always independent (Pillow multiplies the colors of RGBA and LA by their alpha first),
and Pillow's box and Hamming filters are left out.

`resize_bilinear` is the plain interpolation of float maps, which brings logits to the image's size.
"""

import numpy as np

from ..errors import InputError

# Pillow's numbers for its filters, as preprocessor_config.json stores them.
NEAREST, LANCZOS, BILINEAR, BICUBIC = 0, 1, 2, 3
RESAMPLINGS = {NEAREST: "nearest", LANCZOS: "lanczos", BILINEAR: "bilinear", BICUBIC: "bicubic"}

# Pillow's weights have 22 fractional bits: 32, less 8 for the pixel, less 2 for the sign and for
# sums beyond [0, 1].
ONE = 1 << 22

# Pixels computed together, from the window of pixels that they need: most of a weight matrix is
# zeros. Of 12 megapixels, twice as many at a time take 1.4 times as long.
TILE = 16


def resize(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Resize an image, to the last bit as the `Image.resize` of Pillow 13 does.

    image: uint8 (H,W) or (H,W,C). size: (height, width). resample: one of RESAMPLINGS.
    Returns uint8 (height,width) or (height,width,C). Shrinking widens the filter, so that every
    pixel counts.
    Raises InputError for another dtype or shape, a side below 1, or an unknown filter.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(
            f"resize takes a uint8 image of shape (height, width) or (height, width, channels) "
            f"with no side of 0; got {image.dtype} {tuple(image.shape)}."
        )
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"size must be (height, width) of 1 or more; got {tuple(size)}.")
    if resample not in RESAMPLINGS:
        raise InputError(f"resample must be one of {RESAMPLINGS}; got {resample!r}.")
    if resample == NEAREST:
        rows = nearest_pixels(image.shape[0], height)
        return image[rows[:, None], nearest_pixels(image.shape[1], width)]
    planes = np.moveaxis(np.atleast_3d(image), 2, 0)  # (C,H,W)
    passes = [(2, width), (1, height)]
    if vertical_first(image.shape[:2], size):
        passes.reverse()
    # Each pass rounds to bytes.
    for axis, length in passes:
        planes = _resample_rows(planes.swapaxes(axis, 2), length, resample).swapaxes(axis, 2)
    return np.ascontiguousarray(np.moveaxis(planes, 0, 2)).reshape(*size, *image.shape[2:])


def vertical_first(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether columns are resized before rows: the height loses over twice what the width does.

    The bytes between the passes are rounded, so the order shows in the last bits. This is the rule
    of Pillow 13; older versions took the rows first: up to 54 levels of difference in very tall
    images.
    """
    lost_rows, lost_columns = before[0] - after[0], before[1] - after[1]
    return lost_rows > 0 and lost_rows > 2 * lost_columns


def nearest_pixels(before: int, after: int) -> np.ndarray:
    """For each pixel after, the index of the pixel before under its center: (after,) integers.

    As Pillow does, this adds steps from center to center: the rounding of the sum decides ties.
    """
    steps = np.full(after, before / after)
    steps[0] *= 0.5
    return np.cumsum(steps).astype(np.intp)


def _resample_rows(planes, width: int, resample: int):
    """Resize the last axis of uint8 planes: (C,N,W) -> (C,N,width)."""
    if planes.shape[2] == width:
        return planes
    weights = pillow_weights(planes.shape[2], width, resample)
    resized = np.empty((*planes.shape[:2], width), dtype=np.uint8)
    for start in range(0, width, TILE):
        tile = weights[start : start + TILE]
        nonzero = np.flatnonzero(tile.any(axis=0))
        window = slice(nonzero[0], nonzero[-1] + 1)
        for plane, out in zip(planes, resized):
            sums = plane[:, window].astype(np.float64) @ tile[:, window].T
            out[:, start : start + TILE] = np.clip(np.floor((sums + ONE // 2) / ONE), 0, 255)
    return resized


def pillow_weights(before: int, after: int, resample: int) -> np.ndarray:
    """Pillow's fixed-point weights: float64 (after,before), whole numbers; a row sums to about ONE.

    A filter spans `support` pixels to each side of the center, times the reduction where the
    image shrinks.
    """
    kernel, support = _KERNELS[resample]
    scale = before / after
    stretch = max(scale, 1.0)
    center = (np.arange(after) + 0.5) * scale
    first = np.maximum((center - support * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support * stretch + 0.5).astype(np.int64), before)
    pixel = np.arange(before)
    weights = kernel((pixel - center[:, None] + 0.5) * (1.0 / stretch))
    weights[(pixel < first[:, None]) | (pixel >= end[:, None])] = 0.0
    # A running sum adds from left to right, as Pillow does; np.sum would round differently.
    weights /= np.cumsum(weights, axis=1)[:, -1:]
    return np.trunc(weights * ONE + np.copysign(0.5, weights))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5. The model's position embeddings take a = -0.75, as torch does."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    """Three lobes to each side. np.sinc(x) is sin(pi x) / (pi x)."""
    return np.where((-3.0 <= x) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


_KERNELS = {BILINEAR: (_bilinear, 1.0), BICUBIC: (_bicubic, 2.0), LANCZOS: (_lanczos, 3.0)}


def resize_bilinear(x, size: tuple[int, int], xp=np, rows=slice(None)):
    """Interpolate float maps: (...,h,w) -> (...,height,width), in the dtype of `x`.

    rows: a slice of the height; only these rows are computed.
    Pixels are squares with their centers in the middle; beyond the outermost centers the edge goes
    on. Shrinking does not smooth. Source: torch.nn.functional.interpolate with mode="bilinear" and
    align_corners=False.
    """
    above, below, down = (part[rows] for part in neighbors(x.shape[-2], size[0]))
    first, end = above[0], below[-1] + 1
    x = x[..., first:end, :]
    left, right, share = (xp.asarray(part) for part in neighbors(x.shape[-1], size[1]))
    share = share.astype(x.dtype)
    x = x[..., left] * (1 - share) + x[..., right] * share  # (...,h,width)
    above, below, down = (xp.asarray(part) for part in (above - first, below - first, down))
    share = down.astype(x.dtype)[:, None]
    return x[..., above, :] * (1 - share) + x[..., below, :] * share


def neighbors(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel after: the pixels before on either side of its center, the second's share."""
    place = np.clip((np.arange(after) + 0.5) * (before / after) - 0.5, 0, before - 1)
    first = np.floor(place).astype(np.intp)
    return first, np.minimum(first + 1, before - 1), place - first
