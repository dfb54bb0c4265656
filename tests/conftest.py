"""Fixtures of several tests: a small checkpoint with random weights, an image, scenes."""

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clipseg_np import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    InputError,
    Segmenter,
    ViTImageProcessor,
)
from clipseg_np.backends.select import working_cupy
from clipseg_np.errors import MissingExtra
from clipseg_np.text.bpe import symbols_of

from .helpers.command import FIGURES

TRAINING = Path(__file__).parents[1] / "training"

# A shell's background job, or nohup, ignores these signals, and so would the tests' processes.
for name in ("SIGINT", "SIGHUP"):
    number = getattr(signal, name, None)
    if number and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.fixture(scope="session")
def training():
    """The modules of training/ that draw scenes and make up phrases, which need no torch."""
    sys.path.insert(0, str(TRAINING))
    import example
    import few_shot
    import phrases
    import scenes

    yield SimpleNamespace(example=example, few_shot=few_shot, phrases=phrases, scenes=scenes)
    sys.path.remove(str(TRAINING))


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    """All 256 bytes, and a few merges: enough for any text."""
    symbols = [symbols_of(chr(code))[0] for code in range(33, 127)]
    symbols = sorted({symbol.removesuffix("</w>") for symbol in symbols})
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), "re", "red</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        {token: number for number, token in enumerate(tokens)},
        [("r", "e"), ("re", "d</w>")],
        model_max_length=16,
    )


@pytest.fixture(scope="session")
def config(tokenizer) -> CLIPSegConfig:
    return CLIPSegConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=12,
        extract_layers=(0, 2),
        reduce_dim=16,
        decoder_intermediate_size=24,
    )


@pytest.fixture(scope="session")
def segmenter(config, tokenizer) -> Segmenter:
    processor = CLIPSegProcessor(ViTImageProcessor(size=32), tokenizer)
    return Segmenter(CLIPSegForImageSegmentation(config, seed=3), processor)


@pytest.fixture(scope="session")
def checkpoint(segmenter, tmp_path_factory):
    """The segmenter's files in a folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    segmenter.model.save_pretrained(folder)
    segmenter.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def image() -> np.ndarray:
    """(40,60,3), uint8"""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def image_file(image, tmp_path):
    path = tmp_path / "scene.png"
    Image.fromarray(image).save(path)
    return path


def pytest_terminal_summary(terminalreporter):
    """What became of hostile input: the numbers in docs/EVIDENCE.md."""
    if FIGURES:
        terminalreporter.section("hostile input through the command")
        for kind, counts in FIGURES.items():
            said = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(counts.items()))
            terminalreporter.line(f"{kind}: {counts.total():,} ({said})")


@pytest.fixture(scope="session")
def cupy():
    """CuPy with a working GPU; without one, the test is skipped."""
    try:
        return working_cupy()
    except (InputError, MissingExtra) as error:
        pytest.skip(f"needs a GPU: {error}")
