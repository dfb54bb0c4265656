"""The command `clipseg-np`: its options, and its work."""

from .parser import main

__all__ = ["main"]
