"""The two exercises at the end of each notebook: `check("4.1", answer)` judges an answer.

An answer is one expression in the notebook's own names.
"""

from typing import Any, NamedTuple

import numpy as np

import __main__
from clipseg_np.golden.compare import compare_one

TOLERANCE = 1e-4  # relative to the largest number; whole numbers have none


class Exercise(NamedTuple):
    """A hint; a solution; the same by another way, which is what is expected; a likely mistake."""

    hint: str
    solution: str
    expected: str
    mistake: str


def check(number: str, answer: Any) -> None:
    """Print a hint while the answer is `...`; else whether it is right, or how it deviates."""
    exercise = EXERCISES[number]
    if answer is ...:
        print(f"Hint: {exercise.hint}")
        return
    deviation = how_it_deviates(eval(exercise.expected, vars(__main__)), answer)
    print(f"Not yet: {deviation}. Hint: {exercise.hint}" if deviation else "Right.")


def how_it_deviates(expected: Any, answer: Any) -> str:
    if isinstance(expected, (str, tuple)):
        return "" if np.array_equal(answer, expected) else f"it is not {answer!r}"
    expected = np.asarray(expected)
    try:
        tolerance = TOLERANCE if expected.dtype.kind == "f" else 0
        row = compare_one("answer", expected, np.asarray(answer), tolerance)
    except (TypeError, ValueError):
        return f"expected numbers, got {type(answer).__name__}"
    if row.message and row.shape == () == np.shape(answer) and np.isfinite(row.largest):
        return f"{answer} is too {'large' if answer > expected else 'small'}"
    place, _, diagnosis = row.message.partition(". ")
    if diagnosis and row.shape[1:]:  # in one dimension, a bias explains everything
        return diagnosis
    return place and f"the answer {place}"


EXERCISES = {
    "0.1": Exercise(
        "The four products of attention are D x D each, those of the MLP D x 4D and 4D x D. Do "
        "not forget six biases and two norms.",
        "12 * 768**2 + 9 * 768 + 4 * 768",
        "sum(a.size for name, a in w.items() if name.startswith(f'{layer}.'))",
        "12 * 768**2",
    ),
    "0.2": Exercise(
        "The norm is on the branch alone: x itself is added to what the MLP makes of the norm.",
        "x + pico.mlp(pico.layer_norm(x, w, f'{layer}.layer_norm2', config), w, f'{layer}.mlp', "
        "'quick_gelu')",
        "pico.encoder(before, w, f'{vision}.encoder', {'num_hidden_layers': 1, "
        "'num_attention_heads': 12})[0]",
        "pico.mlp(pico.layer_norm(x, w, f'{layer}.layer_norm2', config), w, f'{layer}.mlp', "
        "'quick_gelu')",
    ),
    "1.1": Exercise(
        "`result.probabilities` holds a map for each phrase; a comparison gives True and False, "
        "and True counts as 1.",
        "(result.probabilities[0] > 0.9).sum()",
        "result.masks(0.9)[0].sum()",
        "result.masks(0.1)[0].sum()",
    ),
    "1.2": Exercise(
        "The sigmoid is in the text above; mind the sign.",
        "1 / (1 + np.exp(-logits))",
        "model.ops.sigmoid(logits)",
        "1 / (1 + np.exp(logits))",
    ),
    "2.1": Exercise(
        "`tokenizer.tokenize` returns a word's tokens; a start and an end token go around them.",
        "len(tokenizer.tokenize('starfish')) + 2",
        "len(tokenizer('starfish')['input_ids'])",
        "len(tokenizer.tokenize('starfish'))",
    ),
    "2.2": Exercise(
        "Go through the merges from 1 to 6. The first, t + a, takes the a; a + r comes too late.",
        "('ta', 'r', 't</w>')",
        "('ta', 'r', 't</w>')",
        "('t', 'ar', 't</w>')",
    ),
    "3.1": Exercise(
        "Patches have p x p pixels, and a token without a patch comes first.",
        "1 + (224 // p) * (320 // p)",
        "1 + np.prod(vision.grid(np.empty((1, 3, 224, 320))))",
        "(224 // p) * (320 // p)",
    ),
    "3.2": Exercise(
        "Patches are counted row by row, w in each row. Row 0 of `table` is the class token's "
        "position.",
        "tokens[4 * w + 3] + table[1 + 4 * w + 3]",
        "activations['clip.vision_model.embeddings'][0, 1 + 4 * w + 3]",
        "tokens[4 * w + 3] + table[4 * w + 3]",
    ),
    "4.1": Exercise(
        "`vision.attentions[3]` is (B, heads, T, T): a row is a query, a column is a key. The "
        "queries are the patches, the key is token 0.",
        "vision.attentions[3][0, :, 1:, 0].mean(axis=-1)",
        "[sum(row[0] for row in head[1:]) / (len(head) - 1) for head in vision.attentions[3][0]]",
        "vision.attentions[3][0, :, 0, 1:].mean(axis=-1)",
    ),
    "4.2": Exercise(
        "Two conditions hold at once: not later than itself (`np.tri`), and no padding "
        "(`texts['attention_mask'][0]`, 0 at padding).",
        "np.tri(T, dtype=bool) & (texts['attention_mask'][0] != 0)",
        "text.attentions[0][0].max(axis=0) > 0",
        "np.tri(T, dtype=bool)",
    ),
    "5.1": Exercise(
        "The factors are a linear map of the embedding and a bias. Is the bias still there once?",
        "(factors[0] + factors[1]) / 2",
        "decoder.film_mul((embeddings[0] + embeddings[1]) / 2)",
        "factors[0] + factors[1]",
    ),
    "5.2": Exercise(
        "It is the rank of both matrices, one above the other: at most the number of rows, and "
        "at most that of columns.",
        "np.linalg.matrix_rank(both)",
        "min(2 * 64, len(c))",
        "len(both)",
    ),
    "6.1": Exercise(
        "`x[0, 4 * w + 3]` times `layer.weight` of shape (C, p*p), reshaped, and the bias.",
        "(x[0, 4 * w + 3] @ layer.weight.reshape(C, p * p)).reshape(p, p) + layer.bias",
        "logits[0, 4 * p : 5 * p, 3 * p : 4 * p]",
        "(x[0, 4 * w + 3] @ layer.weight.reshape(C, p * p)).reshape(p, p)",
    ),
    "6.2": Exercise(
        "Take these four columns of x[0], (hw, 4), and these four strokes, (4, p*p): one product.",
        "x[0][:, order[:4]] @ strokes[order[:4]].reshape(4, -1)",
        "np.where(np.isin(np.arange(C), order[:4]), x[0], 0) @ strokes.reshape(C, -1)",
        "x[0][:, :4] @ strokes[:4].reshape(4, -1)",
    ),
    "7.1": Exercise(
        "`low & high` holds the pixels that are in both, `low | high` those that are in any; "
        "count them.",
        "(low & high).sum() / (low | high).sum()",
        "image_iou(low, high)",
        "(low & high).sum() / (low.sum() + high.sum())",
    ),
    "7.2": Exercise(
        "A label changes where the largest of the four probabilities is above 0.4, but not "
        "above 0.6.",
        "((stacked[1:].max(axis=0) > 0.4) & (stacked[1:].max(axis=0) <= 0.6)).mean()",
        "np.mean(np.concatenate([0 * stacked[:1] + 0.6, stacked[1:]]).argmax(axis=0) != labels)",
        "(stacked[1:].max(axis=0) <= 0.6).mean()",
    ),
    "8.1": Exercise(
        "Each of T x D outputs is a sum of D products: as many multiplications, and as many "
        "additions.",
        "2 * 257 * 128 * 128",
        "(counting.work.clear(), counting.linear(np.ones((257, 128)), np.ones((128, 128))), "
        "counting.work['linear'])[-1]",
        "257 * 128 * 128",
    ),
    "8.2": Exercise(
        "A float32 number has 23 bits behind the first; `np.finfo(np.float32)` knows it as "
        "`eps`, and `np.spacing` for any number.",
        "2.0**-23",
        "np.spacing(np.float32(1))",
        "np.finfo(np.float64).eps",
    ),
    "9.1": Exercise(
        "`next(row.name for row in rows if ...)` returns the first. The row that deviates most "
        "is another one.",
        "next(row.name for row in rows if not row.fine)",
        "'clip.vision_model.encoder.layers.0.mlp.fc2'",
        "max(rows, key=lambda row: row.relative).name",
    ),
    "9.2": Exercise(
        "`broken` and `sound` are arrays: the largest absolute difference, over the largest "
        "absolute value.",
        "np.abs(broken - sound).max() / np.abs(sound).max()",
        "next(r.relative for r in rows if r.name == 'decoder.transposed_convolution')",
        "np.abs(broken - sound).max()",
    ),
    "10.1": Exercise(
        "It acts on every token alike, as a linear layer's bias does: a sum over tokens of "
        "`d_y[0]`, (T, 64).",
        "d_y[0].sum(axis=0)",
        "found['decoder.film_add.bias']",
        "d_y[0].mean(axis=0)",
    ),
    "10.2": Exercise(
        "To first order, the change of the loss is the sum of each number's derivative times "
        "its change.",
        "0.0001 * (d_c * d_c).sum()",
        "ops.binary_cross_entropy(exact.model.decoder(reduced, c, grid).logits, exact_labels) - "
        "ops.binary_cross_entropy(exact.model.decoder(reduced, c - 0.0001 * d_c, grid).logits, "
        "exact_labels)",
        "0.0001 * np.abs(d_c).sum()",
    ),
    "11.1": Exercise(
        "All scores are equal then, and so all six answers are equally likely.",
        "np.log(6)",
        "contrastive_loss(np.full((6, 6), 3.0))",
        "1 / 6",
    ),
    "11.2": Exercise(
        "The derivative of S by s is S itself. Add up over all scores.",
        "(d_S * S).sum()",
        "found['logit_scale']",
        "d_S.sum()",
    ),
}
