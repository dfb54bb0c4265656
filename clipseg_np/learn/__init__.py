"""How it learns: data, a cache of features, an optimizer, and the loops."""

from .data import Data, read_data
from .learn_prompt import learn_prompt

__all__ = ["Data", "learn_prompt", "read_data"]
