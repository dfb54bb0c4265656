"""Checkpoints on the Hugging Face hub, and in the cache that its library keeps on this machine.

What lies whole in the cache is used as it is, and the network is not touched: loading waits for no hub, works without
one, and gives the same masks as yesterday. The hub is asked for what the cache lacks, and by `download`.
"""

import json
from pathlib import Path
from types import ModuleType

from ..errors import InputError, optional

# What a checkpoint's folder may hold that this package reads; weights of other frameworks stay on the hub, and so do
# folders inside, which hold other weights.
CHECKPOINT_FILES = ["*.json", "*.txt", "*.safetensors"]
FETCHED = {"allow_patterns": CHECKPOINT_FILES, "ignore_patterns": ["*/*"]}

# What must be there, for each part one of the alternatives.
CONFIG = (("config.json",),)
WEIGHTS = (("model.safetensors",), ("model.safetensors.index.json",))
IMAGES = (("preprocessor_config.json",), ("processor_config.json",))
TEXTS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
MODEL = (CONFIG, WEIGHTS)
WHOLE = (CONFIG, WEIGHTS, IMAGES, TEXTS)

ANSWERS = {
    401: "there is no such checkpoint, or it asks who you are: check the name, or set HF_TOKEN to your access token",
    403: "it is not open to you: ask for access on the checkpoint's page, and set HF_TOKEN to your access token",
    404: "there is no such checkpoint: check the name",
}


def is_hub_id(name: str) -> bool:
    """Whether this has the form of a hub id, "owner/name"."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~")) and "\\" not in name


def from_hub(hub_id: str, local_files_only: bool = False, needed: tuple = WHOLE) -> Path:
    """A checkpoint's folder in the hub's cache, which is fetched if the cache lacks any of what is `needed`.

    Raises MissingExtra without huggingface_hub; InputError where something is lacking and the network is not to be
    used, by `local_files_only` or by HF_HUB_OFFLINE, and where `download` raises it.
    """
    hub = optional("huggingface_hub", extra="hub")
    folder, absent = _in_cache(hub, hub_id, needed)
    if folder is not None and not absent:
        return folder
    if not (local_files_only or hub.constants.HF_HUB_OFFLINE):
        return download(hub_id)
    held = f"holds it without {absent}" if folder is not None else "does not hold it"
    raise InputError(
        f"offline, {hub_id} can only come from the cache {hub.constants.HF_HUB_CACHE}, which {held}. Where there is "
        f"a network, run clipseg-np download {hub_id} FOLDER, and give the path of FOLDER here."
    )


def download(hub_id: str, folder: str | Path | None = None) -> Path:
    """Fetch a checkpoint's newest state from the hub, into its cache or into `folder`; shows progress.

    Each file is there whole or not at all. Raises MissingExtra without huggingface_hub, and InputError where the hub
    cannot be reached, refuses, breaks off, has no such checkpoint, or holds it without safetensors weights.
    """
    if not is_hub_id(hub_id):
        raise InputError(
            f"{hub_id!r} is not a hub id: expected owner/name, such as CIDAS/clipseg-rd64-refined."
        )
    hub = optional("huggingface_hub", extra="hub")
    try:
        # Asked by itself: where the hub does not answer, snapshot_download is content with what is in the folder.
        names = [file.rfilename for file in hub.model_info(hub_id).siblings or []]
        if any(name.endswith(".safetensors") and "/" not in name for name in names):
            return Path(hub.snapshot_download(hub_id, local_dir=folder, **FETCHED))
    except Exception as error:
        # The library raises its own errors, the network's and the system's alike.
        raise InputError(
            f"Could not fetch {hub_id} from the Hugging Face hub: {_reason(error)}."
        ) from error
    raise InputError(
        f"{hub_id} holds no safetensors weights. Ask for a revision that does, or convert it with "
        f"transformers: CLIPSegForImageSegmentation.from_pretrained({hub_id!r}).save_pretrained(FOLDER)."
    )


def _reason(error: Exception) -> str:
    """Why nothing came, in one line: the hub's answer where there was one, else what the library says."""
    of_answer = (e for e in (error, error.__cause__) if getattr(e, "response", None) is not None)
    told = next(of_answer, error)
    status = getattr(getattr(told, "response", None), "status_code", None)
    if status in ANSWERS:
        return f"it answers {status}, {ANSWERS[status]}"
    lines = str(told).strip().splitlines() or [type(told).__name__]
    if getattr(told, "filename", None):  # of the disk, not of the network
        return lines[0]
    return f"{lines[0].rstrip('.')}. Check the network and try again, or give the path of a checkpoint's folder"


def _in_cache(hub: ModuleType, hub_id: str, needed: tuple) -> tuple[Path | None, str]:
    """A checkpoint's folder in the cache, None without one, and in words what it lacks, "" for nothing."""
    try:
        folder = Path(hub.snapshot_download(hub_id, local_files_only=True, **FETCHED))
        return folder, lacking(folder, needed)
    except (OSError, ValueError) as error:  # there is nothing, or less than the library knows of
        partial = getattr(error, "snapshot_path", None)
        if partial is None:
            return None, ""
        return Path(partial), lacking(Path(partial), needed) or "some of its files"


def lacking(folder: Path, needed: tuple = WHOLE) -> str:
    """What a folder lacks of the files that are needed, in words; "" for nothing."""
    absent = [
        " or ".join(" and ".join(files) for files in alternatives)
        for alternatives in needed
        if not any(all(_is_whole(folder / file) for file in files) for files in alternatives)
    ]
    return ", ".join(absent)


def _is_whole(file: Path) -> bool:
    """Whether a file is there and, if it is an index, so are the shards that it names."""
    if not file.is_file():
        return False
    if not file.name.endswith(".index.json"):
        return True
    try:
        shards = set(json.loads(file.read_bytes())["weight_map"].values())
        return all((file.parent / shard).is_file() for shard in shards)
    except (ValueError, KeyError, TypeError, AttributeError):
        return True  # a damaged index is there too; loading says what is wrong with it
