"""The layers that the towers and the decoder are built of.

A constructor takes its arrays, and builds its children, from a `Scope`: a place in the checkpoint.
`forward` is the maths and nothing else; calling the layer runs it and lets a trace see what it returns.

Where the reference has one class for each of these in every model, there is one here for all.
"""

from typing import Any

from .ops import Array, joined_heads, split_heads
from .trace import is_traced, record
from .weights import Scope


class Layer:
    """Knows its dotted name and its arithmetic; calling it is `forward`, seen by a trace."""

    def __init__(self, at: Scope):
        self.name = at.name
        self.ops = at.ops

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.forward(*args, **kwargs)
        record(self.name, output)
        return output


class Linear(Layer):
    """x Wᵀ + b.  (..., in) -> (..., out)"""

    def __init__(self, at: Scope, inputs: int, outputs: int, bias: bool = True):
        super().__init__(at)
        self.weight = at.take("weight", (outputs, inputs))
        self.bias = at.take("bias", (outputs,)) if bias else None

    def forward(self, x: Array) -> Array:
        return self.ops.linear(x, self.weight, self.bias)


class LayerNorm(Layer):
    """(..., D) -> (..., D)"""

    def __init__(self, at: Scope, width: int, eps: float):
        super().__init__(at)
        self.eps = eps
        self.weight = at.take("weight", (width,))
        self.bias = at.take("bias", (width,))

    def forward(self, x: Array) -> Array:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)


class Embedding(Layer):
    """A table of vectors, looked up by number.  (...) -> (..., D)"""

    def __init__(self, at: Scope, rows: int, width: int):
        super().__init__(at)
        self.weight = at.take("weight", (rows, width))

    def forward(self, ids: Array) -> Array:
        return self.ops.embedding(ids, self.weight)


class Attention(Layer):
    """Multi-head self-attention.  (B,T,D) -> (B,T,D)"""

    def __init__(self, at: Scope, width: int, heads: int):
        super().__init__(at)
        self.heads = heads
        self.q_proj = Linear(at / "q_proj", width, width)
        self.k_proj = Linear(at / "k_proj", width, width)
        self.v_proj = Linear(at / "v_proj", width, width)
        self.out_proj = Linear(at / "out_proj", width, width)

    def forward(
        self, x: Array, allowed: Array | None = None, attentions: list | None = None
    ) -> Array:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if is_traced():  # and what each returns is to be seen
            query, key, value = (split_heads(layer(x), self.heads) for layer in projections)
            mixed = joined_heads(self.ops.attention(query, key, value, allowed, attentions))
        else:
            maps = [(layer.weight, layer.bias) for layer in projections]
            mixed = self.ops.multi_head_attention(x, maps, self.heads, allowed, attentions)
        return self.out_proj(mixed)


class MLP(Layer):
    """Two linear layers with an activation between.  (B,T,D) -> (B,T,D)"""

    def __init__(self, at: Scope, width: int, hidden: int, activation: str):
        super().__init__(at)
        self.activation = activation
        self.fc1 = Linear(at / "fc1", width, hidden)
        self.fc2 = Linear(at / "fc2", hidden, width)

    def forward(self, x: Array) -> Array:
        if is_traced():  # and what each returns is to be seen
            return self.fc2(self.ops.activation(self.activation, self.fc1(x)))
        widen, narrow = ((layer.weight, layer.bias) for layer in (self.fc1, self.fc2))
        return self.ops.mlp(x, widen, narrow, self.activation)


class _TransformerLayer(Layer):
    """What the two kinds of transformer layer share: their children, which differ only in their order."""

    def __init__(self, at: Scope, width: int, heads: int, hidden: int, activation: str, eps: float):
        super().__init__(at)
        self.layer_norm1 = LayerNorm(at / "layer_norm1", width, eps)
        self.self_attn = Attention(at / "self_attn", width, heads)
        self.layer_norm2 = LayerNorm(at / "layer_norm2", width, eps)
        self.mlp = MLP(at / "mlp", width, hidden, activation)


class EncoderLayer(_TransformerLayer):
    """Pre-norm: each branch normalises its input.  (B,T,D) -> (B,T,D)"""

    def forward(
        self, x: Array, allowed: Array | None = None, attentions: list | None = None
    ) -> Array:
        x = self.ops.residual(x, self.self_attn(self.layer_norm1(x), allowed, attentions))
        return self.ops.residual(x, self.mlp(self.layer_norm2(x)))


class DecoderLayer(_TransformerLayer):
    """Post-norm: each sum is normalised.  (B,T,D) -> (B,T,D)"""

    def forward(self, x: Array, attentions: list | None = None) -> Array:
        x = self.layer_norm1(self.ops.residual(x, self.self_attn(x, None, attentions)))
        return self.layer_norm2(self.ops.residual(x, self.mlp(x)))
