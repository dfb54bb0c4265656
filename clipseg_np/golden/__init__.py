"""Reference numbers for a port: golden files, and where other numbers deviate from them."""

from .compare import compare, report
from .traces import Golden, assert_matches, golden_file, numbered, write_golden

__all__ = [
    "Golden",
    "assert_matches",
    "compare",
    "golden_file",
    "numbered",
    "report",
    "write_golden",
]
