"""Images for the notebooks; needs matplotlib (extra "notebooks")."""

from typing import Any

import numpy as np

from ..errors import optional
from .draw import heat

__all__ = ["heat", "show"]

# From black to nearly white, and as readable in print.
MAP = "magma"


def show(*panels: tuple[str, Any], columns: int = 4, size: float = 2.6, **options: Any) -> Any:
    """Show panels (title, values) in rows: (height,width,3) as an image, (height,width) as a map.

    size: a panel's side in inches. options (vmin, vmax, cmap): imshow's, for the maps.
    Returns matplotlib's figure.
    """
    pyplot = optional("matplotlib.pyplot", extra="notebooks")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figsize = (size * columns, (size + 0.3) * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=figsize, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, values) in zip(axes.flat, panels):
        values = np.asarray(values)
        axis.set_title(title, fontsize=9)
        axis.imshow(values, **({"cmap": MAP} | options if values.ndim == 2 else {}))
    figure.tight_layout()
    return figure
