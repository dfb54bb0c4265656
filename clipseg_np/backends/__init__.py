"""The same arithmetic, faster: a backend's name to its operations."""

from .select import NAMES, ops_for, working_cupy

__all__ = ["NAMES", "ops_for", "working_cupy"]
