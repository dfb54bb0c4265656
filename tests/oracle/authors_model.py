"""The authors' model in PyTorch, with the names of its files: OpenAI's CLIP, and the decoder.

Written after the papers and the names of the published tensors. The modules hold parameters and
nothing else, so that TorchScript can write them; functions do the arithmetic.
"""

from collections import OrderedDict

import torch
from torch import nn


class Block(nn.Module):
    """A pre-norm layer of CLIP's."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, hidden), c_proj=nn.Linear(hidden, width))
        )
        self.ln_2 = nn.LayerNorm(width)


class Blocks(nn.Module):
    def __init__(self, width: int, hidden: int, depth: int):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))


class Visual(nn.Module):
    def __init__(self, width: int, hidden: int, depth: int, patch: int, side: int, projected: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + side**2, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Blocks(width, hidden, depth)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, projected))


class Clip(nn.Module):
    def __init__(self, vision: dict, text: dict, words: int, places: int, projected: int):
        super().__init__()
        self.visual = Visual(**vision, projected=projected)
        self.transformer = Blocks(**text)
        self.token_embedding = nn.Embedding(words, text["width"])
        self.positional_embedding = nn.Parameter(torch.empty(places, text["width"]))
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.empty(text["width"], projected))
        self.logit_scale = nn.Parameter(torch.empty(()))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(1))


class Decoder(nn.Module):
    def __init__(self, width: int, reduced: int, projected: int, patch: int, refined: bool):
        super().__init__()
        self.film_mul = nn.Linear(projected, reduced)
        self.film_add = nn.Linear(projected, reduced)
        self.reduce = nn.Linear(width, reduced)  # in the files, and in no use
        self.reduces = nn.ModuleList(nn.Linear(width, reduced) for _ in range(3))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(reduced, nhead=4, dim_feedforward=40) for _ in range(3)
        )
        if refined:
            self.trans_conv = nn.Sequential(
                nn.Conv2d(reduced, reduced, 3, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(reduced, reduced // 2, patch // 4, patch // 4),
                nn.ReLU(),
                nn.ConvTranspose2d(reduced // 2, 1, patch // 4, patch // 4),
            )
        else:
            self.trans_conv = nn.ConvTranspose2d(reduced, 1, patch, patch)


def drawn(module: nn.Module, seed: int) -> nn.Module:
    """The module with every parameter drawn, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            spread = 0.7 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.normal_(0, 0.5 if "embedding" in name else spread, generator=generator)
            if ("ln_" in name or "norm" in name) and name.endswith("weight"):
                parameter += 1
    return module.eval()


def through(block: Block, x, mask=None):
    """(T,B,D) -> (T,B,D)"""
    y = block.ln_1(x)
    x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
    hidden = block.mlp.c_fc(block.ln_2(x))
    return x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


def of_images(visual: Visual, pixels) -> list:
    """(B,3,H,W) -> the tokens after each layer, (T,B,D) each"""
    x = visual.conv1(pixels).flatten(2).permute(2, 0, 1)
    first = visual.class_embedding.expand(1, len(pixels), -1)
    x = torch.cat([first, x]) + visual.positional_embedding[:, None]
    x, outputs = visual.ln_pre(x), []
    for block in visual.transformer.resblocks:
        x = through(block, x)
        outputs.append(x)
    return outputs


def of_texts(clip: Clip, ids):
    """(P,T) -> (P,projected): each text at its highest id, which is its end"""
    x = (clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]).transpose(0, 1)
    mask = torch.full((len(x), len(x)), -torch.inf, dtype=x.dtype).triu(1)
    for block in clip.transformer.resblocks:
        x = through(block, x, mask)
    return clip.ln_final(x)[ids.argmax(1), torch.arange(len(ids))] @ clip.text_projection


def of_image_prompts(clip: Clip, pixels):
    """(P,3,H,W) -> (P,projected)"""
    return clip.visual.ln_post(of_images(clip.visual, pixels)[-1][0]) @ clip.visual.proj


def logits(clip: Clip, decoder: Decoder, pixels, condition, layers, cond_layer, rev_activations):
    """(P,3,H,W), (P,projected) -> (P,H,W)"""
    outputs, x = of_images(clip.visual, pixels), 0
    # Collected as the layers run, with layer 0, which is then dropped.
    _, *tokens = [output for i, output in enumerate(outputs) if i in [0, *layers]]
    for i, y in enumerate(tokens if rev_activations else reversed(tokens)):
        x = decoder.reduces[i](y) + x
        if i == cond_layer:
            x = decoder.film_mul(condition) * x + decoder.film_add(condition)
        x = decoder.blocks[i](x)
    side = int((len(x) - 1) ** 0.5)
    return decoder.trans_conv(x[1:].permute(1, 2, 0).unflatten(2, (side, side)))[:, 0]
