"""What does one do with a mask?"""

from .morphology import (
    contour,
    cut_out,
    feather,
    grow,
    label_map,
    regions,
    run_lengths,
    without_crumbs,
)

__all__ = [
    "contour",
    "cut_out",
    "feather",
    "grow",
    "label_map",
    "regions",
    "run_lengths",
    "without_crumbs",
]
