"""The deviation of each backend's logits from those of the readable arithmetic in float64.

    python benchmarks/accuracy.py

Two checkpoints: the demonstration's, on its example image, and the rd64-refined architecture with
random weights (this one needs the extra `benchmark`, and shows transformers beside it). CuPy's
backends are in the table if there is a GPU.
"""

import tempfile
from pathlib import Path

import numpy as np

from clipseg_np import CLIPSegForImageSegmentation, CLIPSegProcessor, InputError
from clipseg_np.backends.select import NAMES
from clipseg_np.checkpoints.locate import demo_folder
from clipseg_np.errors import MissingExtra

EXAMPLE = Path(__file__).parent.parent / "examples" / "shapes.png"
PROMPTS = ["a red thing", "the large red circle", "a purple ring"]
REFERENCE = ("numpy-reference", "float64")


def with_clipseg_np(folder: Path, backend: str, dtype: str, inputs: dict) -> np.ndarray:
    model = CLIPSegForImageSegmentation.from_pretrained(folder, backend=backend, dtype=dtype)
    return model.ops.to_numpy(model(**inputs).logits)


def deviation(logits: np.ndarray, truth: np.ndarray) -> float:
    """The largest difference anywhere, relative to the largest logit."""
    return np.abs(logits - truth).max() / np.abs(truth).max()


def deviations(folder: Path, inputs: dict, truth: np.ndarray) -> dict[tuple[str, str], float]:
    """The deviation of each (backend, dtype) from the reference's logits, `truth`."""
    found = {}
    for backend in NAMES:
        for dtype in ("float32", "float64"):
            if backend == "auto" or (backend, dtype) == REFERENCE:
                continue
            try:
                logits = with_clipseg_np(folder, backend, dtype, inputs)
            except (InputError, MissingExtra):
                continue  # no GPU here
            found[backend, dtype] = deviation(logits, truth)
    return found


def official_size() -> dict[tuple[str, str], float]:
    from systems import example, paired, save_checkpoint, with_transformers

    ids, pixels = example(3)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_checkpoint(folder)
        inputs = {"input_ids": ids, "pixel_values": pixels}
        truth = with_clipseg_np(folder, *REFERENCE, inputs)
        found = deviations(folder, inputs, truth)
        logits = with_transformers(folder)(*paired(ids, pixels))
        found["transformers", "float32"] = deviation(logits, truth)
    return found


def main() -> None:
    processor = CLIPSegProcessor.from_pretrained(demo_folder())
    inputs = processor(text=PROMPTS, images=[EXAMPLE] * len(PROMPTS), padding=True)
    truth = with_clipseg_np(demo_folder(), *REFERENCE, inputs)
    columns = {"demonstration checkpoint": deviations(demo_folder(), inputs, truth)}
    try:
        columns["rd64-refined, random weights"] = official_size()
    except ImportError as error:
        print(f"rd64-refined is left out: {error}\n")
    rows = {row: None for column in columns.values() for row in column}
    print(f"| backend | type | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}")
    for row in rows:
        cells = (f"{c[row]:.1e}" if row in c else "" for c in columns.values())
        print(f"| {' | '.join([*row, *cells])} |")


if __name__ == "__main__":
    main()
