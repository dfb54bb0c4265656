"""Images for the notebooks; needs matplotlib (extra "notebooks")."""

from typing import Any

import numpy as np

from ..errors import optional
from .draw import heat

__all__ = ["heat", "show"]

MAP = "magma"  # of heat maps: from black to nearly white, and as readable in print


def show(*panels: tuple[str, Any], columns: int = 4, size: float = 2.6, **options: Any) -> Any:
    """Panels (title, values) in rows: (height,width,3) as an image, (height,width) as a map.  -> the figure

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
