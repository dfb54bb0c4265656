"""Attention without a mask, a few heads at a time, so that the scores stay in a CPU core's cache while training.

On a CPU in bfloat16 a training step takes most of its time in the decoder's softmax otherwise. The same function as
`softmax(q k^T / sqrt(d)) v`, forward and backward; on other devices torch's own is used.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

CACHE = 400_000  # scores at a time


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale):
        q = q * scale
        probabilities = q.new_empty(len(q), q.shape[1], q.shape[1])
        out = torch.empty_like(v)
        for part in _parts(q):
            p = torch.softmax(torch.bmm(q[part], k[part].transpose(1, 2)), -1)
            probabilities[part] = p
            torch.bmm(p, v[part], out=out[part])
        ctx.save_for_backward(q, k, v, out, probabilities)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, probabilities = ctx.saved_tensors
        grad = grad.contiguous()
        mean = (grad.float() * out.float()).sum(-1, keepdim=True)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for part in _parts(q):
            p, g = probabilities[part], grad[part]
            torch.bmm(p.transpose(1, 2), g, out=dv[part])
            # In float32: the difference is small beside its terms, and bfloat16 would keep mostly noise.
            scores = (
                torch.bmm(g, v[part].transpose(1, 2)).float().sub_(mean[part]).mul_(p).to(p.dtype)
            )
            torch.bmm(scores, k[part], out=dq[part])
            torch.bmm(scores.transpose(1, 2), q[part], out=dk[part])
        return dq * ctx.scale, dk, dv, None


def _parts(q):
    size = max(1, CACHE // q.shape[1] ** 2)
    return [slice(i, i + size) for i in range(0, len(q), size)]


def attention(module, query, key, value, attention_mask=None, scaling=None, **_):
    """(B,H,T,D/H) each -> (B,T,H,D/H), as transformers' attention functions."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None
    b, h, t, d = query.shape
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.reshape(b * h, t, d).to(value.dtype) for x in (query, key, value))
        out = _Attention.apply(q, k, v, scaling)
    return out.view(b, h, t, d).transpose(1, 2), None


AttentionInterface.register("fast", attention)
