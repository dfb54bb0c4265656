"""Images and masks of a thing that is easily learned."""

from pathlib import Path

import numpy as np
from PIL import Image


def discs(folder: Path, number: int, seed: int = 0) -> Path:
    """Images of a bright disc, and their masks."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    for name in (f"{n:02}.png" for n in range(number)):
        row, column = rng.integers(8, 24, 2)
        mask = (rows - row) ** 2 + (columns - column) ** 2 < 40
        image = rng.integers(0, 60, (32, 32, 3)) + 190 * mask[..., None]
        for place, values in {"images": image, "masks": mask * 255}.items():
            (folder / place).mkdir(exist_ok=True, parents=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / place / name)
    return folder
