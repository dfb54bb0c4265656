"""Every gradient against PyTorch's autograd through transformers' own modules, in float64.

Each tower, CLIPSegModel and the decoder are compared by themselves, and then joined to the whole:
the reference's CLIPSegForImageSegmentation runs its towers under no_grad.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'oracle'")
pytest.importorskip("transformers", reason="needs the extra 'oracle'")

from transformers.activations import ACT2FN

import clipseg_np
from clipseg_np.nn.learning import learning

from .reference import ACTIVATIONS, draw_config, draw_ids, reference_model

pytestmark = pytest.mark.oracle

ARCHITECTURES = 60
LIMIT = 1e-12  # of the model's largest gradient; absolutely for k_proj.bias, whose gradient is 0


@pytest.fixture(params=range(ARCHITECTURES))
def drawn(request, tmp_path, monkeypatch):
    """A generator, and a drawn architecture as both models."""
    monkeypatch.setitem(ACT2FN, "selu", torch.nn.SELU)
    rng = np.random.default_rng([20, request.param])
    config = draw_config(rng, narrowest=2, activations=(*ACTIVATIONS, "selu"))
    theirs = reference_model(config, request.param, torch.float64, attention="sdpa")
    theirs.save_pretrained(tmp_path)
    load = clipseg_np.CLIPSegForImageSegmentation.from_pretrained
    return rng, load(tmp_path, backend="numpy-reference", dtype="float64"), theirs


def tensor(array):
    x = torch.from_numpy(array)
    return x.requires_grad_() if x.is_floating_point() else x


def weighted(rng, outputs: dict) -> tuple[dict, torch.Tensor]:
    """A drawn derivative for each of the reference's outputs, and the loss that has these."""
    d_y = {name: rng.normal(size=tuple(output.shape)) for name, output in outputs.items()}
    return d_y, sum((torch.from_numpy(d) * outputs[name]).sum() for name, d in d_y.items())


def assert_agree(found, theirs, place: str, inputs: dict, agreement, title: str) -> None:
    """The gradients of the reference's module at `place` and of its inputs, all of them."""
    start = f"{place}." if place else ""
    expected = {start + name: p.grad for name, p in theirs.named_parameters()}
    expected |= {name: x.grad for name, x in inputs.items() if x.is_floating_point()}
    expected = {name: grad.numpy() for name, grad in expected.items() if grad is not None}
    assert found.keys() == expected.keys()
    largest = max(np.abs(grad).max() for grad in expected.values())
    assert largest > 0
    deviations = {name: np.abs(found[name] - grad).max() for name, grad in expected.items()}
    size = {name: 1 if name.endswith("k_proj.bias") else largest for name in deviations}
    shares = {name: d / size[name] for name, d in deviations.items()}
    beyond = {name: f"{share:.1e}" for name, share in shares.items() if not share <= LIMIT}
    assert not beyond, f"allowed {LIMIT:.0e}, found {beyond}"
    agreement(f"gradients of {title}", max(d / largest for d in deviations.values()))


def drawn_images(rng, config, B, is_square=False):
    """Of any grid, most often not the learned one, perhaps with a margin that is not seen."""
    vision = config.vision_config
    grid = rng.integers(1, 6, 2)
    height, width = np.array([grid[0]] * 2 if is_square else grid) * vision.patch_size
    height, width = (height, width) + rng.integers(0, vision.patch_size, 2) * (not is_square)
    return rng.normal(size=(B, vision.num_channels, height, width))


def test_the_text_tower(drawn, agreement):
    rng, ours, theirs = drawn
    ours, theirs = ours.clip.text_model, theirs.clip.text_model
    ids, mask = draw_ids(rng, type("Config", (), {"text_config": theirs.config}), prompts=3)
    rest = {"attention_mask": mask} if rng.random() < 0.7 else {}
    if rng.random() < 0.3:
        rest["position_ids"] = rng.integers(0, theirs.config.max_position_embeddings, ids.shape)
    tensors = {name: torch.from_numpy(x) for name, x in rest.items()}
    output = theirs(torch.from_numpy(ids), output_hidden_states=True, **tensors)
    names = ["pooler_output"] if rng.random() < 0.5 else ["last_hidden_state", "pooler_output"]
    d_y, loss = weighted(rng, {name: output[name] for name in names})
    loss.backward()
    with learning() as found:
        ours(ids, **rest)
        ours.propagate(d_y)
    assert_agree(found, theirs, "clip.text_model", {}, agreement, "the text tower")


def test_the_vision_tower(drawn, agreement):
    rng, ours, theirs = drawn
    config = theirs.config
    ours, theirs = ours.clip.vision_model, theirs.clip.vision_model
    images = drawn_images(rng, config, B=int(rng.integers(1, 4)))
    inputs = {"pixel_values": tensor(images)}
    output = theirs(**inputs, interpolate_pos_encoding=True, output_hidden_states=True)
    states = {str(i): state for i, state in enumerate(output.hidden_states)}
    states = {i: state for i, state in states.items() if rng.random() < 0.5}
    d_y, loss = weighted(rng, {"pooler_output": output.pooler_output, **states})
    loss.backward()
    d_states = [d_y.get(str(i), 0) for i in range(len(output.hidden_states))]
    with learning() as found:
        ours(images)
        d_y = {"pooler_output": d_y["pooler_output"], "hidden_states": d_states}
        found["pixel_values"] = ours.propagate(d_y)
    assert_agree(found, theirs, "clip.vision_model", inputs, agreement, "the vision tower")


def test_clip_with_its_contrastive_loss(drawn, agreement):
    rng, ours, theirs = drawn
    config = theirs.config
    ours, theirs = ours.clip, theirs.clip
    B = int(rng.integers(2, 6))
    ids, mask = draw_ids(rng, config, prompts=B)
    images = drawn_images(rng, config, B)
    inputs = {"input_ids": tensor(ids), "pixel_values": tensor(images)}
    rest = {"attention_mask": torch.from_numpy(mask), "return_loss": True}
    output = theirs(**inputs, **rest, interpolate_pos_encoding=True)
    names = ["loss"]
    if rng.random() < 0.5:
        names = ["loss", "logits_per_image", "logits_per_text", "text_embeds", "image_embeds"]
    d_y, loss = weighted(rng, {name: output[name] for name in names})
    loss.backward()
    with learning() as found:
        ours(ids, images, mask, return_loss=True)
        found["pixel_values"] = ours.propagate(d_y)
    assert_agree(found, theirs, "clip", inputs, agreement, "CLIP with its contrastive loss")


def test_the_decoder(drawn, agreement):
    rng, ours, theirs = drawn
    config = theirs.config
    ours, theirs = ours.decoder, theirs.decoder
    P, side = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    shape = P, 1 + side**2, config.vision_config.hidden_size
    tokens = [rng.normal(size=shape) for _ in config.extract_layers]
    embeddings = rng.normal(size=(P, config.projection_dim))
    inputs = {f"tokens {i}": tensor(x) for i, x in enumerate(tokens)}
    inputs["embeddings"] = tensor(embeddings)
    logits = theirs(tuple(inputs.values())[:-1], inputs["embeddings"]).logits
    d_y, loss = weighted(rng, {"logits": logits.reshape(P, *logits.shape[-2:])})
    loss.backward()
    with learning() as found:
        ours(ours.reduce(tokens), embeddings, (side, side))
        d_reduced, found["embeddings"] = ours.propagate(d_y["logits"])
        found.update({f"tokens {i}": d for i, d in enumerate(ours.reduce_backward(d_reduced))})
    assert_agree(found, theirs, "decoder", inputs, agreement, "the decoder")


def test_the_whole(drawn, agreement):
    """Images and texts to the binary cross-entropy; an image may be shared by its prompts."""
    rng, ours, theirs = drawn
    P, config = int(rng.integers(1, 4)), theirs.config
    images = drawn_images(rng, config, B=int(rng.choice([1, P])), is_square=True)
    ids, mask = draw_ids(rng, config, prompts=P)
    inputs = {"pixel_values": tensor(images), "input_ids": tensor(ids)}
    clip = theirs.clip
    vision = clip.vision_model(
        inputs["pixel_values"], interpolate_pos_encoding=True, output_hidden_states=True
    )
    text = clip.text_model(inputs["input_ids"], torch.from_numpy(mask))
    embeddings = clip.text_projection(text.pooler_output)
    tokens = tuple(vision.hidden_states[i + 1] for i in config.extract_layers)
    tokens = tuple(x.expand(P, *x.shape[1:]) for x in tokens)
    logits = theirs.decoder(tokens, embeddings).logits
    logits = logits.reshape(P, *logits.shape[-2:])
    labels = rng.uniform(size=logits.shape)
    outputs = {
        "loss": torch.nn.functional.binary_cross_entropy_with_logits(logits, tensor(labels)),
        "conditional_embeddings": embeddings,
        "pooled_output": clip.visual_projection(vision.pooler_output),
    }
    outputs = dict(list(outputs.items())[: int(rng.choice([1, 3]))])
    d_y, loss = weighted(rng, outputs)
    loss.backward()
    # The layers that nothing depends on have a gradient of 0 here, and none there.
    used = {name for name, p in theirs.named_parameters() if p.grad is not None}
    with learning(used.__contains__) as found:
        ours(ids, images, attention_mask=mask, labels=labels)
        found["pixel_values"], _ = ours.propagate(d_y)
    assert_agree(found, theirs, "", inputs, agreement, "the whole model")


def test_the_losses(agreement):
    ours = clipseg_np.nn.ops.Ops()
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(3, 5, 6)), rng.uniform(size=(3, 5, 6)).round()
    for weight in (1.0, 4.0):
        x = tensor(logits.copy())
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            x, torch.from_numpy(labels), pos_weight=torch.tensor(weight)
        )
        loss.backward()
        assert abs(ours.binary_cross_entropy(logits, labels, weight) - loss.item()) < LIMIT
        found = clipseg_np.nn.gradients.binary_cross_entropy(ours, logits, labels, weight)
        assert np.abs(found - x.grad.numpy()).max() <= LIMIT * np.abs(found).max()
