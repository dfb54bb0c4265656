"""The GPU's kernels, in CUDA's C++: one where CuPy would launch several. cupy_ops.py calls them.

Sums are in float32, and in float64 for float64, whatever the type of the array. The kernels are
plain C++ but for CUDA's words for blocks, threads and warps, and for the PTX instructions in
cupy_attention.py. tests/backends/test_cupy_kernels.py runs them on the CPU, with mma and ldmatrix
by the tables of NVIDIA's "PTX ISA" (matrix fragments for mma.m16n8k16, and ldmatrix).
"""

from . import cupy_attention

# Threads of a block (four warps), and of a warp on all GPUs.
THREADS, WARP = 128, 32
# Products of up to so many rows are `few_rows`, which reads a weight once for all of them.
FEW_ROWS = 16
# Keys that `attention` has on the chip at a time. On an H200, 32 take 1.3 times as long for 32
# images, and 128 take 4.6 times; blocks of 64 or 256 threads take 1.2 and 1.04 times.
KEYS = 64
TYPES = {"float16": "__half", "float32": "float", "float64": "double"}
# Head sizes that the kernels of attention are compiled for.
HEAD_SIZES = (16, 32, 64)
# Activations by their numbers in the kernels.
ACTIVATIONS = ("", "quick_gelu", "gelu", "relu")

SOURCE = """
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
template <typename T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };

// The sum or the maximum of the values of a warp's threads, for each of them.
template <typename A> __device__ A over_warp(A value, bool largest) {
    for (int far = WARP / 2; far > 0; far /= 2) {
        A other = __shfl_xor_sync(0xffffffff, value, far);
        value = !largest ? value + other : value < other ? other : value;
    }
    return value;
}

// 16 bytes, which a thread reads or writes in one instruction.
template <typename T> struct alignas(16) Pack {
    static const int N = 16 / sizeof(T);
    T values[N];
};

// x += bias + residual, where they are not null, and out = norm(x): a warp for each row of x,
// (rows,width). Rows of up to 1024 numbers may be read in packs (`at_once`) and stay in registers.
template <typename T> __global__ void layer_norm(
    T* x, const T* bias, const T* residual, const T* scale, const T* shift, T* out,
    int at_once, int rows, int width, double eps) {
    typedef typename Wide<T>::type A;
    const int N = Pack<T>::N;
    int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += (size_t)row * width;
    out += (size_t)row * width;
    if (residual) residual += (size_t)row * width;
    A sum = 0, square = 0;
    if (at_once) {
        Pack<T> own[1024 / WARP / N];
        for (int p = 0; p < 1024 / WARP / N; p++) {
            int i = (p * WARP + lane) * N;
            if (i >= width) continue;
            own[p] = *(Pack<T>*)(x + i);
            for (int n = 0; n < N; n++) {
                A value = own[p].values[n];
                if (bias) value += (A)bias[i + n];
                if (residual) value += (A)residual[i + n];
                own[p].values[n] = (T)value;
                sum += (A)own[p].values[n];
            }
            if (bias || residual) *(Pack<T>*)(x + i) = own[p];
        }
        A mean = over_warp(sum, false) / width;
        for (int p = 0; p < 1024 / WARP / N; p++)
            for (int n = 0; n < N; n++) {
                A centered = (A)own[p].values[n] - mean;
                if ((p * WARP + lane) * N < width) square += centered * centered;
            }
        A deviation = sqrt(over_warp(square, false) / width + (A)eps);
        for (int p = 0; p < 1024 / WARP / N; p++) {
            int i = (p * WARP + lane) * N;
            if (i >= width) continue;
            Pack<T> a = *(const Pack<T>*)(scale + i), b = *(const Pack<T>*)(shift + i);
            for (int n = 0; n < N; n++)
                a.values[n] = (T)(((A)own[p].values[n] - mean) / deviation * (A)a.values[n]
                                  + (A)b.values[n]);
            *(Pack<T>*)(out + i) = a;
        }
        return;
    }
    for (int i = lane; i < width; i += WARP) {
        if (bias || residual)
            x[i] = (T)((A)x[i] + (bias ? (A)bias[i] : 0) + (residual ? (A)residual[i] : 0));
        sum += (A)x[i];
    }
    A mean = over_warp(sum, false) / width;
    for (int i = lane; i < width; i += WARP) {
        A centered = (A)x[i] - mean;
        square += centered * centered;
    }
    A deviation = sqrt(over_warp(square, false) / width + (A)eps);
    for (int i = lane; i < width; i += WARP)
        out[i] = (T)(((A)x[i] - mean) / deviation * (A)scale[i] + (A)shift[i]);
}

// A warp for each row of x, (B,N,queries,width); `out` may be x. `mask` is null,
// (B,1,queries,width), or (1,1,queries,width) where it is `alike` for all images. A thread has 16
// numbers at a time, and its sum is scaled to its largest number so far. Rows of up to 16 WARP
// numbers are read once.
template <typename T> __global__ void softmax(
    const T* x, const bool* mask, int alike, T* out, int heads, int queries, int width, int rows) {
    typedef typename Wide<T>::type A;
    int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += (size_t)row * width;
    out += (size_t)row * width;
    size_t image = alike ? 0 : row / queries / heads;
    if (mask) mask += (image * queries + row % queries) * width;
    // Finite, so that a row that is masked throughout becomes uniform.
    const A lowest = -3e38;
    A own[16], largest = lowest, sum = 0;
    auto load = [&](int start) {
        // No branch between the loads: with one, each would wait for the one before it.
#pragma unroll
        for (int n = 0; n < 16; n++) {
            int i = start + n * WARP;
            own[n] = i < width ? (A)x[i] : (A)-INFINITY;
        }
        if (!mask) return;
#pragma unroll
        for (int n = 0; n < 16; n++) {
            int i = start + n * WARP;
            bool is_seen = i < width ? mask[i] : true;
            own[n] = is_seen ? own[n] : lowest;
        }
    };
    for (int start = lane; start < width; start += 16 * WARP) {
        load(start);
        A most = largest;
#pragma unroll
        for (int n = 0; n < 16; n++) most = most < own[n] ? own[n] : most;
        sum *= exp(largest - most);
        largest = most;
#pragma unroll
        for (int n = 0; n < 16; n++) sum += own[n] = exp(own[n] - largest);
    }
    A factor = exp(largest - over_warp(largest, true));
    factor /= over_warp(sum * factor, false);
    for (int start = lane; start < width; start += 16 * WARP) {
        if (width > 16 * WARP) load(start);
#pragma unroll
        for (int n = 0; n < 16; n++) {
            if (width > 16 * WARP) own[n] = exp(own[n] - largest);
            if (start + n * WARP < width) out[start + n * WARP] = (T)(own[n] * factor);
        }
    }
}

template <typename A> __device__ A activated(A x, int activation) {
    if (activation == 1) return x / (1 + exp((A)-1.702 * x));
    if (activation == 2) return (A)0.5 * x * (1 + erf(x * (A)0.7071067811865476));
    if (activation == 3) return x < 0 ? (A)0 : x;
    return x;
}

// y = activation(y + bias) + residual, where bias (width) and residual (rows,width) are not null.
// A thread for each number, or for each pack of numbers (`at_once`).
template <typename T> __global__ void finish(
    T* y, const T* bias, const T* residual, int activation, int at_once, int width, size_t count) {
    typedef typename Wide<T>::type A;
    const int N = Pack<T>::N;
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * (at_once ? N : 1);
    if (i >= count) return;
    if (!at_once) {
        A value = activated((A)y[i] + (bias ? (A)bias[i % width] : 0), activation);
        y[i] = (T)(value + (residual ? (A)residual[i] : 0));
        return;
    }
    Pack<T> a = *(Pack<T>*)(y + i), b, c;
    if (bias) b = *(const Pack<T>*)(bias + i % width);
    if (residual) c = *(const Pack<T>*)(residual + i);
    for (int n = 0; n < N; n++) {
        A value = activated((A)a.values[n] + (bias ? (A)b.values[n] : 0), activation);
        a.values[n] = (T)(value + (residual ? (A)c.values[n] : 0));
    }
    *(Pack<T>*)(y + i) = a;
}

// y = activation(x weight' + bias) + residual for up to FEW_ROWS rows, where bias (features) and
// residual (rows,features) are not null: a warp for each feature. x (rows,width) and weight
// (features,width) are read in packs.
template <typename T> __global__ void few_rows(
    const T* x, const T* weight, const T* bias, const T* residual, T* y, int activation, int rows,
    int width, int features) {
    typedef typename Wide<T>::type A;
    const int N = Pack<T>::N;
    int feature = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (feature >= features) return;
    weight += (size_t)feature * width;
    A sums[FEW_ROWS] = {};
    for (int i = lane * N; i < width; i += WARP * N) {
        Pack<T> a = *(const Pack<T>*)(weight + i);
#pragma unroll
        for (int r = 0; r < FEW_ROWS; r++) {
            if (r >= rows) continue;
            Pack<T> b = *(const Pack<T>*)(x + r * width + i);
            for (int n = 0; n < N; n++) sums[r] += (A)a.values[n] * (A)b.values[n];
        }
    }
#pragma unroll
    for (int r = 0; r < FEW_ROWS; r++) {
        if (r >= rows) continue;
        A value = over_warp(sums[r], false) + (bias ? (A)bias[feature] : 0);
        size_t to = (size_t)r * features + feature;
        if (lane == 0) y[to] = (T)(activated(value, activation) + (residual ? (A)residual[to] : 0));
    }
}

// The neighbors of each cell as a row, 0 beyond the border: x (B,C,h,w) -> out (B,h,w,C,k,k).
// The steps of x are b, c, y and x_step.
template <typename T> __global__ void neighbors(
    const T* x, T* out, long long b, long long c, long long y, long long x_step,
    int channels, int h, int w, int k, size_t count) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    int column = i % k, row = i / k % k, channel = i / k / k % channels;
    size_t cell = i / k / k / channels;
    column += (int)(cell % w) - k / 2;
    row += (int)(cell / w % h) - k / 2;
    bool inside = row >= 0 && row < h && column >= 0 && column < w;
    out[i] = inside ? x[cell / w / h * b + channel * c + row * y + column * x_step] : (T)0;
}

// activation(transposed convolution + bias) with stride = kernel, for p divisible by 4:
// x (B,C,h,w), weight (C,D,p,p), bias (D) -> out (B,D,hp,wp). A thread for 4 pixels of a block.
template <typename T> struct alignas(sizeof(T) == 2 ? 8 : 16) Four { T values[4]; };
template <typename T> __global__ void conv_transpose(
    const T* x, const T* weight, const T* bias, T* out, long long b, long long c, long long y,
    long long x_step, int activation, int channels, int D, int h, int w, int p, size_t count) {
    typedef typename Wide<T>::type A;
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (i >= count) return;
    int column = i % (w * p), row = i / (w * p) % (h * p), d = i / (w * p) / (h * p) % D;
    x += i / (w * p) / (h * p) / D * b + row / p * y + column / p * x_step;
    weight += (d * p + row % p) * p + column % p;
    A sums[4] = {};
    for (int channel = 0; channel < channels; channel++) {
        A value = x[channel * c];
        Four<T> a = *(const Four<T>*)(weight + (size_t)channel * D * p * p);
        for (int n = 0; n < 4; n++) sums[n] += value * (A)a.values[n];
    }
    Four<T> result;
    for (int n = 0; n < 4; n++) result.values[n] = (T)activated(sums[n] + (A)bias[d], activation);
    *(Four<T>*)(out + i) = result;
}
"""
SOURCE += cupy_attention.SOURCE


# The instances of the kernels in C++, by name and type, or head size.
EXPRESSIONS = {
    (name, dtype): f"{name}<{type_name}>"
    for name in ("layer_norm", "softmax", "finish", "few_rows", "neighbors", "conv_transpose")
    for dtype, type_name in TYPES.items()
} | {
    (name, str(D)): f"{name}<{D}>"
    for name in ("attention", "attention_float32")
    for D in HEAD_SIZES
}


def source() -> str:
    """All kernels, as CUDA's compiler takes them."""
    sizes = {"THREADS": THREADS, "WARP": WARP, "KEYS": KEYS, "FEW_ROWS": FEW_ROWS}
    lines = [f"#define {name} {size}\n" for name, size in sizes.items()]
    return f"#include <cuda_fp16.h>\n{''.join(lines)}{SOURCE}"
