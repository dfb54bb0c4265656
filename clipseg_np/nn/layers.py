"""The layers that the towers and the decoder are built of.

A constructor takes its arrays, and builds its children, from a `Scope`: a place in the checkpoint.
`forward` is the formula and nothing else; `backward` stands beside it and, inside `learning()`,
computes the derivatives by its inputs and arrays. A trace, `learning()` and a fast backend come in
by `Layer.__call__`.
The reference has one class for each of these in every model; here there is one for all.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from . import gradients
from .learning import collecting, current, is_learning
from .ops import Array, join_heads, split_heads
from .scope import Scope
from .trace import is_traced, record, trace


class Layer:
    """A dotted name, arithmetic, and `forward`, which a call runs by the backend or in a trace."""

    # A unit's backward computes again what its children were given, which keep nothing. That of
    # another layer calls its children's `propagate`.
    is_unit = True

    def __init__(self, scope: Scope):
        self.name = scope.name
        self.ops = scope.ops

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not is_learning():
            return self._run(*args, **kwargs)
        current().given.setdefault(self, []).append((args, kwargs))
        with collecting(None) if self.is_unit else nullcontext():
            return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, or the backend's function in its place where nobody watches the children."""
        if not is_traced() and not is_learning():
            return self.ops.run(self, *args, **kwargs)
        output = self.forward(*args, **kwargs)
        if is_traced():
            record(self.name, output)
        return output

    def propagate(self, d_y: Any) -> Any:
        """`backward` with what the layer's last call inside `learning()` was given."""
        args, kwargs = current().given[self].pop()
        return self.ops.run_backward(self, d_y, *args, **kwargs)

    def again(self) -> Any:
        """The output of the layer's last call inside `learning()`, computed once more, unseen."""
        args, kwargs = current().given[self][-1]
        with collecting(None), trace() if is_traced() else nullcontext():
            return self._run(*args, **kwargs)

    def learn(self, **derivatives: Callable[[], Array]) -> None:
        """Add to the gradients of this layer's arrays those that are asked for."""
        for name, derivative in derivatives.items():
            name = f"{self.name}.{name}" if self.name else name
            if current().learns(name):
                current().add(name, derivative())


class Linear(Layer):
    """x Wᵀ + b.  (..., in) -> (..., out)"""

    def __init__(self, scope: Scope, in_features: int, out_features: int, bias: bool = True):
        super().__init__(scope)
        self.weight = scope.take("weight", (out_features, in_features))
        self.bias = scope.take("bias", (out_features,)) if bias else None

    def forward(self, x: Array) -> Array:
        return self.ops.linear(x, self.weight, self.bias)

    def backward(self, d_y: Array, x: Array) -> Array:
        self.learn_from(d_y, x)
        return gradients.linear(d_y, self.weight)

    def learn_from(self, d_y: Array, x: Array) -> None:
        """`backward` without the derivative by x."""
        self.learn(weight=lambda: gradients.linear_weight(d_y, x))
        if self.bias is not None:
            self.learn(bias=lambda: gradients.sum_rows(d_y))


class PatchEmbedding(Layer):
    """A vector for each patch: a convolution whose stride is its kernel.  (B,C,H,W) -> (B,D,h,w)"""

    def __init__(self, scope: Scope, in_channels: int, out_channels: int, patch_size: int):
        super().__init__(scope)
        self.weight = scope.take("weight", (out_channels, in_channels, patch_size, patch_size))

    def forward(self, pixel_values: Array) -> Array:
        return self.ops.patch_conv2d(pixel_values, self.weight)

    def backward(self, d_y: Array, pixel_values: Array) -> Array:
        shape = self.weight.shape
        self.learn(weight=lambda: gradients.patch_conv2d_weight(d_y, pixel_values, shape))
        return gradients.patch_conv2d(self.ops, d_y, self.weight, pixel_values.shape)


class Conv2d(Layer):
    """A convolution that keeps the size.  (B,C,h,w) -> (B,D,h,w)"""

    def __init__(self, scope: Scope, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(scope)
        self.weight = scope.take("weight", (out_channels, in_channels, kernel_size, kernel_size))
        self.bias = scope.take("bias", (out_channels,))

    def forward(self, x: Array) -> Array:
        return self.ops.conv2d(x, self.weight, self.bias)

    def backward(self, d_y: Array, x: Array) -> Array:
        self.learn(weight=lambda: gradients.conv2d_weight(self.ops, d_y, x, self.weight.shape))
        self.learn(bias=lambda: gradients.sum_cells(d_y))
        return gradients.conv2d(self.ops, d_y, self.weight)


class ConvTranspose2d(Layer):
    """A transposed convolution with stride = kernel.  (B,C,h,w) -> (B,D,hp,wp)"""

    def __init__(self, scope: Scope, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(scope)
        self.weight = scope.take("weight", (in_channels, out_channels, kernel_size, kernel_size))
        self.bias = scope.take("bias", (out_channels,))

    def forward(self, x: Array) -> Array:
        return self.ops.conv_transpose2d(x, self.weight, self.bias)

    def backward(self, d_y: Array, x: Array) -> Array:
        self.learn(weight=lambda: gradients.conv_transpose2d_weight(d_y, x, self.weight.shape))
        self.learn(bias=lambda: gradients.sum_cells(d_y))
        return gradients.conv_transpose2d(self.ops, d_y, self.weight)


class LayerNorm(Layer):
    """(..., D) -> (..., D)"""

    def __init__(self, scope: Scope, hidden_size: int, eps: float):
        super().__init__(scope)
        self.eps = eps
        self.weight = scope.take("weight", (hidden_size,))
        self.bias = scope.take("bias", (hidden_size,))

    def forward(self, x: Array) -> Array:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)

    def backward(self, d_y: Array, x: Array) -> Array:
        self.learn(weight=lambda: gradients.layer_norm_weight(d_y, x, self.eps))
        self.learn(bias=lambda: gradients.sum_rows(d_y))
        return gradients.layer_norm(d_y, x, self.weight, self.eps)


class Embedding(Layer):
    """A table of vectors, one for each id.  (...) -> (..., D)"""

    def __init__(self, scope: Scope, num_embeddings: int, embedding_dim: int):
        super().__init__(scope)
        self.weight = scope.take("weight", (num_embeddings, embedding_dim))

    def forward(self, ids: Array) -> Array:
        return self.weight[ids]

    def backward(self, d_y: Array, ids: Array) -> None:
        self.learn(weight=lambda: gradients.embedding(self.ops, d_y, ids, len(self.weight)))


class Attention(Layer):
    """Multi-head self-attention.  (B,T,D) -> (B,T,D)"""

    def __init__(self, scope: Scope, hidden_size: int, num_heads: int):
        super().__init__(scope)
        self.num_heads = num_heads
        self.q_proj = Linear(scope / "q_proj", hidden_size, hidden_size)
        self.k_proj = Linear(scope / "k_proj", hidden_size, hidden_size)
        self.v_proj = Linear(scope / "v_proj", hidden_size, hidden_size)
        self.out_proj = Linear(scope / "out_proj", hidden_size, hidden_size)

    def forward(self, x: Array, mask: Array | None = None, attentions: list | None = None) -> Array:
        # (B,T,D) -> (B,N,T,d) each
        query = split_heads(self.q_proj(x), self.num_heads)
        key = split_heads(self.k_proj(x), self.num_heads)
        value = split_heads(self.v_proj(x), self.num_heads)
        context = self.ops.attention(query, key, value, mask, attentions)
        # (B,N,T,d) -> (B,T,D)
        return self.out_proj(join_heads(context))

    def backward(self, d_y: Array, x: Array, mask: Array | None = None, *_: Any) -> Array:
        projections = self.q_proj, self.k_proj, self.v_proj
        # (B,T,D) -> (B,N,T,d) each
        qkv = [split_heads(layer.forward(x), self.num_heads) for layer in projections]
        weights: list[Array] = []
        context = join_heads(self.ops.attention(*qkv, mask, weights))
        d_context = split_heads(self.out_proj.backward(d_y, context), self.num_heads)
        d_qkv = gradients.attention(d_context, *qkv, weights[0], mask)
        # (B,N,T,d) -> (B,T,D) each
        return sum(layer.backward(join_heads(d), x) for layer, d in zip(projections, d_qkv))


class MLP(Layer):
    """Two linear layers with an activation between.  (B,T,D) -> (B,T,D)"""

    def __init__(self, scope: Scope, hidden_size: int, intermediate_size: int, activation: str):
        super().__init__(scope)
        self.activation = activation
        self.fc1 = Linear(scope / "fc1", hidden_size, intermediate_size)
        self.fc2 = Linear(scope / "fc2", intermediate_size, hidden_size)

    def forward(self, x: Array) -> Array:
        return self.fc2(self.ops.activation(self.activation, self.fc1(x)))

    def backward(self, d_y: Array, x: Array) -> Array:
        hidden = self.fc1.forward(x)
        d_active = self.fc2.backward(d_y, self.ops.activation(self.activation, hidden))
        d_hidden = gradients.activation(self.ops, self.activation, d_active, hidden)
        return self.fc1.backward(d_hidden, x)


class _TransformerLayer(Layer):
    """The children of both kinds of transformer layer, which differ in the order of the norms."""

    is_unit = False

    def __init__(
        self, scope: Scope, D: int, num_heads: int, mlp_size: int, activation: str, eps: float
    ):
        super().__init__(scope)
        self.layer_norm1 = LayerNorm(scope / "layer_norm1", D, eps)
        self.self_attn = Attention(scope / "self_attn", D, num_heads)
        self.layer_norm2 = LayerNorm(scope / "layer_norm2", D, eps)
        self.mlp = MLP(scope / "mlp", D, mlp_size, activation)


class EncoderLayer(_TransformerLayer):
    """Pre-norm: each branch normalizes its input.  (B,T,D) -> (B,T,D)"""

    def forward(self, x: Array, mask: Array | None = None, attentions: list | None = None) -> Array:
        x = x + self.self_attn(self.layer_norm1(x), mask, attentions)
        return x + self.mlp(self.layer_norm2(x))

    def backward(self, d_y: Array, *_: Any) -> Array:
        d_y = d_y + self.layer_norm2.propagate(self.mlp.propagate(d_y))
        return d_y + self.layer_norm1.propagate(self.self_attn.propagate(d_y))


class DecoderLayer(_TransformerLayer):
    """Post-norm: each sum is normalized.  (B,T,D) -> (B,T,D)"""

    def forward(self, x: Array, attentions: list | None = None) -> Array:
        x = self.layer_norm1(x + self.self_attn(x, None, attentions))
        return self.layer_norm2(x + self.mlp(x))

    def backward(self, d_y: Array, *_: Any) -> Array:
        d_sum = self.layer_norm2.propagate(d_y)
        d_sum = self.layer_norm1.propagate(d_sum + self.mlp.propagate(d_sum))
        return d_sum + self.self_attn.propagate(d_sum)


class Encoder(Layer):
    """Pre-norm transformer layers.  (B,T,D) -> hidden states: the input and each layer's output"""

    is_unit = False

    def __init__(self, scope: Scope, config: Any):
        super().__init__(scope)
        sizes = config.hidden_size, config.num_attention_heads, config.intermediate_size
        arguments = *sizes, config.hidden_act, config.layer_norm_eps
        depth = range(config.num_hidden_layers)
        self.layers = [EncoderLayer(scope / "layers" / i, *arguments) for i in depth]

    def forward(
        self, x: Array, mask: Array = None, attentions: list | None = None, only: Sequence[int] = ()
    ) -> list[Array]:
        """With `only`, the outputs of these layers alone; the layers after them do not run."""
        hidden_states = {-1: x}
        for i, layer in enumerate(self.layers[: max(only) + 1] if only else self.layers):
            x = layer(x, mask, attentions)
            if not only or i in only:
                hidden_states[i] = x
        return [hidden_states[i] for i in only or hidden_states]

    def backward(
        self, d_outputs: Sequence, x: Array, mask=None, attentions=None, only: Sequence[int] = ()
    ) -> Array:
        """`d_outputs` are as many as `forward` returned; 0 for one that nothing depends on."""
        numbers, d_x = only or range(-1, len(self.layers)), self.ops.xp.zeros_like(x)
        for i in reversed(range(-1, max(numbers) + 1)):
            d_x = d_x + sum(d for number, d in zip(numbers, d_outputs) if number == i)
            d_x = d_x if i < 0 else self.layers[i].propagate(d_x)
        return d_x


class RefinedHead(Layer):
    """The head of "refined" checkpoints.  (P,D,h,w) -> (P,1,h(p//4)²,w(p//4)²): (P,1,H,W) if p = 16

    The steps have the checkpoint's numbers, which count the two relu between them.
    """

    def __init__(self, scope: Scope, width: int, patch_size: int):
        super().__init__(scope)
        self.steps = {
            0: Conv2d(scope / 0, width, width, kernel_size=3),
            2: ConvTranspose2d(scope / 2, width, width // 2, patch_size // 4),
            4: ConvTranspose2d(scope / 4, width // 2, 1, patch_size // 4),
        }

    def __getitem__(self, step: int) -> Layer:
        return self.steps[step]

    def forward(self, x: Array) -> Array:
        x = self.ops.relu(self[0](x))
        x = self.ops.relu(self[2](x))
        return self[4](x)

    def backward(self, d_y: Array, x: Array) -> Array:
        cells = self[0].forward(x)
        blocks = self[2].forward(self.ops.relu(cells))
        d_blocks = gradients.relu(self.ops, self[4].backward(d_y, self.ops.relu(blocks)), blocks)
        d_cells = self[2].backward(d_blocks, self.ops.relu(cells))
        return self[0].backward(gradients.relu(self.ops, d_cells, cells), x)
