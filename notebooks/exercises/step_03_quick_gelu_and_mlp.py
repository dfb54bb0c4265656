"""3. quick_gelu and the MLP

Linear layers in a row would still be one linear layer: something bent must stand between them. In
CLIP it is quick_gelu, x times the sigmoid of 1.702 x:

    quick_gelu(x) = x * s(1.702 x)         where s(z) = 1 / (1 + e^-z)

          |         /                      far right: x.  far left: 0.  quick_gelu(1) = 0.846
          |       /
    ------+----.-'-----> x
       '-.|_.-'

The MLP is two linear layers with an activation between. Each token passes alone.

    x (B,T,D)
        |  linear "NAME.fc1"
        v
      (B,T,wide)
        |  activation
        |  linear "NAME.fc2"
        v
      (B,T,D)

The network has three activations, in the dictionary ACTIVATIONS: "relu", "gelu" and "quick_gelu",
which is yours. ACTIVATIONS["relu"](x) applies one. `linear` is that of step 1:
linear(x, w, "NAME.fc1").
"""

import numpy as np

from clipseg_np.pico import ACTIVATIONS, linear


def quick_gelu(x):
    """Any shape, and the same again."""
    raise NotImplementedError


def mlp(x, w, name, activation):
    """(B,T,D) -> (B,T,D). activation: a key of ACTIVATIONS."""
    raise NotImplementedError
