"""A grammar of command lines: right and wrong options, values, prompts and names.

A seeded generator draws them.
"""

from pathlib import Path

import numpy as np

from .command import Yard
from .mutations import generator, pick

GOOD_PROMPTS = (
    "red", "a + b", "a - (b & !c)", '"rock & roll"', "日本語", "é\u0301\u200d\U0001f600",
    "a\tb", "x" * 10_000, "a " * 3000, "<|endoftext|>", "../..", "%s {0}", "\x1b[31mred",
    "a - (b & !@heart)", '"@heart"',
    "two\nlines", "\u202eright", "C:\\x", "((((a))))", "!" * 50 + "a",
)  # fmt: skip
BAD_PROMPTS = (
    "", " ", "\n", "a - ", "- a", " + ", "a & & b", "(", "(" * 10_000, ")" * 10_000, "!" * 10_000,
    "(" * 5000 + "a" + ")" * 5000, " + ".join(["a"] * 10_000),
    '"', '""', "a (b)", "\ud800", "\udcff", "a\0b", "()",
)  # fmt: skip
NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e300",
    "1e-300",
    "-0.0",
    "2",
    "x",
    "",
    "1e9",
    "١",
    "0x1",
    "9" * 5000,
)
WHOLE = ("0", "-1", "1", "1.5", "1000000000", "1" + "0" * 400, "x", "", "nan", "9" * 5000)
IDS = (
    "",
    "x",
    "a/b/c",
    "../x",
    "~a/b",
    "a\\b/c",
    "/",
    "a/",
    "/b",
    "a/b",
    "-x/y",
    "a/\n",
    "\ud800/x",
    "a/" + "b" * 5000,
)


class Drawing:
    """Draws arguments: mostly good ones, so that many lines are answered."""

    def __init__(self, yard: Yard, checkpoint: Path, rng: np.random.Generator):
        self.yard, self.checkpoint, self.rng = yard, checkpoint, rng

    def often(self, chance: float = 0.93) -> bool:
        return self.rng.random() < chance

    def of(self, good, bad):
        return pick(self.rng, good if self.often() else bad)

    def prompts(self) -> list[str]:
        return [self.prompt() for _ in range(int(pick(self.rng, (0, 1, 1, 1, 1, 2, 3))))]

    def prompt(self) -> str:
        if self.often(0.8):
            return self.of(GOOD_PROMPTS, BAD_PROMPTS)
        points = self.rng.integers(1, 0x11000, int(self.rng.integers(1, 40))) * pick(
            self.rng, (1, 1, 16)
        )
        return "".join(map(chr, points))

    def image(self) -> str:
        given = self.yard.given
        good = sorted((given / "images").glob("*.png"))
        wrong = [
            *sorted((given / "wrong").iterdir()),
            given / "absent.png",
            given / "mask.png" / "x.png",
        ]
        return str(
            self.of(
                [*good, "-"], [*wrong, "/dev/null", "/dev/zero", "", "x" * 10_000, "a\0b", "-x.png"]
            )
        )

    def output(self) -> str:
        out, given = self.yard.output, self.yard.given
        wrong = [
            given / "mask.png",
            given / "mask.png" / "out",
            "/dev/null",
            "/dev/null/x",
            "/proc/absent/x",
            "",
        ]
        return str(
            self.of(
                [out, out, out / "a" / "b", out / "ü\n"],
                [*wrong, out / ("x" * 300), "a\0b", "x" * 10_000],
            )
        )

    def model(self) -> str:
        given = self.yard.given
        wrong = (
            given / "empty",
            given / "bad model",
            given / "absent",
            given / "mask.png",
            "a/b",
            "",
            "x" * 5000,
            "a\nb",
        )
        return str(self.of([self.checkpoint], wrong))

    def options_of_results(self) -> list[str]:
        mask, found = str(self.yard.given / "mask.png"), []
        for option, good, bad in (
            ("--threshold", ("0", "0.3", "1", "0.5"), NUMBERS),
            ("--smallest", ("0", "3", "1000000000"), WHOLE),
            ("--grow", ("0", "2", "1e9"), NUMBERS),
            ("--feather", ("0", "1.5", "1e9"), NUMBERS),
        ):
            if self.often(0.15):
                found.append(f"{option}={self.of(good, bad)}")
        if self.often(0.2):
            kinds = ("mask", "soft", "heat", "cutout", "contour", "highlight", "all", "mask,soft")
            found += [
                "--write",
                *(self.of(kinds, ("nope", "")) for _ in range(int(self.rng.integers(1, 4)))),
            ]
        found += [flag for flag in ("--labels", "--json") if self.often(0.3)]
        found += [flag for flag in ("--overlay", "--overwrite") if self.often(0.1)]
        if self.often(0.15):
            found += ["--scales", *(self.of(("1", "2"), WHOLE) for _ in range(2))]
        if self.often(0.15):
            found += [
                "--image-prompt",
                self.image(),
                *(["--prompt-mask", mask] if self.often(0.5) else []),
            ]
        if self.often(0.1):
            given = self.yard.given
            wrong = [given / "golden.safetensors", given / "few", given / "x.safetensors", ""]
            found += ["--prompt-file", str(self.of([given / "heart.safetensors"], wrong))]
            found += ["--force"] if self.often() else []
        if self.often(0.04):
            found.append(
                pick(self.rng, ("--nope", "--out", "-x", "--", "--help", "--thres=0.4", "--json=1"))
            )
        return found

    def common(self) -> list[str]:
        backend = self.of(("numpy", "numpy-reference"), ("abacus", "", "cupy"))
        offline = ["--offline"] if self.often(0.2) else []
        backends = ["--backend", backend] if self.often(0.2) else []
        return ["--model", self.model(), *backends, *offline]

    def convert(self) -> list[str]:
        given, found = self.yard.given, []
        wrong = [given / "mask.png", given / "golden.safetensors", given / "few", "a/b", ""]
        source = self.of([self.checkpoint, self.checkpoint / "model.safetensors"], wrong)
        if self.often(0.5):
            found += ["--dtype", self.of(("float32", "float16", "bfloat16"), ("int8", ""))]
        if self.often(0.3):
            found.append(f"--shard-size={self.of(('0.01', '1', '1e9'), NUMBERS)}")
        if self.often(0.1):
            found += [pick(self.rng, ("--clip", "--tokenizer")), str(given / "mask.png")]
        if self.often(0.1):
            found += ["--extract-layers", self.of(("3", "6", "9"), WHOLE)]
        return ["convert", str(source), self.output(), *found]

    def line(self, command: str) -> list[str]:
        given, out, output = self.yard.given, self.yard.output, self.output()
        if command == "segment":
            output = "-" if self.often(0.3) else output
            return [
                command,
                *(self.image() for _ in range(int(pick(self.rng, (1, 1, 1, 1, 1, 1, 2, 3))))),
                *self.prompts(),
                "--output",
                output,
                *self.options_of_results(),
                *self.common(),
            ]
        if command == "batch":
            folder = self.of(
                [given / "few"],
                [given / "empty", given / "wrong", given / "mask.png", "", given / "no"],
            )
            globs = (
                ["--glob", self.of(("*.png", "s*", "inner/*"), ("", ".", "[", "**", "/", "\n"))]
                if self.often(0.3)
                else []
            )
            workers = ["--workers", self.of(("1", "2"), WHOLE)] if self.often(0.3) else []
            workers += ["--flat"] if self.often(0.2) else []
            return [
                command,
                str(folder),
                *self.prompts(),
                *globs,
                *workers,
                "--output",
                output,
                *self.options_of_results(),
                *self.common(),
            ]
        if command == "trace":
            names = (
                ["--names", self.of(("decoder.*", "*", "[!a]*"), ("", "nope", "[", "*a*" * 300))]
                if self.often(0.4)
                else []
            )
            wrong = [
                "",
                given / "few",
                out / "t.npz",
                given / "wrong" / "pipe.png",
                given / "mask.png" / "t",
            ]
            target = str(self.of([out / "t.safetensors", out / "a" / "b"], wrong))
            return [
                command,
                self.image(),
                *(self.prompts() or ["red"]),
                "--output",
                target,
                *names,
                *self.common(),
            ]
        if command == "compare":
            wrong = [
                given / "mask.png",
                given / "absent",
                given / "empty",
                "",
                "x" * 10_000,
                "/dev/null",
            ]
            files = [
                str(self.of([given / "golden.safetensors", given / "other.npz"], wrong))
                for _ in range(2)
            ]
            return [
                command,
                *files,
                *([f"--tolerance={self.of(('0', '1e-3'), NUMBERS)}"] if self.often(0.4) else []),
            ]
        if command == "download":
            return [
                command,
                pick(self.rng, IDS),
                *([str(self.yard.output)] if self.often(0.5) else []),
            ]
        if command == "convert":
            return self.convert()
        if command == "info":
            return [command, *self.common()]
        return [
            str(pick(self.rng, ("", "segmen", "--version", "--help", "-", "x\ny", "batch")))
            for _ in range(int(self.rng.integers(3)))
        ]


def drawn_line(command: str, seed: int, yard: Yard, checkpoint: Path) -> list[str]:
    return Drawing(yard, checkpoint, generator(command, seed)).line(command)
