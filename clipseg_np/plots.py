"""Pictures for the notebooks; needs matplotlib (extra "notebooks")."""

from typing import Any

import numpy as np

from .errors import optional
from .resize import resize_bilinear

MAP = "magma"  # of heat maps: from black to nearly white, and as readable in print


def show(*panels: tuple[str, Any], columns: int = 4, size: float = 2.6, **options: Any) -> Any:
    """Panels (title, values) in rows: (height,width,3) as a picture, (height,width) as a map.  -> the figure

    `size`: a panel's side in inches. `options` (vmin, vmax, cmap) are imshow's, for the maps.
    """
    pyplot = optional("matplotlib.pyplot", extra="notebooks")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(size * columns, (size + 0.3) * rows), squeeze=False
    )
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < len(panels):
            title, values = panels[place]
            values = np.asarray(values)
            axis.set_title(title, fontsize=9)
            axis.imshow(values, **({"cmap": MAP} | options if values.ndim == 2 else {}))
    figure.tight_layout()
    return figure


def heat(picture: np.ndarray, values: np.ndarray, highest: float | None = None) -> np.ndarray:
    """A map of any size laid over a picture: bright where it is `highest`, dark where it is 0.  -> (H,W,3), uint8"""
    values = resize_bilinear(np.asarray(values, np.float32), picture.shape[:2])
    share = np.clip(values / (highest or values.max() or 1), 0, 1)[..., None]
    grey = picture.mean(axis=2, keepdims=True)
    glow = np.array([255, 120, 0]) * share
    return np.clip(0.35 * grey * (1 - share) + 0.6 * picture * share + 0.5 * glow, 0, 255).astype(
        np.uint8
    )
