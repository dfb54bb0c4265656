"""Windows of an image, and the join of their maps."""

import numpy as np
import pytest

from clipseg_np import InputError, Segmenter
from clipseg_np.nn.ops import Ops
from clipseg_np.segment.sliding_window import checked_scales, join, mean_of_scales, windows

rng = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(40, 60), (41, 59), (4, 5), (352, 352)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_windows_cover_the_image_and_overlap_by_half(size, scale):
    seen = np.zeros(size, int)
    for row, column, (rows, columns) in windows(size, scale):
        assert abs(rows.start - row * size[0] / (2 * scale)) <= 0.5
        assert abs(columns.stop - (column + 2) * size[1] / (2 * scale)) <= 0.5
        seen[rows, columns] += 1
    assert seen.min() >= 1 and len(list(windows(size, scale))) == (2 * scale - 1) ** 2
    if scale > 1 and min(size) > 4:
        assert seen[size[0] // 2, size[1] // 2] >= 2 and seen[0, 0] == 1


@pytest.mark.parametrize("shape", [(2, 8, 12), (1, 7, 5)])
@pytest.mark.parametrize("scale", [2, 3])
def test_maps_of_windows_that_agree_join_to_the_map_itself(shape, scale):
    prompts, height, width = shape
    whole = rng.normal(size=(prompts, scale * height, scale * width))
    parts = []
    for row in range(2 * scale - 1):
        for column in range(2 * scale - 1):
            top, left = row * height // 2, column * width // 2
            parts.append((row, column, whole[:, top : top + height, left : left + width]))
    np.testing.assert_allclose(join(parts, scale, Ops()), whole, rtol=1e-12)


def test_windows_that_disagree_meet_halfway():
    parts = [
        (row, column, np.full((1, 4, 4), float(column))) for row in range(3) for column in range(3)
    ]
    joined = join(parts, 2, Ops())[0]
    np.testing.assert_allclose(joined, np.broadcast_to(joined[0], joined.shape))
    np.testing.assert_allclose(joined[0], [0, 0, 0.25, 0.75, 1.25, 1.75, 2, 2])


def test_scales_of_different_sizes_are_averaged():
    small, large = np.full((1, 2, 2), 3.0), np.ones((1, 4, 4))
    np.testing.assert_allclose(mean_of_scales([small, large], Ops()), np.full((1, 4, 4), 2.0))


@pytest.mark.parametrize("scales", [(), (0,), (1, -2), (1.5,), (17,), ("2",), 1, None])
def test_refused_scales(scales):
    with pytest.raises(InputError, match="scales are .*expected whole numbers from 1"):
        checked_scales(scales, (500, 400))


def test_no_more_windows_than_pixels():
    assert checked_scales([2, 1, 2], (3, 2)) == (2, 1)
    assert (
        checked_scales(np.array([1, 2]), (3, 2)) == checked_scales(iter([1, 2]), (3, 2)) == (1, 2)
    )
    with pytest.raises(InputError, match="to 2 for this one"):
        checked_scales([3], (2, 9))


def test_a_scale_is_what_its_windows_are_alone(checkpoint):
    segmenter = Segmenter.from_pretrained(checkpoint)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    alone = segmenter(image[:30, :40], "red").logits
    whole = segmenter(image, "red").logits
    close = segmenter(image, "red", scales=[2]).logits
    assert close.shape == (1, 2 * whole.shape[1], 2 * whole.shape[2])
    quarter = np.s_[:, : whole.shape[1] // 2, : whole.shape[2] // 2]
    np.testing.assert_allclose(close[quarter], alone[quarter], rtol=1e-5, atol=1e-6)
    both = segmenter.combine(image, "red", scales=[1, 2]).logits
    np.testing.assert_allclose(both, mean_of_scales([whole, close], Ops()), rtol=1e-5, atol=1e-6)


def test_small_things_are_found_in_windows():
    """Sixteen scenes in one image: each object is a fourth as large as in training."""
    segmenter = Segmenter.from_pretrained()
    image = np.full((512, 512, 3), 90, np.uint8)
    true = np.zeros((512, 512), bool)
    rows, columns = np.mgrid[:512, :512]
    for k in range(16):
        y, x = 64 + 128 * (k // 4), 64 + 128 * (k % 4)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 8**2
        red = k % 3 == 0
        image[disc] = (220, 20, 20) if red else (30, 60, 220)
        if red:
            true |= disc
    scores = {}
    for scales in ((1,), (4,)):
        mask = segmenter(image, "a red thing", scales=scales).masks()[0]
        scores[scales] = (mask & true).sum() / (mask | true).sum()
    assert scores[4,] > scores[1,] + 0.1 and scores[4,] > 0.7, scores
