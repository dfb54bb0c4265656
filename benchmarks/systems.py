"""The systems that are timed: each a function from token ids and pixel values to logits.

All of them run the same checkpoint: the rd64-refined architecture with random weights.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from instruction_set import is_imitated
from versions import one_pass

import clipseg_np

try:
    import torch
    import transformers
except (ImportError, OSError):  # `speed.py --before` needs neither
    torch = transformers = None

SIDE = 352
REFERENCE = "transformers"
OURS = "clipseg_np, numpy"
RUNTIME = "ONNX Runtime"
System = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids (P,T), pixels (B,3,H,W) -> (P,H,W)


def save_checkpoint(
    folder: Path, text: dict | None = None, vision: dict | None = None, **others
) -> None:
    """Save a checkpoint of the official size, with tokenizer and preprocessing, for both libraries.

    `text`, `vision` and `others` change its config, in which the trained position grid is that of
    224 pixels. The decoder's weights are drawn as torch draws a layer's. transformers would draw
    most of them with a deviation of 1, which leads to attention scores of 100,000: no training
    ends there, and "numpy" takes longer where scores pass 50.
    """
    config = transformers.CLIPSegConfig(
        text_config={"eos_token_id": 2, **(text or {})},
        vision_config={"patch_size": 16, **(vision or {})},
        use_complex_transposed_convolution=True,
        **others,
    )
    torch.manual_seed(0)
    model = transformers.CLIPSegForImageSegmentation(config)
    for part in model.decoder.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    model.save_pretrained(folder)
    save_processor(folder)


def save_checkpoint_without_torch(
    folder: Path, text: dict | None = None, vision: dict | None = None, **others
) -> None:
    """As `save_checkpoint`, with weights about as large, drawn by this package."""
    config = clipseg_np.CLIPSegConfig(
        text_config={"eos_token_id": 2, **(text or {})},
        vision_config={"patch_size": 16, **(vision or {})},
        use_complex_transposed_convolution=True,
        # The decoder's: with 1, attention would choose one token.
        initializer_factor=0.02,
        **others,
    )
    clipseg_np.CLIPSegForImageSegmentation(config, seed=0).save_pretrained(folder)
    save_processor(folder)


def save_processor(folder: Path) -> None:
    processor = clipseg_np.CLIPSegProcessor.from_pretrained(
        clipseg_np.checkpoints.locate.demo_folder()
    )
    processor.image_processor = clipseg_np.ViTImageProcessor(size=SIDE)
    processor.save_pretrained(folder)


def systems(folder: Path) -> dict[str, System]:
    """The systems that are installed here; the reason for each missing one is printed.

    Those that cannot be kept to AVX2 are left out where it is imitated.
    """
    found = {REFERENCE: with_transformers(folder), OURS: with_clipseg_np(folder, "numpy")}
    found["clipseg_np, numpy-reference"] = with_clipseg_np(folder, "numpy-reference")
    if is_imitated():
        return found
    for name, build in (
        ("transformers, torch.compile", with_compiled_transformers),
        (RUNTIME, with_onnx_runtime),
        ("OpenVINO, float32", with_openvino),
    ):
        try:
            found[name] = build(folder)
        except Exception as error:  # noqa: BLE001  (a compiler or a library is not there)
            print(f"{name} is left out: {type(error).__name__}: {str(error)[:200]}", flush=True)
    return found


def with_clipseg_np(folder: Path, backend: str) -> System:
    load = clipseg_np.CLIPSegForImageSegmentation.from_pretrained
    return partial(one_pass, load(folder, backend=backend))


class Logits(torch.nn.Module if torch else object):
    """The reference's logits alone, which is what can be exported."""

    def __init__(self, folder: Path):
        super().__init__()
        load = transformers.CLIPSegForImageSegmentation.from_pretrained
        self.model = load(folder, dtype=torch.float32).eval()

    def forward(self, input_ids, pixel_values):
        return self.model(input_ids=input_ids, pixel_values=pixel_values).logits


def paired(ids: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As many images as prompts, as all systems but clipseg_np need them."""
    return ids, np.broadcast_to(pixels, (len(ids), *pixels.shape[1:]))


def with_transformers(folder: Path, compiled: bool = False) -> System:
    model = Logits(folder)
    if compiled:
        model = torch.compile(model)

    def run(ids: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        ids, pixels = paired(ids, pixels)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of arrays that cannot be written to
            return model(torch.from_numpy(ids), torch.from_numpy(pixels)).numpy()

    return run


def with_compiled_transformers(folder: Path) -> System:
    run = with_transformers(folder, compiled=True)
    # It compiles now, or fails.
    run(*example(1))
    return run


def onnx_file(folder: Path) -> Path:
    """The reference as one graph for any number of pairs, without parts that no logit needs."""
    file = folder / "model.onnx"
    if not file.exists():
        ids, pixels = (torch.from_numpy(array) for array in example(2, images=2))
        names = ["input_ids", "pixel_values"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Logits(folder),
                (ids, pixels),
                file,
                input_names=names,
                output_names=["logits"],
                dynamic_axes={name: {0: "pairs"} for name in names},
                dynamo=False,  # its graphs keep the example's number of pairs
            )
    return file


def with_onnx_runtime(folder: Path) -> System:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file(folder), providers=["CPUExecutionProvider"])

    def run(ids: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        ids, pixels = paired(ids, pixels)
        return session.run(None, {"input_ids": ids, "pixel_values": np.ascontiguousarray(pixels)})[
            0
        ]

    return run


def with_openvino(folder: Path) -> System:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(onnx_file(folder), "CPU", options)

    def run(ids: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        ids, pixels = paired(ids, pixels)
        return model({"input_ids": ids, "pixel_values": np.ascontiguousarray(pixels)})[0]

    return run


def example(
    prompts: int, images: int = 1, side: int = SIDE, different: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of texts, (prompts,8), all `different` or alike; pixel values (images,3,side,side)."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 49406, (prompts, 8))
    ids[:, 0], ids[:, -1] = 49406, 49407
    if not different:
        ids[:] = ids[0]
    return ids, rng.normal(size=(images, 3, side, side)).astype(np.float32)
