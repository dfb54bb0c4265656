"""How are checkpoints made of other files?"""

from .checkpoint import convert
from .from_authors import convert_original

__all__ = ["convert", "convert_original"]
