"""Train the demonstration checkpoint from nothing on generated scenes, and export it.

    python training/train.py --output weights/demo

The learning rate and the picture's side follow the share of the run that is done, which is counted in steps (`--steps`)
or in time (`--minutes`). On a CPU each process keeps to one thread, and the processes share a step out; where the machine
has other work to do, this is more than twice as fast as threads that wait for each other in every layer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from batches import Batches
from losses import WEIGHTS, Auxiliary, losses, prepare
from model import LONGEST, SIDE, build_model, decode, embed, encode, export
from phrases import vocabulary_words
from torch import nn
from transformers import CLIPTokenizer
from vocabulary import write_vocabulary

COARSE_SIDE = 96  # of the pictures in the first part of the run
TRAINING, VALIDATION = 1, 2  # in the seeds; evaluate.py uses others


@torch.no_grad()
def validate(model, batches, device) -> dict:
    """IoU at threshold 0.5, at the model's own side, of phrases that fit; share of empty masks of those that do not."""
    model.eval()
    ious, empty = [], []
    for batch in batches:
        batch = prepare(batch, SIDE, device)
        with torch.autocast(device, torch.bfloat16):
            activations, _ = encode(model, batch["images"])
            text = embed(model, batch["ids"]).unflatten(0, batch["fits"].shape[:2])
            mask = decode(model.decoder, activations, text) > 0
        true = batch["targets"].flatten(0, 1) >= 0.5
        there = batch["fits"].flatten(0, 1).sum(1) > 0
        both, either = (mask & true).sum((1, 2)), (mask | true).sum((1, 2))
        ious += (both / either.clamp(min=1))[there].tolist()
        empty += (mask.float().mean((1, 2)) < 0.002)[~there].tolist()
    model.train()
    return {"iou": float(np.mean(ious)), "empty": float(np.mean(empty)) if empty else None}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--run", type=Path, default=Path(__file__).parent / "runs" / "demo")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--minutes", type=float, help="end after so long instead of --steps")
    parser.add_argument("--scenes", type=int, default=20, help="scenes a step, of each process")
    parser.add_argument("--prompts", type=int, default=4, help="phrases a scene")
    parser.add_argument("--crops", type=int, default=4, help="picture prompts a step; 0: none")
    parser.add_argument("--coarse", type=float, default=0.55, help="share of the run at 96 pixels")
    parser.add_argument("--rate", type=float, default=6e-4, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes that draw scenes, for each process")
    parser.add_argument("--processes", type=int, help="share a step out over so many: 2 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last state")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    args.processes = args.processes or (2 if on_cpu else 1)
    args.workers = args.workers or (1 if on_cpu else max(1, os.cpu_count() - 2))
    return args


def shared(parameters, elapsed: float) -> float:
    """Average the gradients over the processes; returns the first process's clock."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [gradients[0].new_tensor([elapsed])])
    dist.all_reduce(flat)
    flat[:-1] /= dist.get_world_size()
    for gradient, part in zip(gradients, flat[:-1].split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))
    return float(flat[-1])


def train(rank: int, args: argparse.Namespace) -> None:
    """The run, in process number `rank`; the first one validates, logs and saves."""
    first = rank == 0
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    if args.processes > 1:
        meeting = f"file://{(args.run / 'meeting').resolve()}"
        dist.init_process_group("gloo", meeting, rank=rank, world_size=args.processes)
    vocabulary = args.run / "vocabulary"
    tokens = len(json.loads((vocabulary / "vocab.json").read_text()))
    tokenize = CLIPTokenizer.from_pretrained(vocabulary)

    model = build_model(tokens).to(args.device)
    auxiliary = Auxiliary(model.config).to(args.device)
    parameters = [*model.named_parameters(), *auxiliary.named_parameters()]
    groups = [
        {"params": [p for _, p in parameters if p.ndim > 1], "weight_decay": 0.03},
        {"params": [p for _, p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), fused=True)
    step, before = 0, 0.0  # steps and seconds done
    state_file = args.run / "state.pt"
    if args.resume:
        state = torch.load(state_file, map_location=args.device, weights_only=True)
        model.load_state_dict(state["model"])
        auxiliary.load_state_dict(state["auxiliary"])
        optimizer.load_state_dict(state["optimizer"])
        step, before = state["step"], state["seconds"]
    if first:
        log = (args.run / "log.jsonl").open("a" if args.resume else "w")

    def save():
        state = {"step": step, "seconds": before + time.time() - start}
        for name, part in (("model", model), ("auxiliary", auxiliary), ("optimizer", optimizer)):
            state[name] = part.state_dict()
        torch.save(state, state_file.with_suffix(".part"))
        os.replace(state_file.with_suffix(".part"), state_file)
        export(model, vocabulary, args.output)

    def fresh(seed, **changes):
        return Batches([args.seed, *seed], args.scenes, args.prompts, SIDE, tokenize, **changes)

    mixed = fresh([VALIDATION, 1])
    unseen = fresh([VALIDATION, 2], held_out="only", absent=0.0)
    if first:
        mixed, unseen = ([data[i] for i in range(4)] for data in (mixed, unseen))
    data = torch.utils.data.DataLoader(
        fresh([TRAINING], crops=args.crops),
        batch_size=None,
        sampler=range(step * args.processes + rank, 10**8, args.processes),
        num_workers=args.workers,
        prefetch_factor=6,
    )
    start = said = saved = time.time()
    sums = {}
    elapsed = before
    torch.manual_seed(args.seed + 1000 * rank + step)
    if first:
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    for batch in data:
        done = elapsed / 60 / args.minutes if args.minutes else step / args.steps
        if done >= 1:
            break
        cosine = 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
        rate = args.rate * min(1, (step + 1) / 400) * cosine
        for group in optimizer.param_groups:
            group["lr"] = rate
        side = COARSE_SIDE if done < args.coarse else SIDE
        batch = prepare(batch, side, args.device)
        with torch.autocast(args.device, torch.bfloat16):
            found = losses(model, auxiliary, batch)
        weights = WEIGHTS | {"patch": 2 - 1.8 * done}  # most of all a start
        total = sum(weights[name] * loss for name, loss in found.items())
        optimizer.zero_grad()
        total.backward()
        # The gradients are shared, and the first process's clock with them, so that all end together.
        elapsed = before + time.time() - start
        if args.processes > 1:
            elapsed = shared([p for _, p in parameters], elapsed if first else 0.0)
        found["norm"] = nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        optimizer.step()
        step += 1
        if not first:
            continue
        for name, loss in found.items():
            sums[name] = sums.get(name, 0) + loss.detach()
        if step % 50 == 0:
            means = {name: round(float(value) / 50, 4) for name, value in sums.items()}
            line = {"step": step, "seconds": round(elapsed), "side": side, "rate": round(rate, 6)}
            line |= means
            sums = {}
            if time.time() - said > 150:
                said = time.time()
                line |= {
                    f"valid_{k}": round(v, 4)
                    for k, v in validate(model, mixed, args.device).items()
                }
                line["valid_held_out_iou"] = round(validate(model, unseen, args.device)["iou"], 4)
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
            if time.time() - saved > 240:
                saved = time.time()
                save()
    if first:
        last = {"step": step, "seconds": round(elapsed)}
        last |= {f"valid_{k}": round(v, 4) for k, v in validate(model, mixed, args.device).items()}
        last["valid_held_out_iou"] = round(validate(model, unseen, args.device)["iou"], 4)
        print(json.dumps(last), flush=True)
        log.write(json.dumps(last) + "\n")
        save()


def main() -> None:
    args = arguments()
    write_vocabulary(args.run / "vocabulary", vocabulary_words(), LONGEST)
    if args.processes > 1:
        (args.run / "meeting").unlink(missing_ok=True)
        torch.multiprocessing.spawn(train, (args,), args.processes)
    else:
        train(0, args)


if __name__ == "__main__":
    main()
