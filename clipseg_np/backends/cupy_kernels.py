"""The GPU's kernels, in CUDA's C++: one where CuPy would launch several. cupy_ops.py calls them.

Sums are in float32, and in float64 for float64, whatever the type of the array. The kernels are
plain C++ but for CUDA's words for blocks, threads and warps, and for two PTX instructions in
`attention`. tests/backends/test_cupy_kernels.py runs them on the CPU, with these two by the tables
of NVIDIA's "PTX ISA" (matrix fragments for mma.m16n8k16, and ldmatrix).
"""

# Threads of a block (four warps), and of a warp on all GPUs.
THREADS, WARP = 128, 32
# Keys that `attention` has on the chip at a time. On an H200, 32 take 1.3 times as long for 32
# images, and 128 take 4.6 times; blocks of 64 or 256 threads take 1.2 and 1.04 times.
KEYS = 64
TYPES = {"float16": "__half", "float32": "float", "float64": "double"}
# Head sizes that `attention` is compiled for.
HEAD_SIZES = (16, 32, 64)
# Activations by their numbers in `finish`.
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

// In place, a warp for each row of x, (B,N,queries,width). `mask` is null, (B,1,queries,width), or
// (1,1,queries,width) where it is `alike` for all images.
template <typename T> __global__ void softmax(
    T* x, const bool* mask, int alike, int heads, int queries, int width, int rows) {
    typedef typename Wide<T>::type A;
    int row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += (size_t)row * width;
    int query = row % queries, image = alike ? 0 : row / queries / heads;
    const bool* seen = mask ? mask + ((size_t)image * queries + query) * width : 0;
    // Finite, so that a row that is masked throughout becomes uniform.
    const A lowest = -3e38;
    A largest = lowest;
    for (int i = lane; i < width; i += WARP) {
        A score = seen && !seen[i] ? lowest : (A)x[i];
        largest = largest < score ? score : largest;
    }
    largest = over_warp(largest, true);
    A sum = 0;
    for (int i = lane; i < width; i += WARP)
        sum += exp((seen && !seen[i] ? lowest : (A)x[i]) - largest);
    sum = over_warp(sum, false);
    for (int i = lane; i < width; i += WARP)
        x[i] = (T)(exp((seen && !seen[i] ? lowest : (A)x[i]) - largest) / sum);
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

#ifndef ON_CPU
// c += a b on the tensor cores: (16,8) floats, (16,16) and (16,8) halves, spread over a warp by
// PTX's tables.
__device__ void mma(float* c, const unsigned* a, const unsigned* b) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Two (8,8) matrices of halves, transposed, as `b` of mma: each of a warp's first 16 threads passes
// the address of a row.
__device__ void load_turned(unsigned* b, const __half* row) {
    unsigned place = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
        : "=r"(b[0]), "=r"(b[1]) : "r"(place) : "memory");
}
#endif

__device__ unsigned packed(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return *(unsigned*)&both;
}

// softmax(q k' scale) v for heads of D halves; the scores never leave the chip (Dao,
// "FlashAttention-2", 2023). A warp takes 16 queries, and KEYS keys at a time; the sums of earlier
// keys are scaled to the largest score so far. q, k and v (B,N,T,D) share their strides `image`,
// `head` and `token`; out is (B,T,N,D); `mask` is that of softmax. Of each (16,8) scores, a thread
// has those of queries `row` and row + 8, and of keys `pair` and pair + 1.
template <int D> __global__ void attention(
    const __half* q, const __half* k, const __half* v, __half* out, const bool* mask, int alike,
    int heads, int tokens, long long image, long long head, long long token, float scale) {
    // 8 more, so that the rows of a fragment lie in different banks.
    const int LINE = D + 8;
    alignas(16) __shared__ __half keys[KEYS * LINE], values[KEYS * LINE];
    const int warps = THREADS / 32, tiles = (tokens + 16 * warps - 1) / (16 * warps);
    int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
    int first = (blockIdx.x % tiles * warps + threadIdx.x / 32) * 16;
    int my_head = blockIdx.x / tiles % heads, my_image = blockIdx.x / tiles / heads;
    long long start_of_head = my_image * image + my_head * head;
    q += start_of_head;
    k += start_of_head;
    v += start_of_head;
    out += ((long long)my_image * tokens * heads + my_head) * D;
    if (mask && !alike) mask += (size_t)my_image * tokens * tokens;

    unsigned a[D / 16][4];
    for (int i = 0; i < D / 16; i++)
        for (int r = 0; r < 4; r++) {
            int query = first + row + r % 2 * 8;
            a[i][r] = query < tokens
                ? *(const unsigned*)(q + query * token + i * 16 + pair + r / 2 * 8) : 0;
        }
    float mixed[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    // The chip has powers of 2 alone: e^x = 2^(x log2(e)).
    scale *= 1.4426950408889634f;

    for (int start = 0; start < tokens; start += KEYS) {
        __syncthreads();
        for (int i = threadIdx.x; i < KEYS * D / 8; i += THREADS) {
            int key = start + i / (D / 8), from = i % (D / 8) * 8, to = i / (D / 8) * LINE + from;
            uint4 none = {0, 0, 0, 0};
            *(uint4*)(keys + to) = key < tokens ? *(const uint4*)(k + key * token + from) : none;
            *(uint4*)(values + to) = key < tokens ? *(const uint4*)(v + key * token + from) : none;
        }
        __syncthreads();
        float scores[KEYS / 8][4] = {};
        for (int n = 0; n < KEYS / 8; n++) {
            for (int i = 0; i < D / 16; i++) {
                const __half* from = keys + (n * 8 + row) * LINE + i * 16 + pair;
                unsigned b[2] = {*(const unsigned*)from, *(const unsigned*)(from + 8)};
                mma(scores[n], a[i], b);
            }
            for (int c = 0; c < 4; c++) {
                int query = first + row + c / 2 * 8, key = start + n * 8 + pair + c % 2;
                bool seen = !mask || query >= tokens || key >= tokens
                            || mask[(size_t)query * tokens + key];
                scores[n][c] = key >= tokens ? -INFINITY : seen ? scores[n][c] * scale : -3e38f;
            }
        }
        for (int r = 0; r < 2; r++) {
            float most = largest[r], factor;
            for (int n = 0; n < KEYS / 8; n++)
                most = fmaxf(most, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 2));
            factor = exp2f(largest[r] - most);
            largest[r] = most;
            sum[r] *= factor;
            for (int n = 0; n < KEYS / 8; n++)
                for (int c = 2 * r; c < 2 * r + 2; c++)
                    sum[r] += scores[n][c] = exp2f(scores[n][c] - most);
            for (int j = 0; j < D / 8; j++)
                for (int c = 2 * r; c < 2 * r + 2; c++) mixed[j][c] *= factor;
        }
        for (int n = 0; n < KEYS / 8; n += 2) {
            unsigned weights[4] = {
                packed(scores[n][0], scores[n][1]), packed(scores[n][2], scores[n][3]),
                packed(scores[n + 1][0], scores[n + 1][1]),
                packed(scores[n + 1][2], scores[n + 1][3])};
            for (int j = 0; j < D / 8; j++) {
                unsigned b[2];
                load_turned(b, values + (n * 8 + lane % 16) * LINE + j * 8);
                mma(mixed[j], weights, b);
            }
        }
    }
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffff, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffff, sum[r], 2);
        int query = first + row + r * 8;
        if (query < tokens)
            for (int j = 0; j < D / 8; j++)
                *(unsigned*)(out + (long long)query * heads * D + j * 8 + pair) =
                    packed(mixed[j][2 * r] / sum[r], mixed[j][2 * r + 1] / sum[r]);
    }
}
"""


# The instances of the kernels in C++, by name and type, or head size.
EXPRESSIONS = {
    (name, dtype): f"{name}<{type_name}>"
    for name in ("layer_norm", "softmax", "finish")
    for dtype, type_name in TYPES.items()
} | {("attention", str(D)): f"attention<{D}>" for D in HEAD_SIZES}


def source() -> str:
    """All kernels, as CUDA's compiler takes them."""
    sizes = f"#define THREADS {THREADS}\n#define WARP {WARP}\n#define KEYS {KEYS}\n"
    return f"#include <cuda_fp16.h>\n{sizes}{SOURCE}"
