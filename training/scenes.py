"""Scenes of simple shapes, drawn with NumPy and Pillow; the owner of every pixel is known.

`draw_scene(rng)` draws 1 to 4 shapes over a plain, gradient or noisy background. The words mean:

- colors are hue ranges kept well apart; a striped or dotted thing is named by its main color;
- "small": the longer side of the outline's box is under a quarter of the image's shorter side;
  "large": over a third;
- later things hide earlier ones; stripes and dots belong to the thing, even where the background
  shows through.

The same state of `rng` gives the same scene.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from phrases import COLORS, HELD_OUT, SHAPES, SURFACES, Phrase
from PIL import Image, ImageDraw

NEW_SHAPES = ("heart", "arrow", "crescent")  # never drawn in training; few_shot.py's

# Hue in degrees, saturation, value: from, to.
_HSV = {
    "red": ((-12, 7), (0.78, 1), (0.65, 1)),
    "orange": ((21, 39), (0.85, 1), (0.88, 1)),
    "yellow": ((49, 62), (0.75, 1), (0.85, 1)),
    "green": ((92, 150), (0.55, 1), (0.42, 0.95)),
    "blue": ((205, 243), (0.65, 1), (0.5, 1)),
    "purple": ((268, 302), (0.5, 1), (0.42, 0.9)),
    "white": ((0, 360), (0, 0.05), (0.9, 1)),
    "black": ((0, 360), (0, 0.4), (0, 0.14)),
}


@dataclass(frozen=True)
class Thing:
    """One shape of a scene.

    `box` is (left, top, right, bottom) of the whole outline in pixels; `mask` (height, width),
    bool, holds its visible pixels.
    """

    shape: str
    color: str
    surface: str
    size: str | None
    box: tuple[int, int, int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image, (height, width, 3) uint8, and what is in it, from back to front."""

    image: np.ndarray
    things: tuple[Thing, ...]

    def mask(self, phrase: str | Phrase) -> np.ndarray:
        """(height, width), bool: every visible pixel of everything that the phrase fits."""
        if isinstance(phrase, str):
            phrase = Phrase.parse(phrase)
        mask = np.zeros(self.image.shape[:2], bool)
        for thing in self.things:
            if phrase.fits(thing):
                mask |= thing.mask
        return mask


def draw_scene(
    rng, held_out: bool | str = False, side=None, require=None, kinds=None, shapes=SHAPES
) -> Scene:
    """Draw a scene.

    `held_out`: False leaves out the color-shape pairs kept from training, True allows them, "only"
    draws at least one. `side`: the shorter side in pixels (default: 64 to 352, drawn). `require`:
    the (color, shape) of a thing that must be drawn. `kinds`: all things to draw, as (shape,
    color, surface); one for which there is no room is left out. `shapes`: those to draw from.
    """
    if side is None:
        side = int(np.exp(rng.uniform(np.log(64), np.log(352))))
    longer = side if rng.random() < 0.6 else int(side * rng.uniform(1, 1.3))
    height, width = (side, longer) if rng.random() < 0.5 else (longer, side)
    if held_out == "only":
        require = HELD_OUT[rng.integers(len(HELD_OUT))]

    kinds = kinds or _kinds(rng, held_out, require, shapes)
    colors = [_shade(rng, color) for _, color, _ in kinds]
    canvas = _background(rng, height, width, colors)
    owner = np.zeros((height, width), np.int8)  # 0: background, k: the k-th thing drawn
    drawn = []
    crowded = rng.random() < 0.5
    smooth = rng.random() < 0.75  # antialiased outlines
    # A required thing comes first, while there is room; after a shuffle others could crowd it out.
    for (shape, color, surface), rgb in zip(kinds, colors, strict=True):
        placed = _place(rng, owner, shape, side, crowded, len(drawn))
        if placed is None:
            continue
        cover, left, top, extent = placed
        if not smooth:
            cover = (cover >= 0.5).astype(np.float32)
        h, w = cover.shape
        part = np.s_[top : top + h, left : left + w]
        body = _surface(rng, surface, rgb, color, canvas[part], extent, side)
        canvas[part] += cover[..., None] * (body - canvas[part])
        owner[part][cover >= 0.5] = len(drawn) + 1
        size = "small" if extent < side / 4 else "large" if extent > side / 3 else None
        drawn.append((shape, color, surface, size, (left, top, left + w, top + h)))
    if rng.random() < 0.2:
        canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(2, 12))
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, tuple(Thing(*thing, owner == k) for k, thing in enumerate(drawn, 1)))


def _kinds(rng, held_out, require, shapes):
    """(shape, color, surface) of 1 to 4 things, which often share all but one attribute."""
    count = 1 + rng.choice(4, p=(0.15, 0.25, 0.3, 0.3))
    kinds = []
    while len(kinds) < count:
        kind = [
            shapes[rng.integers(len(shapes))],
            COLORS[rng.integers(len(COLORS))],
            SURFACES[rng.choice(3, p=(0.44, 0.28, 0.28))],
        ]
        if kinds and rng.random() < 0.5:
            other = kinds[rng.integers(len(kinds))]
            for i in range(3):
                if rng.random() < 0.5:
                    kind[i] = other[i]
        if not kinds and require is not None:
            kind[1], kind[0] = require
        elif held_out is False and (kind[1], kind[0]) in HELD_OUT:
            continue
        kinds.append(tuple(kind))
    return kinds


def _shade(rng, color):
    """(3,) float32 in 0..255: a shade with this name."""
    hue, saturation, value = (rng.uniform(*ends) for ends in _HSV[color])
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value), np.float32) * 255


def _background(rng, height, width, colors):
    """(height, width, 3) float32, nowhere close to the color of a thing."""

    def tint():
        if rng.random() < 0.65:  # muted
            gray = rng.uniform(0, 255)
            return np.clip(gray + rng.normal(0, rng.choice((3, 18)), 3), 0, 255).astype(np.float32)
        return rng.uniform(0, 255, 3).astype(np.float32)

    kind = rng.choice(4, p=(0.35, 0.25, 0.1, 0.3))  # plain, linear, radial, noisy
    for attempt in range(60):
        first, second = tint(), tint()
        if kind in (0, 3):
            second = first
        elif rng.random() < 0.5:
            second = first + np.float32(rng.uniform(0.2, 0.7)) * (second - first)
        steps = [first + t * (second - first) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
        apart = min(float(np.linalg.norm(s - c)) for s in steps for c in colors)
        if apart > 90 - attempt:
            break
    if kind in (0, 3):
        canvas = np.empty((height, width, 3), np.float32)
        canvas[:] = first
    else:
        y = np.arange(height, dtype=np.float32)[:, None] / height - 0.5
        x = np.arange(width, dtype=np.float32)[None] / width - 0.5
        if kind == 1:
            angle = rng.uniform(0, 2 * np.pi)
            t = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
        else:
            t = np.hypot(
                x - np.float32(rng.uniform(-0.5, 0.5)), y - np.float32(rng.uniform(-0.5, 0.5))
            )
        t = (t - t.min()) / (t.max() - t.min())
        canvas = first + t[..., None] * (second - first)
    if kind == 3:
        grain = int(rng.choice((1, 1, 2, 4)))
        channels = 3 if rng.random() < 0.6 else 1
        coarse = (-(-height // grain), -(-width // grain), channels)
        noise = rng.standard_normal(coarse, np.float32) * np.float32(rng.uniform(5, 32))
        if grain > 1:
            noise = noise.repeat(grain, 0).repeat(grain, 1)[:height, :width]
        canvas += noise
    return canvas


def _place(rng, owner, shape, side, crowded, count):
    """The next thing's coverage (h,w) float32, left, top and extent; None if there is no room."""
    height, width = owner.shape
    areas = np.bincount(owner.ravel(), minlength=count + 1)
    for attempt in range(8):
        # Smaller and smaller where there is no room.
        draw = rng.random() + 0.1 * attempt * (count > 0)
        if draw < 0.4:
            extent = rng.uniform(0.36, 0.62)
        elif draw < 0.55:
            extent = rng.uniform(0.26, 0.32)
        else:
            extent = rng.uniform(0.12, 0.24)
        cover = _outline(rng, shape, extent * side)
        h, w = cover.shape
        if h >= height or w >= width:
            continue
        inside = cover >= 0.5
        for _ in range(6):
            top, left = int(rng.integers(height - h)), int(rng.integers(width - w))
            below = owner[top : top + h, left : left + w]
            if crowded:
                hidden = np.bincount(below[inside], minlength=count + 1)
                if np.all(hidden[1:] <= 0.45 * areas[1:]):
                    return cover, left, top, max(h, w)
            elif not below.any():
                return cover, left, top, max(h, w)
    return None


def _outline(rng, shape, extent):
    """(h,w) float32 in 0..1: each pixel's covered share. The longer side is `extent`, rounded."""
    extent = max(6, round(extent))
    fine = 4 if extent < 100 else 2
    turn = 0.0 if rng.random() < 0.45 else rng.uniform(0, 2 * np.pi)
    if shape in ("circle", "ring"):
        image = Image.new("L", (extent * fine, extent * fine))
        draw = ImageDraw.Draw(image)
        draw.ellipse((0, 0, extent * fine - 1, extent * fine - 1), fill=255)
        if shape == "ring":
            rim = extent * fine / 2 * rng.uniform(0.22, 0.48)
            draw.ellipse((rim, rim, extent * fine - 1 - rim, extent * fine - 1 - rim), fill=0)
    else:
        points = _corners(rng, shape)
        c, s = np.cos(turn), np.sin(turn)
        points = points @ np.array([[c, s], [-s, c]])
        points -= points.min(0)
        points *= extent / points.max()
        w, h = np.maximum(1, np.ceil(points.max(0) - 1e-6).astype(int))
        image = Image.new("L", (int(w) * fine, int(h) * fine))
        corners = [(x * fine - 0.5, y * fine - 0.5) for x, y in points]
        ImageDraw.Draw(image).polygon(corners, fill=255)
    return np.asarray(image.reduce(fine), np.float32) / np.float32(255)


def _corners(rng, shape):
    """(n,2) float64: the corners of an upright shape, y downwards, in any unit."""
    if shape == "square":
        return np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    if shape == "triangle":
        kind = rng.choice(3, p=(0.5, 0.3, 0.2))
        if kind == 0:
            return np.array([(0, 0), (1, 0), (0.5, -0.866)])
        if kind == 1:
            return np.array([(0, 0), (1, 0), (0.5, -rng.uniform(0.7, 1.2))])
        return np.array([(0, 0), (1, 0), (0, -rng.uniform(0.7, 1))])
    if shape == "star":
        tips = int(rng.choice((4, 5, 6), p=(0.12, 0.7, 0.18)))
        inner = rng.uniform(0.36, 0.5) if tips > 4 else rng.uniform(0.3, 0.42)
        if tips == 6:
            inner += 0.08
        angle = np.pi * np.arange(2 * tips) / tips
        radius = np.where(np.arange(2 * tips) % 2, inner, 1.0)
        return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)
    if shape in NEW_SHAPES:
        return _new_corners(rng, shape)
    a = rng.uniform(0.24, 0.42) / 2  # cross: half the width of an arm
    quarter = np.array([(-a, -0.5), (a, -0.5), (a, -a)])
    turns = [quarter @ np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), k) for k in range(4)]
    return np.concatenate(turns).astype(float)


def _new_corners(rng, shape):
    """(n,2) float64, as _corners."""
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        y = -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3 * rng.uniform(0.85, 1.15), y], 1)
    if shape == "arrow":  # to the right
        head, wide, thin = rng.uniform(0.35, 0.5), rng.uniform(0.28, 0.42), rng.uniform(0.08, 0.14)
        half = [(0, thin), (1 - head, thin), (1 - head, wide), (1, 0)]
        return np.array(half + [(x, -y) for x, y in half[-2::-1]])
    # A crescent: a disc of radius 1, less a smaller one to its right.
    radius, right = rng.uniform(0.75, 0.95), rng.uniform(0.4, 0.6)
    x = (1 - radius**2 + right**2) / (2 * right)
    y = np.sqrt(1 - x**2)
    outer, inner = np.arctan2(y, x), np.arctan2(y, x - right)
    outer = np.exp(1j * np.linspace(outer, 2 * np.pi - outer, 60))
    inner = right + radius * np.exp(1j * np.linspace(2 * np.pi - inner, inner, 60))
    edge = np.concatenate([outer, inner])
    return np.stack([edge.real, edge.imag], 1)


def _surface(rng, surface, rgb, color, below, extent, side):
    """The colors of a thing's box: (3,), or (h,w,3) float32 where it is striped or dotted."""
    if surface == "solid":
        return rgb
    pale = color in ("white", "black")
    kind = rng.choice(4, p=(0.3, 0.25, 0.3, 0.15))
    if kind == 0 or (pale and kind == 2):
        opposite = 0 if rgb.mean() > 127 else 255
        second = rgb + np.float32(rng.uniform(0.45, 1)) * (opposite - rgb)
    elif kind == 1:
        second = np.full(3, 255 if rng.random() < 0.6 else 0, np.float32)
    elif kind == 2:  # a lighter or darker shade of its own
        end, share = (
            (255, rng.uniform(0.45, 0.8)) if rng.random() < 0.5 else (0, rng.uniform(0.4, 0.7))
        )
        second = rgb + np.float32(share) * (end - rgb)
    else:
        second = below
    if kind != 3 and np.linalg.norm(second - rgb) < 100:
        second = np.full(3, 0 if rgb.mean() > 127 else 255, np.float32)

    h, w = below.shape[:2]
    period = max(extent * rng.uniform(0.13, 0.34), 0.036 * side, 3.5)
    angle = rng.choice((0, np.pi / 2, np.pi / 4, rng.uniform(0, np.pi)))
    c, s = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None]
    u = x * c + y * s + np.float32(rng.random())
    if surface == "striped":
        share = rng.uniform(0.3, 0.42) if pale else rng.uniform(0.35, 0.52)
        other = u - np.floor(u) < np.float32(share)
    else:
        v = y * c - x * s + np.float32(rng.random())
        if rng.random() < 0.3:  # every second row moved by half
            u = u + np.float32(0.5) * (np.floor(v) % 2)
        radius = np.float32(rng.uniform(0.24, 0.36))
        other = (u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < radius**2
    return np.where(other[..., None], second, rgb)
