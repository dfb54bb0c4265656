"""What does one do with a mask?"""

from importlib import import_module

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


def __getattr__(name):
    # They are loaded on first use: `draw` takes 3 ms.
    if name in ("draw", "metrics"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
