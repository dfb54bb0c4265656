"""Sheets of panels: the mask in color, the rest in grey, and captions and sizes that fit."""

import itertools
import subprocess
import sys

import numpy as np
from PIL import ImageFont

from clipseg_np.masks.draw import (
    LINE_HEIGHT,
    MARGIN,
    RIM,
    draw_contour,
    heat,
    highlight,
    label_colors,
    legend,
    panel,
    sheet,
    shorten,
    subsample,
)
from clipseg_np.masks.morphology import contour, dilate


def test_the_mask_keeps_its_color_and_the_rest_turns_dark_grey():
    image = np.zeros((40, 40, 3), np.uint8)
    image[..., 0] = 120
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    shown = highlight(image, mask)
    assert (shown[mask] == (120, 0, 0)).all()
    assert (shown[0, 0] == int(0.35 * 40)).all()
    assert (shown[9, 15] == RIM[0]).all() and (shown[8, 15] == RIM[1]).all()
    assert (shown[7, 15] == shown[0, 0]).all()


def test_a_rim_is_seen_on_every_color():
    """It has two lines, and no color is like both."""
    mask = np.zeros((24, 24), bool)
    mask[8:16, 8:16] = True
    for color in [
        (255, 0, 200),
        (128, 0, 160),
        *itertools.product((0, 64, 128, 192, 255), repeat=3),
    ]:
        image = np.broadcast_to(np.array(color, np.uint8), (24, 24, 3))
        for drawn, rim in (
            (highlight(image, mask), dilate(mask, 2) & ~mask),
            (draw_contour(image, mask), contour(mask, 2)),
        ):
            assert np.abs(np.subtract(drawn[rim], color, dtype=int)).max() > 120, color
            assert (drawn[mask & ~rim] == color).all()


def test_one_panel_for_the_image_and_one_for_each_mask_in_rows_of_four():
    image = np.zeros((30, 60, 3), np.uint8)
    page = sheet([("the image", image), *((f"prompt {i}", image) for i in range(5))])
    assert page.size == (4 * (320 + MARGIN) + MARGIN, 2 * (160 + MARGIN + LINE_HEIGHT) + MARGIN)


def test_a_thin_image_keeps_a_pixel():
    page = sheet([("x", panel(np.zeros((1, 900, 3), np.uint8), np.zeros((1, 900), bool)))])
    assert page.size[1] == 1 + LINE_HEIGHT + 2 * MARGIN


def test_long_captions_are_cut():
    font = ImageFont.load_default(size=15)
    assert shorten("red", 100, font) == "red"
    cut = shorten("a very long prompt indeed", 100, font)
    assert cut.endswith("...") and font.getlength(cut) <= 100


def test_nothing_glows_where_no_value_is_above_zero():
    image = np.full((4, 5, 3), 200, np.uint8)
    dark = heat(image, np.zeros((4, 5)))
    assert np.array_equal(heat(image, np.full((4, 5), -3.0)), dark) and (dark == 70).all()


def test_a_panel_of_a_large_image_is_made_of_fewer_pixels():
    image = np.arange(3000 * 10 * 3, dtype=np.uint8).reshape(10, 3000, 3)
    assert subsample(image).shape == (5, 1500, 3) and (subsample(image) == image[::2, ::2]).all()
    assert subsample(image[:, :1280]).shape == (10, 1280, 3)
    mask = np.zeros((10, 3000), bool)
    mask[:, :1500] = True
    shown = panel(image, mask)
    assert (shown[:, :750] == image[::2, :1500:2]).all() and (shown[:, -1] != image[::2, -2]).any()


def test_labels_have_their_colors_in_the_image_and_in_the_legend():
    image = np.full((20, 30, 3), 100, np.uint8)
    labels = np.zeros((20, 30), np.uint8)
    labels[:10, :15] = 2
    page = np.asarray(legend(image, labels, ["a cat", "a dog"]))
    body = page[MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert (body[20, 20] == (0.3 * 100 + 0.7 * label_colors()[2]).astype(np.uint8)).all()
    assert (body[300, 400] == 50).all()
    for number in (1, 2):  # their squares, below the image
        row = page.shape[0] - MARGIN - LINE_HEIGHT * (2 - number) - LINE_HEIGHT + MARGIN + 7
        assert (page[row, MARGIN + 7] == label_colors()[number]).all(), number


def test_the_rooms_files_are_there_without_an_import_of_their_own():
    code = "from clipseg_np import masks; masks.draw.sheet, masks.metrics.image_iou"
    subprocess.run([sys.executable, "-c", code], check=True)
