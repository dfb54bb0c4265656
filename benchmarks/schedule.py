"""Reckon how long a pass would take on more cores than there are, by its tasks' times on one.

    python benchmarks/schedule.py --threads 2 4 8 16

The tasks that threads share run one after another here. Each is then laid out on the thread that
would be the first to be free; the text has a thread of its own. What threads do to each other is
left out: memory and multipliers that cores share, and Python's lock. tricks.md has the table.
"""

import argparse
import heapq
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from instruction_set import choose
from speed import setup, table
from systems import example, save_checkpoint_without_torch

from clipseg_np import CLIPSegForImageSegmentation
from clipseg_np.backends.threads import Threads, one_blas_thread

# Seconds until a thread that sleeps begins.
WAKE = 30e-6


class Schedule(Threads):
    """Runs tasks one after another; its clock shows when `count` threads would have ended them."""

    skipped, together, text_end = 0.0, 0.0, 0.0

    def now(self) -> float:
        return perf_counter() - self.skipped

    @property
    def free(self) -> int:
        return max(1, self.count - (self.now() < self.text_end))

    def run(self, tasks: Sequence[Callable]) -> list:
        with one_blas_thread:
            start = end = self.now()
            free = [start] + [start + WAKE] * (min(self.count, len(tasks)) - 1)
            is_shared = len(free) > 1
            if start < self.text_end and len(free) == self.count > 1:
                free[-1] = self.text_end
            results = []
            for task in tasks:
                begin, before = heapq.heappop(free), self.now()
                results.append(task())
                ended = begin + self.now() - before
                heapq.heappush(free, ended)
                end = max(end, ended)
            self.skipped += self.now() - end
            self.together += is_shared * (end - start)
        return results


def one_pass(model: CLIPSegForImageSegmentation, threads: int, ids, pixels) -> tuple[float, float]:
    """The seconds of a pass on so many threads, and those in which one of them works alone."""
    model.ops.threads, model.ops.workers = Threads(1), 1
    start = perf_counter()
    embeddings = model.get_conditional_embeddings(input_ids=ids)
    text = perf_counter() - start
    schedule = model.ops.threads = Schedule(threads)
    model.ops.workers = threads
    start = schedule.now() - (text if threads == 1 else 0)
    schedule.text_end = start + text
    features = model.encode_image(pixels)
    waits = max(0, schedule.text_end - schedule.now())
    model.decode(features, embeddings)
    seconds = schedule.now() - start + waits
    return seconds, seconds - schedule.together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 4, 6, 8, 12, 16])
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--avx2", action="store_true", help="imitate a processor without AVX-512")
    args = parser.parse_args()
    choose(args.avx2)
    ids, pixels = example(prompts=args.prompts)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint_without_torch(Path(folder))
        model = CLIPSegForImageSegmentation.from_pretrained(folder, backend="numpy")
        rows = []
        for threads in [1, *args.threads]:
            times = [one_pass(model, threads, ids, pixels) for _ in range(args.rounds)]
            seconds, alone = map(statistics.median, zip(*times))
            rows.append((threads, seconds, alone))
    cells = [[str(t), f"{s:.3f}", f"{rows[0][1] / s:.2f}", f"{a:.3f}"] for t, s, a in rows]
    print(setup(), "", *table(["threads", "seconds", "faster", "one works alone"], cells), sep="\n")


if __name__ == "__main__":
    main()
