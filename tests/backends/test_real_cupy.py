"""Real CuPy, without a GPU: it compiles every kernel and takes every call of the package.

Nothing runs on a device, and no driver is needed. NVRTC gets the options that RawModule gives.
"""

import ast
import inspect
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import clipseg_np
from clipseg_np.backends import cupy_kernels
from clipseg_np.backends.cupy_ops import CupyOps

cupy = pytest.importorskip("cupy")
from cupy._core import core
from cupy.cuda import compiler, function

PACKAGE = Path(clipseg_np.__file__).parent


class Module(cupy.RawModule):
    """Names its kernels; to load them would need a GPU."""

    def get_function(self, name: str) -> str:
        return name


@pytest.fixture
def compile_for(monkeypatch) -> Callable[[str], tuple[set, set, str]]:
    """For an architecture ("90"): the kernels that CupyOps asks for, those compiled, the log."""

    class Loaded(function.Module):
        def load(self, cubin: bytes) -> None:
            assert cubin.startswith(b"\x7fELF")

    # CuPy keeps this option for each device, and asks the driver which one is current.
    option = compiler._get_arch_for_options_for_nvrtc
    monkeypatch.setattr(compiler, option.__name__, option.__wrapped__)
    monkeypatch.setattr(compiler, "function", SimpleNamespace(Module=Loaded))
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")  # nothing is read from a disk or written to it

    def compile_for(architecture: str) -> tuple[set, set, str]:
        modules, log = [], io.StringIO()

        def raw_module(**arguments) -> Module:
            modules.append(Module(**arguments))
            return modules[-1]

        ops = object.__new__(CupyOps)  # __init__ would run each kernel
        ops.xp = SimpleNamespace(RawModule=raw_module)
        asked = set(ops._kernels.values())
        (module,) = modules
        loaded = core.compile_with_cache(
            module.code,
            module.options,
            architecture,
            prepend_cupy_headers=False,  # as RawModule does
            backend=module.backend,
            enable_cooperative_groups=module.enable_cooperative_groups,
            name_expressions=module.name_expressions,
            log_stream=log,
        )
        return asked, set(loaded.mapping), log.getvalue()

    return compile_for


@pytest.mark.parametrize("architecture", ["75", "80", "90"])
def test_cupy_compiles_every_kernel(architecture, compile_for):
    asked, compiled, log = compile_for(architecture)
    assert asked == compiled and len(compiled) == len(cupy_kernels.EXPRESSIONS) > 10
    assert log == ""


@pytest.mark.parametrize(
    "mistake",
    [("struct Wide", "strict Wide"), ("void finish(", "void fnish(")],
    ids=["word", "name"],
)
def test_a_kernel_that_does_not_compile_is_noticed(mistake, compile_for, monkeypatch):
    assert mistake[0] in cupy_kernels.SOURCE
    monkeypatch.setattr(cupy_kernels, "SOURCE", cupy_kernels.SOURCE.replace(*mistake))
    with pytest.raises(compiler.CompileException, match="error:"):
        compile_for("90")


class Use(NamedTuple):
    """A place where the package names something of CuPy's, and what is wrong there, or None."""

    place: str
    fault: str | None


class Instance(NamedTuple):
    """Some object of this class of CuPy's."""

    of: type


# What is taken for CuPy's by its name, as a variable or an attribute.
VARIABLES = {"xp": cupy, "cupy": cupy, "cuda": cupy.cuda, "stream": Instance(cupy.cuda.Stream)}
RESULTS = {
    cupy.cuda.get_current_stream: Instance(cupy.cuda.Stream),
    cupy.get_default_memory_pool: Instance(cupy.cuda.MemoryPool),
}
# The class of an object of which no more is known than that this method of it is called.
METHODS = {
    name: owner
    for owner, like in [
        (cupy.cuda.Graph, cupy.cuda.Graph),
        (cupy.cuda.Stream, cupy.cuda.Stream),
        (cupy.ndarray, np.ndarray),
    ]
    for name in dir(like)
    if not name.startswith("_")
}


class Uses(ast.NodeVisitor):
    """What a file names of CuPy's; in functions that do, also methods of arrays and streams."""

    def __init__(self, file: Path):
        self.file = file
        self.uses: list[Use] = []
        self.known: dict[str, Any] = {}  # variables that hold something of CuPy's
        self.host: set[str] = set()  # imported names
        self.on_device = False
        self.visit(ast.parse(file.read_text(encoding="utf-8")))

    def meaning(self, node: ast.AST) -> Any:
        """A module, class or function of CuPy's, or an Instance; None where it is not known."""
        if (text := ast.unparse(node)) in self.known:
            return self.known[text]
        if isinstance(node, ast.Name):
            return VARIABLES.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.meaning(node.value)
            if isinstance(owner, (ModuleType, type)):
                return getattr(owner, node.attr, None)
            return VARIABLES.get(node.attr)
        if isinstance(node, ast.Call):
            called = self.meaning(node.func)
            return Instance(called) if isinstance(called, type) else RESULTS.get(called)
        return None

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.host |= {a.asname or a.name for a in node.names} - {*VARIABLES}

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        known, on_device = self.known, self.on_device
        self.known = {**known}
        self.on_device |= any(
            getattr(inner, "id", getattr(inner, "attr", None)) in VARIABLES
            for inner in ast.walk(node)
        )
        self.generic_visit(node)
        self.on_device = on_device
        self.known = {**known, **{k: v for k, v in self.known.items() if "." in k}}

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts)
            for name, value in pairs:
                if (found := self.meaning(value)) is not None:
                    self.known[ast.unparse(name)] = found

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self.meaning(node.value)
        # An instance may have more attributes than its class shows.
        if isinstance(owner, (ModuleType, type)):
            self.use(node, None if hasattr(owner, node.attr) else "CuPy has no such name")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self.meaning(node.func)
        if callable(called):
            self.use(node, misfit(called, node))
        elif isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, self.meaning(node.func.value)
            if owner is None and self.on_device and root(node) not in self.host:
                owner = Instance(METHODS[name]) if name in METHODS else None
            if isinstance(owner, Instance):
                method = getattr(owner.of, name, None)
                lacks = f"CuPy's {owner.of.__name__} has no such method"
                self.use(node, lacks if method is None else misfit(method, node, bound=True))

    def use(self, node: ast.AST, fault: str | None) -> None:
        self.uses.append(Use(f"{self.file.name}:{node.lineno}: {ast.unparse(node)}", fault))


def root(node: ast.AST) -> str | None:
    """The variable that an expression begins with: x of x.a(b)[c].d()."""
    while not isinstance(node, ast.Name):
        node = getattr(node, "func", None) or getattr(node, "value", None)
        if node is None:
            return None
    return node.id


def signature(called: Callable) -> inspect.Signature | None:
    """A function's own, or the one in its docstring's first line; None where neither is there."""
    try:
        return inspect.signature(called)
    except (TypeError, ValueError):
        line = (called.__doc__ or "").partition("\n")[0]
    found = re.match(r"[\w.]+\((.*)\)(?: -> \w+)?$", line)
    if not found:
        return None
    names = re.sub(r"\b\w+ (\w+)(?=\s*[,=]|$)", r"\1", found[1].replace("\\", ""))  # without types
    try:
        return inspect.signature(eval(f"lambda {names}: 0"))
    except (SyntaxError, NameError):
        return None


def misfit(called: Callable, call: ast.Call, bound: bool = False) -> str | None:
    """Why a function does not take a call's arguments; None where it does or has no signature."""
    known = signature(called)
    if known is None:
        return None
    given = [a for a in call.args if not isinstance(a, ast.Starred)]
    words = {keyword.arg: 0 for keyword in call.keywords if keyword.arg}
    whole = len(given) == len(call.args) and len(words) == len(call.keywords)
    try:
        (known.bind if whole else known.bind_partial)(*[0] * bound, *given, **words)
    except TypeError as error:
        return f"{error}; CuPy's signature is {known}"
    return None


def uses(folder: Path) -> Iterator[Use]:
    for file in sorted(folder.glob("**/*.py")):
        yield from Uses(file).uses


def faults(folder: Path) -> list[str]:
    return [f"{place}: {fault}" for place, fault in uses(folder) if fault]


def test_cupy_takes_the_packages_calls():
    found = faults(PACKAGE)
    assert not found, "\n".join(found)


def test_the_calls_are_found():
    found = {place.partition("(")[0].rpartition(".")[2] for place, _ in uses(PACKAGE)}
    assert len(found) > 30
    assert found >= {"empty", "RawModule", "runtimeGetVersion", "using_allocator", "begin_capture"}


@pytest.mark.parametrize(
    "line, fault",
    [
        ("xp.stack([x], axis=0)", None),
        ("xp.stack([x], wrong=1)", "unexpected keyword argument 'wrong'; CuPy's signature is (tup"),
        ("model.ops.xp.exp(x, out=x)", None),
        ("model.ops.xp.exp(x, keepdims=True)", "unexpected keyword argument 'keepdims'"),
        ("xp.maximum(x)", "missing a required argument: 'x2'"),
        ("xp.maximum(*x)", None),
        ("xp.lib.stride_tricks.sliding_window_view(x, 3, axis=0)", None),
        ("self.xp.vecdot_of(x)", "CuPy has no such name"),
        ("xp.cuda.runtime.getDevices()", "CuPy has no such name"),
        ("xp.RawModule(code='', names=())", "unexpected keyword argument 'names'"),
        ("f = ops.xp.stack; f([x], wrong=1)", "unexpected keyword argument 'wrong'"),
        ("xp.sum(x).sum(axis=-1, keepdims=True); words.get('a', 1)", None),
        ("xp.sum(x).sum(axis=-1, where=x)", "unexpected keyword argument 'where'"),
        ("xp.pi; x.setflags(write=False)", "CuPy's ndarray has no such method"),
        ("xp.pi; np.ones(3).sum(where=x)", None),
        ("x.sum(axis=-1, where=x)", None),  # nothing says that it is on a GPU
        ("a, cuda = 1, ops.xp.cuda; cuda.Stream(non_blocking=True)", None),
        ("a, c = 1, ops.xp.cuda; c.Stream(blocking=True)", "argument 'blocking'"),
        ("self.s = cuda.Stream(); self.s.wait_event(self.s.record())", None),
        ("self.s = cuda.Stream(); self.s.wait_events()", "CuPy's Stream has no such method"),
        ("xp.pi; first.wait_event()", "missing a required argument: 'event'"),
        ("cuda.get_current_stream().recorded()", "CuPy's Stream has no such method"),
        ("self.stream.start_capture()", "CuPy's Stream has no such method"),
        ("xp.pi; self.graph.launch(self.stream, 1)", "too many positional arguments"),
    ],
)
def test_a_call_that_cupy_does_not_take_is_found(line, fault, tmp_path):
    source = f"import numpy as np\ndef f(xp, cuda, x):\n    {line}\n"
    (tmp_path / "layer.py").write_text(source, encoding="utf-8")
    found = faults(tmp_path)
    assert (len(found) == 1 and fault in found[0]) if fault else not found, found
