"""Draw examples/shapes.png, the image that README's first command segments.

    python training/example.py examples/shapes.png

Its seed and prompts were chosen for a clear layout and good masks. evaluate.py measures the
checkpoint on scenes that nobody chose.
"""

import sys

import numpy as np
from PIL import Image
from scenes import Scene, draw_scene

SEED, SIDE = 324, 352
KINDS = [  # shape, color, surface
    ("square", "red", "striped"),
    ("circle", "red", "solid"),
    ("ring", "purple", "solid"),
    ("star", "orange", "solid"),
]
PROMPTS = ["a red thing", "the large red circle", "a purple ring"]


def example() -> Scene:
    return draw_scene(np.random.default_rng(SEED), side=SIDE, kinds=KINDS)


if __name__ == "__main__":
    Image.fromarray(example().image).save(sys.argv[1], optimize=True)
