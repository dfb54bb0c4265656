"""5. Several heads, and a mask"""

import math

import numpy as np

from clipseg_np.pico import linear, softmax


def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = (linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1) for p in "qkv")
    scores = np.einsum("BTNd,BSNd->BNTS", q, k) / math.sqrt(D // N)
    weights = softmax(np.where(mask, scores, np.finfo(x.dtype).min))
    x = np.einsum("BNTS,BSNd->BTNd", weights, v).reshape(B, T, D)
    return linear(x, w, f"{name}.out_proj")
