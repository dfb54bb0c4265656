"""The page cut into twelve steps, run on golden files with a reader's functions in their places.

The page is clipseg_np/pico.py; `solutions` holds its lines, a file for each step.
"""

import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from inspect import signature
from json import loads
from pathlib import Path
from types import CodeType
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from mistakes import ERRORS, MISTAKES, QUESTIONS
from safetensors.numpy import load_file

from clipseg_np.golden.compare import Row, compare, compare_one
from clipseg_np.golden.traces import Golden
from clipseg_np.pico import ACTIVATIONS

FUNCTIONS = {
    1: ("linear", "softmax"),
    2: ("layer_norm",),
    3: ("quick_gelu", "mlp"),
    4: ("one_head",),
    5: ("attention",),
    6: ("encoder",),
    7: ("byte_pairs",),
    8: ("text_tower",),
    9: ("bicubic", "embed"),
    10: ("vision_tower",),
    11: ("film", "decoder_layer"),
    12: ("conv_transpose", "head", "clipseg"),
}
# Relative to a layer's largest number. The same formula in another order stays far below it.
TOLERANCE = 1e-9

# Byte pairs of step 7: the golden files' token ids are those of these two texts.
TEXTS = ("star", "stars art")
OTHER_WORDS = ("start", "tart", "starstar", "sat", "s", "aaaa")
MERGES = ("s t", "a r", "ar t</w>", "st ar", "a r</w>", "st ar</w>", "t a", "a a")
RANKS = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
IDS = {"star</w>": 3, "star": 17, "s</w>": 4, "art</w>": 6}
START, END, PADDING = 22, 23, 1


class Wrong(Exception):
    """A sentence on what a reader's function returned."""


@dataclass
class Outcome:
    """The layers' outputs by name, and the error that ended the run, if one did.

    line: the reader's own line where it happened. unwritten: functions left to the reader.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    error: str = ""
    line: str = ""
    unwritten: list[str] = field(default_factory=list)

    def keep(self, arrays: Mapping[str, np.ndarray], suffix: str) -> None:
        """The last of each name, as a function returns after those that it calls.

        Only where the golden file has the same shape: a norm of all tokens, of which one is read,
        is right, too.
        """
        for name, array in arrays.items():
            if name + suffix in REFERENCE and array.shape == REFERENCE[name + suffix].shape:
                self.arrays[name + suffix] = array


def load(path: Path, source: str | None = None) -> dict[str, Any]:
    """The names that a file defines, or would with another source."""
    space = {"__name__": path.stem, "__file__": str(path)}
    exec(compiled(source or path.read_bytes(), str(path)), space)  # noqa: S102
    return space


@cache
def compiled(source: str | bytes, path: str) -> CodeType:
    return compile(source, path, "exec")


def stubs(folder: Path = HERE) -> dict[int, Path]:
    """A folder's twelve files by step."""
    return {int(path.name[5:7]): path for path in sorted(folder.glob("step_[0-9][0-9]_*.py"))}


SOLUTIONS = stubs(HERE / "solutions")


def is_unwritten(function: Any) -> bool:
    return "NotImplementedError" in getattr(getattr(function, "__code__", None), "co_names", ())


def assemble(
    answers: Mapping[int, dict[str, Any]], wrap: Callable = lambda name, function: function
) -> dict[str, Callable]:
    """The page's functions, with those that are written in their places. Each calls the others'."""
    solutions = {step: load(path) for step, path in SOLUTIONS.items()}
    page = {}
    for step, names in FUNCTIONS.items():
        for name in names:
            function = (answers.get(step) or solutions[step]).get(name)
            page[name] = wrap(name, solutions[step][name] if is_unwritten(function) else function)
    if 4 in answers and 5 not in answers:
        page["attention"] = wrap("attention", by_heads(page, page["attention"]))
    page["ACTIVATIONS"] = {**ACTIVATIONS, "quick_gelu": page["quick_gelu"]}
    for step, space in (*solutions.items(), *answers.items()):
        for name in page.keys() & space.keys():
            elsewhere = getattr(space[name], "__module__", None) != space["__name__"]
            if elsewhere or name in FUNCTIONS[step]:
                space[name] = page[name]
    return page


def by_heads(page: dict[str, Callable], masked: Callable) -> Callable:
    """Attention that calls one_head for each of its heads, where there is no mask."""

    def attention(x, w, name, N, mask=True):
        if mask is not True:
            return masked(x, w, name, N, mask)
        q, k, v = (page["linear"](x, w, f"{name}.{p}_proj") for p in "qkv")
        heads = zip(*(np.split(array, N, axis=-1) for array in (q, k, v)))
        x = np.concatenate([page["one_head"](*head) for head in heads], axis=-1)
        return page["linear"](x, w, f"{name}.out_proj")

    return attention


PAGE = assemble({})
SIGNATURES = {name: signature(PAGE[name]) for names in FUNCTIONS.values() for name in names}


def locked(value: Any) -> Any:
    """A view that cannot be written to, so that a function cannot change its input unseen."""
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def read(kind: str) -> tuple[Golden, dict[str, np.ndarray], dict]:
    """A golden file, the arrays of its checkpoint, and its config."""
    folder = ROOT / "tests" / "data" / kind
    arrays = load_file(folder / "model.safetensors")
    w = {name: locked(array.astype("float64")) for name, array in arrays.items()}
    config = loads((folder / "config.json").read_text("utf-8"))
    return Golden(ROOT / "golden" / f"{kind}_texts.safetensors"), w, config


def run(page: Mapping[str, Callable], golden: Golden, w: dict, config: dict) -> np.ndarray:
    """The logits of a golden file's images and texts."""
    texts = [
        [token for word in text.split() for token in page["byte_pairs"](word, RANKS)]
        for text in TEXTS
    ]
    ids = np.full_like(golden.inputs["input_ids"], PADDING)
    for row, tokens in zip(ids, texts):
        tokens = [START, *(IDS[token] for token in tokens), END]
        row[: len(tokens)] = tokens
    prompts = page["text_tower"](ids, golden.inputs["attention_mask"], w, config)
    return page["clipseg"](golden.inputs["pixel_values"], prompts, w, config)


def probes() -> list[tuple[str, str, tuple]]:
    """Calls that the golden files do not contain: a name, the function, its arguments."""
    golden, w, config = read("refined")
    images, prompts = golden.inputs["pixel_values"], golden["clip.text_projection"]
    mask = golden.inputs["attention_mask"]
    x, norm = golden["decoder.reduces.1"][:1], "decoder.layers.0.layer_norm1"

    def text(eos: int, ids: list, mask: Any = mask) -> tuple:
        text_config = config["text_config"] | {"eos_token_id": eos}
        return np.array(ids), np.array(mask), w, config | {"text_config": text_config}

    same = text(END, [[START, 3, END, END, END], [START, 17, 4, 6, END]])
    other = text(
        6, [[START, 3, 6, 17, 17], [START, 1, 4, 6, 1]], [[1, 1, 1, 0, 0], [1, 0, 1, 1, 0]]
    )
    highest = text(2, [[START, 3, END, 1, 1], [3, 17, 4, 6, 1]])
    return [
        ("softmax of rows near 0 and 1000", "softmax", (np.array([[0.0, 1], [1000, 1001]]),)),
        ("layer norm with an eps of 0.1", "layer_norm", (x, w, norm, {"layer_norm_eps": 0.1})),
        ("layer norm without an eps in config", "layer_norm", (x, w, norm, {})),
        *((f"byte pairs of {word}", "byte_pairs", (word, RANKS)) for word in OTHER_WORDS),
        ("bicubic(2, 3)", "bicubic", (2, 3)),
        ("a text padded with end tokens", "text_tower", same),
        ("a text with a gap, and one padded with higher ids", "text_tower", other),
        ("texts whose highest ids differ", "text_tower", highest),
        ("film of one image and two prompts", "film", (x, prompts, w)),
        ("one image and two prompts", "clipseg", (images[:1], prompts, w, config)),
    ]


def named(function: str, name: str, result: Any) -> dict[str, np.ndarray]:
    """A function's result by the golden file's names, its axes in the golden file's order."""
    if function in ("linear", "layer_norm", "attention", "mlp", "embed", "decoder_layer"):
        return {name: result}
    if function == "encoder":
        return {f"{name}.layers.{i}": x for i, x in enumerate(result)}
    if function == "conv_transpose":
        return {name: np.moveaxis(result, -1, 1)}
    if function == "head":
        return {name: result[:, None]}
    if function == "text_tower":
        return {"clip.text_projection": result}
    if function == "vision_tower":
        return {"clip.visual_projection": result[1]}
    return {"logits": result} if function == "clipseg" else {}


def reference() -> dict[str, np.ndarray]:
    """The golden files' arrays, and the page's for the other calls, by the names of attempt().

    In the order of the search for the first that deviates: a function alone before the layers.
    """
    calls = {label: PAGE[name](*args) for label, name, args in PROBES}
    arrays = {label: calls[label] for label in calls if label.startswith("bicubic")}
    for suffix, (golden, *_) in CHECKPOINTS.items():
        arrays |= {n + suffix: golden[n] for n in golden if not n.startswith("input.")}
        arrays["logits" + suffix] = golden["decoder.transposed_convolution"][:, 0]
    return arrays | {name: calls[name] for name in calls if isinstance(calls[name], np.ndarray)}


CHECKPOINTS = {"": read("plain"), " (refined head)": read("refined")}
PROBES = probes()
REFERENCE = reference()


def attempt(answers: Mapping[int, Callable[[], dict[str, Any]]], files: set[str]) -> Outcome:
    """Run the page with the answers, each given by a function that loads it.

    files: the names of the reader's files, by which the line of an error is found.
    """
    outcome = Outcome()
    suffix = ""

    def wrap(name: str, function: Callable | None) -> Callable:
        readers = any(name in FUNCTIONS[step] for step in answers)
        if not callable(function):
            raise Wrong(f"There is no function `{name}`: the file must keep its name")

        def call(*args, **kwargs):
            given = SIGNATURES[name].bind(*args, **kwargs)
            if readers:
                given.arguments = {n: locked(value) for n, value in given.arguments.items()}
            result = function(*given.args, **given.kwargs)
            where = given.arguments.get("name", "")
            if word := given.arguments.get("word"):
                where = f'"{word}"'
            if readers:
                who = f"`{name}`{where and f', called for {where},'}"
                with np.errstate(all="ignore"):
                    require_form(who, result, PAGE[name](*given.args))
            if suffix is not None:
                outcome.keep(named(name, where, result), suffix)
            return result

        return call

    try:
        spaces = {step: answer() for step, answer in answers.items()}
        names = ((space, name) for step, space in spaces.items() for name in FUNCTIONS[step])
        outcome.unwritten = [name for space, name in names if is_unwritten(space.get(name))]
        page = assemble(spaces, wrap)
        for suffix, checkpoint in CHECKPOINTS.items():
            run(page, *checkpoint)
        suffix = None
        for label, name, args in PROBES:
            result = page[name](*args)
            if label in REFERENCE:
                outcome.arrays[label] = result
    except Wrong as error:
        outcome.error = str(error)
    except BaseException as error:  # noqa: BLE001 - exit(), and interruption after a time, too
        outcome.error = traceback.format_exception_only(error)[-1].strip()
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
        if isinstance(error, SyntaxError) and error.filename in files:
            frames = [traceback.FrameSummary(error.filename, error.lineno, "", line=error.text)]
        if frames:
            name, number, text = Path(frames[-1].filename).name, frames[-1].lineno, frames[-1].line
            outcome.line = f"{name}, line {number}: {(text or '').strip()}"
    return outcome


def kind_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return f"{len(value)} in a {type(value).__name__}" if hasattr(value, "__len__") else repr(value)


def require_form(who: str, result: Any, expected: Any) -> None:
    """Raise Wrong unless it has the expected shape and type; or, as text, is the same."""
    if isinstance(expected, (list, tuple)):
        if all(isinstance(token, str) for token in expected):
            if result != expected:
                raise Wrong(f"{who} returned {result!r}; expected {expected!r}")
        elif not isinstance(result, (list, tuple)) or len(result) != len(expected):
            raise Wrong(f"{who} returned {kind_of(result)}; expected {kind_of(expected)}")
        else:
            for one, expected_one in zip(result, expected):
                require_form(who, one, expected_one)
    elif not isinstance(result, np.ndarray) or result.dtype.kind not in "biuf":
        raise Wrong(f"{who} returned {kind_of(result)}; expected {kind_of(expected)}")
    elif result.shape != expected.shape:
        raise Wrong(f"{who} {compare_one('', expected, result, TOLERANCE).message}")
    elif result.dtype != expected.dtype:
        raise Wrong(f"{who} returned {kind_of(result)}; expected {kind_of(expected)}")


def first_wrong(outcome: Outcome) -> tuple[int, int, Row | None]:
    """How many layers agree, of how many, and the first that deviates."""
    rows = compare(REFERENCE, outcome.arrays, TOLERANCE) if outcome.arrays else []
    rows = [row for row in rows if not row.missing]
    agreeing = [row for row in rows if row.fine]
    return len(agreeing), len(rows), next((row for row in rows if not row.fine), None)


def question(step: int, outcome: Outcome) -> str:
    """The question that helps: that of the likeliest mistake, or a general one."""
    path, likeliest = SOLUTIONS[step], (0.0, "")
    source = path.read_text("utf-8")
    for text, changes in MISTAKES[step].items():
        for change in changes:
            with catch_warnings():
                simplefilter("ignore")
                wrong = attempt({step: partial(load, path, changed(source, change))}, set())
            likeliest = max(likeliest, (likeness(outcome, wrong), text), key=lambda pair: pair[0])
            if likeliest[0] == 1:
                return text
    *_, row = first_wrong(outcome)
    about = f"{step} {row.name} deviates" if row else f"{step} {outcome.error}"
    fits = (text for pattern, text in ERRORS.items() if re.search(pattern, about))
    return likeliest[1] or next(fits, QUESTIONS[step])


def changed(source: str, change: tuple[str, ...]) -> str:
    """A solution with a likely mistake."""
    for old, new in zip(change[::2], change[1::2]):
        source = source.replace(old, new)
    return source


def likeness(one: Outcome, other: Outcome) -> float:
    """The share of the arrays that are equal; 0 if the first that deviates is not one of them.

    If none deviates, both runs must have ended with the same error.
    """
    *_, row = first_wrong(one)
    names = list(one.arrays.keys() & other.arrays.keys())
    if row.name not in names if row else one.error != other.error:
        return 0.0
    same = [equal(one.arrays[name], other.arrays[name]) for name in names]
    if row and not same[names.index(row.name)]:
        return 0.0
    return (1 + sum(same)) / (1 + max(len(one.arrays), len(other.arrays)))


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-7, atol=TOLERANCE, equal_nan=True)
