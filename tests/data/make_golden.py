"""Make this folder's checkpoints and golden traces with transformers (extra "oracle").

    python -m tests.data.make_golden

Two small checkpoints with every parameter drawn: `plain/` (one channel, patches of 16, quick_gelu,
the old way of pooling, FiLM at the first decoder layer) and `refined/` (three channels, the refined
head on patches of 8, gelu, an end token of its own, unsorted extract_layers, FiLM at the second).
Beside each, one file for each case: the inputs, every output, and what every module returned, in
float64, under "input/NAME", "output/NAME" and "module/CALL/NAME", where CALL counts the calls of
one module. Equal arrays are stored once: the file's metadata tells where each name's array is, and
holds the versions and the name of the model.

The same versions write the same bytes. `tests/data/test_transformers_golden.py` reads the files
without torch.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from ..oracle.reference import reference_model

FOLDER = Path(__file__).parent
EVERYTHING = {"output_attentions": True, "output_hidden_states": True}

# Modules of the reference that are no layers here: activations, and a table that is read without
# being called.
NO_LAYERS = (
    "activation_fn",
    "vision_model.embeddings.position_embedding",
    "transposed_convolution.1",
    "transposed_convolution.3",
)

TOWER = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}
TEXT = {**TOWER, "vocab_size": 24, "max_position_embeddings": 7, "num_hidden_layers": 2}
TEXT |= {"bos_token_id": 22, "pad_token_id": 1}

CONFIGS = {
    "plain": {
        "text_config": {**TEXT, "hidden_act": "quick_gelu", "eos_token_id": 2},
        "vision_config": {
            **TOWER,
            "num_channels": 1,
            "num_hidden_layers": 3,
            "patch_size": 16,
            "image_size": 32,
            "hidden_act": "quick_gelu",
        },
        "projection_dim": 20,
        "extract_layers": [0, 1],
        "conditional_layer": 0,
        "reduce_dim": 16,
        "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 20,
        "use_complex_transposed_convolution": False,
    },
    "refined": {
        "text_config": {**TEXT, "num_hidden_layers": 1, "hidden_act": "gelu", "eos_token_id": 23},
        "vision_config": {
            **TOWER,
            "num_hidden_layers": 2,
            "patch_size": 8,
            "image_size": 18,
            "hidden_act": "gelu",
        },
        "projection_dim": 18,
        "extract_layers": [1, 0],
        "conditional_layer": 1,
        "reduce_dim": 16,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 20,
        "use_complex_transposed_convolution": True,
    },
}


def draw_cases() -> list[tuple[str, str, str, dict]]:
    """Checkpoint, the case's name, the model's dotted name in the checkpoint, and its inputs."""
    rng = np.random.default_rng(20211218)

    def images(*shape):
        return rng.normal(size=shape).astype(np.float32)

    ids = np.array([[22, 3, 23, 1, 1], [22, 17, 4, 6, 23]])
    text = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    labels = rng.uniform(size=(2, 32, 32)).astype(np.float32)
    squares = images(2, 1, 32, 32)
    prompts = images(2, 3, 16, 16)
    return [
        ("plain", "text", "", {**text, "pixel_values": squares, "labels": labels}),
        ("plain", "clip", "clip", {**text, "pixel_values": squares}),
        ("refined", "tall_image", "clip.vision_model", {"pixel_values": images(1, 3, 24, 16)}),
        ("refined", "text", "", {**text, "pixel_values": prompts}),
        (
            "refined",
            "image_prompts",
            "",
            {"pixel_values": images(2, 3, 24, 24), "conditional_pixel_values": prompts},
        ),
    ]


def flatten(output, name: str = "") -> dict[str, torch.Tensor]:
    """A record's tensors by dotted name."""
    if output is None:
        return {}
    if isinstance(output, torch.Tensor):
        return {name: output}
    items = enumerate(output) if isinstance(output, tuple) else output.items()
    found = {}
    for key, value in items:
        found |= flatten(value, f"{name}.{key}" if name else str(key))
    return found


def recorded(model: CLIPSegForImageSegmentation, part: str, inputs: dict):
    """The outputs of the model's `part`, and (name, tensor) of each module, in order.

    For "clip" the outputs alone: its modules return what they return in the whole model.
    """
    calls = []

    def watch(name):
        def hook(module, arguments, output):
            if isinstance(output, tuple):  # an attention returns its weights too
                output = output[0]
            if isinstance(output, torch.Tensor):
                calls.append((name, output))

        return hook

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if name and not name.endswith(NO_LAYERS)
    ]
    arguments = {
        name: torch.from_numpy(array.astype(np.float64) if array.dtype == np.float32 else array)
        for name, array in inputs.items()
    }
    options = {"return_loss": True} if part == "clip" else EVERYTHING
    with torch.no_grad():
        outputs = flatten(model.get_submodule(part)(**arguments, **options))
    for hook in hooks:
        hook.remove()
    return outputs, [] if part == "clip" else calls


def write_case(model, checkpoint: str, case: str, part: str, inputs: dict) -> None:
    outputs, calls = recorded(model, part, inputs)
    arrays = {f"input/{name}": array for name, array in inputs.items()}
    arrays |= {f"output/{name}": tensor.numpy() for name, tensor in outputs.items()}
    seen: dict[str, int] = {}
    for name, tensor in calls:
        arrays[f"module/{seen.get(name, 0)}/{name}"] = tensor.numpy()
        seen[name] = seen.get(name, 0) + 1

    place_of, number_of, stored = {}, {}, {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array).reshape(array.shape)
        number = number_of.setdefault((array.shape, array.tobytes()), len(number_of))
        place_of[name] = str(number)
        stored[str(number)] = array
    about = {
        "model": part,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "place_of": place_of,
    }
    path = FOLDER / checkpoint / f"{case}.golden"
    save_file(stored, path, metadata={"golden": json.dumps(about)})


def main() -> None:
    torch.set_num_threads(1)
    models = {}
    for seed, (name, values) in enumerate(CONFIGS.items()):
        model = reference_model(CLIPSegConfig(**values), seed)
        model.save_pretrained(FOLDER / name)
        models[name] = model.double()
    for checkpoint, case, part, inputs in draw_cases():
        write_case(models[checkpoint], checkpoint, case, part, inputs)


if __name__ == "__main__":
    main()
