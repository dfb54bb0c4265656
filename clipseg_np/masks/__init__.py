"""What does one do with a mask?"""

from .morphology import (
    connected_components,
    contour,
    cut_out,
    dilate,
    feather,
    label_map,
    remove_small_components,
    run_length_decoding,
    run_length_encoding,
)

# Names of 0.1.
regions, run_lengths = connected_components, run_length_encoding


def grow(mask, pixels):
    return dilate(mask, radius=pixels)


def without_crumbs(mask, smallest):
    return remove_small_components(mask, min_area=smallest)


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
    "run_length_decoding",
    "run_length_encoding",
    "run_lengths",
    "without_crumbs",
]
