"""Draw masks: highlighted or outlined in an image, as heat maps, sheets of panels, label maps."""

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import printable
from ..image.resize import resize_bilinear
from ..image.row_blocks import map_row_blocks
from .morphology import as_mask, contour, dilate

# The two lines of a rim, the first beside the mask: no color that a mask holds hides both.
RIM = (255, 255, 255), (255, 0, 200)
GLOW = (255, 120, 0)
PAPER, INK = (255, 255, 255), (30, 30, 30)
# Pixels: a panel's longer side, the space around a panel, and the height of its caption.
PANEL_SIDE, MARGIN, LINE_HEIGHT = 320, 8, 24
COLUMNS = 4


def panel(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`highlight` for a sheet, of no more pixels than a panel needs: (height,width,3), uint8."""
    return highlight(subsample(image), subsample(mask))


def subsample(image: np.ndarray) -> np.ndarray:
    """Every n-th pixel of an image or mask that is many times as large as a panel."""
    step = max(1, max(image.shape[:2]) // (4 * PANEL_SIDE))
    return image[::step, ::step]


def sheet(
    panels: list[tuple[str, np.ndarray]], columns: int = COLUMNS, side: int = PANEL_SIDE
) -> Image.Image:
    """Captions and images, (height,width,3), uint8, in rows; `side`: an image's longer side."""
    scaled = [(caption, scale_to_side(Image.fromarray(image), side)) for caption, image in panels]
    width = max(image.width for _, image in scaled) + MARGIN
    height = max(image.height for _, image in scaled) + MARGIN + LINE_HEIGHT
    columns = min(columns, len(scaled))
    rows = -(-len(scaled) // columns)
    page = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for number, (caption, image) in enumerate(scaled):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * width, MARGIN + row * height
        draw.text((left, top), shorten(caption, width - MARGIN, font), fill=INK, font=font)
        page.paste(image, (left, top + LINE_HEIGHT))
    return page


def scale_to_side(image: Image.Image, side: int) -> Image.Image:
    """The image with its longer side at `side` pixels, the shorter at 1 or more."""
    scale = side / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    return image.resize(size, Image.Resampling.LANCZOS)


def highlight(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image in dark grey outside the mask, which is outlined: (height,width,3), uint8."""
    mask = as_mask(mask)

    def dim(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        grey = image.mean(axis=2, keepdims=True)
        return np.where(mask[:, :, None], image, 0.35 * grey).astype(np.uint8)

    return draw_rim(map_row_blocks(dim, image, mask), lambda width: dilate(mask, width) & ~mask)


highlighted = highlight  # its name in 0.1


def draw_contour(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with the mask's contour: (height,width,3), uint8."""
    return draw_rim(image.copy(), lambda width: contour(mask, width))


def draw_rim(image: np.ndarray, rim_of: Callable[[int], np.ndarray]) -> np.ndarray:
    """Draw two lines into the image, whose rim of any width a function returns."""
    width = max(1, round(max(image.shape) / 160))
    for lines, color in zip((2, 1), RIM[::-1]):
        image[rim_of(lines * width)] = color
    return image


def heat(image: np.ndarray, values: np.ndarray, highest: float | None = None) -> np.ndarray:
    """An image under a map of any size, dark at 0 and bright at `highest`: (H,W,3), uint8."""
    values = np.asarray(values, np.float32)
    if values.shape != image.shape[:2]:
        values = resize_bilinear(values, image.shape[:2])
    highest = highest or max(values.max(), 0) or 1

    def glow(image: np.ndarray, values: np.ndarray) -> np.ndarray:
        share = np.clip(values / highest, 0, 1)[..., None]
        grey = image.mean(axis=2, keepdims=True)
        light = 0.35 * grey * (1 - share) + 0.6 * image * share + 0.5 * (np.array(GLOW) * share)
        return np.clip(light, 0, 255).astype(np.uint8)

    return map_row_blocks(glow, image, values)


def shorten(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The text in one line, cut with dots where it is wider than `width` pixels."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    # A character takes a pixel at least.
    text = text[:width]
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def palette_image(labels: np.ndarray) -> Image.Image:
    """A label map (height,width), uint8, as an indexed image: 0 is dark, each label has a color."""
    image = Image.fromarray(labels, "L").convert("P")
    image.putpalette(label_colors().tobytes())
    return image


def label_colors() -> np.ndarray:
    """(256,3), uint8"""
    # The golden ratio puts the hues of neighboring labels far apart.
    hues = (np.arange(255) * 0.618034) % 1
    colors = [colorsys.hsv_to_rgb(hue, 0.75, 0.95 - 0.2 * (i % 2)) for i, hue in enumerate(hues)]
    return np.rint(255 * np.concatenate([[(0.15, 0.15, 0.15)], colors])).astype(np.uint8)


def legend(image: np.ndarray, labels: np.ndarray, captions: list[str]) -> Image.Image:
    """The image tinted by its labels' colors, and below it a list of colors and captions."""
    image, labels, colors = subsample(image), subsample(labels), label_colors()
    grey = 0.5 * image.mean(axis=2, keepdims=True)
    tinted = np.where(labels[..., None] > 0, 0.3 * image + 0.7 * colors[labels], grey)
    side = max(2 * PANEL_SIDE, *labels.shape)
    body = scale_to_side(Image.fromarray(tinted.astype(np.uint8)), side)
    width = max(body.width, PANEL_SIDE) + 2 * MARGIN
    height = body.height + 2 * MARGIN + LINE_HEIGHT * len(captions)
    page = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    page.paste(body, (MARGIN, MARGIN))
    left = MARGIN + 15 + MARGIN
    for number, caption in enumerate(captions):
        top = body.height + 2 * MARGIN + LINE_HEIGHT * number
        color = tuple(colors[number + 1].tolist())
        draw.rectangle((MARGIN, top, MARGIN + 15, top + 15), fill=color)
        caption = shorten(caption, width - left - MARGIN, font)
        draw.text((left, top - 1), caption, fill=INK, font=font)
    return page
