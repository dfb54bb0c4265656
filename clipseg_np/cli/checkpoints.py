"""The commands about checkpoints: `info`, `trace`, `compare`, `download` and `convert`."""

import argparse
import os
import platform
from functools import partial
from pathlib import Path

import numpy as np

from ..checkpoints.hub import download
from ..convert.checkpoint import PYTORCH_SUFFIXES, convert, has_transformers_names
from ..convert.from_authors import convert_original
from ..errors import InputError
from ..golden.compare import compare, report
from ..golden.traces import Golden, write_golden
from ..image.load_image import load_image
from ..model.clipseg import CLIPSegForImageSegmentation
from ..segment.processor import CLIPSegProcessor
from ..version import __version__
from .files import DEMONSTRATION, model_path, new_file
from .terminal import say, show


def run_info(options: argparse.Namespace) -> None:
    path = model_path(options)
    model = CLIPSegForImageSegmentation.from_pretrained(path, backend=options.backend)
    config = model.config
    vision, text = config.vision_config, config.text_config
    head = "refined" if config.use_complex_transposed_convolution else "plain"
    parameters = sum(array.size for array in model.state_dict().values())
    files = [path] if path.is_file() else path.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files) / 1e6
    layers = ", ".join(map(str, config.extract_layers))
    side, cores = vision.image_size, os.cpu_count()
    print(
        f"clipseg-np   {__version__}\n"
        f"Python       {platform.python_version()}, NumPy {np.__version__}, {cores} CPU cores\n"
        f"backend      {options.backend}, on {model.ops.xp.__name__}, {model.dtype}\n"
        f"checkpoint   {path if options.model else f'{DEMONSTRATION}, in {path}'}\n"
        f"size         {parameters:,} parameters, {size:.1f} MB on disk\n"
        f"vision       {vision.num_hidden_layers} layers, {vision.hidden_size} wide, patches of "
        f"{vision.patch_size} pixels, positions for {side} x {side} pixels\n"
        f"text         {text.num_hidden_layers} layers, {text.hidden_size} wide, "
        f"{text.vocab_size} tokens, at most {text.max_position_embeddings} in a prompt\n"
        f"decoder      {config.reduce_dim} wide, reads vision layers {layers}, {head} head"
    )


def run_trace(options: argparse.Namespace) -> None:
    if not options.prompts:
        raise InputError("there is no prompt: give at least one text")
    target, path = new_file(options), model_path(options)
    replaced = target.exists()
    load = partial(CLIPSegForImageSegmentation.from_pretrained, path, backend=options.backend)
    model = load(dtype=options.dtype)
    rough = load(dtype="float32") if options.dtype == "float64" else None
    processor = CLIPSegProcessor.from_pretrained(path)
    image = load_image(options.image, white_level=options.white_level)
    images = [image] * len(options.prompts)
    inputs = processor(options.prompts, images, padding=True, input_data_format="channels_last")
    about = {"checkpoint": options.model or DEMONSTRATION, "image": Path(options.image).name}
    about["prompts"] = options.prompts
    write_golden(options.output, model, inputs, options.names, about, rough)
    if replaced:
        say("warning", f"replaced {target}")
    size = os.path.getsize(options.output) / 1e6
    show(f"{len(Golden(options.output))} arrays, {size:.1f} MB, {model.dtype}  {options.output}")


def run_compare(options: argparse.Namespace) -> int:
    if options.tolerance is not None and not options.tolerance >= 0:
        raise InputError(f"--tolerance is {options.tolerance}; expected a number of 0 or more")
    rows = compare(Golden(options.golden), Golden(options.other), options.tolerance)
    show(*report(rows).split("\n"))
    return 0 if all(row.fine for row in rows) else 1


def run_download(options: argparse.Namespace) -> None:
    folder = Path(options.folder or options.hub_id.split("/")[-1])
    show(f"{options.hub_id} is in {download(options.hub_id, folder)}")


def run_convert(options: argparse.Namespace) -> None:
    source, output, stored = options.source, options.output, (options.dtype, options.shard_size)
    decoder_settings = options.extract_layers, options.cond_layer, options.rev_activations
    is_pytorch = source.endswith(PYTORCH_SUFFIXES) and not os.path.isdir(source)
    if is_pytorch and not has_transformers_names(source):
        others = options.tokenizer, *decoder_settings
        written = convert_original(source, options.clip, output, *stored, *others)
        if options.tokenizer is None:
            say(
                "warning",
                "no tokenizer was given, and the authors' files have none: for text prompts, put "
                "vocab.json and merges.txt of openai/clip-vit-base-patch16 into "
                f"{output}, or convert again with --tokenizer.",
            )
    elif options.clip or options.tokenizer or any(s is not None for s in decoder_settings):
        raise InputError(
            f"--clip, --tokenizer, --extract-layers, --cond-layer and --rev-activations are for "
            f"the authors' decoder, a .pth file; got {source}"
        )
    else:
        written = convert(source, output, *stored)
    files = written.files[0] if len(written.files) == 1 else f"{len(written.files)} shards"
    show(f"{written.tensors} tensors, {written.size / 1e6:.1f} MB, {files}  {output}")
