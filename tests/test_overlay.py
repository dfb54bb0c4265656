"""The sheet of panels: what is coloured, what is grey, and that captions and sizes fit."""

import numpy as np
from PIL import ImageFont

from clipseg_np.overlay import LINE, MARGIN, OUTLINE, fitting, highlighted, overlay


def test_the_mask_keeps_its_colour_and_the_rest_turns_dark_grey():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[..., 0] = 120
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:20] = True
    shown = highlighted(picture, mask)
    assert (shown[mask] == (120, 0, 0)).all()
    assert (shown[0, 0] == int(0.35 * 40)).all()
    assert (shown[9, 15] == OUTLINE).all() and (shown[8, 15] != OUTLINE).any()


def test_one_panel_for_the_picture_and_one_for_each_mask_in_rows_of_four():
    masks = np.zeros((5, 30, 60), bool)
    sheet = overlay(np.zeros((30, 60, 3), np.uint8), masks, [f"prompt {i}" for i in range(5)])
    assert sheet.size == (4 * (320 + MARGIN) + MARGIN, 2 * (160 + MARGIN + LINE) + MARGIN)


def test_a_thin_picture_keeps_a_pixel():
    sheet = overlay(np.zeros((1, 900, 3), np.uint8), np.zeros((1, 1, 900), bool), ["x"])
    assert sheet.size[1] == 1 + LINE + 2 * MARGIN


def test_long_captions_are_cut():
    font = ImageFont.load_default(size=15)
    assert fitting("red", 100, font) == "red"
    cut = fitting("a very long prompt indeed", 100, font)
    assert cut.endswith("...") and font.getlength(cut) <= 100
