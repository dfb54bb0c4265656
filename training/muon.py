"""The Muon optimizer: momentum whose matrix is made orthogonal before it is added.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the scale
that lets it share AdamW's learning rates: Liu et al., "Muon is scalable for LLM training", arXiv
2502.16982. torch.optim has one too; its products are in bfloat16, which takes a CPU without such
instructions twenty times as long as float32.
"""

import torch
import torch.distributed as dist

STEPS = 5
# The coefficients of x -> A x + B x x'x + C x x'x x'x, which drives singular values towards one.
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """For the matrices of hidden layers; the others are AdamW's."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            # By shape, so that matrices of one shape go through one product.
            by_shape = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(mean, group["momentum"])
                by_shape.setdefault(tuple(sorted(p.shape)), []).append((p, update))
            for (small, large), pairs in by_shape.items():
                x = orthogonal_by_all(
                    torch.stack([u if len(u) == small else u.T for _, u in pairs])
                )
                for (p, _), update in zip(pairs, x, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    step = update if len(p) == small else update.T
                    p.add_(step, alpha=-0.2 * large**0.5 * group["lr"])


def orthogonal_by_all(x):
    """`orthogonal`; each process of the run computes its share."""
    if not dist.is_initialized():
        return orthogonal(x)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    whole = torch.zeros_like(x)
    whole[mine] = orthogonal(x[mine])
    dist.all_reduce(whole)
    return whole


def orthogonal(x):
    """Matrices (n,small,large) with singular values near one, by Newton and Schulz's iteration."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        y = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(y, y, y, beta=B, alpha=C), x, beta=A)
    return x
