"""The losses. All but the first two stand in for CLIP's pre-training; their heads are thrown away.

- the masks: cross-entropy of each pixel, and soft Dice of each mask, empty ones included;
- each patch token, of the deeper extracted layers, tells size, surface, colour and shape of what covers the patch;
- each phrase's embedding tells which attributes the phrase names;
- a patch token, projected as the class token is, has a high cosine with the embeddings of the phrases that fit there;
- a picture prompt's embedding is that of the phrase it stands for, and the decoder gets mixtures of the two.
"""

from __future__ import annotations

import torch
from batches import MEAN, NAMES, STD
from model import PATCH, decode, embed, encode
from phrases import ATTRIBUTES
from torch import nn
from torch.nn import functional as F

WEIGHTS = {"bce": 3.0, "dice": 1.0, "phrase": 0.3, "align": 1.0, "match": 0.3}


class Auxiliary(nn.Module):
    """The heads of the auxiliary losses."""

    def __init__(self, config):
        super().__init__()
        counts = [len(values) + 1 for values in ATTRIBUTES.values()]
        width = config.vision_config.hidden_size
        self.patch = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, n) for n in counts) for _ in config.extract_layers[1:]
        )
        self.phrase = nn.ModuleList(nn.Linear(config.projection_dim, n) for n in counts)
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-4.0))


def prepare(batch, side, device):
    """A batch of uint8 arrays -> normalised pictures and soft masks at `side`, on the device."""
    batch = {name: array.to(device, non_blocking=True) for name, array in batch.items()}
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)
    for name in ("images", "crops"):
        batch[name] = (batch[name].float() / 255 - mean) / std
    batch["masks"] = batch["masks"].float() / 255
    if side != batch["images"].shape[-1]:
        for name in ("images", "crops"):
            if len(batch[name]):
                batch[name] = F.interpolate(
                    batch[name], size=(side, side), mode="bilinear", antialias=True
                )
        batch["masks"] = F.interpolate(batch["masks"], size=(side, side), mode="area")
    batch["targets"] = torch.einsum("bpk,bkhw->bphw", batch["fits"], batch["masks"])
    return batch


def soft_cross_entropy(logits, shares):
    """Cross-entropy against shares that sum to one, over the last axis."""
    return -(shares * logits.float().log_softmax(-1)).sum(-1)


def losses(model, auxiliary, batch) -> dict:
    """Each loss by name, not yet weighted."""
    targets, crops = batch["targets"], len(batch["crops"])
    scenes, prompts = targets.shape[:2]
    activations, projected = encode(model, batch["images"])
    text = embed(model, batch["ids"]).float().view(scenes, prompts, -1)
    conditional = text
    found = {}
    if crops:
        picture = encode(model, batch["crops"])[1][:, 0].float()
        wanted = text[:crops, 0]
        found["match"] = (1 - F.cosine_similarity(picture, wanted.detach())).mean()
        found["match"] = found["match"] + F.mse_loss(picture, wanted.detach())
        share = torch.rand(crops, 1, device=picture.device) * 1.5
        share = share.clamp(max=1)
        mixed = share * picture + (1 - share) * wanted
        first = torch.cat([mixed, text[crops:, 0]])
        conditional = torch.cat([first[:, None], text[:, 1:]], 1)
    logits = decode(model.decoder, activations, conditional).float()

    flat = targets.flatten(0, 1)
    found["bce"] = F.binary_cross_entropy_with_logits(logits, flat)
    p = logits.sigmoid()
    smooth = logits.shape[-1] ** 2 / 1000
    both, either = (p * flat).sum((1, 2)), (p + flat).sum((1, 2))
    found["dice"] = (1 - (2 * both + smooth) / (either + smooth)).mean()

    # What covers each patch: shares of the things, and of the background.
    covers = F.avg_pool2d(batch["masks"], PATCH).flatten(2).transpose(1, 2)  # (B,N,K)
    background = (1 - covers.sum(-1, keepdim=True)).clamp(min=0)
    near = 0
    weight = 0.15 + (1 - background[..., 0])  # most patches are background
    for i, name in enumerate(NAMES):
        kinds = F.one_hot(batch["kinds"][..., i], len(ATTRIBUTES[name]) + 1).float()
        shares = torch.einsum("bnk,bkc->bnc", covers, kinds)
        shares[..., :1] += background
        for heads, tokens in zip(auxiliary.patch, activations[1:], strict=True):
            wrong = soft_cross_entropy(heads[i](tokens[:, 1:]), shares)
            near = near + (weight * wrong).mean()
    found["patch"] = near / weight.mean() / len(NAMES) / len(auxiliary.patch)

    said = 0
    for i in range(len(NAMES)):
        guess = auxiliary.phrase[i](text).float().flatten(0, 1)
        said = said + F.cross_entropy(guess, batch["asked"][..., i].flatten())
        if crops and NAMES[i] in ("colour", "shape"):
            guess = auxiliary.phrase[i](picture).float()
            found["match"] = found["match"] + F.cross_entropy(guess, batch["asked"][:crops, 0, i])
    found["phrase"] = said / len(NAMES)

    cosine = torch.einsum(
        "bne,bpe->bpn", F.normalize(projected[:, 1:].float(), dim=-1), F.normalize(text, dim=-1)
    )
    aligned = auxiliary.scale.exp() * cosine + auxiliary.bias
    share = F.avg_pool2d(targets, PATCH).flatten(2).clamp(0, 1)
    found["align"] = F.binary_cross_entropy_with_logits(aligned, share)
    return found
