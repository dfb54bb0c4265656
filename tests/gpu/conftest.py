"""What the tests on a GPU share. Without a GPU, all of them are skipped."""

import pytest

from .agreement import DrawnWeights


@pytest.fixture(scope="session", autouse=True)
def gpu(cupy):
    """CuPy; this comes first, so that nothing is prepared for a test that is skipped."""
    return cupy


@pytest.fixture(scope="session")
def weights() -> DrawnWeights:
    return DrawnWeights()
