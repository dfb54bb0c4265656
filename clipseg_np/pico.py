"""CLIPSeg on one page: images and prompts in, a mask for each prompt out, by NumPy alone.

    masks = clipseg(images, text_tower(input_ids, attention_mask, w, config), w, config) > 0

`w` holds the checkpoint's arrays by their own names, and `name` is how those of one layer begin.
`config` is config.json; a key that it leaves out has the default that stands where the key is read.
B images, P prompts (B = P, or B = 1: one image for all prompts), T tokens, D features, N heads,
C channels, H W pixels, h w patches, p patch side (H and W are multiples of it).
"""

# fmt: off
import math

import numpy as np

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}

def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)            # (...,in) -> (...,out)

def layer_norm(x, w, name, config):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.get("layer_norm_eps", 1e-5))
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]

def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)

def attention(x, w, name, N, mask=True):
    B, T, D = x.shape
    q, k, v = (linear(x, w, f"{name}.{p}_proj").reshape(B, T, N, -1) for p in "qkv")  # (B,T,N,d)
    scores = np.einsum("BTNd,BSNd->BNTS", q, k) / math.sqrt(D // N)        # (B,N,T,T)
    weights = softmax(np.where(mask, scores, np.finfo(x.dtype).min))       # T sees S where True
    x = np.einsum("BNTS,BSNd->BTNd", weights, v).reshape(B, T, D)          # heads side by side
    return linear(x, w, f"{name}.out_proj")

def mlp(x, w, name, activation):
    return linear(ACTIVATIONS[activation](linear(x, w, f"{name}.fc1")), w, f"{name}.fc2")

def encoder(x, w, name, config, mask=True):
    outputs = []                                                           # (B,T,D) of each layer
    for layer in (f"{name}.layers.{i}" for i in range(config.get("num_hidden_layers", 12))):
        y = layer_norm(x, w, f"{layer}.layer_norm1", config)
        x = x + attention(y, w, f"{layer}.self_attn", config["num_attention_heads"], mask)
        y = layer_norm(x, w, f"{layer}.layer_norm2", config)
        x = x + mlp(y, w, f"{layer}.mlp", config.get("hidden_act", "quick_gelu"))
        outputs.append(x)
    return outputs

def text_tower(input_ids, attention_mask, w, config):
    """Token ids, and a mask that is 0 at padding, to a vector for each text.  (P,T) -> (P,D)"""
    name, config = "clip.text_model", {"num_attention_heads": 8} | config["text_config"]
    P, T = input_ids.shape
    x = w[f"{name}.embeddings.token_embedding.weight"][input_ids]          # (P,T) -> (P,T,D)
    x = x + w[f"{name}.embeddings.position_embedding.weight"][:T]
    mask = np.tri(T, dtype=bool) & (attention_mask[:, None, None] != 0)    # (P,1,T,T), causal
    x = encoder(x, w, f"{name}.encoder", config, mask)[-1]
    x = layer_norm(x, w, f"{name}.final_layer_norm", config)
    eos = config.get("eos_token_id", 49407)  # old configs say 2 and mean the highest id
    end = np.argmax(input_ids if eos == 2 else input_ids == eos, axis=-1)  # (P): the first one
    return linear(x[np.arange(P), end], w, "clip.text_projection")         # it has seen the text

def bicubic(old, new, a=-0.75):  # as torch; Pillow has -0.5
    """The matrix that resizes `old` samples, with 2 more beyond each border.  -> (new,2+old+2)"""
    d = abs((np.arange(new)[:, None] + 0.5) * old / new - 0.5 - np.arange(-2, old + 2))
    near, far = ((a + 2) * d - (a + 3)) * d**2 + 1, a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d <= 2, far, 0))

def vision_tower(images, w, config):
    """Images (B,C,H,W) to tokens after each layer, (B,1+hw,D), and to a vector each, (B,D)."""
    name, config = "clip.vision_model", {"num_attention_heads": 12} | config["vision_config"]
    kernel = w[f"{name}.embeddings.patch_embedding.weight"]                # (D,C,p,p)
    positions = w[f"{name}.embeddings.position_embedding.weight"]          # (1+side*side,D)
    (B, C, H, W), (D, _, p, _) = images.shape, kernel.shape
    x = images.reshape(B, C, H // p, p, W // p, p)                         # (B,C,h,p,w,p)
    x = np.einsum("BChiwj,DCij->BhwD", x, kernel)                          # (B,h,w,D)
    side = math.isqrt(len(positions) - 1)  # of the square grid that positions were learned on
    grid = np.pad(positions[1:].reshape(side, side, D), [(2, 2), (2, 2), (0, 0)], mode="edge")
    grid = np.einsum("hi,wj,ijD->hwD", bicubic(side, H // p), bicubic(side, W // p), grid)
    x = (x + grid.astype(x.dtype)).reshape(B, -1, D)                       # (B,hw,D)
    class_token = w[f"{name}.embeddings.class_embedding"] + positions[0]   # (D)
    x = np.concatenate([np.tile(class_token, (B, 1, 1)), x], axis=1)       # (B,1+hw,D)
    x = layer_norm(x, w, f"{name}.pre_layrnorm", config)  # misspelled in every checkpoint
    outputs = encoder(x, w, f"{name}.encoder", config)
    x = layer_norm(outputs[-1][:, 0], w, f"{name}.post_layernorm", config) # (B,D)
    return outputs, linear(x, w, "clip.visual_projection")

def conv_transpose(x, w, name):
    x = np.einsum("PhwC,CDij->PhiwjD", x, w[f"{name}.weight"]) + w[f"{name}.bias"]
    P, h, p, _, _, D = x.shape  # each cell has become a block of p x p
    return x.reshape(P, h * p, -1, D)                                      # (P,hp,wp,D)

def clipseg(images, prompts, w, config):
    """Images (B,C,H,W) and vectors of prompts (P,D), from a tower, to logits (P,H,W)."""
    outputs, _ = vision_tower(images, w, config)
    vision, N = config["vision_config"], config.get("decoder_num_attention_heads", 4)
    x = 0
    for i, layer in enumerate(reversed(config.get("extract_layers", [3, 6, 9]))):
        x = x + linear(outputs[layer], w, f"decoder.reduces.{i}")          # (B,1+hw,D)
        if i == config.get("conditional_layer", 0):  # FiLM: the prompt scales and shifts features
            x = x * linear(prompts, w, "decoder.film_mul")[:, None]        # (P,1+hw,D)
            x = x + linear(prompts, w, "decoder.film_add")[:, None]
        x = x + attention(x, w, f"decoder.layers.{i}.self_attn", N)
        x = layer_norm(x, w, f"decoder.layers.{i}.layer_norm1", vision)
        x = x + mlp(x, w, f"decoder.layers.{i}.mlp", "relu")
        x = layer_norm(x, w, f"decoder.layers.{i}.layer_norm2", vision)
    p, name = vision.get("patch_size", 32), "decoder.transposed_convolution"
    x = x[:, 1:].reshape(len(x), images.shape[2] // p, -1, x.shape[2])     # (P,h,w,D)
    if not config.get("use_complex_transposed_convolution"):
        return conv_transpose(x, w, name)[..., 0]                          # (P,H,W)
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])  # the refined head begins with a convolution
    x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))   # (P,h,w,D,3,3)
    x = np.einsum("PhwCij,DCij->PhwD", x, w[f"{name}.0.weight"]) + w[f"{name}.0.bias"]
    x = conv_transpose(np.maximum(x, 0), w, f"{name}.2")                   # (P,4h,4w,D/2)
    return conv_transpose(np.maximum(x, 0), w, f"{name}.4")[..., 0]        # (P,16h,16w)
