"""2. Layer norm

Between the layers, each token's vector is brought to mean 0 and variance 1, apart from all others.
Then it is multiplied and shifted by learned numbers.

    x  (..., D)      one token:  [ 2.0  4.0  6.0  8.0 ]      mean 5
        |
        |            minus its mean:  [ -3  -1   1   3 ]     variance (9 + 1 + 1 + 9) / 4 = 5
        |
        |            divided by sqrt(variance + eps):  [ -1.34  -0.45  0.45  1.34 ]
        |
        |            times w["NAME.weight"] (D), plus w["NAME.bias"] (D)
        v
    y  (..., D)

eps is a small number that keeps a constant vector from a division by 0. It is read from `config`, a
dictionary of the network's settings: config.get("layer_norm_eps", 1e-5).
"""

import numpy as np


def layer_norm(x, w, name, config):
    """(...,D) -> (...,D)"""
    raise NotImplementedError
