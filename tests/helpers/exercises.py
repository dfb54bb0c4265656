"""The modules of notebooks/exercises."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "notebooks" / "exercises"

sys.path.insert(0, str(FOLDER))
import answers  # noqa: F401
import check  # noqa: F401
import faults  # noqa: F401
import hunt  # noqa: F401
import ladder  # noqa: F401
import mistakes  # noqa: F401

sys.path.remove(str(FOLDER))
