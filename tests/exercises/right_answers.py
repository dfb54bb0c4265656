"""Right answers in other words than the solutions': the step and the code."""

RIGHT_ANSWERS = [
    (1, """
def linear(x, w, name):
    y = np.einsum("...i,oi->...o", x, w[name + ".weight"])
    if name + ".bias" in w:
        y += w[name + ".bias"]
    return y


def softmax(x):
    e = np.exp(x - np.max(x, -1)[..., None])
    return e / np.sum(e, -1)[..., None]
"""),
    (2, """
def layer_norm(x, w, name, config):
    eps = config.get("layer_norm_eps", 1e-5)
    z = (x - np.mean(x, -1, keepdims=True)) / (np.var(x, -1, keepdims=True) + eps) ** 0.5
    return w[name + ".weight"] * z + w[name + ".bias"]
"""),
    (3, """
def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def quick_gelu(x):
    return sigmoid(1.702 * x) * x


def mlp(x, w, name, activation):
    hidden = linear(x, w, name=name + ".fc1")
    act = ACTIVATIONS[activation]
    return linear(act(hidden), w=w, name=name + ".fc2")
"""),
    (4, """
def one_head(q, k, v):
    B, T, d = q.shape
    y = np.zeros((B, T, d))
    for b in range(B):
        for t in range(T):
            scores = np.array([q[b, t] @ k[b, s] for s in range(T)]) / np.sqrt(d)
            y[b, t] = softmax(scores) @ v[b]
    return y
"""),
    (5, """
def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    d = D // N
    q, k, v = linear(x, w, name + ".q_proj"), linear(x, w, name + ".k_proj"), None
    v = linear(x, w, name + ".v_proj")
    heads = []
    for n in range(N):
        part = slice(n * d, (n + 1) * d)
        scores = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(d)
        if mask is not True:
            scores = np.where(mask[:, 0], scores, -np.inf)
        heads.append(softmax(scores) @ v[..., part])
    return linear(np.concatenate(heads, -1), w, name + ".out_proj")
"""),
    (6, """
from functools import partial


def block(x, w, layer, config, mask):
    N = config["num_attention_heads"]
    norm = partial(layer_norm, w=w, config=config)
    x = x + attention(norm(x, name=layer + ".layer_norm1"), w, layer + ".self_attn", N, mask)
    return mlp(norm(x, name=layer + ".layer_norm2"), w, layer + ".mlp", config["hidden_act"]) + x


def encoder(x, w, name, config, mask=True):
    outputs = [x]
    for i in range(config["num_hidden_layers"]):
        outputs.append(block(outputs[-1], w, f"{name}.layers.{i}", config, mask))
    return outputs[1:]
"""),
    (7, """
def byte_pairs(word, ranks):
    word = list(word[:-1]) + [word[-1] + "</w>"]
    while True:
        best = None
        for i in range(len(word) - 1):
            rank = ranks.get((word[i], word[i + 1]), 10**9)
            if rank < 10**9 and (best is None or rank < best[0]):
                best = rank, i
        if best is None:
            return word
        i = best[1]
        word = word[:i] + [word[i] + word[i + 1]] + word[i + 2 :]
"""),
    (8, """
def text_tower(input_ids, attention_mask, w, config):
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    eos = config.get("eos_token_id", 49407)
    P, T = input_ids.shape
    words = w[name + ".embeddings.token_embedding.weight"]
    places = w[name + ".embeddings.position_embedding.weight"]
    x = np.stack([[words[input_ids[p, t]] + places[t] for t in range(T)] for p in range(P)])
    mask = np.zeros((P, 1, T, T), bool)
    for p, t, s in np.ndindex(P, T, T):
        mask[p, 0, t, s] = s <= t and attention_mask[p, s] != 0
    *_, x = encoder(x, w, name + ".encoder", config, mask)
    x = layer_norm(x, w, name + ".final_layer_norm", config)
    ends = [list(ids).index(max(ids) if eos == 2 else eos) for ids in input_ids]
    return np.stack([linear(x[p, end], w, "clip.text_projection") for p, end in enumerate(ends)])
"""),
    (9, """
def bicubic(old, new, a=-0.75):
    matrix = np.zeros((new, old + 4))
    for i in range(new):
        for j in range(old + 4):
            d = abs((i + 0.5) * old / new - 0.5 - (j - 2))
            if d <= 1:
                matrix[i, j] = (a + 2) * d**3 - (a + 3) * d**2 + 1
            elif d <= 2:
                matrix[i, j] = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return matrix


def embed(images, w, name):
    kernel, positions = w[name + ".patch_embedding.weight"], w[name + ".position_embedding.weight"]
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    side = int(round((len(positions) - 1) ** 0.5))
    grid = np.pad(positions[1:].reshape(side, side, D), ((2, 2), (2, 2), (0, 0)), mode="edge")
    grid = np.tensordot(bicubic(side, H // p), grid, axes=(1, 0))
    grid = np.tensordot(bicubic(side, W // p), grid, axes=(1, 1)).transpose(1, 0, 2)
    tokens = [np.tile(w[name + ".class_embedding"] + positions[0], (B, 1))]
    for row in range(H // p):
        for column in range(W // p):
            patch = images[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
            tokens.append(patch.reshape(B, -1) @ kernel.reshape(D, -1).T + grid[row, column])
    return np.stack(tokens, axis=1)
"""),
    (10, """
def vision_tower(images, w, config):
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    x = layer_norm(embed(images, w, name + ".embeddings"), w, name + ".pre_layrnorm", config)
    outputs = encoder(x, w, name + ".encoder", config)
    pooled = layer_norm(outputs[-1], w, name + ".post_layernorm", config)[:, 0]
    return outputs, linear(pooled, w, "clip.visual_projection")
"""),
    (11, """
def film(x, prompts, w):
    mul, add = linear(prompts, w, "decoder.film_mul"), linear(prompts, w, "decoder.film_add")
    x = np.repeat(x, len(prompts) // len(x), axis=0)
    return np.stack([x[i] * mul[i] + add[i] for i in range(len(prompts))])


def decoder_layer(x, w, name, N, config):
    x = layer_norm(attention(x, w, name + ".self_attn", N) + x, w, name + ".layer_norm1", config)
    return layer_norm(mlp(x, w, name + ".mlp", "relu") + x, w, name + ".layer_norm2", config)
"""),
    (12, """
def conv_transpose(x, w, name):
    (P, h, v, C), (_, D, p, _) = x.shape, w[name + ".weight"].shape
    y = np.zeros((P, h * p, v * p, D))
    for i in range(p):
        for j in range(p):
            y[:, i::p, j::p] = x @ w[name + ".weight"][:, :, i, j] + w[name + ".bias"]
    return y


def head(x, w, name):
    if f"{name}.0.weight" not in w:
        return conv_transpose(x, w, name)[:, :, :, 0]
    P, h, v, C = x.shape
    padded = np.zeros((P, h + 2, v + 2, C))
    padded[:, 1:-1, 1:-1] = x
    y = w[f"{name}.0.bias"]
    for i in range(3):
        for j in range(3):
            y = y + padded[:, i : i + h, j : j + v] @ w[f"{name}.0.weight"][:, :, i, j].T
    y = conv_transpose(y * (y > 0), w, f"{name}.2")
    return conv_transpose(y * (y > 0), w, f"{name}.4")[:, :, :, 0]


def clipseg(images, prompts, w, config):
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    outputs = vision_tower(images, w, config)[0]
    x = np.zeros((1, 1, 1))
    for i, layer in enumerate(config["extract_layers"][::-1]):
        x = linear(outputs[layer], w, f"decoder.reduces.{i}") + x
        x = film(x, prompts, w) if i == config["conditional_layer"] else x
        x = decoder_layer(x, w, f"decoder.layers.{i}", N, vision)
    h, v = (side // vision["patch_size"] for side in images.shape[2:])
    return head(x[:, 1:].reshape(-1, h, v, x.shape[-1]), w, "decoder.transposed_convolution")
"""),
]  # fmt: skip
