"""The losses. All but the first replace CLIP's pre-training; their heads are thrown away.

- the masks: cross-entropy of each pixel, and soft Dice of each mask, empty ones included;
- each patch token of the deeper extracted layers predicts size, surface, color and shape of the
  thing that covers the patch;
- each patch token of the shallower ones predicts the patch's pixels that belong to a thing; in the
  middle, also this thing's center and size: without it, shapes are not learned for a long time;
- each phrase's embedding predicts the attributes that the phrase names;
- a patch token, projected as the class token is, has a high cosine with the embeddings of the
  phrases that fit there;
- an image prompt's embedding is that of the phrase it stands for; the decoder gets mixtures of
  both.
"""

from __future__ import annotations

from pathlib import Path

import torch
from model import SIDE, by_patches, decode, embed, encode, reaching, taken
from phrases import ATTRIBUTES, COLORS, HELD_OUT, SHAPES
from pool import MEAN, NAMES, STD
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

WEIGHTS = {
    "bce": 3.0,
    "dice": 1.0,
    "patch": 2.0,
    "edge": 1.0,
    "place": 0.25,
    "phrase": 0.3,
    "align": 1.0,
    "match": 0.3,
}
# The share of a loss's gradient that reaches the towers. At 1 these gradients are two to three
# times as long as the patches', and all noise: their mean over six batches is no longer than that
# of six unrelated vectors, and the towers learn next to nothing.
MASKS_REACH, MATCH_REACH = 0.15, 0.05
# 1 where the pair is kept out of training.
NEVER = torch.zeros(len(COLORS) + 1, len(SHAPES) + 1)
for color, shape in HELD_OUT:
    NEVER[1 + COLORS.index(color), 1 + SHAPES.index(shape)] = 1


class Auxiliary(nn.Module):
    """The heads of the auxiliary losses."""

    def __init__(self, config):
        super().__init__()
        counts = [len(values) + 1 for values in ATTRIBUTES.values()]
        width = config.vision_config.hidden_size
        self.patch = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, n) for n in counts) for _ in config.extract_layers[1:]
        )
        self.edge = nn.ModuleList(
            nn.Linear(width, config.vision_config.patch_size**2) for _ in config.extract_layers[:-1]
        )
        self.place = nn.Linear(width, 4)
        self.phrase = nn.ModuleList(nn.Linear(config.projection_dim, n) for n in counts)
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-4.0))


def heads_file(checkpoint: Path) -> Path:
    """The file with the heads of a checkpoint's training, beside its folder."""
    return checkpoint.with_name(checkpoint.name + "_heads.safetensors")


def save_heads(auxiliary: Auxiliary, checkpoint: Path) -> None:
    """Save the heads in float16, for a run that goes on from the checkpoint."""
    half = {k: v.detach().cpu().half() for k, v in auxiliary.state_dict().items()}
    save_file(half, heads_file(checkpoint))


def start_from(checkpoint: Path, model, auxiliary: Auxiliary) -> None:
    """Take the weights of a checkpoint and the heads of its training."""
    for part, file in (
        (model, checkpoint / "model.safetensors"),
        (auxiliary, heads_file(checkpoint)),
    ):
        part.load_state_dict(load_file(file))


def prepare(batch, device, tokens: int | None):
    """A batch of uint8 arrays -> normalized images, and the masks of `tokens` patches, or of all.

    Adds "keep", (B,K), the patches of most interest; "masks" becomes (B,things,K,pixels), and
    "covers" (B,K,things), each thing's share of a patch.
    """
    batch = {name: array.to(device, non_blocking=True) for name, array in batch.items()}
    mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
    std = torch.tensor(STD, device=device).view(3, 1, 1)
    for name in ("images", "crops"):
        batch[name] = (batch[name].float() / 255 - mean) / std
    masks = by_patches(batch["masks"].float() / 255).transpose(1, 2)  # (B,N,things,pixels)
    covers = masks.mean(-1)
    batch["places"] = places(covers)
    batch["keep"] = None
    if tokens is not None:
        there = (covers.sum(-1) > 0).float()
        grid = round(there.shape[1] ** 0.5)
        near = F.max_pool2d(there.view(-1, 1, grid, grid), 3, 1, 1).flatten(1)
        # Things first, then the patches around them, then others; the noise lets some of each in.
        worth = 2 * there + near + 1.5 * torch.rand_like(near)
        batch["keep"] = worth.topk(tokens, 1).indices
    for name, values in (("masks", masks), ("covers", covers), ("places", batch["places"])):
        batch[name] = taken(values, batch["keep"])
    batch["masks"] = batch["masks"].transpose(1, 2)
    batch["targets"] = torch.einsum("bpk,bknd->bpnd", batch["fits"], batch["masks"])
    return batch


def places(covers):
    """(B,N,things) -> (B,N,5), five numbers of the thing that covers most of a patch.

    The distance of its center, rows and columns in units of its spread; the logarithm of the
    spread; that of its area in spreads; its share of the patch.
    """
    grid = round(covers.shape[1] ** 0.5)
    line = torch.arange(grid, device=covers.device, dtype=covers.dtype)
    place = torch.cartesian_prod(line, line)  # (N,2)
    area = covers.sum(1) + 1e-4
    center = torch.einsum("bnk,nd->bkd", covers, place) / area[..., None]
    far = place[None, :, None] - center[:, None]  # (B,N,things,2)
    spread = (covers * far.square().sum(-1)).sum(1) / area
    spread = spread.clamp(min=0.1).sqrt()
    own = torch.cat(
        [
            far / spread[:, None, :, None],
            spread.log()[:, None, :, None].expand_as(far[..., :1]),
            (area / spread**2).log().clamp(min=-3)[:, None, :, None].expand_as(far[..., :1]),
            covers[..., None],
        ],
        -1,
    )
    most = covers.argmax(-1)[..., None, None].expand(-1, -1, 1, 5)
    return own.gather(2, most)[:, :, 0]


def excused(logits, colors):
    """The shapes' logits, with -30 for shapes that never have these colors: nothing is learned."""
    return logits.masked_fill(NEVER.to(logits.device)[colors] > 0, -30)


def soft_cross_entropy(logits, shares):
    """Cross-entropy against shares that sum to one, over the last axis."""
    return -(shares * logits.float().log_softmax(-1)).sum(-1)


def patch_loss(auxiliary, activations, batch):
    """The cross-entropy of the attributes in each patch: shares of the things and background."""
    covers, kinds = batch["covers"], batch["kinds"]
    background = (1 - covers.sum(-1)).clamp(min=0)
    weight = 0.15 + (1 - background)  # most patches are background
    never = NEVER.to(covers.device)[kinds[..., NAMES.index("color")]]  # (B,things,shapes)
    never = torch.einsum("bnk,bkc->bnc", covers, never) > 0
    loss = 0
    for i, name in enumerate(NAMES):
        one_hot = F.one_hot(kinds[..., i], len(ATTRIBUTES[name]) + 1).float()
        shares = torch.einsum("bnk,bkc->bnc", covers, one_hot)
        shares[..., 0] += background
        for heads, tokens in zip(auxiliary.patch, activations[1:], strict=True):
            logits = heads[i](tokens[:, 1:]).float()
            if name == "shape":
                # Nothing is learned about a shape that is never seen in this color.
                logits = logits.masked_fill(never & (shares == 0), -30)
            loss = loss + (weight * soft_cross_entropy(logits, shares)).mean()
    return loss / weight.mean() / len(NAMES) / len(auxiliary.patch)


def place_loss(auxiliary, tokens, batch):
    """The error of the thing's center and size."""
    *place, share = batch["places"].unbind(-1)
    wrong = F.smooth_l1_loss(
        auxiliary.place(tokens[:, 1:]).float(), torch.stack(place, -1), reduction="none"
    )
    return (wrong.mean(-1) * share).sum() / share.sum()


def mask_losses(logits, batch) -> dict:
    """Cross-entropy and soft Dice of (B,P,K,pixels), except where `undecided` excuses a thing."""
    targets = batch["targets"]
    counts = 1 - torch.einsum("bpk,bknd->bpnd", batch["undecided"], batch["masks"]).clamp(0, 1)
    wrong = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid() * counts
    smooth = SIDE**2 / 1000
    both, either = (p * targets).sum((2, 3)), (p + targets).sum((2, 3))
    return {
        "bce": (wrong * counts).mean(),
        "dice": (1 - (2 * both + smooth) / (either + smooth)).mean(),
    }


def losses(model, auxiliary, batch, masks: bool) -> dict:
    """The losses by name, not yet weighted. `masks`: whether to compute those of the masks."""
    crops = len(batch["crops"])
    scenes, prompts = batch["fits"].shape[:2]
    activations, projected = encode(model, batch["images"], batch["keep"])
    text = embed(model, batch["ids"]).float().view(scenes, prompts, -1)
    conditional = text
    found = {}
    if crops:
        image = encode(model, batch["crops"], reach=MATCH_REACH)[1][:, 0].float()
        wanted = text[:crops, 0]
        found["match"] = (1 - F.cosine_similarity(image, wanted.detach())).mean()
        found["match"] = found["match"] + F.mse_loss(image, wanted.detach())
        share = torch.rand(crops, 1, device=image.device) * 1.5
        share = share.clamp(max=1)
        mixed = share * image + (1 - share) * wanted
        first = torch.cat([mixed, text[crops:, 0]])
        conditional = torch.cat([first[:, None], text[:, 1:]], 1)
    if masks:
        seen = [reaching(activation, MASKS_REACH) for activation in activations]
        logits = decode(model.decoder, seen, reaching(conditional, MASKS_REACH)).float()
        found |= mask_losses(logits, batch)

    found["patch"] = patch_loss(auxiliary, activations, batch)
    found["place"] = place_loss(auxiliary, activations[1], batch)
    things = batch["masks"].sum(1).clamp(max=1)
    found["edge"] = 0
    for head, tokens in zip(auxiliary.edge, activations[:-1], strict=True):
        found["edge"] += F.binary_cross_entropy_with_logits(head(tokens[:, 1:]).float(), things)

    found["phrase"] = 0
    for i, name in enumerate(NAMES):
        asked = batch["asked"][..., i]
        guess = auxiliary.phrase[i](text).float()
        found["phrase"] += F.cross_entropy(guess.flatten(0, 1), asked.flatten()) / len(NAMES)
        if crops and name in ("color", "shape"):
            guess = auxiliary.phrase[i](image).float()
            if name == "shape":
                guess = excused(guess, batch["asked"][:crops, 0, NAMES.index("color")])
            found["match"] = found["match"] + F.cross_entropy(guess, asked[:crops, 0])

    cosine = torch.einsum(
        "bne,bpe->bpn", F.normalize(projected[:, 1:].float(), dim=-1), F.normalize(text, dim=-1)
    )
    aligned = auxiliary.scale.exp() * cosine + auxiliary.bias
    decided = 1 - torch.einsum("bpk,bnk->bpn", batch["undecided"], batch["covers"]).clamp(0, 1)
    share = batch["targets"].mean(-1).clamp(0, 1)
    wrong = F.binary_cross_entropy_with_logits(aligned, share, reduction="none")
    found["align"] = (wrong * decided).mean()
    return found
