"""One pass over a batch: the loss and its gradients. Threads share out the prompts.

The towers are frozen: a pass begins with the tokens that they made, and with embeddings.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from ..backends.threads import evenly
from ..model.clipseg import Decoder
from ..nn import gradients
from ..nn.learning import learning
from ..nn.ops import Array, Ops

# The backend, logits and labels (P,H,W) -> the mean of the prompts' losses, and d_logits
Loss = Callable[[Ops, Array, Array], tuple[Array, Array]]
# A pixel with this logit has the probability 0, and no gradient.
CERTAIN = -1e4


def cross_entropy_and_dice(
    ops: Ops, logits: Array, labels: Array, pos_weight: float = 1
) -> tuple[Array, Array]:
    """The sum of both. A label of 1 counts `pos_weight` times in the cross-entropy."""
    loss = ops.binary_cross_entropy(logits, labels, pos_weight) + ops.dice(logits, labels)
    d_logits = gradients.binary_cross_entropy(ops, logits, labels, pos_weight)
    return loss, d_logits + gradients.dice(ops, logits, labels)


def focal_and_dice(ops: Ops, logits: Array, labels: Array, gamma: float = 2) -> tuple[Array, Array]:
    """The sum of both."""
    loss = ops.focal(logits, labels, gamma) + ops.dice(logits, labels)
    d_logits = gradients.focal(ops, logits, labels, gamma)
    return loss, d_logits + gradients.dice(ops, logits, labels)


@dataclass
class Pass:
    """A batch's loss, and its derivatives by the arrays that learn and by the embeddings."""

    loss: float
    gradients: dict[str, Array]  # by the arrays' names in the checkpoint
    d_embeddings: Array  # (P,projection_dim)


def one_pass(
    decoder: Decoder,
    tokens: Sequence[Array],
    embeddings: Array,
    labels: Array,
    grid: tuple[int, int],
    *,
    is_reduced: bool,
    learns: Callable[[str], bool] = lambda name: True,
    loss: Loss = cross_entropy_and_dice,
) -> Pass:
    """The decoder's pass over P prompts, forward and back.

    `tokens` are (B,1+hw,D) for each layer, with B = P or 1, in any float type: as `decoder.reduce`
    returns them if `is_reduced`, and as it takes them otherwise. `embeddings` are
    (P,projection_dim), `labels` (P,H,W), from 0 to 1; a pixel whose label is NaN is ignored: it
    counts as marked rightly. `learns` is true for the names of the decoder's arrays whose gradients
    are wanted. A pass repeats bit for bit with as many threads.
    """
    ops, xp, P = decoder.ops, decoder.ops.xp, len(embeddings)

    def some_prompts(prompts: slice) -> Pass:
        own = tokens if len(tokens[0]) == 1 else [layer[prompts] for layer in tokens]
        own = [layer.astype(embeddings.dtype, copy=False) for layer in own]
        reduced, known = own if is_reduced else decoder.reduce(own), labels[prompts]
        ignored = xp.isnan(known)
        with learning(learns) as found:
            logits = decoder(reduced, embeddings[prompts], grid).logits
            logits = xp.where(ignored, xp.asarray(CERTAIN, logits.dtype), logits)
            value, d_logits = loss(ops, logits, xp.where(ignored, xp.zeros_like(known), known))
            share = len(logits) / P
            d_reduced, d_embeddings = decoder.propagate(d_logits * share)
            if not is_reduced:
                decoder.learn_reduces(d_reduced, own)
        return Pass(float(value) * share, dict(found), d_embeddings)

    count = -(-P // (ops.prompts_per_slice * ops.workers)) * ops.workers
    parts = evenly(P, min(P, count))
    return joined(ops, ops.parallel_for([partial(some_prompts, part) for part in parts]))


def joined(ops: Ops, passes: Iterable[Pass]) -> Pass:
    """The sum over passes of consecutive prompts, in order."""
    loss, gradients, d_embeddings = 0.0, {}, []
    for one in passes:
        loss += one.loss
        d_embeddings.append(one.d_embeddings)
        for name, gradient in one.gradients.items():
            gradients[name] = gradients.get(name, 0) + gradient
    return Pass(loss, gradients, ops.xp.concatenate(d_embeddings))
