"""Importing the package brings in nothing heavy, and no framework."""

import subprocess
import sys

import pytest

HEAVY = [
    "torch",
    "transformers",
    "cupy",
    "matplotlib",
    "huggingface_hub",
    "tqdm",
    "safetensors.torch",
]

FIND = """
import sys
{before}
import clipseg_np
print(*sorted(name for name in {heavy} if name in sys.modules))
"""


def imported(before: str = "") -> list[str]:
    """Which heavy modules are loaded in a fresh Python after `import clipseg_np`."""
    code = FIND.format(before=before, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_nothing_heavy_is_imported():
    assert imported() == []


@pytest.mark.parametrize("name", ["torch", "transformers", "cupy", "matplotlib", "huggingface_hub"])
def test_none_of_them_needs_to_be_there(name):
    """`None` in sys.modules makes an import of that name fail."""
    assert imported(f"sys.modules[{name!r}] = None") == [name]


def test_the_test_sees_an_import():
    assert imported("sys.modules['tqdm'] = sys") == ["tqdm"]
