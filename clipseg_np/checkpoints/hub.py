"""Checkpoints on the Hugging Face hub and in the cache that its library keeps on this machine.

A checkpoint that is complete in the cache is used without any network, and so gives the same masks
as yesterday. `download`, and loading what the cache lacks, ask the hub.
"""

import re
from pathlib import Path
from typing import Any

from ..errors import InputError, optional

# The files of a checkpoint that this package reads; other frameworks' weights and inner folders,
# which hold other weights, stay on the hub.
CHECKPOINT_FILES = ["*.json", "*.txt", "*.safetensors"]
# All words that a checkpoint was trained on, one a line; only the demonstration checkpoint has it.
WORDS_NAME = "words.txt"
# Arguments of locate.checkpoint_path, which every from_pretrained hands on.
HUB_OPTIONS = ("local_files_only", "subfolder", "cache_dir", "revision", "token", "force_download")

# The files that each part of a checkpoint needs: one of several alternatives.
CONFIG = (("config.json",),)
WEIGHTS = (("model.safetensors",), ("model.safetensors.index.json",))
IMAGES = (("preprocessor_config.json",), ("processor_config.json",))
TEXTS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
MODEL = (CONFIG, WEIGHTS)
WHOLE = (CONFIG, WEIGHTS, IMAGES, TEXTS)

TOKEN_ADVICE = "set HF_TOKEN to your access token"
ANSWERS = {
    401: f"there is no such checkpoint, or it asks who you are: check the name, or {TOKEN_ADVICE}",
    403: f"it is not open to you: ask for access on the checkpoint's page, and {TOKEN_ADVICE}",
    404: "there is no such checkpoint: check the name and the revision",
}


def is_hub_id(name: str) -> bool:
    """Whether this has the form of a hub id, "owner/name"."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and "\\" not in name


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take HUB_OPTIONS out of the options of a from_pretrained."""
    return {name: options.pop(name) for name in HUB_OPTIONS if name in options}


def fetched(subfolder: str = "") -> dict[str, list[str]]:
    """The patterns of the files to fetch, for huggingface_hub."""
    start = f"{subfolder}/" if subfolder else ""
    wanted = [start + pattern for pattern in CHECKPOINT_FILES]
    return {"allow_patterns": wanted, "ignore_patterns": [f"{start}*/*"]}


def from_hub(
    hub_id: str,
    local_files_only: bool = False,
    needed: tuple = WHOLE,
    subfolder: str = "",
    force_download: bool = False,
    **options: Any,
) -> Path:
    """A checkpoint's folder in the hub's cache; it is fetched if the cache lacks a `needed` file.

    `options` (cache_dir, revision, token) are huggingface_hub's. Raises MissingExtra without
    huggingface_hub; InputError if a file is lacking and the network may not be used
    (`local_files_only` or HF_HUB_OFFLINE), and where `download` raises it.
    """
    hub = optional("huggingface_hub", extra="hub")
    options = {name: value for name, value in options.items() if value is not None}
    if force_download and not local_files_only:
        return download(hub_id, None, subfolder, force_download=True, **options)
    patterns = fetched(subfolder)
    try:
        root = hub.snapshot_download(hub_id, local_files_only=True, **patterns, **options)
        absent = lacking(Path(root, subfolder), needed)
        if not absent:
            return Path(root, subfolder)
    except (OSError, ValueError) as error:  # not in the cache, or incomplete
        root = getattr(error, "snapshot_path", None)
        absent = root and (lacking(Path(root, subfolder), needed) or "some of its files")
    if not (local_files_only or hub.constants.HF_HUB_OFFLINE):
        return download(hub_id, None, subfolder, **options)
    state = f"holds it without {absent}" if absent else "does not hold it"
    raise InputError(
        f"offline, {hub_id} can only come from the cache "
        f"{options.get('cache_dir', hub.constants.HF_HUB_CACHE)}, which {state}. Where there is a "
        f"network, run clipseg-np download {hub_id} FOLDER, and give the path of FOLDER here."
    )


def download(
    hub_id: str, folder: str | Path | None = None, subfolder: str = "", **options: Any
) -> Path:
    """Fetch a checkpoint's newest state from the hub into its cache or into `folder`.

    `options` (cache_dir, revision, token, force_download) are huggingface_hub's. Shows progress.
    Each file is written whole or not at all. Raises MissingExtra without huggingface_hub, and
    InputError if the hub cannot be reached, refuses or breaks off, or has no such checkpoint or no
    safetensors weights of it.
    """
    if not is_hub_id(hub_id):
        raise InputError(
            f"{hub_id!r} is not a hub id: expected owner/name, such as CIDAS/clipseg-rd64-refined."
        )
    hub = optional("huggingface_hub", extra="hub")
    try:
        # When the hub does not answer, model_info fails; snapshot_download returns an old folder.
        asked = {name: options[name] for name in ("revision", "token") if name in options}
        paths = [Path(file.rfilename) for file in hub.model_info(hub_id, **asked).siblings or []]
        if any(p.suffix == ".safetensors" and p.parent == Path(subfolder) for p in paths):
            patterns = fetched(subfolder)
            root = hub.snapshot_download(hub_id, local_dir=folder, **patterns, **options)
            return Path(root, subfolder)
    except Exception as error:  # errors of the library, of the network and of the system
        raise InputError(
            f"Could not fetch {hub_id} from the Hugging Face hub: {_reason(error)}."
        ) from error
    raise InputError(
        f"{hub_id} holds no safetensors weights. Name a revision that does, or convert it with "
        f"transformers: "
        f"CLIPSegForImageSegmentation.from_pretrained({hub_id!r}).save_pretrained(FOLDER)."
    )


def _reason(error: BaseException) -> str:
    """Why a download failed, in one line: the hub's answer if it gave one, or the error's text."""
    answers = (e for e in (error, error.__cause__) if getattr(e, "response", None) is not None)
    error = next(answers, error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in ANSWERS:
        return f"it answers {status}, {ANSWERS[status]}"
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if getattr(error, "filename", None):  # an error of the disk, not of the network
        return line
    advice = "Check the network and try again, or give the path of a checkpoint's folder"
    return f"{line.rstrip('.')}. {advice}"


def lacking(folder: Path, needed: tuple = WHOLE) -> str:
    """The needed files that a folder lacks, in words; "" if it lacks none.

    The library knows only a snapshot that it fetched itself, not one that was fetched file by file.
    """
    return ", ".join(
        " or ".join(" and ".join(files) for files in alternatives)
        for alternatives in needed
        if not any(all(_is_whole(folder / file) for file in files) for files in alternatives)
    )


def _is_whole(file: Path) -> bool:
    """Whether a file exists and, if it is an index, the shards that it names."""
    if not file.is_file() or not file.name.endswith(".index.json"):
        return file.is_file()
    shards = re.findall(r'"([^"/\\]+\.safetensors)"', file.read_text("utf-8", errors="replace"))
    return all((file.parent / shard).is_file() for shard in shards)
