"""Masks dilated, cleaned, cut out, labeled and encoded as runs."""

import itertools

import numpy as np
import pytest

from clipseg_np import masks
from clipseg_np.errors import InputError
from clipseg_np.masks.draw import highlight
from clipseg_np.masks.morphology import (
    connected_components,
    contour,
    cut_out,
    dilate,
    feather,
    label_map,
    polygon_mask,
    remove_small_components,
    run_length_decoding,
    run_length_encoding,
)


def drawn(seed, shape=(23, 31), share=0.1):
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("pixels", [0, 1, 1.5, 2, 5, 40])
@pytest.mark.parametrize("seed", range(3))
def test_dilation_adds_the_pixels_within_the_radius(seed, pixels):
    mask = drawn(seed, share=0.02)
    rows, columns = np.indices(mask.shape)
    near = np.zeros(mask.shape, bool)
    for i, j in np.argwhere(mask):
        near |= (rows - i) ** 2 + (columns - j) ** 2 <= pixels**2
    np.testing.assert_array_equal(dilate(mask, pixels), near)
    np.testing.assert_array_equal(dilate(~mask, -pixels), ~near)


USES = {
    "dilated": lambda mask: dilate(mask, 2),
    "eroded": lambda mask: dilate(mask, -2),
    "feathered": lambda mask: feather(mask, 2),
    "components": lambda mask: str(connected_components(mask)),
    "large components": lambda mask: remove_small_components(mask, 5),
    "contour": contour,
    "runs": lambda mask: str(run_length_encoding(mask)),
    "cutout": lambda mask: cut_out(np.full((*mask.shape, 3), 7, np.uint8), mask),
    "highlight": lambda mask: highlight(np.full((*mask.shape, 3), 7, np.uint8), mask),
}


@pytest.mark.parametrize("use", USES)
def test_a_mask_as_files_hold_it_is_the_same_mask(use):
    mask = drawn(0, share=0.3)
    expected = USES[use](mask)
    for white in (np.uint8(255), np.uint8(1), 1, 255):
        np.testing.assert_array_equal(USES[use](mask * white), expected)


@pytest.mark.parametrize("use", USES)
def test_what_is_no_mask_is_refused(use):
    mask = drawn(0)
    others = {"int64": mask * 7, "bool": mask[None], "uint8": np.arange(12, dtype=np.uint8)[None]}
    if use != "cutout":
        others["float32"] = mask.astype(np.float32)
    for dtype, other in others.items():
        with pytest.raises(InputError, match=f"got {dtype}, .* expected one mask"):
            USES[use](other)


def test_dilation_and_erosion_leave_empty_and_full_masks_alone():
    for mask in (np.zeros((4, 5), bool), np.ones((4, 5), bool)):
        for pixels in (3, -3):
            assert np.array_equal(dilate(mask, pixels), mask)


def test_feathering_keeps_the_middle_of_an_edge_at_one_half():
    mask = np.zeros((40, 40), bool)
    mask[:, 20:] = True
    soft = feather(mask, 3)
    assert soft.dtype == np.float32 and soft.min() >= 0 and soft.max() <= 1
    assert abs(soft[20, 19] + soft[20, 20] - 1) < 0.02 and 0.3 < soft[20, 19] < 0.5
    assert soft[20, 5] == 0 and soft[20, 35] == 1


def flood_fill(mask):
    """Connected components by flood fill, pixel by pixel."""
    labels, number = np.zeros(mask.shape, int), 0
    for start in map(tuple, np.argwhere(mask)):
        if labels[start]:
            continue
        number += 1
        stack = [start]
        while stack:
            i, j = stack.pop()
            inside = 0 <= i < mask.shape[0] and 0 <= j < mask.shape[1]
            if inside and mask[i, j] and not labels[i, j]:
                labels[i, j] = number
                stack += [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return labels


@pytest.mark.parametrize("share", [0, 0.05, 0.2, 0.35, 0.5, 0.8, 1])
@pytest.mark.parametrize("seed", range(5))
def test_connected_components_are_those_of_a_flood_fill(seed, share):
    mask = drawn(seed, share=share)
    labels, components = flood_fill(mask), connected_components(mask)
    assert len(components) == labels.max(initial=0)
    for number, component in enumerate(components, 1):
        rows, columns = np.nonzero(labels == number)
        assert component.area == len(rows)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert component.box == tuple(map(int, box))


def test_a_comb_is_one_component_until_it_loses_its_spine():
    comb = np.zeros((7, 9), bool)
    comb[:, ::2] = True
    comb[-1] = True
    assert len(connected_components(comb)) == 1
    assert len(connected_components(comb[:-1])) == 5


def test_small_components_go_and_the_rest_stays():
    mask = np.zeros((10, 10), bool)
    mask[1:4, 1:4] = mask[6, 6:8] = mask[9, 0] = True
    cleaned = remove_small_components(mask, 3)
    assert cleaned.sum() == 9 and cleaned[2, 2]
    assert remove_small_components(mask, 2).sum() == 11
    assert np.array_equal(remove_small_components(mask, 1), mask)
    assert not remove_small_components(np.zeros((3, 3), bool), 5).any()


def test_a_cut_out_is_transparent_where_the_mask_is_not():
    image = np.full((2, 3, 3), 9, np.uint8)
    mask = np.array([[1, 0, 1], [0, 0, 1]], bool)
    cut = cut_out(image, mask)
    assert cut.shape == (2, 3, 4) and cut.dtype == np.uint8
    np.testing.assert_array_equal(cut[..., 3], mask * 255)
    np.testing.assert_array_equal(cut[..., :3], image)
    assert cut_out(image, np.full((2, 3), 0.5, np.float32))[0, 0, 3] == 128
    with pytest.raises(InputError, match="expected one size"):
        cut_out(image, mask.T)


def test_a_cut_out_keeps_the_image_s_own_alpha():
    own = np.array([[255, 100, 60], [0, 1, 200]], np.uint8)
    image = np.dstack([np.full((2, 3, 3), 9, np.uint8), own])
    mask = np.array([[1, 0, 1], [0, 0, 1]], bool)
    np.testing.assert_array_equal(cut_out(image, mask)[..., 3], own * mask)
    np.testing.assert_array_equal(cut_out(image, mask)[..., :3], image[..., :3])
    soft = cut_out(image, np.full((2, 3), 0.5, np.float32))
    np.testing.assert_array_equal(soft[..., 3], [[128, 50, 30], [0, 0, 100]])


def test_the_contour_is_the_rim_inside():
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:9] = True
    rim = contour(mask)
    inner = np.zeros_like(mask)
    inner[3:6, 3:9] = True
    np.testing.assert_array_equal(rim, mask & ~inner)


def test_a_label_map_holds_the_likeliest_prompt_above_the_threshold():
    probabilities = np.array([[[0.9, 0.2, 0.6]], [[0.3, 0.4, 0.6]]], np.float32)
    assert label_map(probabilities).tolist() == [[1, 0, 1]]
    assert label_map(probabilities, 0.3).tolist() == [[1, 2, 1]]
    assert label_map(probabilities).dtype == np.uint8
    with pytest.raises(InputError, match="at most 255"):
        label_map(np.zeros((256, 1, 1)))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_run_lengths_go_down_the_columns_and_begin_with_zeros(share):
    mask = drawn(1, share=share)
    coded = run_length_encoding(mask)
    assert coded["size"] == [23, 31] and sum(coded["counts"]) == mask.size
    values = np.repeat(np.arange(len(coded["counts"])) % 2, coded["counts"])
    np.testing.assert_array_equal(values.reshape(mask.shape, order="F"), mask)
    assert all(count > 0 for count in coded["counts"][1:])
    assert run_length_encoding(np.array([[True, False]]))["counts"] == [0, 1, 1]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_run_lengths_are_decoded(share):
    mask = drawn(1, share=share)
    decoded = run_length_decoding(run_length_encoding(mask))
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


# Of pycocotools, for the mask below; its counts have one and two characters, up and down.
COMPRESSED = (
    "d01m000000_O8LH48LH41F36L41F36L41F36L48LH48LH48LH48LH48LH48LH48LH48LH48LH48LH48LH"
    "e0000000000000000000000000000000000000000\\O"
)


def test_compressed_run_lengths_are_decoded():
    mask = np.zeros((30, 40), bool)
    mask[3:12, 4:20] = mask[20] = True
    mask[5:7, 6:9] = False
    for counts in (COMPRESSED, COMPRESSED.encode()):
        decoded = run_length_decoding({"size": [30, 40], "counts": counts})
        np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    "rle, problem",
    [
        ({}, "damaged"),
        ({"size": [3, 4]}, "damaged"),
        ({"size": 12, "counts": [12]}, "damaged"),
        ({"size": [3, 4, 1], "counts": [12]}, "damaged"),
        ({"size": [-3, -4], "counts": [12]}, "damaged"),
        ({"size": [3, 4], "counts": [13, -1]}, "damaged"),
        ({"size": [3, 4], "counts": [3.5, 8.5]}, "damaged"),
        ({"size": [3, 4], "counts": "ä"}, "damaged"),
        ({"size": [3, 4], "counts": " "}, "damaged"),
        ({"size": [3, 4], "counts": "\ud800"}, "damaged"),
        ({"size": [3, 4], "counts": "p<"}, "damaged"),
        ({"size": [3, 4], "counts": "P"}, "damaged"),
        ({"size": [3, 4], "counts": [3, 8]}, "11 pixels, and its size is 3 x 4"),
        ({"size": [3, 4], "counts": "="}, "13 pixels"),
    ],
)
def test_other_run_lengths_are_refused(rle, problem):
    with pytest.raises(InputError, match=problem):
        run_length_decoding(rle)


def test_compressed_run_lengths_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (extra 'oracle')")
    for seed, share in itertools.product(range(20), (0.01, 0.5, 0.99)):
        mask = drawn(seed, (seed + 1, 2 * seed + 300), share)
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        np.testing.assert_array_equal(run_length_decoding(rle), mask)


def drawn_polygon(seed: int) -> np.ndarray:
    """Corners in and beyond an image of 40 x 30, (N,2); edges may cross."""
    rng = np.random.default_rng(seed)
    return rng.random((rng.integers(3, 9), 2)) * (48, 36) - (4, 3)


def test_a_polygon_holds_the_pixels_whose_centers_have_an_odd_winding():
    """By angles: the windings of the polygon around a center sum to a multiple of a turn."""
    rows, columns = np.indices((30, 40)) + 0.5
    for seed in range(20):
        points = drawn_polygon(seed)
        angles = [np.arctan2(y - rows, x - columns) for x, y in points]
        turns = (np.diff([*angles, angles[0]], axis=0) + np.pi) % (2 * np.pi) - np.pi
        odd = np.rint(turns.sum(axis=0) / (2 * np.pi)).astype(int) % 2 == 1
        np.testing.assert_array_equal(polygon_mask(points.ravel().tolist(), (30, 40)), odd)


def test_a_polygon_covers_its_pixels_and_not_its_neighbors():
    square = [2, 1, 5, 1, 5, 3, 2, 3]
    expected = np.zeros((4, 7), bool)
    expected[1:3, 2:5] = True
    np.testing.assert_array_equal(polygon_mask(square, (4, 7)), expected)
    assert polygon_mask([-9, -9, 99, -9, 99, 99, -9, 99], (4, 7)).all()
    assert not polygon_mask([-9, 0, -1, 0, -1, 3], (4, 7)).any()


@pytest.mark.parametrize("polygon", [None, 5, [], [1, 2, 3, 4], [1] * 7, ["a"] * 6, [np.nan] * 6])
def test_other_polygons_are_refused(polygon):
    with pytest.raises(InputError, match=r"is no polygon; expected \[x, y, x, y, x, y, \.\.\.\]"):
        polygon_mask(polygon, (4, 7))


def test_polygons_are_those_of_pycocotools_but_at_edges():
    coco = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (extra 'oracle')")
    for seed in range(100):
        points = drawn_polygon(seed)
        mask = polygon_mask(points.ravel().tolist(), (30, 40))
        (rle,) = coco.frPyObjects([points.ravel().tolist()], 30, 40)
        steps = np.roll(points, -1, axis=0) - points
        for y, x in np.argwhere(mask != coco.decode(rle)) + 0.5:
            share = ((x, y) - points) * steps
            share = np.clip(share.sum(axis=1) / (steps**2).sum(axis=1), 0, 1)
            nearest = points + share[:, None] * steps
            assert np.hypot(*(nearest - (x, y)).T).min() < 0.3


def test_the_names_of_0_1_are_kept():
    mask = drawn(2)
    np.testing.assert_array_equal(masks.grow(mask, 2), dilate(mask, 2))
    np.testing.assert_array_equal(masks.grow(mask, pixels=-1), dilate(mask, -1))
    assert masks.regions(mask) == connected_components(mask)
    expected = remove_small_components(mask, 3)
    np.testing.assert_array_equal(masks.without_crumbs(mask, 3), expected)
    np.testing.assert_array_equal(masks.without_crumbs(mask, smallest=3), expected)
    assert masks.run_lengths(mask) == run_length_encoding(mask)
