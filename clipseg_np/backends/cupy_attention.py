"""Attention on a GPU, in CUDA's C++: the scores never leave the chip.

Part of cupy_kernels.py's source: it uses the constants and helpers that are defined there.
"""

SOURCE = """
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

// Four (8,8) matrices of halves in the layout of `b` of mma, transposed or not: each thread of a
// warp passes the address of a row.
template <bool TRANSPOSED> __device__ void load_matrices(unsigned* b, const __half* row) {
    unsigned place = (unsigned)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
            : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(place) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
            : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(place) : "memory");
}

// Starts a copy of 16 bytes to shared memory, or of zeros. `commit_copies` ends a group of them,
// and `await_copies` waits for all groups of this thread but the last.
__device__ void start_copy(void* to, const void* from, bool is_there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
        :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(is_there ? 16 : 0)
        : "memory");
#endif
}
__device__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
__device__ void await_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}
#endif

__device__ unsigned packed(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return *(unsigned*)&both;
}

// softmax((q + q_bias) k' scale) v + v_bias for heads of D halves; the scores never leave the chip
// (Dao, "FlashAttention-2", 2023). A bias of k would add one number to all scores of a query, which
// softmax does not see; and as its weights sum to 1, the bias of v is added to their mixture.
// A warp takes 16 queries, and KEYS keys at a time, while the next ones are copied; the sums of
// earlier keys are scaled to the largest score so far. q, k and v (B,N,T,D) share their strides
// `image`, `head` and `token`; out is (B,T,N,D), the biases are null or (N,D); `mask` is that of
// softmax. Of each (16,8) scores, a thread has those of queries `row` and row + 8, and of keys
// `pair` and pair + 1.
template <int D> __global__ void attention(
    const __half* q, const __half* k, const __half* v, const __half* q_bias, const __half* v_bias,
    __half* out, const bool* mask, int alike, int heads, int tokens,
    long long image, long long head, long long token, float scale) {
    // 8 more, so that the rows of a fragment lie in different banks.
    const int LINE = D + 8;
    alignas(16) __shared__ __half keys[2 * KEYS * LINE], values[2 * KEYS * LINE];
    const int warps = THREADS / 32, tiles = (tokens + 16 * warps - 1) / (16 * warps);
    int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
    int first = (blockIdx.x % tiles * warps + threadIdx.x / 32) * 16;
    int my_head = blockIdx.x / tiles % heads, my_image = blockIdx.x / tiles / heads;
    long long start_of_head = my_image * image + my_head * head;
    q += start_of_head;
    k += start_of_head;
    v += start_of_head;
    out += ((long long)my_image * tokens * heads + my_head) * D;
    if (q_bias) q_bias += my_head * D;
    if (v_bias) v_bias += my_head * D;
    if (mask && !alike) mask += (size_t)my_image * tokens * tokens;

    unsigned a[D / 16][4];
    for (int i = 0; i < D / 16; i++)
        for (int r = 0; r < 4; r++) {
            int query = first + row + r % 2 * 8, at = i * 16 + pair + r / 2 * 8;
            const __half* from = q + query * token + at;
            a[i][r] = 0;
            if (query < tokens)
                a[i][r] = !q_bias ? *(const unsigned*)from
                    : packed((float)from[0] + (float)q_bias[at],
                             (float)from[1] + (float)q_bias[at + 1]);
        }
    float mixed[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    // The chip has powers of 2 alone: e^x = 2^(x log2(e)).
    scale *= 1.4426950408889634f;

    for (int start = -KEYS; start < tokens; start += KEYS) {
        for (int i = threadIdx.x; i < KEYS * D / 8 && start + KEYS < tokens; i += THREADS) {
            int key = start + KEYS + i / (D / 8), from = i % (D / 8) * 8;
            int to = (key % (2 * KEYS)) * LINE + from;
            bool is_there = key < tokens;
            start_copy(keys + to, is_there ? k + key * token + from : k, is_there);
            start_copy(values + to, is_there ? v + key * token + from : v, is_there);
        }
        commit_copies();
        if (start < 0) continue;
        await_copies();
        __syncthreads();
        const __half* my_keys = keys + start % (2 * KEYS) * LINE;
        const __half* my_values = values + start % (2 * KEYS) * LINE;
        float scores[KEYS / 8][4] = {};
        for (int n = 0; n < KEYS / 8; n += 2) {
            for (int i = 0; i < D / 16; i++) {
                int line = n * 8 + lane / 16 * 8 + lane % 8;
                unsigned b[4];
                load_matrices<false>(b, my_keys + line * LINE + i * 16 + lane / 8 % 2 * 8);
                mma(scores[n], a[i], b);
                mma(scores[n + 1], a[i], b + 2);
            }
        }
        for (int n = 0; n < KEYS / 8; n++)
            for (int c = 0; c < 4; c++) {
                int query = first + row + c / 2 * 8, key = start + n * 8 + pair + c % 2;
                bool seen = !mask || query >= tokens || key >= tokens
                            || mask[(size_t)query * tokens + key];
                scores[n][c] = key >= tokens ? -INFINITY : seen ? scores[n][c] * scale : -3e38f;
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
            for (int j = 0; j < D / 8; j += 2) {
                unsigned b[4];
                const __half* from = my_values + (n * 8 + lane % 16) * LINE + j * 8;
                load_matrices<true>(b, from + lane / 16 * 8);
                mma(mixed[j], weights, b);
                mma(mixed[j + 1], weights, b + 2);
            }
        }
        // The next copies go where these keys and values are.
        __syncthreads();
    }
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffff, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffff, sum[r], 2);
        int query = first + row + r * 8;
        if (query < tokens)
            for (int j = 0; j < D / 8; j++) {
                int at = j * 8 + pair;
                float low = v_bias ? (float)v_bias[at] : 0;
                float high = v_bias ? (float)v_bias[at + 1] : 0;
                *(unsigned*)(out + (long long)query * heads * D + at) =
                    packed(mixed[j][2 * r] / sum[r] + low, mixed[j][2 * r + 1] / sum[r] + high);
            }
    }
}

// The same in float32. A block takes WARP queries. Its warps share out the keys, 4 at a time, and
// join their mixtures in the end. In a warp, 4 neighboring threads share 4 queries: each has every
// fourth pack of the features of all of them. Query 0 of a thread is its own, whose scores it sums
// up and keeps; query n is that of the thread at distance n (exclusive or).
template <int D> __global__ void attention_float32(
    const float* q, const float* k, const float* v, const float* q_bias, const float* v_bias,
    float* out, const bool* mask, int alike, int heads, int tokens,
    long long image, long long head, long long token, float scale) {
    const int F = D / 16, WARPS = THREADS / WARP;
    alignas(16) __shared__ float shared[2 * KEYS * D];
    __shared__ float tops[THREADS], sums[WARP];
    float *keys = shared, *values = shared + KEYS * D;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, part = lane % 4 * 4;
    int tiles = (tokens + WARP - 1) / WARP, first = blockIdx.x % tiles * WARP, own = first + lane;
    int my_head = blockIdx.x / tiles % heads, my_image = blockIdx.x / tiles / heads;
    long long start_of_head = my_image * image + my_head * head;
    q += start_of_head;
    k += start_of_head;
    v += start_of_head;
    out += ((long long)my_image * tokens * heads + my_head) * D;
    if (q_bias) q_bias += my_head * D;
    if (v_bias) v_bias += my_head * D;
    if (mask && !alike) mask += (size_t)my_image * tokens * tokens;

    scale *= 1.4426950408889634f;
    Pack<float> query[4][F];
    float mixed[4][4 * F] = {}, largest = -INFINITY, sum = 0;
    for (int n = 0; n < 4; n++)
        for (int f = 0; f < F; f++) {
            int number = first + (lane ^ n), at = f * 16 + part;
            for (int e = 0; e < 4; e++) query[n][f].values[e] = 0;
            if (number < tokens) query[n][f] = *(const Pack<float>*)(q + number * token + at);
            for (int e = 0; e < 4; e++) {
                float bias = q_bias ? q_bias[at + e] : 0;
                query[n][f].values[e] = (query[n][f].values[e] + bias) * scale;
            }
        }

    for (int start = 0; start < tokens; start += KEYS) {
        __syncthreads();
        for (int i = threadIdx.x * 4; i < KEYS * D; i += THREADS * 4) {
            int key = start + i / D;
            Pack<float> none = {};
            *(Pack<float>*)(keys + i) =
                key < tokens ? *(const Pack<float>*)(k + key * token + i % D) : none;
            *(Pack<float>*)(values + i) =
                key < tokens ? *(const Pack<float>*)(v + key * token + i % D) : none;
        }
        __syncthreads();
        for (int j = warp * 4; j < KEYS && start + j < tokens; j += WARPS * 4) {
            float weights[4], most = largest;
#pragma unroll
            for (int g = 0; g < 4; g++) {
                float scores[4] = {};
                for (int f = 0; f < F; f++) {
                    Pack<float> key = *(const Pack<float>*)(keys + (j + g) * D + f * 16 + part);
                    for (int n = 0; n < 4; n++)
                        for (int e = 0; e < 4; e++)
                            scores[n] += query[n][f].values[e] * key.values[e];
                }
                scores[0] += __shfl_xor_sync(0xffffffff, scores[1], 1);
                scores[2] += __shfl_xor_sync(0xffffffff, scores[3], 1);
                weights[g] = scores[0] + __shfl_xor_sync(0xffffffff, scores[2], 2);
                int number = start + j + g;
                if (number >= tokens) weights[g] = -INFINITY;
                else if (mask && own < tokens && !mask[(size_t)own * tokens + number])
                    weights[g] = -3e38f;
                most = fmaxf(most, weights[g]);
            }
            float factor = exp2f(largest - most);
            largest = most;
            sum *= factor;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float other = __shfl_xor_sync(0xffffffff, factor, n);
                for (int i = 0; i < 4 * F; i++) mixed[n][i] *= other;
            }
#pragma unroll
            for (int g = 0; g < 4; g++) {
                float weight = exp2f(weights[g] - most), other[4];
                sum += weight;
                for (int n = 0; n < 4; n++) other[n] = __shfl_xor_sync(0xffffffff, weight, n);
                for (int f = 0; f < F; f++) {
                    Pack<float> value = *(const Pack<float>*)(values + (j + g) * D + f * 16 + part);
                    for (int n = 0; n < 4; n++)
                        for (int e = 0; e < 4; e++)
                            mixed[n][f * 4 + e] += other[n] * value.values[e];
                }
            }
        }
    }

    // Each warp's sums are scaled to the largest score of all warps, and added to the others'.
    tops[threadIdx.x] = largest;
    __syncthreads();
    float most = largest;
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w * WARP + lane]);
    float factor = exp2f(largest - most);
    for (int turn = 0; turn < WARPS; turn++) {
        if (warp == turn) {
            sums[lane] = (turn ? sums[lane] : 0) + sum * factor;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float other = __shfl_xor_sync(0xffffffff, factor, n);
                for (int i = 0; i < 4 * F; i++) {
                    float* to = shared + (lane ^ n) * D + i / 4 * 16 + part + i % 4;
                    *to = (turn ? *to : 0) + mixed[n][i] * other;
                }
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < WARP * D; i += THREADS)
        if (first + i / D < tokens)
            out[(long long)(first + i / D) * heads * D + i % D] =
                shared[i] / sums[i / D] + (v_bias ? v_bias[i % D] : 0);
}
"""
