"""Steps of learning in a process of its own, which learning.py starts: their time and peak memory.

    python benchmarks/learning_process.py CHECKPOINT GIVEN SYSTEM KIND PROMPTS ...
    python benchmarks/learning_process.py COMMAND-LINE OF clipseg-np

Prints JSON. A step is forward, binary cross-entropy and dice, backward, AdamW. GIVEN is an .npz
file with a batch. Only the system that is timed is imported.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SECONDS = 1  # for which steps are repeated, after three that are not counted
RATE = 1e-3
USUAL, WHOLE, REDUCED, PROMPT = KINDS = "usual", "whole cache", "reduced cache", "prompt only"
Step = Callable[[], float]  # a step's loss


def with_torch(checkpoint: Path, kind: str) -> Callable[[dict], Step]:
    """transformers' modules, torch's autograd and AdamW. With a cache, the decoder alone is there.

    The usual way, the whole model is called in each step.
    """
    import torch
    from safetensors import safe_open
    from torch.nn import functional as F
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
    from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

    if kind == USUAL:
        model = CLIPSegForImageSegmentation.from_pretrained(checkpoint, dtype=torch.float32)
        decoder = model.decoder
    else:
        # A model's default, which a decoder alone is not given.
        decoder = CLIPSegDecoder(
            CLIPSegConfig.from_pretrained(checkpoint, attn_implementation="sdpa")
        )
        with safe_open(checkpoint / "model.safetensors", "pt") as file:
            names = [name for name in sorted(file.keys()) if name.startswith("decoder.")]
            arrays = {
                name.removeprefix("decoder."): file.get_tensor(name).float() for name in names
            }
        decoder.load_state_dict(arrays)
        if kind != WHOLE:
            decoder.reduces = torch.nn.ModuleList(torch.nn.Identity() for _ in decoder.reduces)
        decoder.requires_grad_(kind != PROMPT)

    def loss(logits, labels):
        p = logits.sigmoid()
        overlap, total = (p * labels).sum((1, 2)), (p + labels).sum((1, 2))
        dice = 1 - (2 * overlap + 1) / (total + 1)
        return F.binary_cross_entropy_with_logits(logits, labels) + dice.mean()

    def prepared(given: dict) -> Step:
        given = {name: torch.from_numpy(array) for name, array in given.items()}
        labels, embeddings = given["labels"], given["embeddings"].requires_grad_(kind == PROMPT)
        learned = [embeddings] if kind == PROMPT else list(decoder.parameters())
        optimizer = torch.optim.AdamW(learned, lr=RATE)

        def step() -> float:
            optimizer.zero_grad()
            if kind == USUAL:
                logits = model(input_ids=given["ids"], pixel_values=given["pixels"]).logits
            else:
                logits = decoder([layer.float() for layer in given["tokens"]], embeddings).logits
            value = loss(logits.view(labels.shape), labels)
            value.backward()
            optimizer.step()
            return value.item()

        return step

    return prepared


def with_clipseg_np(checkpoint: Path, kind: str) -> Callable[[dict], Step]:
    from clipseg_np import CLIPSegForImageSegmentation
    from clipseg_np.learn.optimizer import AdamW
    from clipseg_np.learn.step import one_pass
    from clipseg_np.nn.scope import Scope

    stored = CLIPSegForImageSegmentation.from_pretrained(checkpoint)
    p, decoder, arrays = stored.config.vision_config.patch_size, stored.decoder, {}
    if kind != PROMPT:
        # The stored arrays cannot be written to.
        arrays = {n: a for n, a in stored.scope.arrays.items() if n.startswith("decoder.")}
        arrays = {n: a.copy() for n, a in arrays.items() if kind == WHOLE or "reduces" not in n}

        class Source:
            def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
                return arrays.get(name, stored.scope.arrays[name])

        scope = Scope(Source(), stored.ops, stored.dtype)
        decoder = CLIPSegForImageSegmentation(stored.config, scope).decoder

    def prepared(given: dict) -> Step:
        tokens, embeddings, labels = given["tokens"], given["embeddings"], given["labels"]
        grid = labels.shape[1] // p, labels.shape[2] // p
        options = {"is_reduced": kind != WHOLE, "learns": arrays.__contains__}
        optimizer = AdamW({"embeddings": embeddings} if kind == PROMPT else arrays)

        def step() -> float:
            found = one_pass(decoder, tokens, embeddings, labels, grid, **options)
            learned = {"embeddings": found.d_embeddings} if kind == PROMPT else found.gradients
            optimizer.step(learned, RATE)
            return found.loss

        return step

    return prepared


def peak_megabytes() -> float:
    """The most memory that this process has used; `getrusage` would count its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(checkpoint: Path, given: Path, system: str, kind: str, prompts: list[int]) -> dict:
    """The first losses, the median seconds of a step by the prompts' number, and the peak in MB."""
    prepared = {"torch": with_torch, "clipseg_np": with_clipseg_np}[system](checkpoint, kind)
    losses, seconds = [], {}
    for number in sorted(prompts, reverse=True):
        with np.load(given) as arrays:
            wanted = ["ids", "pixels"] if kind == USUAL else ["embeddings"]
            batch = {name: arrays[name][:number] for name in [*wanted, "labels", "embeddings"]}
            if kind != USUAL:
                stored = arrays[WHOLE if kind == WHOLE else REDUCED]
                # transformers reads the deepest layer last.
                order = -1 if system == "torch" and kind != WHOLE else 1
                batch["tokens"] = np.ascontiguousarray(stored[::order, :number])
        step, times = prepared(batch), []
        losses = losses or [step(), step(), step()]
        while not times or sum(times) < SECONDS:
            # Without a pause, as steps follow each other when one learns.
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        seconds[number] = statistics.median(times)
    return {"losses": losses, "seconds": seconds, "peak": peak_megabytes()}


def run_command(arguments: list[str]) -> dict:
    from clipseg_np.cli import main

    start = time.perf_counter()
    main(arguments)
    return {"seconds": time.perf_counter() - start, "peak": peak_megabytes()}


if __name__ == "__main__":
    if len(sys.argv) > 5 and sys.argv[4] in KINDS:
        checkpoint, given, system, kind, *prompts = sys.argv[1:]
        found = measure(Path(checkpoint), Path(given), system, kind, list(map(int, prompts)))
    else:
        found = run_command(sys.argv[1:])
    print(json.dumps(found))
