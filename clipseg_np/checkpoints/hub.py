"""Checkpoints on the Hugging Face hub and in the cache that its library keeps on this machine.

A checkpoint that is complete in the cache is used without any network, and so gives the same masks
as yesterday. `download`, and loading what the cache lacks, ask the hub.
"""

import re
from pathlib import Path

from ..errors import InputError, optional

# The files of a checkpoint that this package reads; other frameworks' weights and inner folders,
# which hold other weights, stay on the hub.
CHECKPOINT_FILES = ["*.json", "*.txt", "*.safetensors"]
FETCHED = {"allow_patterns": CHECKPOINT_FILES, "ignore_patterns": ["*/*"]}

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
    404: "there is no such checkpoint: check the name",
}


def is_hub_id(name: str) -> bool:
    """Whether this has the form of a hub id, "owner/name"."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and "\\" not in name


def from_hub(hub_id: str, local_files_only: bool = False, needed: tuple = WHOLE) -> Path:
    """A checkpoint's folder in the hub's cache; it is fetched if the cache lacks a `needed` file.

    Raises MissingExtra without huggingface_hub; InputError if a file is lacking and the network may
    not be used (`local_files_only` or HF_HUB_OFFLINE), and where `download` raises it.
    """
    hub = optional("huggingface_hub", extra="hub")
    try:
        folder = Path(hub.snapshot_download(hub_id, local_files_only=True, **FETCHED))
        absent = lacking(folder, needed)
        if not absent:
            return folder
    except (OSError, ValueError) as error:  # not in the cache, or incomplete
        folder = getattr(error, "snapshot_path", None)
        absent = folder and (lacking(Path(folder), needed) or "some of its files")
    if not (local_files_only or hub.constants.HF_HUB_OFFLINE):
        return download(hub_id)
    state = f"holds it without {absent}" if absent else "does not hold it"
    raise InputError(
        f"offline, {hub_id} can only come from the cache {hub.constants.HF_HUB_CACHE}, which "
        f"{state}. Where there is a network, run clipseg-np download {hub_id} FOLDER, and give the "
        f"path of FOLDER here."
    )


def download(hub_id: str, folder: str | Path | None = None) -> Path:
    """Fetch a checkpoint's newest state from the hub into its cache or into `folder`.

    Shows progress. Each file is written whole or not at all. Raises MissingExtra without
    huggingface_hub, and InputError if the hub cannot be reached, refuses or breaks off, or has no
    such checkpoint or no safetensors weights of it.
    """
    if not is_hub_id(hub_id):
        raise InputError(
            f"{hub_id!r} is not a hub id: expected owner/name, such as CIDAS/clipseg-rd64-refined."
        )
    hub = optional("huggingface_hub", extra="hub")
    try:
        # When the hub does not answer, model_info fails; snapshot_download returns an old folder.
        names = [file.rfilename for file in hub.model_info(hub_id).siblings or []]
        if any(name.endswith(".safetensors") and "/" not in name for name in names):
            return Path(hub.snapshot_download(hub_id, local_dir=folder, **FETCHED))
    except Exception as error:  # errors of the library, of the network and of the system
        raise InputError(
            f"Could not fetch {hub_id} from the Hugging Face hub: {_reason(error)}."
        ) from error
    raise InputError(
        f"{hub_id} holds no safetensors weights. Ask for a revision that does, or convert it with "
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
