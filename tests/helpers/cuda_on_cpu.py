"""A stand-in for CuPy: kernels compiled as C++ run on the CPU, a CPU thread for each GPU thread.

And a stand-in for cuBLAS that follows its documentation and takes the arguments that this allows.

Arrays are NumPy's. A test shows that a kernel computes the right numbers, with as many threads in a
block as it says and barriers where they are needed; it shows nothing of a GPU's speed, memory or
compiler.
"""

import ctypes
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from clipseg_np.backends import cupy_kernels, cupy_ops

SHIM = """
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
using std::exp; using std::sqrt; using std::erf;
typedef _Float16 __half;
struct Place { unsigned x; };
static thread_local Place threadIdx, blockIdx;
static std::unique_ptr<std::barrier<>> meeting;
#define ON_CPU
#define __device__
#define __global__
#define __shared__ static
#define __syncthreads() meeting->arrive_and_wait()

struct uint4 { unsigned x, y, z, w; };
struct __half2 { __half x, y; };
static __half2 __floats2half2_rn(float low, float high) { return {(__half)low, (__half)high}; }

// Values that the threads of a warp exchange.
struct Warp { std::barrier<> meeting{WARP}; unsigned words[32][6]; const __half* rows[32]; };
static std::vector<std::unique_ptr<Warp>> warps_;
#define MY_WARP Warp& warp_ = *warps_[threadIdx.x / WARP]; unsigned me = threadIdx.x % WARP

template <typename T> T __shfl_xor_sync(unsigned, T value, int far) {
    MY_WARP;
    T other;
    std::memcpy(warp_.words[me], &value, sizeof value);
    warp_.meeting.arrive_and_wait();
    std::memcpy(&other, warp_.words[me ^ far], sizeof other);
    warp_.meeting.arrive_and_wait();
    return other;
}

// The half `number` of those that a thread showed.
static float shown(Warp& warp, int thread, int number) {
    return ((__half*)warp.words[thread])[number];
}

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": the table of the numbers
// of a, b and c that each thread has.
static void mma(float* c, const unsigned* a, const unsigned* b) {
    MY_WARP;
    std::memcpy(warp_.words[me], a, 16);
    std::memcpy(warp_.words[me] + 4, b, 8);
    warp_.meeting.arrive_and_wait();
    for (int i = 0; i < 4; i++) {
        int row = me / 4 + (i < 2 ? 0 : 8), column = me % 4 * 2 + (i & 1);
        for (int k = 0; k < 16; k++) {
            int of_a = (row % 8) * 4 + k % 8 / 2;
            int in_a = (k >= 8 ? 4 : 0) + (row >= 8 ? 2 : 0) + k % 2;
            int of_b = column * 4 + k % 8 / 2, in_b = 8 + (k >= 8 ? 2 : 0) + k % 2;
            c[i] += shown(warp_, of_a, in_a) * shown(warp_, of_b, in_b);
        }
    }
    warp_.meeting.arrive_and_wait();
}

// PTX ISA, "ldmatrix" with .x4, and .trans or not: threads 0-7, 8-15, 16-23 and 24-31 pass the rows
// of four (8,8) matrices.
template <bool TRANSPOSED> void load_matrices(unsigned* b, const __half* row) {
    MY_WARP;
    warp_.rows[me] = row;
    warp_.meeting.arrive_and_wait();
    for (int m = 0; m < 4; m++)
        for (int half = 0; half < 2; half++) {
            int line = me / 4, column = me % 4 * 2 + half;
            if (TRANSPOSED) std::swap(line, column);
            ((__half*)b)[2 * m + half] = warp_.rows[8 * m + line][column];
        }
    warp_.meeting.arrive_and_wait();
}

// PTX ISA, "cp.async": a thread sees its own copies only after it has waited for them.
struct Copy { void* to; uint4 what; int group; };
static thread_local std::vector<Copy> copies;
static thread_local int groups;
static void start_copy(void* to, const void* from, bool is_there) {
    Copy copy = {to, {}, groups};
    if (is_there) std::memcpy(&copy.what, from, 16);
    copies.push_back(copy);
}
static void commit_copies() { groups++; }
static void await_copies() {
    std::vector<Copy> later;
    for (Copy& copy : copies)
        if (copy.group < groups - 1) std::memcpy(copy.to, &copy.what, 16);
        else later.push_back(copy);
    copies = later;
}

template <typename Kernel> void launch(unsigned blocks, unsigned threads, Kernel kernel) {
    meeting = std::make_unique<std::barrier<>>(threads);
    warps_.clear();
    for (unsigned w = 0; w < threads / WARP; w++) warps_.push_back(std::make_unique<Warp>());
    std::vector<std::thread> all;
    for (unsigned t = 0; t < threads; t++)
        all.emplace_back([=] {
            threadIdx.x = t;
            for (unsigned b = 0; b < blocks; b++) {
                blockIdx.x = b;
                kernel();
                copies.clear();
                meeting->arrive_and_wait();
            }
        });
    for (auto& one : all) one.join();
}
"""


def smaller_blocks(patch, threads: int = 4, warp: int | None = None) -> None:
    """Blocks of one warp, since each thread is one of the CPU's; and few keys at a time.

    The tensor cores' warp has 32 threads: with fewer, `attention` cannot run.
    """
    patch.setattr(cupy_kernels, "KEYS", 16)
    for module in (cupy_kernels, cupy_ops):
        patch.setattr(module, "THREADS", threads)
        patch.setattr(module, "WARP", warp or threads)


class CpuModule:
    """`cupy.RawModule`: templates of kernels, by expressions such as `softmax<float>`."""

    def __init__(self, folder: Path, code: str, name_expressions: tuple[str, ...]):
        threads = f"#define WARP {cupy_kernels.WARP}\n"
        code = code.replace("#include <cuda_fp16.h>", threads + SHIM)
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
            # Else libraries share `static` arrays of templates, whatever their sizes.
            "-fno-gnu-unique",
            "-Wno-div-by-zero",
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
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    kinds = {"int32": ctypes.c_int, "float32": ctypes.c_float, "float64": ctypes.c_double}
    kinds |= {"uint64": ctypes.c_size_t, "int64": ctypes.c_void_p}
    return kinds[value.dtype.name](value.item())


class CpuCublas:
    """cuBLAS's documented interface: columns lie one after the other, `lead` numbers apart."""

    def __init__(self, sums: list):
        # The compute type of each product.
        self.sums = sums
        self.destroyed = 0

    def cublasCreate_v2(self, handle) -> int:
        handle._obj.value = 7
        return 0

    def cublasDestroy_v2(self, handle) -> int:
        self.destroyed += 1
        return handle.value != 7

    def cublasSetStream_v2(self, handle, stream) -> int:
        return handle.value != 7

    def cublasSetWorkspace_v2(self, handle, pointer, size) -> int:
        return not (handle.value == 7 and pointer and size)

    def cublasGemmStridedBatchedEx(self, handle, how_a, how_b, m, n, k, alpha, *rest) -> int:
        a, type_a, lead_a, step_a, b, type_b, lead_b, step_b, beta, c, type_c, lead_c, step_c = (
            rest[:13]
        )
        count, sums, _ = rest[13:]
        self.sums.append(sums)
        assert type_a == type_b == type_c
        dtype = np.dtype({0: "float32", 1: "float64", 2: "float16"}[type_c])
        wide = np.dtype({68: "float32", 77: "float32", 70: "float64"}[sums])
        scalar = ctypes.c_double if wide == "float64" else ctypes.c_float
        assert type(alpha._obj) is type(beta._obj) is scalar and handle.value == 7

        def stack(pointer, lead, step, rows, columns):
            if lead < max(1, rows):
                raise AssertionError("a leading dimension is too small")
            length = (count - 1) * step.value + (columns - 1) * lead + rows
            held = (ctypes.c_char * (length * dtype.itemsize)).from_address(pointer.value)
            strides = [n * dtype.itemsize for n in (step.value, 1, lead)]
            flat = np.frombuffer(held, dtype)
            return np.lib.stride_tricks.as_strided(flat, (count, rows, columns), strides)

        def operand(how, pointer, lead, step, rows, columns):
            if how:
                return rounded(stack(pointer, lead, step, columns, rows).swapaxes(1, 2))
            return rounded(stack(pointer, lead, step, rows, columns))

        def rounded(x):
            """In TF32, x rounded to 10 bits after the point: float32's other 13 are cut off."""
            if sums != 77:
                return x.astype(wide)
            bits = np.ascontiguousarray(x, "float32").view("uint32")
            return ((bits + 0x1000) & 0xFFFFE000).astype("uint32").view("float32")

        product = operand(how_a, a, lead_a, step_a, m, k) @ operand(how_b, b, lead_b, step_b, k, n)
        product *= alpha._obj.value
        out = stack(c, lead_c, step_c, m, n)
        # With beta = 0, cuBLAS does not even read the array.
        if beta._obj.value:
            product += beta._obj.value * out.astype(wide)
        out[...] = product.astype(dtype)
        return 0


class Stream:
    ptr = 0


class CpuCupy:
    """NumPy under CuPy's name, with `RawModule`."""

    __name__ = "cupy on the CPU"

    def __init__(self, folder: Path, compute_capability: str = "75"):
        self.folder = folder
        runtime = SimpleNamespace(runtimeGetVersion=lambda: 12060, getDevice=lambda: 0)
        self.stream = Stream()
        self.cuda = SimpleNamespace(
            runtime=runtime,
            get_current_stream=lambda: self.stream,
            using_allocator=lambda malloc: nullcontext(),
            Device=lambda: SimpleNamespace(compute_capability=compute_capability),
            Stream=lambda non_blocking: Stream(),
        )

    def get_default_memory_pool(self) -> SimpleNamespace:
        return SimpleNamespace(malloc=lambda size: SimpleNamespace(ptr=256, size=size))

    def __getattr__(self, name: str):
        return getattr(np, name)

    def RawModule(self, code: str, name_expressions: tuple[str, ...]) -> CpuModule:
        return CpuModule(self.folder, code, name_expressions)
