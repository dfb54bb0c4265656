"""Masks to look at: the picture once for each prompt, with what was found in colour and the rest in dark grey."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .ops import Array

OUTLINE = (255, 0, 200)  # of a hue that pictures rarely hold
PAPER = (255, 255, 255)
INK = (30, 30, 30)
PANEL_SIDE = 320  # pixels, of a panel's longer side
COLUMNS = 4


def overlay(picture: np.ndarray, masks: Array, captions: list[str]) -> Image.Image:
    """A sheet with the picture, then one captioned panel for each mask.

    picture (height,width,3), uint8; masks (P,height,width), bool; P captions. Panels are scaled to
    PANEL_SIDE pixels along their longer side and stand in rows of COLUMNS.
    """
    panels = [("the picture", Image.fromarray(picture))]
    panels += [
        (caption, Image.fromarray(highlighted(picture, mask)))
        for caption, mask in zip(captions, masks)
    ]
    height, width = picture.shape[:2]
    scale = PANEL_SIDE / max(height, width)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    margin, line = 8, 24
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Image.new(
        "RGB",
        (columns * (width + margin) + margin, rows * (height + line + margin) + margin),
        PAPER,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for place, (caption, panel) in enumerate(panels):
        row, column = divmod(place, columns)
        left, top = margin + column * (width + margin), margin + row * (height + line + margin)
        sheet.paste(panel.resize((width, height), Image.Resampling.LANCZOS), (left, top + line))
        draw.text((left, top), fitting(caption, width, font), fill=INK, font=font)
    return sheet


def highlighted(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture in colour inside the mask, outlined, and in dark grey outside.  -> (height,width,3), uint8"""
    grey = picture.mean(axis=2, keepdims=True)
    shown = np.where(mask[:, :, None], picture, 0.35 * grey).astype(np.uint8)
    thickness = max(1, round(max(mask.shape) / 160))
    shown[grown(mask, thickness) & ~mask] = OUTLINE
    return shown


def grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask and every pixel within `steps` steps up, down, left or right of it.  (height,width), bool"""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
    return mask


def fitting(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut with dots where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
