"""Drawn architectures and inputs, and the reference model that answers for them.

The reference's own eager attention takes its softmax in float32, whatever the model's type, which
would hide all but seven digits of a float64 comparison, and its fast attention returns no weights.
So an attention of the model's own type is registered here, and everything else is the reference's.
"""

import numpy as np
import torch
from transformers import AttentionInterface, CLIPSegConfig, CLIPSegForImageSegmentation
from transformers.masking_utils import AttentionMaskInterface, eager_mask

import clipseg_np


def attention_in_own_type(module, query, key, value, attention_mask, scaling, **_):
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), weights


torch.set_num_threads(1)  # on small tensors a second thread does nothing but wait, at length

AttentionInterface.register("own_type", attention_in_own_type)
AttentionMaskInterface.register("own_type", eager_mask)

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "relu")  # transformers raises KeyError for "selu"


def draw_config(
    rng: np.random.Generator, narrowest: int, activations: tuple[str, ...] = ACTIVATIONS
) -> CLIPSegConfig:
    """A small architecture: every field that changes the arithmetic is drawn.

    `narrowest` bounds the width of a token from below. A norm over a few numbers amplifies
    float32's rounding beyond 1e-5 in the reference and here alike; such widths are for comparisons
    in float64.
    """

    def width(heads: int) -> int:
        per_head = -(-narrowest // heads)
        return heads * int(rng.integers(per_head, per_head + 8))

    def tower() -> dict:
        heads = int(rng.integers(1, 5))
        return {
            "hidden_size": width(heads),
            "num_attention_heads": heads,
            "intermediate_size": int(rng.integers(3, 40)),
            "hidden_act": str(rng.choice(activations)),
            "layer_norm_eps": float(rng.choice([1e-5, 1e-6, 1e-3])),
        }

    vocabulary = int(rng.integers(6, 60))
    text = tower() | {
        "vocab_size": vocabulary,
        "num_hidden_layers": int(rng.integers(1, 4)),
        "max_position_embeddings": int(rng.integers(4, 12)),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": int(rng.choice([2, vocabulary - 1])),
        "pad_token_id": 1,
    }
    patch = int(rng.choice([4, 5, 8, 16]))
    depth = int(rng.integers(1, 6))
    vision = tower() | {
        "num_hidden_layers": depth,
        "patch_size": patch,
        "image_size": patch * int(rng.integers(1, 6)) + int(rng.integers(0, patch)),
        "num_channels": int(rng.choice([3, 3, 3, 1, 4])),
    }
    extracted = [int(i) for i in rng.integers(0, depth, rng.integers(1, 4))]
    decoder_heads = int(rng.integers(1, 5))
    return CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=int(rng.integers(narrowest, 40)),
        extract_layers=extracted,
        conditional_layer=int(rng.integers(0, len(extracted))),
        reduce_dim=width(decoder_heads),
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=int(rng.integers(1, 30)),
        use_complex_transposed_convolution=bool(rng.integers(0, 2)),
    )


def reference_model(
    config: CLIPSegConfig, seed: int, dtype=torch.float32, attention: str = "own_type"
) -> CLIPSegForImageSegmentation:
    """The reference with every parameter drawn, biases and norms too: none can be left out.

    Weights keep the size of what they multiply a little below what it was: with larger ones,
    attention becomes a choice of one token, which amplifies rounding in both models.
    """
    model = CLIPSegForImageSegmentation._from_config(config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.7 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.normal_(0, spread, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
            if "embedding" in name:
                parameter.normal_(0, 0.5, generator=generator)
    return model.to(dtype)


def drawn_pair(
    rng: np.random.Generator, number: int, folder
) -> tuple[CLIPSegConfig, CLIPSegForImageSegmentation, clipseg_np.CLIPSegForImageSegmentation, str]:
    """A drawn architecture: config, the reference, ours from its file, and their dtype.

    Odd numbers are in float64.
    """
    dtype = ("float32", "float64")[number % 2]
    config = draw_config(rng, narrowest={"float32": 16, "float64": 2}[dtype])
    theirs = reference_model(config, seed=number, dtype=getattr(torch, dtype))
    theirs.save_pretrained(folder)
    ours = clipseg_np.CLIPSegForImageSegmentation.from_pretrained(folder, dtype=dtype)
    return config, theirs, ours, dtype


def draw_ids(
    rng: np.random.Generator, config: CLIPSegConfig, prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Texts of different lengths with their end tokens, padded; and their attention mask."""
    text = config.text_config
    T = int(rng.integers(2, text.max_position_embeddings + 1))
    ids = rng.integers(0, text.vocab_size - 2, (prompts, T))
    mask = np.zeros((prompts, T), dtype=np.int64)
    for i, length in enumerate(rng.integers(2, T + 1, prompts)):
        ids[i, 0] = text.bos_token_id
        ids[i, length - 1 :] = text.vocab_size - 1
        mask[i, :length] = 1
    return ids, mask


def worst(ours, theirs) -> float:
    """The largest difference, relative to the reference's largest value."""
    theirs = theirs.detach().numpy()
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert ours.dtype == theirs.dtype, (ours.dtype, theirs.dtype)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def compare(ours, theirs, name: str = "") -> dict[str, float]:
    """The worst deviation of every array of two outputs, which hold the same fields."""
    if theirs is None:
        return {}
    if isinstance(theirs, torch.Tensor):
        return {name: worst(ours, theirs)}
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs), name
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(ours, theirs))]
    else:
        assert list(ours.keys()) == list(theirs.keys()), name
        pairs = [(key, getattr(ours, key), getattr(theirs, key)) for key in theirs]
    found = {}
    for key, a, b in pairs:
        found |= compare(a, b, f"{name}.{key}" if name else key)
    return found
