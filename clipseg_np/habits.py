"""Keywords and methods of transformers that have another name, no effect or no place here.

docs/TRANSFORMERS.md shows these tables to users, and the tests run each of its rows.
"""

import inspect
import reprlib
import warnings
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from .errors import InputError

F = TypeVar("F", bound=Callable[..., Any])


class Keyword(NamedTuple):
    """A keyword that is not used: the values that need no word, and the advice on any other."""

    harmless: tuple | None  # None: all
    advice: str = ""
    is_refused: bool = True


OFF = (None, False)
NO_EFFECT = Keyword(None)
STRICT = Keyword(OFF, "loading is strict, and returns the object alone: leave it out")
MAPPED = Keyword(OFF, "weights are mapped from their file and take memory when used", False)
QUANTIZED = Keyword(OFF, "write dtype='float32'; clipseg-np convert --dtype float16 halves a file")
OTHER_FILE = Keyword(OFF, "write config.json and safetensors, and name their folder")
DEVICE = Keyword((None, "cpu", {"": "cpu"}), "write backend='cupy' for the GPU, or 'auto'")
ATTENTION = Keyword((*OFF, "eager", "sdpa"), "there is one attention", False)
PAIR = Keyword((None,), "write one text or a list of texts; there are no pairs")
ALONE = Keyword(OFF, "the result has input_ids and attention_mask alone", False)
FILES = Keyword((None,), "write CLIPTokenizer.from_pretrained(FOLDER)")
UPLOAD = "save_pretrained(FOLDER), then on the command line: hf upload OWNER/NAME FOLDER"

# Of from_pretrained. A text is the keyword's name here.
LOADING: dict[str, Keyword | str] = {
    "pretrained_model_name_or_path": "folder_or_hub_id",
    "use_auth_token": "token",
    "torch_dtype": "dtype",
    **dict.fromkeys(("trust_remote_code", "low_cpu_mem_usage", "weights_only"), NO_EFFECT),
    **dict.fromkeys(("resume_download", "_fast_init", "mirror", "disable_mmap"), NO_EFFECT),
    **dict.fromkeys(("from_tf", "from_flax", "gguf_file", "key_mapping"), OTHER_FILE),
    **dict.fromkeys(("max_memory", "offload_folder", "offload_state_dict"), MAPPED),
    **dict.fromkeys(("quantization_config", "load_in_8bit", "load_in_4bit"), QUANTIZED),
    **dict.fromkeys(("output_loading_info", "return_unused_kwargs"), STRICT),
    **dict.fromkeys(("device_map", "device"), DEVICE),
    **dict.fromkeys(("attn_implementation", "use_flash_attention_2"), ATTENTION),
    "ignore_mismatched_sizes": STRICT,
    "use_safetensors": Keyword((None, True), "clipseg-np convert makes safetensors of .bin files"),
    "variant": Keyword((None,), "write the file's path, FOLDER/model.VARIANT.safetensors"),
    "use_fast": Keyword(OFF, "images are resized as by use_fast=False; ids are the same", False),
    "proxies": Keyword((None, {}), "set HTTPS_PROXY in the environment"),
    "state_dict": OTHER_FILE,
    "return_dict": Keyword((None, True), "write model(..., return_dict=False)"),
}
# Of save_pretrained
SAVING: dict[str, Keyword | str] = {
    "save_directory": "folder",
    "safe_serialization": Keyword((None, True), "only safetensors are written"),
    "max_shard_size": Keyword((None,), "clipseg-np convert --shard-size writes shards", False),
    "push_to_hub": Keyword(OFF, f"write {UPLOAD}"),
    **dict.fromkeys(("is_main_process", "save_function", "token"), NO_EFFECT),
    **dict.fromkeys(("variant", "filename_prefix"), Keyword((None,), "rename the saved files")),
    "state_dict": Keyword((None,), "a model's own arrays are written"),
    "legacy_format": Keyword((None, True), "vocab.json and merges.txt are written"),
}
# Of the tokenizer's methods and constructor
TEXT: dict[str, Keyword | str] = {
    "token_ids": "ids",
    "sequences": "rows",
    **dict.fromkeys(("text_pair", "text_target", "text_pair_target", "pair"), PAIR),
    **dict.fromkeys(("return_token_type_ids", "return_overflowing_tokens"), ALONE),
    **dict.fromkeys(("return_special_tokens_mask", "return_offsets_mapping"), ALONE),
    **dict.fromkeys(("verbose", "use_source_tokenizer"), NO_EFFECT),
    **dict.fromkeys(("vocab_file", "merges_file"), FILES),
    "return_length": ALONE,
    "stride": Keyword((None, 0), "a long text is cut, not continued", False),
    "is_split_into_words": Keyword(OFF, "write whole texts: ' '.join(words)"),
    "split_special_tokens": Keyword(OFF, "a special token in a text is one token"),
    "pad_to_multiple_of": Keyword((None,), "write padding='max_length', max_length=N", False),
    "clean_up_tokenization_spaces": Keyword(OFF, "transformers ignores it for CLIP, too", False),
}
# Of get_text_features and get_image_features
FEATURES: dict[str, Keyword | str] = {
    name: Keyword(OFF, "write model.text_model(...) or model.vision_model(...)", False)
    for name in ("output_attentions", "output_hidden_states")
} | {"return_dict": NO_EFFECT}

# Attributes and methods of any object
FROZEN = (
    "`clipseg-np fine-tune` trains the decoder alone, so there is nothing to freeze; state_dict() "
    "has the arrays"
)
CALL = "write tokenizer(texts, padding=True, return_tensors='np')"
NEW_TOKENS = "write from_pretrained(FOLDER, extra_special_tokens=[...])"
ATTRIBUTES = {
    **dict.fromkeys(("parameters", "named_parameters"), FROZEN),
    **dict.fromkeys(("encode_plus", "batch_encode_plus", "pad"), CALL),
    **dict.fromkeys(("add_tokens", "add_special_tokens"), NEW_TOKENS),
    "push_to_hub": f"write {UPLOAD}",
    "load_state_dict": "clipseg-np convert makes a folder of the file, for from_pretrained",
    "feature_extractor": "write image_processor",
    "post_process_semantic_segmentation": "write Segmenter(model, processor)(image, prompts), or "
    "clipseg_np.image.probabilities_at(logits, (height, width))",
}


def understands(table: dict[str, Keyword | str]) -> Callable[[F], F]:
    """Let a function be called with transformers' keywords.

    A keyword of the table that the function lacks is renamed, or left out, with a warning unless
    its value is harmless. Raises InputError for a value that the table refuses.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function).parameters

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for name in [name for name in kwargs if name in table and name not in own]:
                value, keyword = kwargs.pop(name), table[name]
                if isinstance(keyword, Keyword):
                    _judge(name, value, keyword)
                elif value is not None:
                    kwargs.setdefault(keyword, value)
            return function(*args, **kwargs)

        return cast(F, call)

    return decorate


def _judge(name: str, value: Any, keyword: Keyword) -> None:
    harmless = keyword.harmless
    if harmless is None or any(value is one or str(value) == str(one) for one in harmless):
        return
    given = f"{name}={' '.join(reprlib.repr(value).split())}"
    if keyword.is_refused:
        raise InputError(f"{given} is not possible here: {keyword.advice}")
    warnings.warn(f"{given} has no effect here: {keyword.advice}", stacklevel=3)


class Habits:
    """An object whose AttributeErrors give advice on habits of transformers."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            advice = f": {ATTRIBUTES[name]}" if name in ATTRIBUTES else ""
            raise AttributeError(f"{type(self).__name__} has no {name!r}{advice}")
