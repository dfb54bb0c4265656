"""Wrong answers as readers write them: the step, a part of the question that helps, the code.

A function that the code leaves out is the solution's.
"""

WRONG_ANSWERS = [
    (1, "stored as (out, in)", """
def linear(x, w, name):
    y = x @ w[name + ".weight"]
    if name + ".bias" in w:
        y = y + w[name + ".bias"]
    return y
"""),
    (1, "Has each layer a bias?", """
def linear(x, w, name):
    return np.matmul(x, w[name + ".weight"].T) + w[name + ".bias"]
"""),
    (1, "Is the bias added?", """
def linear(x, w, name):
    return np.einsum("...i,oi->...o", x, w[name + ".weight"])
"""),
    (1, "exp(1000)", """
def softmax(x):
    return np.exp(x) / np.sum(np.exp(x), axis=-1, keepdims=True)
"""),
    (1, "Over which axis must the weights sum to 1?", """
def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()
"""),
    (1, "Over which axis must the weights sum to 1?", """
def softmax(x):
    e = np.exp(x - np.max(x))
    return e / np.sum(e, axis=-2, keepdims=True)
"""),
    (1, "still have an axis", """
def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum(-1)
"""),
    (1, "x may have 2 or 3 axes", """
def linear(x, w, name):
    return np.einsum("bti,oi->bto", x, w[name + ".weight"]) + w.get(name + ".bias", 0)
"""),
    (1, "its own maximum", """
def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum(axis=-1, keepdims=True)
"""),
    (2, "as of a sample", """
def layer_norm(x, w, name, config):
    mean = np.mean(x, axis=-1, keepdims=True)
    variance = np.sum((x - mean) ** 2, axis=-1, keepdims=True) / (x.shape[-1] - 1)
    x = (x - mean) / np.sqrt(variance + config.get("layer_norm_eps", 1e-5))
    return x * w[name + ".weight"] + w[name + ".bias"]
"""),
    (2, "under the root", """
def layer_norm(x, w, name, config):
    eps = config.get("layer_norm_eps", 1e-5)
    x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps)
    return x * w[name + ".weight"] + w[name + ".bias"]
"""),
    (2, "Is eps there", """
def layer_norm(x, w, name, config):
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    return x * w[name + ".weight"] + w[name + ".bias"]
"""),
    (2, "Each token has its own", """
def layer_norm(x, w, name, config):
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + config.get("layer_norm_eps", 1e-5))
    return x * w[name + ".weight"] + w[name + ".bias"]
"""),
    (2, "by its root", """
def layer_norm(x, w, name, config):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    x = (x - mean) / (variance + config.get("layer_norm_eps", 1e-5))
    return x * w[name + ".weight"] + w[name + ".bias"]
"""),
    (2, "Are weight and bias used?", """
def layer_norm(x, w, name, config):
    variance = x.var(-1, keepdims=True) + config.get("layer_norm_eps", 1e-5)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(variance)
    return x
"""),
    (2, "Is the key in each config?", """
def layer_norm(x, w, name, config):
    variance = x.var(-1, keepdims=True) + config["layer_norm_eps"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(variance)
    return x * w[name + ".weight"] + w[name + ".bias"]
"""),
    (2, "is it the config's?", """
def layer_norm(x, w, name, config):
    variance = x.var(-1, keepdims=True) + 1e-5
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(variance)
    return x * w[name + ".weight"] + w[name + ".bias"]
"""),
    (3, "Is that gelu?", """
def quick_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x)))
"""),
    (3, "is the factor there", """
def quick_gelu(x):
    return x * (1 / (1 + np.exp(-x)))
"""),
    (3, "the minus in exp", """
def quick_gelu(x):
    return x / (1 + np.exp(1.702 * x))
"""),
    (3, "Not every MLP", """
def mlp(x, w, name, activation):
    hidden = quick_gelu(linear(x, w, name + ".fc1"))
    return linear(hidden, w, name + ".fc2")
"""),
    (3, "Between fc1 and fc2", """
def mlp(x, w, name, activation):
    x = linear(x, w, name + ".fc1")
    x = linear(x, w, name + ".fc2")
    return ACTIVATIONS[activation](x)
"""),
    (3, "for the block around", """
def mlp(x, w, name, activation):
    y = ACTIVATIONS[activation](linear(x, w, name + ".fc1"))
    return x + linear(y, w, name + ".fc2")
"""),
    (4, "Is the scale 1/sqrt(d) there", """
def one_head(q, k, v):
    return softmax(q @ k.swapaxes(1, 2)) @ v
"""),
    (4, "without its root", """
def one_head(q, k, v):
    B, T, d = q.shape
    return softmax((q @ k.transpose(0, 2, 1)) / d) @ v
"""),
    (4, "What is transposed?", """
def one_head(q, k, v):
    scores = k @ q.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return softmax(scores) @ v
"""),
    (4, "before the softmax", """
def one_head(q, k, v):
    weights = softmax(q @ k.swapaxes(-1, -2)) / np.sqrt(q.shape[-1])
    return weights @ v
"""),
    (4, "Are the scores weights yet?", """
def one_head(q, k, v):
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return scores @ v
"""),
    (5, "it moves nothing", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q = linear(x, w, name + ".q_proj").reshape(B, N, T, D // N)
    k = linear(x, w, name + ".k_proj").reshape(B, N, T, D // N)
    v = linear(x, w, name + ".v_proj").reshape(B, N, T, D // N)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(D // N)
    y = softmax(np.where(mask, scores, -1e9)) @ v
    return linear(y.swapaxes(1, 2).reshape(B, T, D), w, name + ".out_proj")
"""),
    (5, "side by side again", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q = linear(x, w, name + ".q_proj").reshape(B, T, N, D // N).transpose(0, 2, 1, 3)
    k = linear(x, w, name + ".k_proj").reshape(B, T, N, D // N).transpose(0, 2, 1, 3)
    v = linear(x, w, name + ".v_proj").reshape(B, T, N, D // N).transpose(0, 2, 1, 3)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(D // N)
    y = softmax(np.where(mask, scores, -1e9)) @ v
    return linear(y.reshape(B, T, D), w, name + ".out_proj")
"""),
    (5, "True must give 0", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = [
        linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1).swapaxes(1, 2) for p in "qkv"
    ]
    weights = softmax(q @ k.swapaxes(2, 3) / np.sqrt(D // N) + mask)
    y = (weights @ v).swapaxes(1, 2).reshape(B, T, D)
    return linear(y, w, name + ".out_proj")
"""),
    (5, "the right way round", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = [
        linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1).swapaxes(1, 2) for p in "qkv"
    ]
    scores = q @ k.swapaxes(2, 3) / np.sqrt(D // N)
    if mask is not True:
        scores = np.where(mask, np.finfo(x.dtype).min, scores)
    y = (softmax(scores) @ v).swapaxes(1, 2).reshape(B, T, D)
    return linear(y, w, name + ".out_proj")
"""),
    (5, "with the d of one head", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = [
        linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1).swapaxes(1, 2) for p in "qkv"
    ]
    scores = q @ k.swapaxes(2, 3) / np.sqrt(D)
    y = softmax(np.where(mask, scores, -np.inf)) @ v
    return linear(y.swapaxes(1, 2).reshape(B, T, D), w, name + ".out_proj")
"""),
    (5, "After it, the weights no longer sum", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = [
        linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1).swapaxes(1, 2) for p in "qkv"
    ]
    weights = mask * softmax(q @ k.swapaxes(2, 3) / np.sqrt(D // N))
    y = (weights @ v).swapaxes(1, 2).reshape(B, T, D)
    return linear(y, w, name + ".out_proj")
"""),
    (5, "is the mask always an array?", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = [
        linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1).swapaxes(1, 2) for p in "qkv"
    ]
    scores = q @ k.swapaxes(2, 3) / np.sqrt(D // N)
    if mask != True:
        scores = np.where(mask, scores, np.finfo(x.dtype).min)
    y = (softmax(scores) @ v).swapaxes(1, 2).reshape(B, T, D)
    return linear(y, w, name + ".out_proj")
"""),
    (5, "May a boolean index broadcast?", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = [
        linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1).swapaxes(1, 2) for p in "qkv"
    ]
    scores = q @ k.swapaxes(2, 3) / np.sqrt(D // N)
    if mask is not True:
        scores[~mask] = np.finfo(x.dtype).min
    y = (softmax(scores) @ v).swapaxes(1, 2).reshape(B, T, D)
    return linear(y, w, name + ".out_proj")
"""),
    (5, "it moves nothing", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = [linear(x, w, f"{name}.{p}_proj").reshape(B, N, T, -1) for p in "qkv"]
    scores = q @ k.swapaxes(2, 3) / np.sqrt(D // N)
    y = softmax(np.where(mask, scores, -1e9)) @ v
    return linear(y.reshape(B, T, D), w, name + ".out_proj")
"""),
    (5, "Which axes hold B, T, N and d", """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = [
        linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1).swapaxes(1, 2) for p in "qkv"
    ]
    scores = np.where(mask, q @ k.swapaxes(2, 3) / np.sqrt(D // N), -10)
    y = (softmax(scores) @ v).swapaxes(1, 2).reshape(B, T, D)
    return linear(y, w, name + ".out_proj")
"""),
    (6, "not after the sum", """
def encoder(x, w, name, config, mask=True):
    N, activation = config["num_attention_heads"], config.get("hidden_act", "quick_gelu")
    outputs = []
    for i in range(config.get("num_hidden_layers", 12)):
        layer = f"{name}.layers.{i}"
        x = x + attention(x, w, layer + ".self_attn", N, mask)
        x = layer_norm(x, w, layer + ".layer_norm1", config)
        x = x + mlp(x, w, layer + ".mlp", activation)
        x = layer_norm(x, w, layer + ".layer_norm2", config)
        outputs.append(x)
    return outputs
"""),
    (6, "Is x kept", """
def encoder(x, w, name, config, mask=True):
    N, activation = config["num_attention_heads"], config.get("hidden_act", "quick_gelu")
    outputs = []
    for i in range(config.get("num_hidden_layers", 12)):
        layer = f"{name}.layers.{i}"
        x = layer_norm(x, w, layer + ".layer_norm1", config)
        x = attention(x, w, layer + ".self_attn", N, mask)
        x = layer_norm(x, w, layer + ".layer_norm2", config)
        x = mlp(x, w, layer + ".mlp", activation)
        outputs.append(x)
    return outputs
"""),
    (6, "The sum keeps x itself", """
def encoder(x, w, name, config, mask=True):
    N, activation = config["num_attention_heads"], config.get("hidden_act", "quick_gelu")
    outputs = []
    for i in range(config.get("num_hidden_layers", 12)):
        layer = f"{name}.layers.{i}"
        x = layer_norm(x, w, layer + ".layer_norm1", config)
        x = x + attention(x, w, layer + ".self_attn", N, mask)
        x = layer_norm(x, w, layer + ".layer_norm2", config)
        x = x + mlp(x, w, layer + ".mlp", activation)
        outputs.append(x)
    return outputs
"""),
    (6, "Is the mask passed on", """
def encoder(x, w, name, config, mask=True):
    N, activation = config["num_attention_heads"], config.get("hidden_act", "quick_gelu")
    outputs = []
    for i in range(config.get("num_hidden_layers", 12)):
        layer = f"{name}.layers.{i}"
        x = x + attention(layer_norm(x, w, layer + ".layer_norm1", config), w,
                          layer + ".self_attn", N)
        x = x + mlp(layer_norm(x, w, layer + ".layer_norm2", config), w, layer + ".mlp", activation)
        outputs.append(x)
    return outputs
"""),
    (6, "with attention already added", """
def encoder(x, w, name, config, mask=True):
    N, activation = config["num_attention_heads"], config.get("hidden_act", "quick_gelu")
    outputs = []
    for i in range(config.get("num_hidden_layers", 12)):
        layer = f"{name}.layers.{i}"
        one = attention(layer_norm(x, w, layer + ".layer_norm1", config), w,
                        layer + ".self_attn", N, mask)
        two = mlp(layer_norm(x, w, layer + ".layer_norm2", config), w, layer + ".mlp", activation)
        x = x + one + two
        outputs.append(x)
    return outputs
"""),
    (7, "the leftmost, the longest", """
def byte_pairs(word, ranks):
    symbols = list(word)
    symbols[-1] += "</w>"
    i = 0
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) in ranks:
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
            i = 0
        else:
            i += 1
    return symbols
"""),
    (7, "Is the end of the word marked?", """
def byte_pairs(word, ranks):
    symbols = list(word)
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not pairs:
            return symbols
        best = min(pairs, key=lambda pair: ranks[pair])
        i = [pair == best for pair in zip(symbols, symbols[1:])].index(True)
        symbols = symbols[:i] + [best[0] + best[1]] + symbols[i + 2 :]
"""),
    (7, "part of the last letter's symbol", """
def byte_pairs(word, ranks):
    symbols = [*word, "</w>"]
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not pairs:
            return symbols
        best = min(pairs, key=lambda pair: ranks[pair])
        i = [pair == best for pair in zip(symbols, symbols[1:])].index(True)
        symbols = symbols[:i] + [best[0] + best[1]] + symbols[i + 2 :]
"""),
    (7, "the lowest rank, or the highest", """
def byte_pairs(word, ranks):
    symbols = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not pairs:
            return symbols
        best = max(pairs, key=lambda pair: ranks[pair])
        i = [pair == best for pair in zip(symbols, symbols[1:])].index(True)
        symbols = symbols[:i] + [best[0] + best[1]] + symbols[i + 2 :]
"""),
    (7, "no pair has a rank, as in a word of one letter", """
def byte_pairs(word, ranks):
    symbols = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        best = min(pairs, key=lambda pair: ranks[pair])
        i = [pair == best for pair in zip(symbols, symbols[1:])].index(True)
        symbols = symbols[:i] + [best[0] + best[1]] + symbols[i + 2 :]
    return symbols
"""),
    (7, "Has every pair a rank?", """
def byte_pairs(word, ranks):
    symbols = [*word[:-1], word[-1] + "</w>"]
    while len(symbols) > 1:
        order = [ranks[pair] for pair in zip(symbols, symbols[1:])]
        i = order.index(min(order))
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return symbols
"""),
    (7, "Is it a list?", """
def byte_pairs(word, ranks):
    symbols = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not pairs:
            return " ".join(symbols)
        best = min(pairs, key=lambda pair: ranks[pair])
        places = [i for i, pair in enumerate(zip(symbols, symbols[1:])) if pair == best]
        i = places[0]
        symbols = symbols[:i] + [best[0] + best[1]] + symbols[i + 2 :]
"""),
    (7, "is the leftmost merged?", """
def byte_pairs(word, ranks):
    symbols = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not pairs:
            return symbols
        best = min(pairs, key=lambda pair: ranks[pair])
        places = [i for i, pair in enumerate(zip(symbols, symbols[1:])) if pair == best]
        i = places[-1]
        symbols = symbols[:i] + [best[0] + best[1]] + symbols[i + 2 :]
"""),
    (8, "The first end token, not the last token", """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    T = input_ids.shape[1]
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][np.arange(T)]
    mask = np.tril(np.ones((T, T), bool)) & (attention_mask == 1)[:, None, None, :]
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    return linear(x[:, -1], w, "clip.text_projection")
"""),
    (8, "Of several end tokens, is it the first?", """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = np.tril(np.ones((T, T), bool)) & (attention_mask == 1)[:, None, None, :]
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    ends = [max(t for t in range(T) if ids[t] == ids.max()) for ids in input_ids]
    return linear(x[np.arange(P), ends], w, "clip.text_projection")
"""),
    (8, "no token has the id 2", """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = np.tril(np.ones((T, T), bool)) & (attention_mask == 1)[:, None, None, :]
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    end = (input_ids == config.get("eos_token_id", 49407)).argmax(axis=1)
    return linear(x[np.arange(P), end], w, "clip.text_projection")
"""),
    (8, "May a token see the padding", """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = np.tril(np.ones((T, T), bool))[None, None]
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    end = input_ids.argmax(axis=1)
    return linear(x[np.arange(P), end], w, "clip.text_projection")
"""),
    (8, "May a token see those after it?", """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = (attention_mask == 1)[:, None, None, :]
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    return linear(x[np.arange(P), input_ids.argmax(axis=1)], w, "clip.text_projection")
"""),
    (8, "or of all texts?", """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = np.tril(np.ones((T, T), bool)) & (attention_mask == 1)[:, None, None, :]
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    eos = config.get("eos_token_id", 49407)
    end = (input_ids == (input_ids.max() if eos == 2 else eos)).argmax(1)
    return linear(x[np.arange(P), end], w, "clip.text_projection")
"""),
    (8, "not where a text ends", """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = np.tril(np.ones((T, T), bool)) & (attention_mask == 1)[:, None, None, :]
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    eos = config.get("eos_token_id", 49407)
    end = attention_mask.sum(1) - 1
    return linear(x[np.arange(P), end], w, "clip.text_projection")
"""),
    (8, "Only where it is 2", """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = np.tril(np.ones((T, T), bool)) & (attention_mask == 1)[:, None, None, :]
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    eos = config.get("eos_token_id", 49407)
    end = input_ids.argmax(1)
    return linear(x[np.arange(P), end], w, "clip.text_projection")
"""),
    (9, "Is a -0.75?", """
def bicubic(old, new, a=-0.5):
    matrix = np.zeros((new, old + 4))
    for i in range(new):
        for j in range(old + 4):
            d = abs((i + 0.5) * old / new - 0.5 - (j - 2))
            if d <= 1:
                matrix[i, j] = (a + 2) * d**3 - (a + 3) * d**2 + 1
            elif d <= 2:
                matrix[i, j] = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return matrix
"""),
    (9, "from center to center", """
def bicubic(old, new, a=-0.75):
    place = np.linspace(0, old - 1, new)[:, None]
    d = np.abs(place - np.arange(-2, old + 2)[None])
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d <= 2, far, 0.0))
"""),
    (9, "Is the class token the first?", """
def embed(images, w, name):
    kernel = w[f"{name}.patch_embedding.weight"]
    positions = w[f"{name}.position_embedding.weight"]
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = math.isqrt(len(positions) - 1)
    h, v = H // p, W // p
    x = images.reshape(B, C, h, p, v, p).transpose(0, 2, 4, 1, 3, 5).reshape(B, h * v, -1)
    x = x @ kernel.reshape(D, -1).T
    grid = positions[1:].reshape(side, side, D)
    grid = np.pad(grid, ((2, 2), (2, 2), (0, 0)), mode="edge")
    grid = np.tensordot(bicubic(side, h), grid, axes=(1, 0))
    grid = np.tensordot(bicubic(side, v), grid, axes=(1, 1)).transpose(1, 0, 2)
    x = x + grid.reshape(1, h * v, D)
    token = np.broadcast_to(w[f"{name}.class_embedding"] + positions[0], (B, 1, D))
    return np.concatenate((x, token), axis=1)
"""),
    (9, "Has the class token its position", """
def embed(images, w, name):
    kernel = w[f"{name}.patch_embedding.weight"]
    positions = w[f"{name}.position_embedding.weight"]
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = math.isqrt(len(positions) - 1)
    h, v = H // p, W // p
    x = images.reshape(B, C, h, p, v, p).transpose(0, 2, 4, 1, 3, 5).reshape(B, h * v, -1)
    x = x @ kernel.reshape(D, -1).T
    grid = positions[1:].reshape(side, side, D)
    grid = np.pad(grid, ((2, 2), (2, 2), (0, 0)), mode="edge")
    grid = np.einsum("hi,wj,ijD->hwD", bicubic(side, h), bicubic(side, v), grid)
    x = x + grid.reshape(1, h * v, D)
    token = np.broadcast_to(w[f"{name}.class_embedding"], (B, 1, D))
    return np.concatenate((token, x), axis=1)
"""),
    (9, "row by row", """
def embed(images, w, name):
    kernel = w[f"{name}.patch_embedding.weight"]
    positions = w[f"{name}.position_embedding.weight"]
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = math.isqrt(len(positions) - 1)
    h, v = H // p, W // p
    grid = positions[1:].reshape(side, side, D)
    grid = np.pad(grid, ((2, 2), (2, 2), (0, 0)), mode="edge")
    grid = np.einsum("hi,wj,ijD->hwD", bicubic(side, h), bicubic(side, v), grid)
    tokens = [np.tile(w[f"{name}.class_embedding"] + positions[0], (B, 1))]
    for column in range(v):
        for row in range(h):
            patch = images[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
            tokens.append(patch.reshape(B, -1) @ kernel.reshape(D, -1).T + grid[row, column])
    return np.stack(tokens, axis=1)
"""),
    (9, "beyond its border", """
def embed(images, w, name):
    kernel = w[f"{name}.patch_embedding.weight"]
    positions = w[f"{name}.position_embedding.weight"]
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = math.isqrt(len(positions) - 1)
    h, v = H // p, W // p
    x = images.reshape(B, C, h, p, v, p).transpose(0, 2, 4, 1, 3, 5).reshape(B, h * v, -1)
    x = x @ kernel.reshape(D, -1).T
    grid = np.zeros((side + 4, side + 4, D))
    grid[2:-2, 2:-2] = positions[1:].reshape(side, side, D)
    grid = np.einsum("hi,wj,ijD->hwD", bicubic(side, h), bicubic(side, v), grid)
    x = x + grid.reshape(1, h * v, D)
    token = np.broadcast_to(w[f"{name}.class_embedding"] + positions[0], (B, 1, D))
    return np.concatenate((token, x), axis=1)
"""),
    (9, "Does each row sum to 1?", """
def bicubic(old, new, a=-0.75):
    place = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    d = np.abs(np.arange(old + 4) - 2 - place)
    return np.where(d <= 1, 1 - d, 0.0)
"""),
    (9, "must become (B,1,D)", """
def embed(images, w, name):
    kernel = w[f"{name}.patch_embedding.weight"]
    positions = w[f"{name}.position_embedding.weight"]
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = math.isqrt(len(positions) - 1)
    h, v = H // p, W // p
    x = images.reshape(B, C, h, p, v, p).transpose(0, 2, 4, 1, 3, 5).reshape(B, h * v, -1)
    x = x @ kernel.reshape(D, -1).T
    grid = positions[1:].reshape(side, side, D)
    grid = np.pad(grid, ((2, 2), (2, 2), (0, 0)), mode="edge")
    grid = np.einsum("hi,wj,ijD->hwD", bicubic(side, h), bicubic(side, v), grid)
    x = x + grid.reshape(1, h * v, D)
    token = w[f"{name}.class_embedding"] + positions[0]
    return np.concatenate((token[None, None], x), axis=1)
"""),
    (9, "must become (B,1,D)", """
def embed(images, w, name):
    kernel = w[f"{name}.patch_embedding.weight"]
    positions = w[f"{name}.position_embedding.weight"]
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = math.isqrt(len(positions) - 1)
    h, v = H // p, W // p
    x = images.reshape(B, C, h, p, v, p).transpose(0, 2, 4, 1, 3, 5).reshape(B, h * v, -1)
    x = x @ kernel.reshape(D, -1).T
    grid = positions[1:].reshape(side, side, D)
    grid = np.pad(grid, ((2, 2), (2, 2), (0, 0)), mode="edge")
    grid = np.einsum("hi,wj,ijD->hwD", bicubic(side, h), bicubic(side, v), grid)
    x = x + grid.reshape(1, h * v, D)
    token = w[f"{name}.class_embedding"] + positions[0]
    return np.concatenate((token, x), axis=1)
"""),
    (9, "w is the dictionary of weights", """
def embed(images, w, name):
    kernel = w[f"{name}.patch_embedding.weight"]
    positions = w[f"{name}.position_embedding.weight"]
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = math.isqrt(len(positions) - 1)
    h, w = H // p, W // p
    v = w
    x = images.reshape(B, C, h, p, v, p).transpose(0, 2, 4, 1, 3, 5).reshape(B, h * v, -1)
    x = x @ kernel.reshape(D, -1).T
    grid = positions[1:].reshape(side, side, D)
    grid = np.pad(grid, ((2, 2), (2, 2), (0, 0)), mode="edge")
    grid = np.einsum("hi,wj,ijD->hwD", bicubic(side, h), bicubic(side, v), grid)
    x = x + grid.reshape(1, h * v, D)
    token = w[f"{name}.class_embedding"] + positions[0]
    return np.concatenate((np.broadcast_to(token, (B, 1, D)), x), axis=1)
"""),
    (9, "positive on both sides", """
def bicubic(old, new, a=-0.75):
    place = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    d = np.arange(old + 4) - 2 - place
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d <= 2, far, 0.0))
"""),
    (10, "not its input", """
def vision_tower(images, w, config):
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    x = embed(images, w, name + ".embeddings")
    x = layer_norm(x, w, name + ".pre_layrnorm", config)
    outputs = encoder(x, w, name + ".encoder", config)
    taps = [x] + outputs[:-1]
    pooled = layer_norm(outputs[-1][:, 0], w, name + ".post_layernorm", config)
    return taps, linear(pooled, w, "clip.visual_projection")
"""),
    (10, "letter by letter", """
def vision_tower(images, w, config):
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    x = embed(images, w, name + ".embeddings")
    x = layer_norm(x, w, name + ".pre_layernorm", config)
    outputs = encoder(x, w, name + ".encoder", config)
    pooled = layer_norm(outputs[-1][:, 0], w, name + ".post_layernorm", config)
    return outputs, linear(pooled, w, "clip.visual_projection")
"""),
    (10, "The class token is the first", """
def vision_tower(images, w, config):
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    x = embed(images, w, name + ".embeddings")
    x = layer_norm(x, w, name + ".pre_layrnorm", config)
    outputs = encoder(x, w, name + ".encoder", config)
    pooled = layer_norm(outputs[-1].mean(axis=1), w, name + ".post_layernorm", config)
    return outputs, linear(pooled, w, "clip.visual_projection")
"""),
    (10, "Is post_layernorm there", """
def vision_tower(images, w, config):
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    x = embed(images, w, name + ".embeddings")
    x = layer_norm(x, w, name + ".pre_layrnorm", config)
    outputs = encoder(x, w, name + ".encoder", config)
    return outputs, linear(outputs[-1][:, 0], w, "clip.visual_projection")
"""),
    (10, "keep their class token", """
def vision_tower(images, w, config):
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    x = embed(images, w, name + ".embeddings")
    x = layer_norm(x, w, name + ".pre_layrnorm", config)
    outputs = encoder(x, w, name + ".encoder", config)
    pooled = layer_norm(outputs[-1][:, 0], w, name + ".post_layernorm", config)
    return [y[:, 1:] for y in outputs], linear(pooled, w, "clip.visual_projection")
"""),
    (11, "the shift is not scaled", """
import numpy as np

def film(x, prompts, w):
    mul = linear(prompts, w, "decoder.film_mul")[:, np.newaxis, :]
    add = linear(prompts, w, "decoder.film_add")[:, np.newaxis, :]
    return mul * (x + add)
"""),
    (11, "which the shifts", """
import numpy as np

def film(x, prompts, w):
    mul = linear(prompts, w, "decoder.film_mul")[:, np.newaxis, :]
    add = linear(prompts, w, "decoder.film_add")[:, np.newaxis, :]
    return add * x + mul
"""),
    (11, "(P,D) must become (P,1,D)", """
def film(x, prompts, w):
    return x * linear(prompts, w, "decoder.film_mul") + linear(prompts, w, "decoder.film_add")
"""),
    (11, "unlike in the towers", """
def decoder_layer(x, w, name, N, config):
    y = layer_norm(x, w, name + ".layer_norm1", config)
    x = x + attention(y, w, name + ".self_attn", N)
    y = layer_norm(x, w, name + ".layer_norm2", config)
    return x + mlp(y, w, name + ".mlp", "relu")
"""),
    (11, "whatever the towers have", """
def decoder_layer(x, w, name, N, config):
    y = attention(x, w, name + ".self_attn", N)
    x = layer_norm(x + y, w, name + ".layer_norm1", config)
    y = mlp(x, w, name + ".mlp", "quick_gelu")
    return layer_norm(x + y, w, name + ".layer_norm2", config)
"""),
    (12, "Deepest first", """
def clipseg(images, prompts, w, config):
    outputs, _ = vision_tower(images, w, config)
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    x = 0
    for i, layer in enumerate(config.get("extract_layers", [3, 6, 9])):
        x = x + linear(outputs[layer], w, f"decoder.reduces.{i}")
        if i == config.get("conditional_layer", 0):
            x = film(x, prompts, w)
        x = decoder_layer(x, w, f"decoder.layers.{i}", N, vision)
    h = images.shape[2] // vision.get("patch_size", 32)
    x = x[:, 1:].reshape(len(x), h, -1, x.shape[2])
    return head(x, w, "decoder.transposed_convolution")
"""),
    (12, "From where are the layers counted?", """
def clipseg(images, prompts, w, config):
    outputs, _ = vision_tower(images, w, config)
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    x = 0
    for i, layer in enumerate(config.get("extract_layers", [3, 6, 9])[::-1]):
        x = x + linear(outputs[layer - 1], w, f"decoder.reduces.{i}")
        if i == config.get("conditional_layer", 0):
            x = film(x, prompts, w)
        x = decoder_layer(x, w, f"decoder.layers.{i}", N, vision)
    h = images.shape[2] // vision.get("patch_size", 32)
    x = x[:, 1:].reshape(len(x), h, -1, x.shape[2])
    return head(x, w, "decoder.transposed_convolution")
"""),
    (12, "Which token is dropped?", """
def clipseg(images, prompts, w, config):
    outputs, _ = vision_tower(images, w, config)
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    x = 0
    for i, layer in enumerate(config.get("extract_layers", [3, 6, 9])[::-1]):
        x = x + linear(outputs[layer], w, f"decoder.reduces.{i}")
        if i == config.get("conditional_layer", 0):
            x = film(x, prompts, w)
        x = decoder_layer(x, w, f"decoder.layers.{i}", N, vision)
    h = images.shape[2] // vision.get("patch_size", 32)
    x = x[:, :-1].reshape(len(x), h, -1, x.shape[2])
    return head(x, w, "decoder.transposed_convolution")
"""),
    (12, "Do the rows of a block run down?", """
def conv_transpose(x, w, name):
    weight = w[name + ".weight"]
    (P, h, v, C), (_, D, p, _) = x.shape, weight.shape
    y = np.zeros((P, h * p, v * p, D))
    for i in range(p):
        for j in range(p):
            y[:, j::p, i::p] = x @ weight[:, :, i, j] + w[name + ".bias"]
    return y
"""),
    (12, "The first: (in, out, p, p)", """
def conv_transpose(x, w, name):
    weight = w[name + ".weight"].transpose(1, 0, 2, 3)
    (P, h, v, C), (_, D, p, _) = x.shape, weight.shape
    y = np.einsum("PhvC,CDij->PhivjD", x, weight) + w[name + ".bias"]
    return y.reshape(P, h * p, v * p, D)
"""),
    (12, "Is a relu after the first", """
def head(x, w, name):
    if f"{name}.weight" in w:
        return conv_transpose(x, w, name)[..., 0]
    P, h, v, C = x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = w[f"{name}.0.bias"]
    for i in range(3):
        for j in range(3):
            y = y + padded[:, i : i + h, j : j + v] @ w[f"{name}.0.weight"][:, :, i, j].T
    return conv_transpose(conv_transpose(y, w, f"{name}.2"), w, f"{name}.4")[..., 0]
"""),
    (12, "Are these logits?", """
def clipseg(images, prompts, w, config):
    outputs, _ = vision_tower(images, w, config)
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    x = 0
    for i, layer in enumerate(config.get("extract_layers", [3, 6, 9])[::-1]):
        x = x + linear(outputs[layer], w, f"decoder.reduces.{i}")
        if i == config.get("conditional_layer", 0):
            x = film(x, prompts, w)
        x = decoder_layer(x, w, f"decoder.layers.{i}", N, vision)
    h = images.shape[2] // vision.get("patch_size", 32)
    x = x[:, 1:].reshape(len(x), h, -1, x.shape[2])
    return 1 / (1 + np.exp(-head(x, w, "decoder.transposed_convolution")))
"""),
    (12, "Only the plain one has", """
def head(x, w, name):
    if w[f"{name}.weight"] is not None:
        return conv_transpose(x, w, name)[..., 0]
    P, h, v, C = x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = w[f"{name}.0.bias"]
    for i in range(3):
        for j in range(3):
            y = y + padded[:, i : i + h, j : j + v] @ w[f"{name}.0.weight"][:, :, i, j].T
    y = conv_transpose(np.maximum(y, 0), w, f"{name}.2")
    y = conv_transpose(np.maximum(y, 0), w, f"{name}.4")
    return np.maximum(y, 0)[..., 0]
"""),
    (12, "Only the plain one has", """
def head(x, w, name):
    P, h, v, C = x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = w[f"{name}.0.bias"]
    for i in range(3):
        for j in range(3):
            y = y + padded[:, i : i + h, j : j + v] @ w[f"{name}.0.weight"][:, :, i, j].T
    y = conv_transpose(np.maximum(y, 0), w, f"{name}.2")
    return conv_transpose(np.maximum(y, 0), w, f"{name}.4")[..., 0]
"""),
    (12, "after the last layer? None is.", """
def head(x, w, name):
    if f"{name}.weight" in w:
        return conv_transpose(x, w, name)[..., 0]
    P, h, v, C = x.shape
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = w[f"{name}.0.bias"]
    for i in range(3):
        for j in range(3):
            y = y + padded[:, i : i + h, j : j + v] @ w[f"{name}.0.weight"][:, :, i, j].T
    y = conv_transpose(np.maximum(y, 0), w, f"{name}.2")
    y = conv_transpose(np.maximum(y, 0), w, f"{name}.4")
    return np.maximum(y, 0)[..., 0]
"""),
    (12, "w is the dictionary of weights", """
def clipseg(images, prompts, w, config):
    outputs, _ = vision_tower(images, w, config)
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    x = 0
    for i, layer in enumerate(config.get("extract_layers", [3, 6, 9])[::-1]):
        x = x + linear(outputs[layer], w, f"decoder.reduces.{i}")
        if i == config.get("conditional_layer", 0):
            x = film(x, prompts, w)
        x = decoder_layer(x, w, f"decoder.layers.{i}", N, vision)
    p = vision.get("patch_size", 32)
    h, w = images.shape[2] // p, images.shape[3] // p
    x = x[:, 1:].reshape(len(x), h, w, x.shape[2])
    return head(x, w, "decoder.transposed_convolution")
"""),
    (12, "the place in the order", """
def clipseg(images, prompts, w, config):
    outputs, _ = vision_tower(images, w, config)
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    x = 0
    for i, layer in enumerate(config.get("extract_layers", [3, 6, 9])[::-1]):
        x = x + linear(outputs[layer], w, f"decoder.reduces.{layer}")
        if i == config.get("conditional_layer", 0):
            x = film(x, prompts, w)
        x = decoder_layer(x, w, f"decoder.layers.{i}", N, vision)
    p = vision.get("patch_size", 32)
    h, v = images.shape[2] // p, images.shape[3] // p
    x = x[:, 1:].reshape(len(x), h, v, x.shape[2])
    return head(x, w, "decoder.transposed_convolution")
"""),
]  # fmt: skip
