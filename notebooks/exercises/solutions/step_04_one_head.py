"""4. One attention head"""

import math

import numpy as np

from clipseg_np.pico import softmax


def one_head(q, k, v):
    scores = np.einsum("BTd,BSd->BTS", q, k) / math.sqrt(q.shape[-1])
    return np.einsum("BTS,BSd->BTd", softmax(scores), v)
