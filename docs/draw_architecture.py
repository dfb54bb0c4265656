"""The drawing of CLIPSeg with the shape of every step, rd64-refined at 352 x 352."""

from svg import arrow, box, page, text

# The official sizes; tests/docs/test_architecture.py compares them with the configs' defaults.
SIDE, PATCH, CHANNELS = 352, 16, 3
VISION, VISION_LAYERS, VISION_HEADS = 768, 12, 12
TEXT, TEXT_LAYERS, TEXT_HEADS, TEXT_TOKENS = 512, 12, 8, 77
PROJECTION = 512
EXTRACT_LAYERS, CONDITIONAL_LAYER = (3, 6, 9), 0
DECODER, DECODER_HEADS = 64, 4
GRID = SIDE // PATCH
TOKENS = 1 + GRID**2

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


def architecture() -> str:
    parts = vision_lane(82) + decoder_lane(246, 82) + text_lane(366, 246)
    return page(1060, 410, TITLE, DESCRIPTION, parts)
