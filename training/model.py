"""The small CLIPSeg of the demonstration: transformers' own classes, called part by part.

Their forward runs both towers under no_grad, for they come pre-trained; here the towers are trained
too, and a scene is encoded once for several phrases.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pool import MEAN, STD
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

SIDE, PATCH, WIDTH, MAX_TOKENS = 128, 8, 128, 32
# Channels that hold a patch's row and column at the start: sine and cosine of 8 frequencies each.
POSITIONS = 32
NEIGHBORS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # rows down, columns right


def frequencies() -> torch.Tensor:
    """Radians a patch: from one wave over the image's side to one over four patches."""
    return torch.pi * torch.arange(1, POSITIONS // 4 + 1) / (SIDE // PATCH)


def waves(grid: int) -> torch.Tensor:
    """(grid*grid, POSITIONS): sines and cosines of a patch's row, then of its column."""
    angle = (torch.arange(grid)[:, None] + 0.5) * frequencies()
    line = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def look_at(attention, head: int, offset: tuple[int, int]) -> None:
    """Start a head so that a token attends to the one `offset` (rows, columns) away.

    So does a convolution's kernel. Query and key read the position channels, the key turned back by
    the offset: their product is a sum of cos(frequency * (distance - offset)), which is largest
    where the distance is the offset.
    """
    query, key = attention.q_proj.weight, attention.k_proj.weight
    width = len(query) // attention.num_heads
    row = head * width
    query[row : row + width] *= 0.1
    key[row : row + width] *= 0.1
    per_axis = POSITIONS // 2
    # As many frequencies as the head has features for.
    used = range(per_axis // 2 - 1, -1, -POSITIONS // width)
    for axis, distance in enumerate(offset):
        for number in used:
            sine = axis * per_axis + number
            cosine = sine + per_axis // 2
            turn = frequencies()[number] * distance
            query[row, sine] += 1
            query[row + 1, cosine] += 1
            key[row, sine] += turn.cos()
            key[row, cosine] -= turn.sin()
            key[row + 1, cosine] += turn.cos()
            key[row + 1, sine] += turn.sin()
            row += 2


def build_model(tokens: int) -> CLIPSegForImageSegmentation:
    """The small CLIPSeg, initialized for training from nothing."""
    text = {
        "vocab_size": tokens,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    config = CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=96,
        extract_layers=[1, 3, 5],
        reduce_dim=64,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=256,
        use_complex_transposed_convolution=False,
    )
    model = CLIPSegForImageSegmentation._from_config(config, attn_implementation="sdpa")
    # The default initialization expects a trained backbone; this one gives both towers and the
    # decoder a signal at once.
    text, vision, decoder = model.clip.text_model, model.clip.vision_model, model.decoder
    with torch.no_grad():
        model.clip.text_projection.weight *= 0.5
        model.clip.visual_projection.weight *= 0.5
        nn.init.normal_(text.embeddings.token_embedding.weight, std=0.5)
        nn.init.normal_(text.embeddings.position_embedding.weight, std=0.3)
        nn.init.normal_(vision.embeddings.class_embedding, std=0.3)
        nn.init.normal_(vision.embeddings.patch_embedding.weight, std=(3 * PATCH**2) ** -0.5)
        nn.init.normal_(vision.embeddings.position_embedding.weight, std=0.05)
        for layer in [*text.encoder.layers, *vision.encoder.layers]:
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        # Positions have channels of their own, to which the layers write little at first. Half of
        # the heads read them.
        vision.embeddings.class_embedding[:POSITIONS] = 0
        vision.embeddings.patch_embedding.weight[:POSITIONS] = 0
        vision.embeddings.position_embedding.weight[:, :POSITIONS] = 0
        vision.embeddings.position_embedding.weight[1:, :POSITIONS] = waves(SIDE // PATCH)
        for i, layer in enumerate(vision.encoder.layers):
            layer.self_attn.out_proj.weight[:POSITIONS] *= 0.05
            layer.mlp.fc2.weight[:POSITIONS] *= 0.05
            for head, (down, right) in enumerate(NEIGHBORS):
                look_at(layer.self_attn, head, (down * (1 + i // 2), right * (1 + i // 2)))
        for module in decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.ones_(decoder.film_mul.bias)
        nn.init.normal_(decoder.transposed_convolution.weight, std=0.01)
        # The masks' base rate.
        nn.init.constant_(decoder.transposed_convolution.bias, -2.5)
    return model


def taken(patches, keep):
    """(B,N,...) -> (B,K,...), the patches with the numbers `keep`, (B,K); all of them for None."""
    if keep is None:
        return patches
    index = keep.view(*keep.shape, *[1] * (patches.ndim - 2)).expand(-1, -1, *patches.shape[2:])
    return patches.gather(1, index)


def reaching(x, share: float):
    """The same numbers; only this share of the gradient goes further back."""
    return share * x + (1 - share) * x.detach()


def encode(model, pixel_values, keep=None, reach=1.0):
    """(B,3,S,S) -> the extracted activations, (B,1+K,D) each; the projected last tokens, (B,1+K,E).

    `keep`, (B,K), are the patches to encode; the others are left out as if they were not there.
    `reach` is the share of the projected tokens' gradient that goes back into the layers.
    """
    vision = model.clip.vision_model
    x = vision.embeddings(pixel_values)
    x = vision.pre_layrnorm(torch.cat([x[:, :1], taken(x[:, 1:], keep)], 1))
    activations = []
    for i, layer in enumerate(vision.encoder.layers):
        x = layer(x, attention_mask=None)
        if i in model.extract_layers:
            activations.append(x)
    return activations, model.clip.visual_projection(vision.post_layernorm(reaching(x, reach)))


def embed(model, ids):
    """(P,T) -> (P,E)."""
    return model.clip.get_text_features(ids).pooler_output


def decode(decoder, activations, conditional):
    """Activations, (B,1+K,D) each, and embeddings (B,P,E) -> logits (B,P,K,PATCH*PATCH).

    The decoder's own arithmetic for several prompts an image. The reduced activations, which do not
    depend on the prompt, are computed once.
    """
    images, prompts = conditional.shape[:2]
    conditional = conditional.flatten(0, 1)[:, None]
    x = 0
    for i, (activation, layer) in enumerate(zip(activations[::-1], decoder.layers, strict=True)):
        x = decoder.reduces[i](activation).repeat_interleave(prompts, 0) + x
        if i == decoder.conditional_layer:
            x = decoder.film_mul(conditional) * x + decoder.film_add(conditional)
        x = layer(x, attention_mask=None)
    # Its kernels do not overlap: a product.
    head = decoder.transposed_convolution
    return (x[:, 1:] @ head.weight.flatten(1) + head.bias).unflatten(0, (images, prompts))


def by_patches(maps):
    """(...,S,S) -> (...,N,PATCH*PATCH)."""
    grid = maps.shape[-1] // PATCH
    cut = maps.unflatten(-1, (grid, PATCH)).unflatten(-3, (grid, PATCH))
    return cut.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def export(model, tokenizer_folder: Path, folder: Path) -> None:
    """Write the checkpoint in float16, with its vocabulary and its preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    copy = CLIPSegForImageSegmentation(model.config).half()
    copy.load_state_dict(half)
    copy.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # The arithmetic's type; only the file is in float16.
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    preprocessing = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    text = json.dumps(preprocessing, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text)
