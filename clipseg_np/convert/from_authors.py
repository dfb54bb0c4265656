"""The authors' own files as a checkpoint: their decoder (rd64-uni.pth, ...) and OpenAI's CLIP (ViT-B-16.pt).

The decoder's file holds a state dict of the authors' CLIPDensePredT; CLIP's is a TorchScript archive. Names become
those of transformers, the three projections of an attention, which lie in one matrix there, are split, and CLIP's two
projections are transposed. Architecture and head follow from names and shapes. Three things are in neither file, and
are the authors' constants: the extracted layers, 64 numbers for each head of CLIP's attention, four heads in the decoder.

Sources: models/clipseg.py of timojl/clipseg; clip/model.py of openai/CLIP.
"""

import gzip
import math
import os
import re
import zlib
from pathlib import Path

import numpy as np

from ..atomic_files import folder_written_whole
from ..backends.select import ops_for
from ..checkpoints.locate import what_to_do
from ..checkpoints.weights import Raw
from ..errors import InputError
from ..image.image_processor import ViTImageProcessor
from ..model.clipseg import CLIPSegForImageSegmentation
from ..model.config import CLIPSegConfig
from ..nn.scope import Scope
from ..text.bpe import BYTE_SYMBOLS, END_OF_WORD
from ..text.tokenizer import CLIPTokenizer
from ..text.tokenizer_files import END, START
from .checkpoint import TOKENIZER_FILES, Written, copy_files, write_checkpoint
from .torch_archive import read_archive

EXTRACT_LAYERS = (3, 6, 9)
WIDTH_OF_HEAD = 64
DECODER_HEADS = 4
IMAGE_SIZE = 352  # pixels, of the published models
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Where a name begins, and where in a checkpoint that is.
PLACES = {
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
    "film_mul.": "decoder.film_mul.",
    "film_add.": "decoder.film_add.",
    "reduces.": "decoder.reduces.",
    "blocks.": "decoder.layers.",
    "trans_conv.": "decoder.transposed_convolution.",
}
# The parts of a transformer layer, CLIP's and the decoder's.
PARTS = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.": ".self_attn.",
    ".linear1.": ".mlp.fc1.",
    ".linear2.": ".mlp.fc2.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
}
TRANSPOSED = ("clip.visual_projection.weight", "clip.text_projection.weight")
# In the files, and in no use: a layer of earlier models, CLIP's settings, masks, and the vision tower a second time.
LEFT_OUT = re.compile(
    r"reduce\..*|input_resolution|context_length|vocab_size|.*\.attn_mask|model\..*"
)


def convert_original(
    decoder: str | os.PathLike,
    clip: str | os.PathLike | None,
    output: str | os.PathLike,
    dtype: str | None = None,
    shard_size: float | None = None,
    tokenizer: str | os.PathLike | None = None,
    extract_layers: tuple[int, ...] | None = None,
) -> Written:
    """Make a checkpoint of the authors' decoder and OpenAI's CLIP, in the new or empty folder `output`.

    clip: ViT-B-16.pt; None where the decoder's file holds CLIP too, under names with clip_model. before them.
    dtype: None is float32, as in the official checkpoints; for shard_size see `convert`.
    tokenizer: a folder with CLIP's tokenizer, or OpenAI's bpe_simple_vocab_16e6.txt.gz; None leaves it out, and
    prompts are then token ids or images only.
    extract_layers: the vision tower's layers that the decoder reads, counted from 0; None is 3, 6, 9.

    Raises FileNotFoundError, and InputError where the files are not such, or do not fit one another.
    """
    tensors = renamed(_joined(Path(decoder), clip))
    config = config_of(tensors, extract_layers)
    fitting = _Fitting(tensors)
    CLIPSegForImageSegmentation(config, Scope(fitting, ops_for("numpy-reference"), np.float32))
    fitting.finish()
    with folder_written_whole(output) as folder:
        if tokenizer is not None:
            _write_tokenizer(Path(tokenizer), folder, config.text_config.vocab_size)
        ViTImageProcessor(
            size=IMAGE_SIZE, image_mean=list(MEAN), image_std=list(DEVIATION)
        ).save_pretrained(folder)
        return write_checkpoint(folder, config.to_dict(), tensors, dtype or "float32", shard_size)


def _joined(decoder: Path, clip: str | os.PathLike | None) -> dict[str, Raw]:
    """The tensors of both files, by their own names."""
    tensors = {
        name: raw for name, raw in read_archive(decoder).items() if not LEFT_OUT.fullmatch(name)
    }
    if "film_mul.weight" not in tensors:
        raise InputError(
            f"{decoder} lacks film_mul.weight; expected the authors' decoder, such as rd64-uni.pth."
        )
    inside = {
        name.removeprefix("clip_model."): raw
        for name, raw in tensors.items()
        if name.startswith("clip_model.")
    }
    if not inside:
        if clip is None:
            raise InputError(
                f"{decoder} holds the decoder alone; expected OpenAI's CLIP beside it: --clip ViT-B-16.pt."
            )
        inside = read_archive(clip)
    own = {name: raw for name, raw in tensors.items() if not name.startswith("clip_model.")}
    return own | {name: raw for name, raw in inside.items() if not LEFT_OUT.fullmatch(name)}


def renamed(tensors: dict[str, Raw]) -> dict[str, Raw]:
    """Tensors by the authors' and OpenAI's names -> by the checkpoint's. Raises InputError for an unknown name."""
    found = {}
    for name, raw in tensors.items():
        place = next((start for start in PLACES if name.startswith(start)), None)
        if place is None:
            raise InputError(
                f"There is no place for {name!r}: expected the names of the authors' CLIPDensePredT and of OpenAI's CLIP."
            )
        new = PLACES[place] + name[len(place) :]
        for old, part in PARTS.items():
            new = new.replace(old, part)
        array = raw.array
        if ".in_proj_" in new:
            if array.ndim == 0 or len(array) % 3:
                raise InputError(
                    f"{name} has shape {array.shape}; expected queries, keys and values above one another."
                )
            for letter, third in zip("qkv", np.split(array, 3)):
                found[new.replace(".in_proj_", f".{letter}_proj.")] = Raw(third, raw.stored_type)
        else:
            found[new] = Raw(array.T if new in TRANSPOSED else array, raw.stored_type)
    return found


def config_of(tensors: dict[str, Raw], extract_layers: tuple[int, ...] | None) -> CLIPSegConfig:
    """The architecture that names and shapes tell of. Raises InputError where they do not tell it."""

    def size(name: str, axis: int, axes: int) -> int:
        raw = tensors.get(name)
        if raw is None or raw.array.ndim != axes:
            found = "is missing" if raw is None else f"has the shape {raw.array.shape}"
            raise InputError(
                f"{name} {found}; expected an array of {axes} axes. Are these the authors' decoder and ViT-B-16.pt?"
            )
        return raw.array.shape[axis]

    def count(start: str, end: str) -> int:
        return sum(name.startswith(start) and name.endswith(end) for name in tensors)

    def tower(place: str) -> dict:
        width = size(f"{place}.embeddings.position_embedding.weight", 1, 2)
        return {
            "hidden_size": width,
            "num_attention_heads": width // WIDTH_OF_HEAD,
            "num_hidden_layers": count(f"{place}.encoder.layers.", ".layer_norm1.weight"),
            "intermediate_size": size(f"{place}.encoder.layers.0.mlp.fc1.weight", 0, 2),
        }

    text, vision = "clip.text_model", "clip.vision_model"
    vocabulary = size(f"{text}.embeddings.token_embedding.weight", 0, 2)
    patch = size(f"{vision}.embeddings.patch_embedding.weight", 3, 4)
    side = math.isqrt(size(f"{vision}.embeddings.position_embedding.weight", 0, 2) - 1)
    depth = count("decoder.reduces.", ".weight")
    layers = EXTRACT_LAYERS if extract_layers is None else tuple(extract_layers)
    if depth != len(layers):
        raise InputError(
            f"The decoder reads {depth} of the vision tower's layers; expected {len(layers)}, "
            f"{', '.join(map(str, layers))}. Say which with --extract-layers."
        )
    return CLIPSegConfig(
        text_config={
            **tower(text),
            "vocab_size": vocabulary,
            "max_position_embeddings": size(f"{text}.embeddings.position_embedding.weight", 0, 2),
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        vision_config={
            **tower(vision),
            "num_channels": size(f"{vision}.embeddings.patch_embedding.weight", 1, 4),
            "patch_size": patch,
            "image_size": patch * side,
        },
        projection_dim=size("clip.text_projection.weight", 0, 2),
        extract_layers=layers,
        reduce_dim=size("decoder.film_mul.weight", 0, 2),
        decoder_num_attention_heads=DECODER_HEADS,
        decoder_intermediate_size=size("decoder.layers.0.mlp.fc1.weight", 0, 2),
        use_complex_transposed_convolution="decoder.transposed_convolution.0.weight" in tensors,
        other={"architectures": [CLIPSegForImageSegmentation.__name__]},
    )


class _Fitting:
    """A Source (see checkpoints/weights.py) that looks at names and shapes alone, before anything is written."""

    def __init__(self, tensors: dict[str, Raw]):
        self.left = dict(tensors)

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        raw = self.left.pop(name, None)
        if raw is None or raw.array.shape != shape:
            found = "missing" if raw is None else f"of shape {raw.array.shape}"
            raise InputError(f"{name} is {found}; the other tensors make it {shape}.")
        return np.broadcast_to(np.float32(0), shape)

    def finish(self) -> None:
        if self.left:
            raise InputError(
                f"The files hold {len(self.left)} tensor(s) that the model has no place for: "
                f"{', '.join(sorted(self.left)[:3])}{', ...' if len(self.left) > 3 else ''}."
            )


def _write_tokenizer(source: Path, folder: Path, vocabulary: int) -> None:
    """Copy a tokenizer's files, or make them of OpenAI's list of merges."""
    if source.is_dir():
        tokenizer = CLIPTokenizer.from_pretrained(source)
        copy_files(source, folder, TOKENIZER_FILES)
    else:
        merges = _merges(source, vocabulary - 2 * len(BYTE_SYMBOLS) - 2)
        symbols = list(BYTE_SYMBOLS.values())
        tokens = [*symbols, *(symbol + END_OF_WORD for symbol in symbols)]
        tokens += [*map("".join, merges), START, END]
        numbered = {token: number for number, token in enumerate(tokens)}
        tokenizer = CLIPTokenizer(numbered, merges, model_max_length=77)
        tokenizer.save_pretrained(folder)
    if len(tokenizer) != vocabulary:
        raise InputError(
            f"The tokenizer of {source} has {len(tokenizer)} tokens and CLIP {vocabulary}: they do not belong together."
        )


def _merges(path: Path, count: int) -> list[tuple[str, ...]]:
    """The first merges of bpe_simple_vocab_16e6.txt.gz, behind its first line; CLIP was trained with these alone."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = [file.readline(1000).split() for _ in range(max(count, 0) + 1)]
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not OpenAI's list of merges, bpe_simple_vocab_16e6.txt.gz ({error}). {what_to_do(path)}"
        ) from error
    return [tuple(line) for line in lines[1:]]
