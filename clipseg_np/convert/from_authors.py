"""Convert the authors' decoder (rd64-uni.pth, ...) and OpenAI's CLIP (ViT-B-16.pt) to a checkpoint.

The decoder's file holds a state dict of the authors' CLIPDensePredT; CLIP's is a TorchScript
archive. Names become those of transformers. An attention's three projections, one matrix in the
files, are split; CLIP's two projections are transposed. Names and shapes imply the architecture.
Three settings of a training are in neither file, and are warned of if not given.

Sources: models/clipseg.py of timojl/clipseg; clip/model.py of openai/CLIP.
"""

import gzip
import math
import os
import re
import warnings
import zlib
from pathlib import Path

import numpy as np

from ..atomic_files import folder_written_whole
from ..checkpoints.locate import what_to_do
from ..checkpoints.weights import Raw
from ..errors import InputError
from ..image.image_processor import ViTImageProcessor
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.config import CLIPSegConfig
from ..text.bpe import BYTE_SYMBOLS, END_OF_WORD
from ..text.tokenizer import CLIPTokenizer
from ..text.tokenizer_files import END, START
from .checkpoint import Written, require_place, unwrapped, write_checkpoint
from .torch_archive import read_archive

# Constants of the authors, which are in neither file.
EXTRACT_LAYERS = (3, 6, 9)
HEAD_FEATURES = 64
DECODER_HEADS = 4
IMAGES = {"size": 352, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# The beginnings of names in the files and in a checkpoint.
PREFIXES = {
    "visual.transformer.resblocks.": "clip.vision_model.encoder.layers.",
    "visual.class_embedding": "clip.vision_model.embeddings.class_embedding",
    "visual.conv1.": "clip.vision_model.embeddings.patch_embedding.",
    "visual.positional_embedding": "clip.vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "clip.vision_model.pre_layrnorm.",
    "visual.ln_post.": "clip.vision_model.post_layernorm.",
    "visual.proj": "clip.visual_projection.weight",
    "transformer.resblocks.": "clip.text_model.encoder.layers.",
    "token_embedding.": "clip.text_model.embeddings.token_embedding.",
    "positional_embedding": "clip.text_model.embeddings.position_embedding.weight",
    "ln_final.": "clip.text_model.final_layer_norm.",
    "text_projection": "clip.text_projection.weight",
    "logit_scale": "clip.logit_scale",
    **{name: f"decoder.{name}" for name in ("film_mul.", "film_add.", "reduces.")},
    "blocks.": "decoder.layers.",
    "trans_conv.": "decoder.transposed_convolution.",
}
# The parts of a transformer layer in the files (CLIP's, the decoder's) and in a checkpoint.
PARTS = {
    r"\.(ln_|norm)(?=[12]\.)": ".layer_norm",
    r"\.(mlp\.c_fc|linear1)\.": ".mlp.fc1.",
    r"\.(mlp\.c_proj|linear2)\.": ".mlp.fc2.",
    r"\.attn\.": ".self_attn.",
}
TRANSPOSED = ("clip.visual_projection.weight", "clip.text_projection.weight")
# Unused: a layer of earlier models, CLIP's settings, masks, and the vision tower a second time.
LEFT_OUT = r"reduce\..*|input_resolution|context_length|vocab_size|(.*\.)?attn_mask|model\..*"


def convert_original(
    decoder: str | os.PathLike,
    clip: str | os.PathLike | None,
    output: str | os.PathLike,
    dtype: str | None = None,
    shard_size: float | None = None,
    tokenizer: str | os.PathLike | None = None,
    extract_layers: tuple[int, ...] | None = None,
    cond_layer: int | None = None,
    rev_activations: bool | None = None,
) -> Written:
    """Convert the authors' decoder and OpenAI's CLIP to a checkpoint in the folder `output`.

    clip: ViT-B-16.pt; None if the decoder's file holds CLIP too, under the prefix "clip_model.".
    output, shard_size: see `convert`.
    dtype: None is float32, as in the official checkpoints.
    tokenizer: a folder with CLIP's tokenizer, or OpenAI's bpe_simple_vocab_16e6.txt.gz; None writes
    none, and prompts are then token ids or images only.
    extract_layers, cond_layer, rev_activations: as in the training's own settings: the vision
    tower's layers that the decoder reads, counted from 0, in any order; the decoder's layer before
    which the prompt comes in; whether the first of the tower's layers is read first. None are those
    of the published decoders, 3, 6, 9; 0; False, with a warning, since other settings fit the same
    tensors.

    Raises FileNotFoundError, and InputError if a file is not such or the files do not fit together,
    and for layer 0 or a layer twice, with which the authors' model skips a part of its decoder.
    """
    tensors = renamed(_read(Path(decoder), clip))
    settings = {
        "extract_layers": EXTRACT_LAYERS if extract_layers is None else tuple(extract_layers),
        "cond_layer": cond_layer or 0,
        "rev_activations": bool(rev_activations),
    }
    given = extract_layers, cond_layer, rev_activations
    assumed = [f"{n}={v}" for (n, v), value in zip(settings.items(), given) if value is None]
    if assumed:
        warnings.warn(
            f"the files do not say with which settings the decoder was trained; assumed, as in the "
            f"published ones: {', '.join(assumed)}. With others, the masks are wrong: look them up "
            f"in the training's configuration, and give each",
            stacklevel=2,
        )
    config = config_of(tensors, **settings)
    require_place(decoder, config.to_dict(), tensors)
    with folder_written_whole(output) as folder:
        if tokenizer is not None:
            _write_tokenizer(Path(tokenizer), folder, config.text_config.vocab_size)
        ViTImageProcessor(**IMAGES).save_pretrained(folder)
        return write_checkpoint(folder, config.to_dict(), tensors, dtype or "float32", shard_size)


def _read(decoder: Path, clip: str | os.PathLike | None) -> dict[str, Raw]:
    """The tensors of both files by their own names."""
    tensors = unwrapped(read_archive(decoder), ["film_mul.weight"])
    if "film_mul.weight" not in tensors:
        raise InputError(f"{decoder} lacks film_mul.weight; expected the authors' decoder")
    if not any(name.startswith("clip_model.") for name in tensors):
        if clip is None:
            raise InputError(
                f"{decoder} holds the decoder alone; expected OpenAI's CLIP beside it: "
                f"--clip ViT-B-16.pt."
            )
        tensors |= unwrapped(read_archive(clip), ["visual.proj"])
    tensors = {name.removeprefix("clip_model."): raw for name, raw in tensors.items()}
    return {name: raw for name, raw in tensors.items() if not re.fullmatch(LEFT_OUT, name)}


def renamed(tensors: dict[str, Raw]) -> dict[str, Raw]:
    """The tensors by the checkpoint's names. Raises InputError for an unknown name."""
    converted = {}
    for name, raw in tensors.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            raise InputError(f"no place for {name!r}; expected the authors' or CLIP's names")
        key = PREFIXES[prefix] + name[len(prefix) :]
        for old, new in PARTS.items():
            key = re.sub(old, new, key)
        array = raw.array
        if ".in_proj_" not in key:
            converted[key] = Raw(array.T if key in TRANSPOSED else array, raw.stored_type)
            continue
        if array.ndim == 0 or len(array) % 3:
            raise InputError(f"{name} has shape {array.shape}; expected queries, keys and values")
        for letter, third in zip("qkv", np.split(array, 3)):
            converted[key.replace(".in_proj_", f".{letter}_proj.")] = Raw(third, raw.stored_type)
    return converted


def config_of(
    tensors: dict[str, Raw], extract_layers: tuple[int, ...], cond_layer: int, rev_activations: bool
) -> CLIPSegConfig:
    """The architecture that names and shapes imply. Raises InputError if they imply none."""

    def shape(name: str, axes: int = 2) -> tuple[int, ...]:
        raw = tensors.get(name)
        if raw is None or raw.array.ndim != axes:
            state = "is missing" if raw is None else f"has the shape {raw.array.shape}"
            advice = "Are these the authors' decoder and ViT-B-16.pt?"
            raise InputError(f"{name} {state}; expected an array of {axes} axes. {advice}")
        return raw.array.shape

    def count(start: str, end: str) -> int:
        return sum(name.startswith(start) and name.endswith(end) for name in tensors)

    def tower(prefix: str, **others: int) -> dict[str, int]:
        _, width = shape(f"{prefix}.embeddings.position_embedding.weight")
        return {
            "hidden_size": width,
            "num_attention_heads": width // HEAD_FEATURES,
            "num_hidden_layers": count(f"{prefix}.encoder.layers.", ".layer_norm1.weight"),
            "intermediate_size": shape(f"{prefix}.encoder.layers.0.mlp.fc1.weight")[0],
            **others,
        }

    text, vision = "clip.text_model", "clip.vision_model"
    V, _ = shape(f"{text}.embeddings.token_embedding.weight")
    ids = {"vocab_size": V, "bos_token_id": V - 2, "eos_token_id": V - 1}
    max_T, _ = shape(f"{text}.embeddings.position_embedding.weight")
    _, C, _, p = shape(f"{vision}.embeddings.patch_embedding.weight", axes=4)
    side = math.isqrt(shape(f"{vision}.embeddings.position_embedding.weight")[0] - 1)
    depth = count("decoder.reduces.", ".weight")
    # The authors' vision tower collects them as it runs, and layer 0 besides, which is dropped.
    layers, listed = tuple(sorted(extract_layers)), ", ".join(map(str, extract_layers))
    if depth != len(layers):
        raise InputError(
            f"The decoder reads {depth} of the vision tower's layers; expected {len(layers)}, "
            f"{listed}. Say which with --extract-layers."
        )
    if 0 in layers or len({*layers}) < depth:
        raise InputError(
            f"extract_layers are {listed}; expected layers from 1, each once: with others, the "
            f"authors' model skips a part of its decoder."
        )
    return CLIPSegConfig(
        text_config=tower(text, max_position_embeddings=max_T, **ids),
        vision_config=tower(vision, num_channels=C, patch_size=p, image_size=p * side),
        projection_dim=shape("clip.text_projection.weight")[0],
        # The decoder reads them from the last to the first.
        extract_layers=layers[::-1] if rev_activations else layers,
        conditional_layer=cond_layer,
        reduce_dim=shape("decoder.film_mul.weight")[0],
        decoder_num_attention_heads=DECODER_HEADS,
        decoder_intermediate_size=shape("decoder.layers.0.mlp.fc1.weight")[0],
        use_complex_transposed_convolution="decoder.transposed_convolution.0.weight" in tensors,
        other={"architectures": [CLIPSegForImageSegmentation.__name__]},
    )


def _write_tokenizer(source: Path, folder: Path, vocab_size: int) -> None:
    """Save a folder's tokenizer, or make one from OpenAI's list of merges."""
    if source.is_dir():
        tokenizer = CLIPTokenizer.from_pretrained(source)
    else:
        merges = _merges(source, vocab_size - 2 * len(BYTE_SYMBOLS) - 2)
        symbols = list(BYTE_SYMBOLS.values())
        tokens = [*symbols, *(symbol + END_OF_WORD for symbol in symbols)]
        tokens += [*map("".join, merges), START, END]
        vocab = {token: number for number, token in enumerate(tokens)}
        tokenizer = CLIPTokenizer(vocab, merges, model_max_length=77)
    if len(tokenizer) != vocab_size:
        sizes = f"{len(tokenizer)} tokens and CLIP {vocab_size}"
        raise InputError(f"The tokenizer of {source} has {sizes}: they do not belong together.")
    tokenizer.save_pretrained(folder)


def _merges(path: Path, count: int) -> list[tuple[str, ...]]:
    """The first merges of OpenAI's file, after its header line; CLIP was trained with these."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [file.readline(1000).split() for _ in range(max(count, 0) + 1)]
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        message = f"{path} is not OpenAI's list of merges ({error}). {what_to_do(path)}"
        raise InputError(message) from error
    return [tuple(line) for line in lines[1:]]
