"""Train the demonstration checkpoint from nothing on generated scenes, and export it.

    python training/train.py --output weights/demo

The learning rate and the number of patches follow the share of the run that is done, which is
counted in steps (`--steps`) or in time (`--minutes`). On a CPU each process keeps to one thread,
and the processes share the work of a step; where the machine has other work to do, this is more
than twice as fast as threads that wait for each other in every layer.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from batches import Batches, HeldOutBatches
from losses import WEIGHTS, Auxiliary, losses, prepare, save_heads, start_from
from model import MAX_TOKENS, SIDE, build_model, decode, embed, encode, export
from muon import Muon
from phrases import vocabulary_words
from pool import fill
from torch import nn
from transformers import CLIPTokenizer
from vocabulary import write_vocabulary

TOKENS = 112  # patches that are encoded, of 256, until the last part of the run
TRAINING, VALIDATION = 1, 2  # parts of the seeds; evaluate.py uses others


@torch.no_grad()
def validate(model, batches, device) -> dict:
    """IoU (threshold 0.5, at SIDE) of phrases that fit; share of empty masks of the others."""
    model.eval()
    ious, empty = [], []
    for batch in batches:
        batch = prepare(batch, device, None)
        activations, _ = encode(model, batch["images"])
        text = embed(model, batch["ids"]).unflatten(0, batch["fits"].shape[:2])
        mask = decode(model.decoder, activations, text) > 0
        true = batch["targets"] >= 0.5
        there = batch["fits"].sum(-1) > 0
        both, either = (mask & true).sum((2, 3)), (mask | true).sum((2, 3))
        ious += (both / either.clamp(min=1))[there].tolist()
        empty += (mask.float().mean((2, 3)) < 0.002)[~there].tolist()
    model.train()
    return {"iou": float(np.mean(ious)), "empty": float(np.mean(empty)) if empty else None}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--run", type=Path, default=Path(__file__).parent / "runs" / "demo")
    parser.add_argument("--start", type=Path, help="a trained checkpoint to go on from")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--pool", type=int, default=40000, help="scenes to draw")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--minutes", type=float, help="end after so long instead of --steps")
    parser.add_argument("--scenes", type=int, default=12, help="scenes a step, of each process")
    parser.add_argument("--prompts", type=int, default=3, help="phrases a scene")
    parser.add_argument("--crops", type=int, default=1, help="image prompts a step; 0: none")
    parser.add_argument("--towers", type=float, default=0.3, help="share of the run without masks")
    parser.add_argument("--whole", type=float, default=0.8, help="share from which on all patches")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="batch makers of each process")
    parser.add_argument("--processes", type=int, help="share a step out over so many: 2 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last state")
    args = parser.parse_args()
    args.processes = args.processes or (2 if args.device == "cpu" else 1)
    if args.crops > args.scenes:
        parser.error(f"--crops {args.crops} is more than --scenes {args.scenes}")
    return args


def optimizers(model, auxiliary, rate):
    """Muon for the matrices between activations, AdamW for embeddings, heads, gains and biases."""
    layers = [*model.clip.text_model.encoder.layers, *model.clip.vision_model.encoder.layers]
    layers += [*model.decoder.layers, *model.decoder.reduces]
    hidden = [p for layer in layers for p in layer.parameters() if p.ndim == 2]
    film = [*model.decoder.film_mul.parameters(), *model.decoder.film_add.parameters()]
    chosen = {id(p) for p in [*hidden, *film]}
    rest = [p for m in (model, auxiliary) for p in m.parameters() if id(p) not in chosen]
    # Without decay, FiLM's factors grow to 30.
    groups = [{"params": rest}, {"params": film, "weight_decay": 0.2}]
    return [
        Muon(hidden, lr=rate, weight_decay=0.03),
        torch.optim.AdamW(groups, lr=rate / 2, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def shared(parameters, elapsed: float) -> float:
    """Average the gradients over the processes; returns the first process's clock."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [gradients[0].new_tensor([elapsed])])
    dist.all_reduce(flat)
    flat[:-1] /= dist.get_world_size()
    for gradient, part in zip(gradients, flat[:-1].split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))
    return float(flat[-1])


def share_of_rate(done: float) -> float:
    """The share of the highest rate: 1 for the first 30 %, then linearly down to nearly 0."""
    return max(0.01, min(1, (1 - done) / 0.7))


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
    if args.start:
        start_from(args.start, model, auxiliary)
    parameters = [*model.parameters(), *auxiliary.parameters()]
    both = optimizers(model, auxiliary, args.rate)
    groups = [(group, group["lr"]) for optimizer in both for group in optimizer.param_groups]
    parts = {"model": model, "auxiliary": auxiliary, "muon": both[0], "adamw": both[1]}
    step, before = 0, 0.0  # steps and seconds done
    state_file = args.run / "state.pt"
    if args.resume:
        state = torch.load(state_file, map_location=args.device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step, before = state["step"], state["seconds"]
    if first:
        log = (args.run / "log.jsonl").open("a" if args.resume else "w")

    def save():
        state = {"step": step, "seconds": before + time.time() - start}
        state |= {name: part.state_dict() for name, part in parts.items()}
        torch.save(state, state_file.with_suffix(".part"))
        os.replace(state_file.with_suffix(".part"), state_file)
        export(model, vocabulary, args.output)
        save_heads(auxiliary, args.output)

    def say(line):
        print(json.dumps(line), flush=True)
        log.write(json.dumps(line) + "\n")
        log.flush()

    def scores():
        found = {f"valid_{k}": round(v, 4) for k, v in validate(model, mixed, args.device).items()}
        unseen_iou = validate(model, unseen, args.device)["iou"]
        return found | {"valid_held_out_iou": round(unseen_iou, 4)}

    if first:
        sizes = {"scenes": 25, "prompts": 4, "tokenize": tokenize}
        mixed = Batches(args.run / "mixed", [args.seed, VALIDATION], **sizes)
        unseen = HeldOutBatches(args.run / "unseen", [args.seed, VALIDATION], **sizes, absent=0)
        mixed, unseen = ([data[i] for i in range(6)] for data in (mixed, unseen))
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    seed = [args.seed, TRAINING]
    sizes = {"scenes": args.scenes, "prompts": args.prompts, "crops": args.crops}
    data = torch.utils.data.DataLoader(
        Batches(args.run / "training", seed, **sizes, tokenize=tokenize),
        batch_size=None,
        sampler=range(step * args.processes + rank, 10**8, args.processes),
        num_workers=args.workers,
        prefetch_factor=6,
    )
    start = said = saved = time.time()
    sums = {}
    elapsed = before
    torch.manual_seed(args.seed + 1000 * rank + step)
    for batch in data:
        done = elapsed / 60 / args.minutes if args.minutes else step / args.steps
        if done >= 1:
            break
        rate = min(1, (step + 1) / 200) * share_of_rate(done)
        for group, highest in groups:
            group["lr"] = rate * highest
        batch = prepare(batch, args.device, TOKENS if done < args.whole else None)
        found = losses(model, auxiliary, batch, masks=done >= args.towers)
        total = sum(WEIGHTS[name] * loss for name, loss in found.items())
        for p in parameters:
            p.grad = None
        total.backward()
        # The first process's clock is shared with the gradients, so that all end together.
        elapsed = before + time.time() - start
        if args.processes > 1:
            elapsed = shared(parameters, elapsed if first else 0.0)
        found["norm"] = nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in both:
            optimizer.step()
        step += 1
        if not first:
            continue
        for name, loss in found.items():
            sums.setdefault(name, []).append(loss.detach())
        if step % 50 == 0:
            line = {"step": step, "seconds": round(elapsed), "rate": round(rate * args.rate, 6)}
            line |= {name: round(float(sum(seen) / len(seen)), 4) for name, seen in sums.items()}
            sums = {}
            if time.time() - said > 240 and done > args.towers:
                said = time.time()
                line |= scores()
            say(line)
            if time.time() - saved > 240:
                saved = time.time()
                save()
    if first:
        say({"step": step, "seconds": round(elapsed)} | scores())
        save()


def main() -> None:
    args = arguments()
    write_vocabulary(args.run / "vocabulary", vocabulary_words(), MAX_TOKENS)
    if not args.resume:
        cores = os.cpu_count()
        fill(args.run / "training", [args.seed, TRAINING], args.pool, SIDE, workers=cores)
        few = {"scenes": 300, "side": SIDE, "workers": cores}
        fill(args.run / "mixed", [args.seed, VALIDATION, 1], **few)
        fill(args.run / "unseen", [args.seed, VALIDATION, 2], **few, held_out="only")
    if args.processes > 1:
        (args.run / "meeting").unlink(missing_ok=True)
        torch.multiprocessing.spawn(train, (args,), args.processes)
    else:
        train(0, args)


if __name__ == "__main__":
    main()
