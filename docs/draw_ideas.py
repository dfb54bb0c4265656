"""Four drawings, one idea each: patches, attention, FiLM, the transposed convolution."""

import math

from svg import arrow, box, grid, page, text


def bars(x, y, rows, columns, size, kind, seed=0.0):
    """A matrix of numbers: cells whose shades differ."""

    def shade(row, column):
        return 0.25 + 0.75 * (0.5 + 0.5 * math.sin(seed + 2.4 * row + 1.7 * column + row * column))

    return grid(x, y, rows, columns, size, kind, shade)


def outline(x, y, width, height):
    return [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="marked"/>']


def patches() -> str:
    parts = [text(150, 32, "image", "name"), text(150, 50, "3×352×352", "shape")]
    parts += grid(40, 64, 4, 4, 55, "image", lambda row, column: 0.15 + 0.055 * (4 * row + column))
    parts += outline(95, 119, 55, 55) + arrow((150, 146), (320, 146))
    parts.append(text(150, 308, "22×22 patches of 16×16 pixels (here 4×4)"))
    parts += [text(380, 32, "one patch", "name"), text(380, 50, "3×16×16 = 768 numbers", "shape")]
    for channel in (2, 1, 0):
        left, top = 330 + 14 * channel, 92 + 14 * channel
        parts.append(f'<rect x="{left}" y="{top}" width="72" height="72" class="page"/>')
        parts += bars(left, top, 4, 4, 18, "image", channel)
    parts += arrow((434, 146), (482, 146)) + box(540, 146, 108, 60, "plain", "weight", "=768×768")
    parts += arrow((594, 146), (642, 146))
    parts += [text(700, 32, "tokens", "name"), text(700, 50, "485×768", "shape")]
    parts += bars(652, 64, 1, 6, 16, "mask", 1) + bars(652, 88, 9, 6, 16, "image", 2)
    parts += outline(652, 136, 96, 16)
    parts += [text(700, 250, "first the class token,"), text(700, 267, "then patches row by row")]
    parts.append(text(780, 150, "+", "sign"))
    parts += [text(880, 32, "positions", "name"), text(880, 50, "485×768", "shape")]
    parts += bars(832, 64, 1, 6, 16, "mask", 4) + bars(832, 88, 9, 6, 16, "prompt", 5)
    parts += [text(880, 250, "learned on 14×14 patches,"), text(880, 267, "resized (bicubic)")]
    parts += arrow((936, 146), (990, 146)) + [text(1012, 150, "tower")]
    return page(
        1040,
        326,
        "From patches to tokens",
        """An image is cut into patches of 16 x 16 pixels. The 768 numbers of one patch, three
        channels of 16 x 16, are multiplied by a weight matrix: the result is the patch's token. The
        class token, which is the same for every image, stands before the tokens of the patches,
        which follow row by row. To each token the embedding of its position is added. Positions
        were learned on a grid of 14 x 14 patches and are resized to the image's grid.""",
        parts,
    )


def attention() -> str:
    T, size = 6, 22
    parts = [text(72, 32, "tokens x", "name"), text(72, 50, "T×D", "shape")]
    parts += bars(28, 130, T, 4, size, "plain") + outline(28, 174, 88, 22)
    parts += ['<polyline points="120,196 144,196" class="line"/>']
    for y, name, kind in (
        (84, "queries q", "image"),
        (196, "keys k", "prompt"),
        (308, "values v", "mask"),
    ):
        parts += arrow((144, 196), (144, y), (168, y))
        parts += box(212, y, 84, 30, "plain", f"{name[-1]}_proj") + arrow((254, y), (278, y))
        parts += bars(282, y - 39, T, 3, 13, kind, y) + [text(302, y - 48, name)]
    parts += outline(282, 71, 39, 13)
    parts += arrow((326, 84), (412, 160)) + arrow((326, 196), (412, 196))
    parts += [text(482, 32, "scores", "name"), text(482, 50, "q kᵀ / √d, T×T", "shape")]

    def score(row, column):
        return 0.5 + 0.5 * math.sin(3 * row + 2 * column)

    def shown(row, column):
        return 0.1 + 0.8 * score(row, column) if column <= row else 0

    def weight(row, column):
        powers = [math.exp(3 * score(row, key)) for key in range(row + 1)]
        return powers[column] / sum(powers) if column <= row else 0

    parts += grid(416, 110, T, T, size, "image", shown) + outline(416, 154, 132, 22)
    parts += [text(482, 262, "A row is a query, a column a key.")]
    parts += [text(482, 279, "In a text, later tokens are hidden.")]
    parts += arrow((554, 165), (614, 165)) + [text(583, 155, "softmax")]
    parts += [text(688, 32, "weights", "name"), text(688, 50, "each row sums to 1", "shape")]
    parts += grid(622, 110, T, T, size, "image", weight) + outline(622, 154, 132, 22)
    parts += [text(784, 172, "×", "sign")] + arrow((326, 308), (784, 308), (784, 182))
    parts.append(text(560, 328, "a token’s context: all values, each times its key’s weight"))
    parts += arrow((798, 165), (822, 165))
    parts += [text(859, 32, "context", "name"), text(859, 50, "T×d", "shape")]
    parts += bars(826, 110, T, 3, size, "mask", 7) + outline(826, 154, 66, 22)
    parts += arrow((898, 165), (928, 165)) + box(
        984, 165, 108, 60, "plain", "heads joined", "out_proj"
    )
    parts += [text(984, 224, "N heads side by side:"), text(984, 241, "D = N·d features")]
    return page(
        1060,
        366,
        "Attention in one head",
        """Each token becomes a query, a key and a value by three linear maps. The scores are the
        products of every query with every key, divided by the square root of their width. In the
        text tower, a token's scores with later tokens are hidden. The softmax turns each row of
        scores into weights that sum to 1. The context of a token is the sum of all values, each
        times its weight. The contexts of all heads stand side by side, and a last linear map mixes
        them. The row of one token is marked in every step.""",
        parts,
    )


def film() -> str:
    size = 22
    parts = box(92, 196, 128, 56, "prompt", "embedding c", "=512")
    parts.append(text(92, 246, "of one prompt"))
    parts += ['<polyline points="156,196 184,196" class="line"/>']
    rows = (84, "film_mul", "64 factors", "×", 640), (308, "film_add", "64 shifts", "+", 700)
    for y, name, words, sign, x in rows:
        parts += arrow((184, 196), (184, y), (208, y))
        parts += box(266, y, 116, 50, "plain", name, "=512 → 64") + arrow((324, y), (352, y))
        parts += bars(356, y - size / 2, 1, 8, size, "prompt", y)
        parts.append(text(444, y - 22, words))
        parts += arrow((538, y), (x, y), (x, 174 if y < 196 else 218))
        parts += [f'<circle cx="{x}" cy="196" r="17" class="plain"/>', text(x, 203, sign, "sign")]
    parts += [text(444, 146, "reduced tokens x, 485×64", "name")]
    parts += bars(356, 158, 4, 8, size, "image", 1) + arrow((538, 196), (618, 196))
    parts += arrow((658, 196), (678, 196)) + arrow((718, 196), (756, 196))
    parts += [text(850, 146, "into decoder layer 0, 485×64", "name")]
    parts += bars(762, 158, 4, 8, size, "mask", 3)
    parts += outline(422, 73, 22, 22) + outline(422, 158, 22, 88) + outline(422, 297, 22, 22)
    parts += outline(828, 158, 22, 88)
    parts.append(text(874, 272, "One channel (marked) has one factor and one shift,"))
    parts.append(text(874, 289, "the same for every token: the prompt says"))
    parts.append(text(874, 306, "which channels matter, not where to look."))
    return page(
        1060,
        366,
        "FiLM: a prompt scales and shifts channels",
        """The embedding of a prompt, 512 numbers, passes two linear maps. One gives 64 factors, the
        other 64 shifts. Each of the 64 channels of the reduced tokens is multiplied by its factor,
        and its shift is added, the same for all 485 tokens. The result goes into the decoder's
        first layer. The prompt has no other way into the decoder.""",
        parts,
    )


def transposed_convolution() -> str:
    parts = [text(108, 32, "tokens as a grid", "name"), text(108, 50, "64×22×22", "shape")]
    parts += bars(42, 100, 4, 4, 33, "image", 2) + outline(75, 133, 33, 33)
    parts.append(text(108, 254, "one token a cell (here 4×4)"))
    parts += arrow((108, 149), (218, 149))
    parts += [text(263, 32, "one token", "name"), text(263, 50, "64 numbers", "shape")]
    parts += bars(222, 138, 1, 4, 22, "image", 0.7) + arrow((314, 149), (346, 149))
    parts += box(404, 149, 112, 60, "plain", "weight", "=64×(16·16)") + arrow(
        (460, 149), (492, 149)
    )
    parts += [text(544, 32, "its block", "name"), text(544, 50, "16×16 logits", "shape")]
    parts += bars(496, 101, 6, 6, 16, "mask", 1.3) + outline(496, 101, 96, 96)
    parts.append(text(544, 216, "(here 6×6)"))
    parts += arrow((596, 149), (756, 143))
    parts += [text(812, 32, "mask", "name"), text(812, 50, "352×352 logits", "shape")]

    def painted(row, column):
        cell = row // 6, column // 6
        return 0.12 + 0.5 * (0.5 + 0.5 * math.sin(2 + 3 * cell[0] + cell[1] + row * column))

    parts += grid(708, 64, 24, 24, 8.75, "mask", painted)
    for line in range(5):
        at = 52.5 * line
        parts.append(f'<path d="M{708 + at:g},64 v210 M708,{64 + at:g} h210" class="line"/>')
    parts += outline(760.5, 116.5, 52.5, 52.5)
    parts.append(text(544, 254, "The stride is the block’s side: blocks touch"))
    parts.append(text(544, 271, "and never overlap. Each cell paints its own."))
    refined = "“refined” checkpoints: 3×3 convolution, relu, blocks of 4×4, relu, blocks of 4×4"
    parts.append(text(480, 316, refined))
    return page(
        960,
        336,
        "The transposed convolution paints blocks",
        """The decoder's tokens stand in a grid of 22 x 22 cells with 64 numbers each. The numbers
        of one cell times the weights are a block of 16 x 16 logits, which is painted at the cell's
        place in the mask of 352 x 352 logits. The stride is the side of a block, so that blocks
        touch and never overlap. Refined checkpoints paint twice, with blocks of 4 x 4, after a
        convolution of 3 x 3 in which neighboring cells see each other.""",
        parts,
    )
