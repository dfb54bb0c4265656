"""The small CLIPSeg of the demonstration: transformers' own classes, called part by part.

Their forward runs both towers under no_grad, for they come pre-trained; here the towers are trained too, and a scene is
encoded once for several phrases.
"""

from __future__ import annotations

import json
from pathlib import Path

import fast_attention  # noqa: F401  (registers "fast")
import torch
from batches import MEAN, STD
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

SIDE, PATCH, LONGEST = 128, 8, 32


def waves(grid: int, width: int) -> torch.Tensor:
    """(grid*grid, width): sines and cosines of a patch's row and column, so that neighbours are alike from the start."""
    frequency = torch.pi * 2 ** torch.linspace(-1, 3, width // 4)  # from a quarter wave to four
    angle = (torch.arange(grid)[:, None] + 0.5) / grid * frequency
    line = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)
    return 0.5 * torch.cat([rows, columns], -1).flatten(0, 1)


def build_model(tokens: int) -> CLIPSegForImageSegmentation:
    """The small CLIPSeg, initialised for training from nothing."""
    text = {
        "vocab_size": tokens,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LONGEST,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    config = CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=96,
        extract_layers=[0, 2, 4],
        reduce_dim=64,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=256,
        use_complex_transposed_convolution=False,
    )
    model = CLIPSegForImageSegmentation._from_config(config, attn_implementation="eager")
    for layer in [*model.clip.vision_model.encoder.layers, *model.decoder.layers]:
        layer.self_attn.config._attn_implementation = "fast"
    # The default initialisation expects a trained backbone; these give both towers and the decoder a signal at once.
    text, vision, decoder = model.clip.text_model, model.clip.vision_model, model.decoder
    with torch.no_grad():
        model.clip.text_projection.weight *= 0.5
        model.clip.visual_projection.weight *= 0.5
        nn.init.normal_(text.embeddings.token_embedding.weight, std=0.5)
        nn.init.normal_(text.embeddings.position_embedding.weight, std=0.3)
        nn.init.normal_(vision.embeddings.patch_embedding.weight, std=(3 * PATCH**2) ** -0.5)
        nn.init.normal_(vision.embeddings.position_embedding.weight, std=0.1)
        vision.embeddings.position_embedding.weight[1:] += waves(SIDE // PATCH, 128)
        nn.init.normal_(vision.embeddings.class_embedding, std=0.3)
        for layer in [*text.encoder.layers, *vision.encoder.layers]:
            for name in ("q_proj", "k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        for module in decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.ones_(decoder.film_mul.bias)
        nn.init.normal_(decoder.transposed_convolution.weight, std=0.01)
        nn.init.constant_(decoder.transposed_convolution.bias, -2.5)  # the masks' base rate
    return model


def encode(model, pixel_values):
    """(B,3,S,S) -> the extracted activations, each (B,T,D), and every token of the last layer, projected, (B,T,E)."""
    vision = model.clip.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixel_values))
    activations = []
    for i, layer in enumerate(vision.encoder.layers):
        x = layer(x, attention_mask=None)
        if i in model.extract_layers:
            activations.append(x)
    return activations, model.clip.visual_projection(vision.post_layernorm(x))


def embed(model, ids):
    """(P,T) -> (P,E)."""
    return model.clip.get_text_features(ids).pooler_output


def decode(decoder, activations, conditional):
    """Activations of B pictures, (B,T,D) each, and (B,P,E) embeddings -> logits (B*P,S,S).

    The decoder's own arithmetic for several prompts a picture: what does not depend on the prompt is done once.
    """
    prompts = conditional.shape[1]
    conditional = conditional.flatten(0, 1)[:, None]
    x = 0
    for i, (activation, layer) in enumerate(zip(activations[::-1], decoder.layers, strict=True)):
        x = decoder.reduces[i](activation).repeat_interleave(prompts, 0) + x
        if i == decoder.conditional_layer:
            x = decoder.film_mul(conditional) * x + decoder.film_add(conditional)
        x = layer(x, attention_mask=None)
    grid = round((x.shape[1] - 1) ** 0.5)
    x = x[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
    return decoder.transposed_convolution(x).squeeze(1)


def export(model, tokenizer_folder: Path, folder: Path) -> None:
    """Write the checkpoint in float16, with its vocabulary and its preprocessing."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    copy = CLIPSegForImageSegmentation(model.config).half()
    copy.load_state_dict(half)
    copy.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"  # of the arithmetic; only the file is in float16
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
