"""Draw docs/architecture.svg: CLIPSeg with the shape of every step, rd64-refined at 352 x 352.

python docs/draw_architecture.py
"""

import textwrap
from pathlib import Path

OUTPUT = Path(__file__).with_name("architecture.svg")

# The official sizes; tests/docs/test_architecture.py compares them with the configs' defaults.
SIDE, PATCH, CHANNELS = 352, 16, 3
VISION, VISION_LAYERS, VISION_HEADS = 768, 12, 12
TEXT, TEXT_LAYERS, TEXT_HEADS, TEXT_TOKENS = 512, 12, 8, 77
PROJECTION = 512
EXTRACT_LAYERS, CONDITIONAL_LAYER = (3, 6, 9), 0
DECODER, DECODER_HEADS = 64, 4
GRID = SIDE // PATCH
TOKENS = 1 + GRID**2

STYLE = """
    .page { fill: #ffffff } .tip { fill: #57606a }
    .line { fill: none; stroke: #57606a; stroke-width: 1.5 }
    text { fill: #1f2328; font: 13px system-ui, sans-serif; text-anchor: middle }
    .shape { font: 12px ui-monospace, monospace; fill: #57606a }
    .name { font-weight: 600 } .left { text-anchor: start }
    .plain { fill: #f0f2f4; stroke: #8c959f } .image { fill: #dbeafe; stroke: #2563eb }
    .prompt { fill: #fef3c7; stroke: #b45309 } .mask { fill: #dcfce7; stroke: #15803d }
    .unread { fill: none; stroke: #8c959f; stroke-dasharray: 4 3 }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117 } .line { stroke: #9da7b1 } .tip { fill: #9da7b1 }
      text { fill: #e6edf3 } .shape { fill: #9da7b1 }
      .plain { fill: #21262d; stroke: #6e7681 } .image { fill: #132f5c; stroke: #58a6ff }
      .prompt { fill: #42300a; stroke: #d29922 } .mask { fill: #0f3d21; stroke: #3fb950 }
      .unread { stroke: #6e7681 }
    }
"""
TITLE = "The architecture of CLIPSeg, with the shape of every step"
DESCRIPTION = f"""\
Above, from left to right: an image of {CHANNELS} x {SIDE} x {SIDE} numbers becomes {TOKENS} tokens
of {VISION} numbers and passes the {VISION_LAYERS} layers of the vision tower. The outputs of layers
{EXTRACT_LAYERS} are each reduced to {DECODER} channels. Below, from left to right: a prompt of at
most {TEXT_TOKENS} token ids passes the text tower and becomes one vector of {PROJECTION} numbers.
In the middle, from right to left: the decoder takes the deepest tokens first, and the prompt
scales and shifts them (FiLM). {len(EXTRACT_LAYERS)} layers follow; before each further one the
next tokens are added. The head turns {GRID} x {GRID} tokens into {SIDE} x {SIDE} logits, one for
each pixel."""


def text(x, y, words, kind=""):
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def box(x, y, width, height, kind, *lines):
    """A box centered at (x, y): its name, and further lines; '=' marks a line of numbers."""
    top = y + 5 - 8.5 * (len(lines) - 1)
    kinds = ["name", *("shape" if line.startswith("=") else "" for line in lines[1:])]
    place = f'x="{x - width / 2:g}" y="{y - height / 2:g}" width="{width}" height="{height}"'
    lines = [line.lstrip("=") for line in lines]
    return [f'<rect {place} rx="6" class="{kind}"/>'] + [
        text(x, f"{top + 17 * i:g}", line, kinds[i]) for i, line in enumerate(lines)
    ]


def arrow(*points):
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return [f'<polyline points="{path}" class="line" marker-end="url(#tip)"/>']


def column(layer):
    """Where a layer of the vision tower stands."""
    return 381 + 54 * layer


def vision_lane(y):
    parts = box(75, y, 110, 56, "image", "image", f"={CHANNELS}×{SIDE}×{SIDE}")
    parts += arrow((130, y), (158, y))
    words = f"patches of {PATCH}×{PATCH}", "+ class token", "+ positions", f"={TOKENS}×{VISION}"
    parts += box(240, y, 160, 82, "plain", *words) + arrow((320, y), (354, y))
    for layer in range(VISION_LAYERS):
        unread = "unread" if layer > max(EXTRACT_LAYERS) else "plain"
        kind = "image" if layer in EXTRACT_LAYERS else unread
        parts += box(column(layer), y, 44, 56, kind, str(layer))
    title = (
        f"vision tower: {VISION_LAYERS} layers, {VISION_HEADS} heads, {TOKENS}×{VISION} after each"
    )
    parts.append(text(354, y - 42, title, "name left"))
    parts.append(text(column(10.5) + 6, y + 46, "image prompts only"))
    return parts


def decoder_lane(y, vision_y):
    """From right to left; the prompt comes from below."""
    title = f"decoder: {len(EXTRACT_LAYERS)} layers, {DECODER_HEADS} heads"
    parts = [text(208, y - 54, title, "name left")]
    for depth, layer in enumerate(reversed(EXTRACT_LAYERS)):
        x = column(layer)
        modulated = depth == CONDITIONAL_LAYER
        half_width, half_height = (32, 20) if modulated else (12, 12)
        parts += arrow((x, vision_y + 28), (x, y - 92)) + arrow((x, y - 58), (x, y - half_height))
        parts += box(x, y - 75, 84, 34, "plain", f"reduce {depth}")
        parts.append(text(x + 8, y - 35, f"{TOKENS}×{DECODER}", "shape left"))
        if modulated:
            parts += box(x, y, 64, 40, "prompt", "FiLM", "=× and +")
        else:
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="12" class="plain"/>' + text(x, y + 4.5, "+")
            )
        parts += arrow((x - half_width, y), (x - 52, y))
        parts += box(x - 95, y, 84, 50, "plain", f"layer {depth}", f"={TOKENS}×{DECODER}")
        parts += arrow((x - 137, y), (x - 150, y))
    x = column(EXTRACT_LAYERS[0]) - 243
    step, half = SIDE // 4, DECODER // 2
    words = (
        "head: two steps up",
        f"={DECODER}×{GRID}×{GRID}",
        f"={half}×{step}×{step}",
        f"=1×{SIDE}×{SIDE}",
    )
    parts += box(x, y, 184, 82, "plain", *words) + arrow((x - 92, y), (130, y))
    return parts + box(75, y, 110, 56, "mask", "logits", f"={SIDE}×{SIDE}")


def text_lane(y, decoder_y):
    parts = box(75, y, 110, 56, "prompt", "“a cat”", f"=≤ {TEXT_TOKENS} ids") + arrow(
        (130, y), (158, y)
    )
    parts += box(240, y, 160, 56, "plain", "tokens + positions", f"={TEXT_TOKENS}×{TEXT}")
    parts += arrow((320, y), (354, y))
    tower = f"text tower: {TEXT_LAYERS} layers, {TEXT_HEADS} heads"
    parts += box(484, y, 260, 56, "plain", tower, f"={TEXT_TOKENS}×{TEXT} after each")
    parts += arrow((614, y), (642, y))
    parts += box(735, y, 186, 56, "plain", "end token, projected", f"={PROJECTION}")
    x = column(EXTRACT_LAYERS[-1])
    parts += arrow((828, y), (x, y), (x, decoder_y + 20))
    parts.append(text(x + 8, y - 52, f"twice {PROJECTION} → {DECODER}", "left"))
    return parts


def draw() -> str:
    parts = vision_lane(82) + decoder_lane(246, 82) + text_lane(366, 246)
    body = "\n  ".join(parts)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1060 410"
     role="img" aria-labelledby="title desc">
  <title id="title">{TITLE}</title>
  <desc id="desc">{textwrap.fill(DESCRIPTION, 100)}</desc>
  <style>{STYLE}  </style>
  <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
          orient="auto">
    <path d="M0,0 L8,4 L0,8 z" class="tip"/>
  </marker>
  <rect width="1060" height="410" rx="8" class="page"/>
  {body}
</svg>
"""


if __name__ == "__main__":
    OUTPUT.write_text(draw(), "utf-8")
