"""What does one do with a mask?"""

from .morphology import (
    connected_components,
    contour,
    cut_out,
    dilate,
    feather,
    label_map,
    remove_small_components,
    run_length_encoding,
)

# Names of 0.1.
grow, regions = dilate, connected_components
run_lengths, without_crumbs = run_length_encoding, remove_small_components

__all__ = [
    "connected_components",
    "contour",
    "cut_out",
    "dilate",
    "feather",
    "grow",
    "label_map",
    "regions",
    "remove_small_components",
    "run_length_encoding",
    "run_lengths",
    "without_crumbs",
]
