"""Masks to look at: what was found in colour and the rest in dark grey, as a sheet, a heat map, a rim or a map of labels."""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..image.resize import resize_bilinear
from ..image.row_blocks import map_row_blocks
from .morphology import contour, dilate

OUTLINE = (255, 0, 200)  # of a hue that images rarely hold
GLOW = (255, 120, 0)  # of a heat map
PAPER = (255, 255, 255)
INK = (30, 30, 30)
PANEL_SIDE = 320  # pixels, of a panel's longer side
COLUMNS = 4
MARGIN, LINE = 8, 24  # pixels around a panel, and above it for its caption


def panel(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`highlight`, of an image that is no larger than a panel of a sheet needs.  -> (height,width,3), uint8"""
    return highlight(subsample(image), subsample(mask))


def subsample(image: np.ndarray) -> np.ndarray:
    """Every n-th pixel of an image or mask that is many times as large as a panel; others as they are."""
    step = max(1, max(image.shape[:2]) // (4 * PANEL_SIDE))
    return image[::step, ::step]


def sheet(
    panels: list[tuple[str, np.ndarray]], columns: int = COLUMNS, side: int = PANEL_SIDE
) -> Image.Image:
    """Captioned images, (height,width,3) uint8 each, in rows of `columns`, their longer sides `side` pixels."""
    scaled = [(caption, scale_to_side(Image.fromarray(image), side)) for caption, image in panels]
    width = max(image.width for _, image in scaled) + MARGIN
    height = max(image.height for _, image in scaled) + MARGIN + LINE
    columns = min(columns, len(scaled))
    rows = -(-len(scaled) // columns)
    page = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for place, (caption, image) in enumerate(scaled):
        row, column = divmod(place, columns)
        left, top = MARGIN + column * width, MARGIN + row * height
        draw.text((left, top), shorten(caption, width - MARGIN, font), fill=INK, font=font)
        page.paste(image, (left, top + LINE))
    return page


def scale_to_side(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side at `side` pixels."""
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    return image.resize(size, Image.Resampling.LANCZOS)


def highlight(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image in colour inside the mask, outlined, and in dark grey outside.  -> (height,width,3), uint8"""

    def dimmed(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        grey = image.mean(axis=2, keepdims=True)
        return np.where(mask[:, :, None], image, 0.35 * grey).astype(np.uint8)

    shown = map_row_blocks(dimmed, image, mask)
    thickness = max(1, round(max(mask.shape) / 160))
    shown[dilate(mask, thickness) & ~mask] = OUTLINE
    return shown


def heat(image: np.ndarray, values: np.ndarray, highest: float | None = None) -> np.ndarray:
    """A map of any size laid over an image: bright where it is `highest`, dark where it is 0.  -> (H,W,3), uint8"""
    values = np.asarray(values, np.float32)
    if values.shape != image.shape[:2]:
        values = resize_bilinear(values, image.shape[:2])
    highest = highest or values.max() or 1

    def lit(image: np.ndarray, values: np.ndarray) -> np.ndarray:
        share = np.clip(values / highest, 0, 1)[..., None]
        grey = image.mean(axis=2, keepdims=True)
        glow = np.array(GLOW) * share
        shown = 0.35 * grey * (1 - share) + 0.6 * image * share + 0.5 * glow
        return np.clip(shown, 0, 255).astype(np.uint8)

    return map_row_blocks(lit, image, values)


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut with dots where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    text = text[:width]  # a character takes a pixel at least
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def draw_contour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with the mask's rim drawn into it.  -> (height,width,3), uint8"""
    shown = image.copy()
    shown[contour(mask, max(1, round(max(mask.shape) / 160)))] = OUTLINE
    return shown


def palette_image(labels: np.ndarray) -> Image.Image:
    """A label map (height,width), uint8, as an image with a palette: 0 is dark, each other number a colour of its own."""
    image = Image.fromarray(labels, "L").convert("P")
    image.putpalette(label_colors().tobytes())
    return image


def label_colors() -> np.ndarray:
    """(256,3), uint8."""
    hues = (np.arange(255) * 0.618034) % 1  # far apart from one number to the next
    colours = [colorsys.hsv_to_rgb(hue, 0.75, 0.95 - 0.2 * (i % 2)) for i, hue in enumerate(hues)]
    return np.rint(255 * np.concatenate([[(0.15, 0.15, 0.15)], colours])).astype(np.uint8)


def legend(image: np.ndarray, labels: np.ndarray, captions: list[str]) -> Image.Image:
    """The image, no larger than a sheet needs, with each label in its colour, and below it what the colours mean."""
    image, labels, colours = subsample(image), subsample(labels), label_colors()
    grey = 0.5 * image.mean(axis=2, keepdims=True)
    tinted = 0.3 * image + 0.7 * colours[labels]
    shown = np.where(labels[..., None] > 0, tinted, grey).astype(np.uint8)
    body = scale_to_side(Image.fromarray(shown), max(2 * PANEL_SIDE, *shown.shape[:2]))
    width = max(body.width, PANEL_SIDE) + 2 * MARGIN
    page = Image.new("RGB", (width, body.height + 2 * MARGIN + LINE * len(captions)), PAPER)
    page.paste(body, (MARGIN, MARGIN))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for number, caption in enumerate(captions, start=1):
        top = body.height + MARGIN + LINE * (number - 1) + MARGIN
        draw.rectangle((MARGIN, top, MARGIN + 15, top + 15), fill=tuple(map(int, colours[number])))
        left = MARGIN + 15 + MARGIN
        draw.text(
            (left, top - 1), shorten(caption, width - left - MARGIN, font), fill=INK, font=font
        )
    return page
