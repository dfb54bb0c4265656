"""Importing the package brings in nothing heavy, and no framework."""

import subprocess
import sys

import pytest

import clipseg_np

HEAVY = [
    "torch",
    "transformers",
    "cupy",
    "matplotlib",
    "huggingface_hub",
    "tqdm",
    "safetensors.torch",
    "concurrent.futures.process",  # only a batch needs it, and only a drawing the next
    "PIL.ImageFont",
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


def test_what_a_batch_needs_is_loaded_when_it_is_asked_for():
    from clipseg_np import Job, run_batch
    from clipseg_np.segment import batch

    assert (Job, run_batch) == (batch.Job, batch.run_batch)
    assert {"Job", "run_batch"} <= set(clipseg_np.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        clipseg_np.nothing  # noqa: B018


def test_transformers_automatic_classes_are_clipsegs():
    from clipseg_np import AutoModel, AutoProcessor, CLIPSegModel, CLIPSegProcessor

    assert (AutoModel, AutoProcessor) == (CLIPSegModel, CLIPSegProcessor)
    with pytest.raises(ImportError, match="cannot import name 'pipeline'"):
        from clipseg_np import pipeline  # noqa: F401


def test_the_test_sees_an_import():
    assert imported("sys.modules['tqdm'] = sys") == ["tqdm"]
