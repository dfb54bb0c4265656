"""How it learns: data, a cache of features, an optimizer, and the loops."""

from .data import Data, read_data
from .fine_tune import FineTuned, fine_tune
from .learn_prompt import learn_prompt

__all__ = ["Data", "FineTuned", "fine_tune", "learn_prompt", "read_data"]
