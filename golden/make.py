"""Write the small golden files of this folder, which a port begins with.

They hold two tiny architectures with three kinds of prompt, in float64:

    python golden/make.py

The checkpoints are tests/data/plain (plain head, one channel) and tests/data/refined (refined head,
three channels), with every parameter drawn. tests/golden/test_transformers_golden.py shows that
this package's numbers are those of transformers.
"""

from pathlib import Path

import numpy as np

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.golden.traces import write_golden

FOLDER = Path(__file__).parent
CHECKPOINTS = FOLDER.parent / "tests" / "data"
KINDS = ("texts", "images", "embeddings")


def inputs(config, kind: str) -> dict[str, np.ndarray]:
    """Two images, higher than wide, with a prompt each: texts, other images, or vectors."""
    rng = np.random.default_rng(7)
    channels, p = config.vision_config.num_channels, config.vision_config.patch_size
    given = {"pixel_values": rng.normal(size=(2, channels, 3 * p, 2 * p))}
    if kind == "texts":
        # The end token has the highest id, which the old kind of pooling looks for.
        end = config.text_config.vocab_size - 1
        given["input_ids"] = np.array([[22, 3, end, 1, 1], [22, 17, 4, 6, end]])
        given["attention_mask"] = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    elif kind == "images":
        given["conditional_pixel_values"] = rng.normal(size=(2, channels, 2 * p, 2 * p))
    else:
        given["conditional_embeddings"] = rng.normal(size=(2, config.projection_dim))
    return given


def main() -> None:
    for name in ("plain", "refined"):
        load = CLIPSegForImageSegmentation.from_pretrained
        exact = load(CHECKPOINTS / name, backend="numpy-reference", dtype="float64")
        rough = load(CHECKPOINTS / name, backend="numpy-reference")
        for kind in KINDS:
            given = inputs(exact.config, kind)
            file = FOLDER / f"{name}_{kind}.safetensors"
            write_golden(file, exact, given, about={"checkpoint": name}, in_float32=rough)


if __name__ == "__main__":
    main()
