"""A stand-in for CuPy in which a kernel's source, compiled as C++, runs on the CPU: each of a block's threads is one.

Arrays are NumPy's. It shows that a kernel computes what it should, with as many threads in a block as it says and
barriers where they are needed; it says nothing of a GPU's speed, memory or compiler.
"""

import ctypes
import re
import subprocess
from pathlib import Path

import numpy

SHIM = """
#include <barrier>
#include <cmath>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>
using std::exp; using std::sqrt; using std::erf;
typedef _Float16 __half;
struct Place { unsigned x; };
static thread_local Place threadIdx, blockIdx;
static std::unique_ptr<std::barrier<>> meeting;
#define __device__
#define __global__
#define __shared__ static
#define __syncthreads() meeting->arrive_and_wait()

template <typename Kernel> void launch(unsigned blocks, unsigned threads, Kernel kernel) {
    meeting = std::make_unique<std::barrier<>>(threads);
    std::vector<std::thread> all;
    for (unsigned t = 0; t < threads; t++)
        all.emplace_back([=] {
            threadIdx.x = t;
            for (unsigned b = 0; b < blocks; b++) {
                blockIdx.x = b;
                kernel();
                meeting->arrive_and_wait();
            }
        });
    for (auto& one : all) one.join();
}
"""


class CpuModule:
    """`cupy.RawModule`: templates of kernels, by expressions such as `softmax<float>`."""

    def __init__(self, folder: Path, code: str, name_expressions: tuple[str, ...]):
        code = code.replace("#include <cuda_fp16.h>", SHIM)
        heads = dict(re.findall(r"__global__ void (\w+)\(([^)]*)\)", code))
        for number, expression in enumerate(name_expressions):
            name, type_name = re.fullmatch(r"(\w+)<(\w+)>", expression).groups()
            given = re.sub(r"\bT\b", type_name, heads[name])
            names = ", ".join(part.split()[-1].lstrip("*") for part in given.split(","))
            code += (
                f'\nextern "C" void kernel_{number}(unsigned blocks_, unsigned threads_, {given})'
                f" {{ launch(blocks_, threads_, [=] {{ {expression}({names}); }}); }}"
            )
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        source.write_text(code)
        command = [
            "g++",
            "-std=c++20",
            "-O1",
            "-shared",
            "-fPIC",
            "-pthread",
            source,
            "-o",
            library,
        ]
        subprocess.run(command, check=True)
        self.library = ctypes.CDLL(str(library))
        self.numbers = {expression: n for n, expression in enumerate(name_expressions)}

    def get_function(self, expression: str):
        function = getattr(self.library, f"kernel_{self.numbers[expression]}")

        def launched(blocks: tuple, threads: tuple, arguments: tuple) -> None:
            function(ctypes.c_uint(blocks[0]), ctypes.c_uint(threads[0]), *map(as_c, arguments))

        return launched


def as_c(value):
    """An array's address, or a NumPy scalar of the same size in C."""
    if isinstance(value, numpy.ndarray):
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    kinds = {"int32": ctypes.c_int, "float64": ctypes.c_double}
    kinds |= {"uint64": ctypes.c_size_t, "int64": ctypes.c_void_p}
    return kinds[value.dtype.name](value.item())


class CpuCupy:
    """NumPy under CuPy's name, with `RawModule`."""

    __name__ = "cupy on the CPU"

    def __init__(self, folder: Path):
        self.folder = folder

    def __getattr__(self, name: str):
        return getattr(numpy, name)

    def RawModule(self, code: str, name_expressions: tuple[str, ...]) -> CpuModule:
        return CpuModule(self.folder, code, name_expressions)
