"""Likely mistakes: changes of a solution, and the question that helps whoever made one.

MISTAKES[step] holds a question, and changes: each is text of the solution, and text in its place.
A change may have several such pairs. A reader's answer that gives the numbers, or the error, of a
changed solution gets its question; any other wrong answer gets that of the first of ERRORS that
fits, or else QUESTIONS[step].
"""

QUESTIONS = {
    1: "Is the weight stored as (out, in)? Does each row of a softmax sum to 1?",
    2: "Which numbers are averaged: those of one token, along the last axis? Print the mean.",
    3: "Is it linear, then the activation, then linear? What is quick_gelu(1), by hand?",
    4: "Which axis of the scores are the keys on? Print the sum of each row of weights.",
    5: "Which axes hold B, T, N and d after each line? Print the shapes.",
    6: "What goes into each norm, and to what is a branch added?",
    7: "Which pair is merged next: where does it stand, and what is its rank?",
    8: "What does each token see, and at which token is the text read?",
    9: "Draw the grid of 3 x 2 patches: which patch is token 1, and which is token 2?",
    10: "Through which norms does a token go, and which are for the class token alone?",
    11: "Which is multiplied, which is added? What is added before each norm?",
    12: "Which shape has x after each line? Which output does each layer take, deepest first?",
}

# Patterns of "STEP ERROR" or "STEP LAYER deviates", the first that does; and what is asked then.
# No question goes with an error of Python's that has none here.
ERRORS = {
    "returned None": "Does the function end with `return`?",
    r"^7 .* returned ['(]": "Is it a list?",
    "read-only": "Does the line change its input in place, as `x -= 1` does?",
    "; expected an array of": "Which line makes it another kind of thing than the input's arrays?",
    "has shape": "Which axes are there after each line? Print the shapes.",
    "^1 .*einstein sum": "x may have 2 or 3 axes, or more: is `...` written for all but the last?",
    "^5 .*(boolean index|truth value)": (
        "May a boolean index broadcast? And is the mask always an array? np.where takes both."
    ),
    "^9 bicubic": "Does each row sum to 1? Work out row 0: its place, distances, and weights.",
    "^9 .*(AxisError|concatenation|same number of dimensions)": (
        "The same class token for each image: (D) must become (B,1,D) (np.broadcast_to)."
    ),
    "^(?!4|7).*'(int|float)' (object .*(subscriptable|'get')|is not .*iterable)": (
        "Did a line give the name w to something else? w is the dictionary of weights."
    ),
    "matmul": "Which shapes do the two have? Print them; count from the last axis.",
    "could not be broadcast": "Which shapes do the two have? Print them; count from the last axis.",
    "SyntaxError": "Is a bracket, a quote or a colon missing there, or in the line before?",
    "IndentationError": "Do the lines of the function begin in the same column?",
    "^7 KeyError": "Has every pair a rank? Try `in`, or get.",
    r"^12 KeyError.*convolution(\.0)?\.(weight|bias)": (
        "Which head is this? Only the plain one has NAME.weight."
    ),
    r"KeyError: '[^.]*'$": "Is the key in each config? config.get(key, default) does without it.",
    "KeyError": "Is the name in w? The drawing shows the names.",
    "NameError|UnboundLocalError": "Is that name an argument, or made in a line above?",
    r"^\d+ [\w.]+(:|$)": "",
}

MISTAKES = {
    1: {
        "Is the weight stored as (out, in)? Then which axis must meet the last one of x?": [
            ('weight"].T', 'weight"]'),
        ],
        "Is the bias added?": [
            (' + w.get(f"{name}.bias", 0)', ""),
        ],
        "Has each layer a bias? What does w.get give where a name is missing?": [
            ('w.get(f"{name}.bias", 0)', 'w[f"{name}.bias"]'),
        ],
        "Over which axis must the weights sum to 1? It is the last.": [
            ("axis=-1", "axis=-2"),
            ("axis=-1", "axis=0"),
            ("axis=-1", "axis=1"),
            ("axis=-1, keepdims=True", ""),
        ],
        "How large is exp(1000)? What can be taken from all of x so that the result stays?": [
            ("x - x.max(axis=-1, keepdims=True)", "x"),
        ],
        "Is what is taken from each row its own maximum?": [
            ("x.max(axis=-1, keepdims=True)", "x.max()"),
            ("x.max(axis=-1, keepdims=True)", "x.max(axis=0)"),
        ],
        "Which shape has the sum? Does it still have an axis where it was summed (keepdims)?": [
            (".sum(axis=-1, keepdims=True)", ".sum(axis=-1)"),
            (".max(axis=-1, keepdims=True)", ".max(axis=-1)"),
        ],
        "By what are the exponentials divided, so that they sum to 1?": [
            (" / x.sum(axis=-1, keepdims=True)", ""),
            (".sum(", ".max("),
        ],
    },
    2: {
        "Does eps stand under the root, or was it added after it?": [
            ('np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.get("layer_norm_eps", 1e-5))',
             ('(np.sqrt((x * x).mean(axis=-1, keepdims=True)) + '
              'config.get("layer_norm_eps", 1e-5))')),
        ],
        "Is the variance divided by D, or by D - 1 (as of a sample)?": [
            ("(x * x).mean(axis=-1, keepdims=True)", "x.var(axis=-1, keepdims=True, ddof=1)"),
        ],
        "Is eps there, and is it the config's?": [
            (' + config.get("layer_norm_eps", 1e-5)', ""),
            ('config.get("layer_norm_eps", 1e-5)', "1e-5"),
            ('config.get("layer_norm_eps", 1e-5)', "1e-6"),
            ('config.get("layer_norm_eps", 1e-5)', "1e-12"),
            ('config.get("layer_norm_eps", 1e-5)', "1e-8"),
        ],
        "Over which axis are mean and variance taken? Each token has its own: the last.": [
            ("axis=-1", "axis=-2"),
            ("axis=-1", "axis=0"),
            ("axis=-1, keepdims=True", ""),
        ],
        "Is the mean taken away before all else?": [
            ("x = x - x.mean(axis=-1, keepdims=True)", ""),
        ],
        "Is it divided by the variance, or by its root?": [
            ("np.sqrt", ""),
        ],
        'Are weight and bias used? Print w[f"{name}.weight"].': [
            ('x * w[f"{name}.weight"] + w[f"{name}.bias"]', "x"),
        ],
        "Are both weight and bias there, and is it * weight, then + bias?": [
            (' + w[f"{name}.bias"]', ""),
            ('x * w[f"{name}.weight"]', "x"),
            ("* w[", "* (1 + w[", '.weight"]', '.weight"])'),
            ('x * w[f"{name}.weight"] + w[f"{name}.bias"]',
             '(x + w[f"{name}.bias"]) * w[f"{name}.weight"]'),
        ],
        "Which shape has the mean? Does it still have the last axis (keepdims)?": [
            ("mean(axis=-1, keepdims=True)", "mean(axis=-1)"),
        ],
    },
    3: {
        "Is it x times the sigmoid of 1.702 x: is the factor there, and the minus in exp?": [
            ("-1.702 * x", "1.702 * x"),
            ("-1.702 * x", "-x"),
            ("-1.702", "-1.7"),
            ("x / (1", "1 / (1"),
        ],
        "Is that gelu? CLIP's quick_gelu is x times a sigmoid.": [
            ("x / (1 + np.exp(-1.702 * x))",
             "x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2"),
            ("x / (1 + np.exp(-1.702 * x))", 'ACTIVATIONS["gelu"](x)'),
        ],
        "Is it the one that `activation` names? Not every MLP of the network has the same.": [
            ("ACTIVATIONS[activation]", 'ACTIVATIONS["quick_gelu"]'),
            ("ACTIVATIONS[activation]", "quick_gelu"),
            ("ACTIVATIONS[activation]", 'ACTIVATIONS["relu"]'),
            ("ACTIVATIONS[activation]", 'ACTIVATIONS["gelu"]'),
        ],
        "Where does the activation stand? Between fc1 and fc2, once.": [
            ('ACTIVATIONS[activation](linear(x, w, f"{name}.fc1")), w, f"{name}.fc2")',
             'linear(x, w, f"{name}.fc1"), w, f"{name}.fc2")'),
            ('linear(ACTIVATIONS[activation](linear(x, w, f"{name}.fc1")), w, f"{name}.fc2")',
             'ACTIVATIONS[activation](linear(linear(x, w, f"{name}.fc1"), w, f"{name}.fc2"))'),
            ('linear(ACTIVATIONS[activation](linear(x, w, f"{name}.fc1")), w, f"{name}.fc2")',
             ("ACTIVATIONS[activation](\n"
              '        linear(ACTIVATIONS[activation](linear(x, w, f"{name}.fc1")), w, '
              'f"{name}.fc2"))')),
            ('linear(x, w, f"{name}.fc1")', 'linear(ACTIVATIONS[activation](x), w, f"{name}.fc1")'),
        ],
        "Which of the two makes the vector longer? fc1 comes first.": [
            ("fc1", "fc0", "fc2", "fc1", "fc0", "fc2"),
        ],
        "Is x added here? That is for the block around the MLP.": [
            ("return linear(ACTIVATIONS", "return x + linear(ACTIVATIONS"),
        ],
    },
    4: {
        "Is the scale 1/sqrt(d) there, and is d the length of one query?": [
            (" / math.sqrt(q.shape[-1])", ""),
            (" / math.sqrt(q.shape[-1])", " * math.sqrt(q.shape[-1])"),
            ("q.shape[-1]", "q.shape[1]"),
            ("q.shape[-1]", "q.shape[0]"),
        ],
        "Is the scale there twice, or without its root? It is 1/sqrt(d).": [
            (" / math.sqrt(q.shape[-1])", " / q.shape[-1]"),
        ],
        "Is the scale applied to the scores, before the softmax?": [
            (" / math.sqrt(q.shape[-1])", "",
             "softmax(scores)", "softmax(scores) / math.sqrt(q.shape[-1])"),
        ],
        "Does a row of weights belong to a query, a column to a key? What is transposed?": [
            ('"BTd,BSd->BTS"', '"BSd,BTd->BTS"'),
            ('"BTS,BSd->BTd"', '"BST,BSd->BTd"'),
            ("softmax(scores)", "softmax(scores.swapaxes(1, 2)).swapaxes(1, 2)"),
            ("softmax(scores)", "softmax(scores.swapaxes(1, 2))"),
        ],
        "Are the scores weights yet? A softmax makes them sum to 1.": [
            ("softmax(scores)", "scores"),
        ],
        "Is it v that is summed, with the weights of q and k?": [
            ("softmax(scores), v", "softmax(scores), k"),
            ("softmax(scores), v", "softmax(scores), q"),
            ('"BTd,BSd->BTS", q, k', '"BTd,BSd->BTS", q, v'),
            ('"BTd,BSd->BTS", q, k', '"BTd,BSd->BTS", q, q'),
        ],
    },
    5: {
        "Is the scale 1/sqrt(d) there, with the d of one head?": [
            (" / math.sqrt(D // N)", ""),
            (" / math.sqrt(D // N)", " / math.sqrt(D)"),
            (" / math.sqrt(D // N)", " / math.sqrt(N)"),
            (" / math.sqrt(D // N)", " / (D // N)"),
            (" / math.sqrt(D // N)", " * math.sqrt(D // N)"),
        ],
        ("A reshape cuts the last axis, it moves nothing: did (B,T,D) become (B,T,N,d) first, and "
         "was T exchanged with N by a transpose?"): [
            ("reshape(B, T, N, -1) for", "reshape(B, N, T, -1).swapaxes(1, 2) for"),
            ("reshape(B, T, N, -1) for", "reshape(B, N, T, -1).swapaxes(1, 2) for",
             "->BTNd", "->BNTd"),
        ],
        "Has head 0 the first d features of each token? Each head's are side by side.": [
            ("reshape(B, T, N, -1) for", "reshape(B, T, -1, N).swapaxes(2, 3) for"),
        ],
        "Are the heads side by side again, token by token? Which axes has x before?": [
            ("->BTNd", "->BNTd"),
            ("->BTNd", "->BTdN"),
        ],
        "What is added to a score that may not be seen? True must give 0, False a huge negative.": [
            ("np.where(mask, scores, np.finfo(x.dtype).min)", "scores + mask"),
            ("np.where(mask, scores, np.finfo(x.dtype).min)", "scores * mask"),
            ("np.where(mask, scores, np.finfo(x.dtype).min)", "np.where(mask, scores, 0)"),
            ("np.where(mask, scores, np.finfo(x.dtype).min)", "scores - (1 - np.asarray(mask))"),
        ],
        "Is the mask the right way round? True: this token may be seen.": [
            ("mask, scores, np.finfo(x.dtype).min", "mask, np.finfo(x.dtype).min, scores"),
            ("np.where(mask,", "np.where(np.logical_not(mask),"),
            ("np.where(mask,", "np.where(~mask,"),
        ],
        "Is the mask used? It hides scores before the softmax.": [
            ("np.where(mask, scores, np.finfo(x.dtype).min)", "scores"),
        ],
        "Is the mask applied before the softmax? After it, the weights no longer sum to 1.": [
            ("softmax(np.where(mask, scores, np.finfo(x.dtype).min))", "softmax(scores) * mask"),
        ],
        "Is the last layer there, out_proj?": [
            ('return linear(x, w, f"{name}.out_proj")', "return x"),
        ],
        "Does a row of weights belong to a query, a column to a key? What is transposed?": [
            ('"BTNd,BSNd->BNTS", q, k', '"BTNd,BSNd->BNTS", k, q'),
            ('"BNTS,BSNd->BTNd"', '"BNST,BSNd->BTNd"'),
        ],
        "Which of q_proj, k_proj and v_proj is which?": [
            ('in "qkv"', 'in "qvk"'),
            ('in "qkv"', 'in "vkq"'),
        ],
        "Can `mask` also be True alone, without a shape? That is: all may be seen.": [
            ("np.where(mask,", "np.where(mask[:, :],"),
            ("np.where(mask,", "np.where(mask.astype(bool),"),
        ],
    },
    6: {
        "Is x kept, and each branch added to it?": [
            ("x = x + attention(", "x = attention("),
            ("x = x + mlp(", "x = mlp("),
            ("x = x + attention(", "x = attention(", "x = x + mlp(", "x = mlp("),
        ],
        "To what is the branch added: to x, or to its norm? The sum keeps x itself.": [
            ("x = x + attention(", "x = y + attention("),
            ("x = x + mlp(", "x = y + mlp("),
            ("x = x + attention(", "x = y + attention(", "x = x + mlp(", "x = y + mlp("),
        ],
        "Where do the norms stand? Here each is before its branch (pre-norm), not after the sum.": [
            ('        y = layer_norm(x, w, f"{layer}.layer_norm1", config)\n', "",
             "attention(y,", "attention(x,",
             'y = layer_norm(x, w, f"{layer}.layer_norm2"',
             'x = layer_norm(x, w, f"{layer}.layer_norm1"',
             "mlp(y,", "mlp(x,",
             "outputs.append(x)",
             'x = layer_norm(x, w, f"{layer}.layer_norm2", config); outputs.append(x)'),
        ],
        "What goes into each branch: the norm of x?": [
            ("attention(y,", "attention(x,"),
            ("mlp(y,", "mlp(x,"),
            ("attention(y,", "attention(x,", "mlp(y,", "mlp(x,"),
        ],
        "There are two norms, layer_norm1 and layer_norm2: of which x is the second?": [
            ("layer_norm2", "layer_norm1"),
            ('y = layer_norm(x, w, f"{layer}.layer_norm2", config)', ""),
            ("layer_norm1", "layer_norm0",
             "layer_norm2", "layer_norm1",
             "layer_norm0", "layer_norm2"),
        ],
        "Is the mask passed on to attention?": [
            (', config["num_attention_heads"], mask)', ', config["num_attention_heads"])'),
        ],
        "Does the MLP come after attention? It sees x with attention already added.": [
            ('y = layer_norm(x, w, f"{layer}.layer_norm1", config)\n        x = x +',
             'h = x; y = layer_norm(x, w, f"{layer}.layer_norm1", config)\n        x = x +',
             'y = layer_norm(x, w, f"{layer}.layer_norm2',
             'y = layer_norm(h, w, f"{layer}.layer_norm2'),
        ],
    },
    7: {
        'Is the end of the word marked? The last letter is a symbol of its own, such as "s</w>".': [
            ('[*word[:-1], word[-1] + "</w>"]', "list(word)"),
        ],
        "Is \"</w>\" part of the last letter's symbol, rather than a symbol?": [
            ('[*word[:-1], word[-1] + "</w>"]', '[*word, "</w>"]'),
        ],
        "Which pair is merged first: the leftmost, the longest, or that of lowest rank?": [
            ("min(ranked, key=ranks.get)", "ranked[0]"),
            ("min(ranked, key=ranks.get)", "max(ranked, key=lambda pair: len(pair[0] + pair[1]))"),
        ],
        "If a pair occurs more than once, is the leftmost merged?": [
            ("list(pairwise(symbols)).index(min(ranked, key=ranks.get))",
             ("len(symbols) - 2 - list(pairwise(symbols))[::-1]"
              ".index(min(ranked, key=ranks.get))")),
        ],
        "Is it the lowest rank, or the highest? Rank 0 was learned first.": [
            ("min(", "max("),
        ],
        "Does it go on until no pair has a rank?": [
            ("    while ranked := [pair for pair in pairwise(symbols) if pair in ranks]:\n",
             ("    ranked = [pair for pair in pairwise(symbols) if pair in ranks]\n"
              "    if ranked:\n")),
        ],
        "What happens where no pair has a rank, as in a word of one letter?": [
            ("while ranked := [pair for pair in pairwise(symbols) if pair in ranks]:",
             ("while len(symbols) > 1:\n"
              "        ranked = [pair for pair in pairwise(symbols) if pair in ranks]")),
            ("while ranked := [pair for pair in pairwise(symbols) if pair in ranks]:",
             ("while True:\n"
              "        ranked = [pair for pair in pairwise(symbols) if pair in ranks]")),
            ("min(ranked, key=ranks.get)", "min(pairwise(symbols), key=ranks.get)"),
        ],
        "Are both symbols of a pair replaced by one?": [
            ("symbols[i : i + 2] = [", "symbols[i : i + 1] = ["),
            ("symbols[i : i + 2] = [", "symbols[i] = symbols[i + 1] = ["),
        ],
    },
    8: {
        "May a token see those after it? In a text it sees itself and those before.": [
            ("np.tri(T, dtype=bool)", "np.ones((T, T), dtype=bool)"),
        ],
        "May a token see itself?": [
            ("np.tri(T, dtype=bool)", "np.tri(T, k=-1, dtype=bool)"),
        ],
        "Which way round is the mask? Row t is True for the tokens s up to t.": [
            ("np.tri(T, dtype=bool)", "np.tri(T, dtype=bool).T"),
            ("np.tri(T, dtype=bool)", "~np.tri(T, dtype=bool)"),
        ],
        "May a token see the padding, where attention_mask is 0?": [
            (" & (attention_mask[:, None, None] != 0)", ""),
            ("attention_mask[:, None, None] != 0", "attention_mask[:, None, None] == 0"),
        ],
        "Which axis is hidden at the padding: that of the tokens that are seen, s, the last?": [
            ("attention_mask[:, None, None]", "attention_mask[:, None, :, None]"),
        ],
        "At which token is the text read? The first end token, not the last token.": [
            ("x[np.arange(P), end]", "x[:, -1]"),
            ("x[np.arange(P), end]", "x[:, 0]"),
            ("x[np.arange(P), end]", "x.mean(axis=1)"),
        ],
        "Of several end tokens, is it the first?": [
            ("np.argmax(input_ids if eos == 2 else input_ids == eos, axis=-1)",
             "T - 1 - np.argmax((input_ids == input_ids.max())[:, ::-1], axis=-1)"),
        ],
        "Is eos the end token's id here? Only where it is 2, the highest id is the end.": [
            ("input_ids if eos == 2 else input_ids == eos", "input_ids"),
        ],
        "Is it the highest id of each text, or of all texts?": [
            ("input_ids if eos == 2 else input_ids == eos",
             "input_ids == (input_ids.max() if eos == 2 else eos)"),
        ],
        "Is the end found by its id? The mask tells what is hidden, not where a text ends.": [
            ("np.argmax(input_ids if eos == 2 else input_ids == eos, axis=-1)",
             "attention_mask.sum(axis=1) - 1"),
            ("np.argmax(input_ids if eos == 2 else input_ids == eos, axis=-1)",
             "T - 1 - np.argmax(attention_mask[:, ::-1] != 0, axis=-1)"),
        ],
        "Is eos 2 here? Then the end token is the text's highest id; no token has the id 2.": [
            ("input_ids if eos == 2 else input_ids == eos", "input_ids == eos"),
        ],
        "Does each text have its own end? x[:, end] takes all ends of every text.": [
            ("x[np.arange(P), end]", "x[:, end]"),
            ("x[np.arange(P), end]", "x[:, end].mean(axis=1)"),
        ],
        "Is the final norm there?": [
            ('    x = layer_norm(x, w, f"{name}.final_layer_norm", config)\n', ""),
        ],
        "Are the positions added, from row 0 on?": [
            ('    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]\n', ""),
            ('.position_embedding.weight"][:T]', '.position_embedding.weight"][1 : T + 1]'),
            ("x + w[", "x * w["),
        ],
        "Is the mask passed to the encoder?": [
            (", config, mask)", ", config)"),
        ],
        "Is the last block's output taken?": [
            ("[-1]\n", "[0]\n"),
            ("[-1]\n", "[-2]\n"),
        ],
        "Is the projection there, the last layer?": [
            ('linear(x[np.arange(P), end], w, "clip.text_projection")', "x[np.arange(P), end]"),
        ],
    },
    9: {
        "Is a -0.75? With -0.5 it is Pillow's bicubic, not the one of the training.": [
            ("a=-0.75", "a=-0.5"),
            ("a=-0.75", "a=-1.0"),
        ],
        "Where do the new samples lie: is it (i + 0.5) * old / new - 0.5, from center to center?": [
            ("(np.arange(new)[:, None] + 0.5) * old / new - 0.5",
             "np.arange(new)[:, None] * (old - 1) / max(new - 1, 1)"),
            ("(np.arange(new)[:, None] + 0.5) * old / new - 0.5",
             "np.arange(new)[:, None] * old / new"),
            ("* old / new", "* new / old"),
        ],
        "Where does column 0 lie? It belongs to the old sample -2, beyond the border.": [
            ("np.arange(-2, old + 2)", "np.arange(-1, old + 3)"),
            ("np.arange(-2, old + 2)", "np.arange(old + 4)"),
        ],
        "With which values does the grid go on beyond its border? With its own outermost ones.": [
            (', mode="edge"', ""),
            ('mode="edge"', 'mode="reflect"'),
            ('mode="edge"', 'mode="wrap"'),
            ('mode="edge"', 'mode="symmetric"'),
        ],
        "Is the distance d positive on both sides?": [
            ("d = abs(", "d = ("),
            ("d = abs(", "d = -("),
        ],
        "Which matrix resizes the rows, and which the columns? Heights go with heights.": [
            ('"hi,wj,ijD->hwD"', '"hj,wi,ijD->hwD"'),
            ("bicubic(side, H // p), bicubic(side, W // p)",
             "bicubic(side, W // p), bicubic(side, H // p)"),
            ('"hi,wj,ijD->hwD"', '"hi,wj,jiD->hwD"'),
        ],
        "Is the class token the first?": [
            ("[np.tile(class_token, (B, 1, 1)), x]", "[x, np.tile(class_token, (B, 1, 1))]"),
        ],
        "Has the class token its position, row 0?": [
            (" + positions[0]", ""),
        ],
        "Are the positions of the patches there: rows 1 and on?": [
            ("(x + grid.astype(x.dtype))", "x"),
            ("positions[1:]", "positions[:-1]"),
        ],
        "Which axis of a patch runs down: is the kernel's first of p and p the image's rows?": [
            ("DCij->", "DCji->"),
            ("H // p, p, W // p, p)", "p, H // p, p, W // p).swapaxes(2, 3).swapaxes(4, 5)"),
        ],
        "In which order are the patches: row by row?": [
            ("astype(x.dtype)).reshape(B, -1, D)",
             "astype(x.dtype)).swapaxes(1, 2).reshape(B, -1, D)"),
            ('->BhwD", x, kernel)', '->BwhD", x, kernel).reshape(B, H // p, W // p, D)'),
        ],
        "Does each patch keep its own pixels, or did a reshape mix them?": [
            ("x = images.reshape(B, C, H // p, p, W // p, p)",
             "x = images.reshape(B, C, H // p, W // p, p, p).swapaxes(3, 4)"),
            ("x = images.reshape(B, C, H // p, p, W // p, p)",
             "x = images.reshape(B, H // p, p, W // p, p, C).transpose(0, 5, 1, 2, 3, 4)"),
        ],
    },
    10: {
        "Are the taps taken after each block? The first is block 0's output, not its input.": [
            ('outputs = encoder(x, w, f"{name}.encoder", config)',
             'outputs = [x, *encoder(x, w, f"{name}.encoder", config)][:-1]'),
            ("return outputs,", "return [x, *outputs],"),
            ('outputs = encoder(x, w, f"{name}.encoder", config)',
             'outputs = [x, *encoder(x, w, f"{name}.encoder", config)]'),
            ("    outputs = encoder(", "    e = x; outputs = encoder(",
             "return outputs,", "return [e, *outputs[:-1]],"),
        ],
        "Is pre_layrnorm there, before the blocks?": [
            ('    x = layer_norm(x, w, f"{name}.pre_layrnorm", config)\n', ""),
            ("pre_layrnorm", "post_layernorm"),
        ],
        "How is pre_layrnorm spelled in the checkpoint? Read it letter by letter.": [
            ("pre_layrnorm", "pre_layernorm"),
            ("pre_layrnorm", "pre_layer_norm"),
        ],
        "Is the last norm for the class token alone? The taps are taken before it.": [
            ("    x = layer_norm(outputs[-1][:, 0]",
             ('    outputs = [layer_norm(y, w, f"{name}.post_layernorm", config) for y in '
              "outputs]\n    x = layer_norm(outputs[-1][:, 0]")),
            ("    x = layer_norm(outputs[-1][:, 0]",
             ('    outputs[-1] = layer_norm(outputs[-1], w, f"{name}.post_layernorm", config)\n'
              "    x = layer_norm(outputs[-1][:, 0]")),
            ("return outputs,",
             'return [layer_norm(y, w, f"{name}.post_layernorm", config) for y in outputs],'),
            ("return outputs,",
             ('return [*outputs[:-1], layer_norm(outputs[-1], w, f"{name}.post_layernorm", '
              "config)],")),
        ],
        "Is post_layernorm there, before the projection?": [
            ('layer_norm(outputs[-1][:, 0], w, f"{name}.post_layernorm", config)',
             "outputs[-1][:, 0]"),
            ("post_layernorm", "pre_layrnorm"),
        ],
        "At which token is the vector read? The class token is the first.": [
            ("outputs[-1][:, 0]", "outputs[-1][:, -1]"),
            ("outputs[-1][:, 0]", "outputs[-1].mean(axis=1)"),
            ("outputs[-1][:, 0]", "outputs[-1][:, 1:].mean(axis=1)"),
        ],
        "Of which block is the class token read? The last.": [
            ("outputs[-1][:, 0]", "outputs[0][:, 0]"),
        ],
        "Do the taps keep their class token? The decoder takes it away at the end.": [
            ("return outputs,", "return [x[:, 1:] for x in outputs],"),
        ],
        "Are all blocks' outputs returned, in a list, and the vector beside it?": [
            ("return outputs,", "return outputs[-1],"),
            ("return outputs, ", "return "),
        ],
        "Is the projection there?": [
            ('linear(x, w, "clip.visual_projection")', "x"),
        ],
    },
    11: {
        "Which comes first in FiLM? Multiply, then add: the shift is not scaled.": [
            ('    x = x * linear(prompts, w, "decoder.film_mul")[:, None]\n', "",
             'return x + linear(prompts, w, "decoder.film_add")[:, None]',
             ('return (x + linear(prompts, w, "decoder.film_add")[:, None]) * linear(prompts, '
              'w, "decoder.film_mul")[:, None]')),
        ],
        "Which layer gives the factors, and which the shifts: film_mul, film_add?": [
            ("film_mul", "film_0", "film_add", "film_mul", "film_0", "film_add"),
        ],
        "Is it x * factor, or x * (1 + factor)?": [
            ("x * linear(", "x + x * linear("),
        ],
        "Are both there, the factor and the shift?": [
            ('    x = x * linear(prompts, w, "decoder.film_mul")[:, None]\n', ""),
            (' + linear(prompts, w, "decoder.film_add")[:, None]', ""),
        ],
        "Along which axis do prompts lie, and along which tokens? (P,D) must become (P,1,D).": [
            ("[:, None]", ""),
            ("[:, None]", "[None]"),
            ('"decoder.film_mul")[:, None]', '"decoder.film_mul")'),
        ],
        "Where do the norms stand? Each comes after a sum (post-norm), unlike in the towers.": [
            ('self_attn", N)\n    x = layer_norm(x, w, f"{name}.layer_norm1", config)\n',
             'self_attn", N)\n',
             "attention(x,", 'attention(layer_norm(x, w, f"{name}.layer_norm1", config),',
             "mlp(x,", 'mlp(layer_norm(x, w, f"{name}.layer_norm2", config),',
             'return layer_norm(x, w, f"{name}.layer_norm2", config)', "return x"),
        ],
        "Is x added to each branch before the norm?": [
            ("x = x + attention(", "x = attention("),
            ("x = x + mlp(", "x = mlp("),
            ("x = x + attention(", "x = attention(", "x = x + mlp(", "x = mlp("),
        ],
        "Is the branch normed, or the sum? The sum of x and the branch.": [
            ("x = x + attention(", "h = x; x = attention(",
             'x = layer_norm(x, w, f"{name}.layer_norm1", config)',
             'x = h + layer_norm(x, w, f"{name}.layer_norm1", config)',
             "x = x + mlp(", "h = x; x = mlp(",
             "return layer", "return h + layer"),
        ],
        'Which activation has the decoder? It is "relu", whatever the towers have.': [
            ('"relu"', '"quick_gelu"'),
            ('"relu"', 'config.get("hidden_act", "quick_gelu")'),
            ('"relu"', '"gelu"'),
        ],
        "There are two norms: which stands after attention, and which after the MLP?": [
            ("layer_norm2", "layer_norm1"),
            ("layer_norm1", "layer_norm0",
             "layer_norm2", "layer_norm1",
             "layer_norm0", "layer_norm2"),
            ('    x = layer_norm(x, w, f"{name}.layer_norm1", config)\n', ""),
            ('layer_norm(x, w, f"{name}.layer_norm2", config)', "x"),
        ],
    },
    12: {
        "In which order are the outputs taken? Deepest first.": [
            ('reversed(config.get("extract_layers", [3, 6, 9]))',
             'config.get("extract_layers", [3, 6, 9])'),
            ('reversed(config.get("extract_layers", [3, 6, 9]))',
             'sorted(config.get("extract_layers", [3, 6, 9]))'),
        ],
        "Is the i of reduces.i the place in the order, rather than the block's number?": [
            ('"decoder.reduces.{i}"', '"decoder.reduces.{layer}"'),
        ],
        "From where are the layers counted? outputs[3] comes out of block 3, the fourth.": [
            ("outputs[layer]", "outputs[layer - 1]"),
            ("outputs[layer]", "outputs[layer + 1]"),
        ],
        "Is the linear layer's result added to x? Each output joins what came before.": [
            ("x = x + linear(outputs[layer]", "x = linear(outputs[layer]"),
        ],
        "When does FiLM act? Once, at conditional_layer, before the decoder's block.": [
            (('        if i == config.get("conditional_layer", 0):\n'
              "            x = film(x, prompts, w)\n"),
             "        x = film(x, prompts, w)\n"),
            ('if i == config.get("conditional_layer", 0)', "if i == 0"),
            ('if i == config.get("conditional_layer", 0)',
             'if layer == config.get("conditional_layer", 0)'),
            (('        if i == config.get("conditional_layer", 0):\n'
              "            x = film(x, prompts, w)\n"),
             "",
             '{i}", N, vision)\n',
             ('{i}", N, vision)\n        if i == config.get("conditional_layer", 0):\n'
              "            x = film(x, prompts, w)\n")),
        ],
        "Which token is dropped? The class token is the first.": [
            ("x[:, 1:]", "x[:, :-1]"),
            ("x[:, 1:]", "x"),
        ],
        "How do the tokens fill the grid: row by row, with h rows?": [
            ("images.shape[2] // p, -1, x.shape[2])",
             "images.shape[3] // p, -1, x.shape[2]).swapaxes(1, 2)"),
            ("images.shape[2] // p", "images.shape[3] // p"),
            ("images.shape[2] // p, -1,",
             "int((x.shape[1] - 1) ** 0.5), int((x.shape[1] - 1) ** 0.5),"),
        ],
        "How many are there: prompts, or images? One image can have many prompts.": [
            ("reshape(len(x), ", "reshape(len(images), "),
        ],
        "Do the rows of a block run down? Which axes has x just before the last reshape?": [
            ("PhiwjD", "PhjwiD"),
            ("CDij->", "CDji->"),
            ('->PhiwjD", x, w[f"{name}.weight"])',
             ('->PhwijD", x, w[f"{name}.weight"]).reshape(\n'
              '        len(x), x.shape[1], w[f"{name}.weight"].shape[2], x.shape[2], '
              'w[f"{name}.weight"].shape[3], -1)')),
        ],
        "Is the kernel flipped? A transposed convolution paints it as it is.": [
            ('w[f"{name}.weight"]) +', 'w[f"{name}.weight"][:, :, ::-1, ::-1]) +'),
        ],
        "Which axis of the weight is the input? The first: (in, out, p, p).": [
            ("CDij->", "DCij->"),
        ],
        "Is a relu after the first and after the second layer of the refined head?": [
            ("np.maximum(x, 0)", "x"),
            ('np.maximum(x, 0), w, f"{name}.2"', 'x, w, f"{name}.2"'),
            ('np.maximum(x, 0), w, f"{name}.4"', 'x, w, f"{name}.4"'),
        ],
        "Is a relu after the last layer? None is.": [
            ('return conv_transpose(np.maximum(x, 0), w, f"{name}.4")[..., 0]',
             'return np.maximum(conv_transpose(np.maximum(x, 0), w, f"{name}.4")[..., 0], 0)'),
            ('return conv_transpose(np.maximum(x, 0), w, f"{name}.4")[..., 0]',
             'return np.maximum(conv_transpose(np.maximum(x, 0), w, f"{name}.4")[..., 0], 0)',
             "return conv_transpose(x, w, name)[..., 0]",
             "return np.maximum(conv_transpose(x, w, name)[..., 0], 0)"),
            ("return head(x, w, \"decoder.transposed_convolution\")",
             "return np.maximum(head(x, w, \"decoder.transposed_convolution\"), 0)"),
        ],
        "Are these logits? They are any numbers; the sigmoid comes later, outside.": [
            ('return head(x, w, "decoder.transposed_convolution")',
             'return 1 / (1 + np.exp(-head(x, w, "decoder.transposed_convolution")))'),
        ],
        "Is the bias added?": [
            (' + w[f"{name}.bias"]', ""),
            (' + w[f"{name}.0.bias"]', ""),
        ],
        "Is the 3 x 3 kernel flipped? The convolution is a sum of products, place by place.": [
            ("PhwCij,DCij", "PhwCij,DCji"),
            ('w[f"{name}.0.weight"]) +', 'w[f"{name}.0.weight"][:, :, ::-1, ::-1]) +'),
        ],
        "How large is the grid after the convolution? It is padded with one 0 on each side.": [
            ("(1, 1), (1, 1)", "(0, 0), (0, 0)"),
            ("(0, 0)])\n", '(0, 0)], mode="edge")\n'),
        ],
    },
}  # fmt: skip
