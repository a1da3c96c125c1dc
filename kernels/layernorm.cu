// LayerNorm over C channels (Ba et al. 2016), forward and backward, C any multiple of 8.
//
// Forward: a row is read once and stays in registers, up to four packs per thread, while its mean
// and then the variance about it are summed. Up to 128 packs, a warp owns a row and needs no
// barrier; beyond that, a block.
//
// Backward: one pass, in which a thread owns one pack of channels and walks down the rows with its
// group, as many warps as a row takes, four rows at a time. So the sums for dweight and dbias never
// leave its registers, and there is one barrier per four rows, among the warps of a group. A block
// has as many groups as an SM holds, and merges their sums at the end: a row of sums per SM, which
// a second kernel adds up in a fixed order. A warp per row lost: it needs three times the
// accumulators per lane, which leaves registers for half the loads.
//
// Bytes per 16-bit element: forward 4 (read, write), with residual 8, backward 8 (three reads, one
// write). Expected: 93 % of bandwidth forward, 90 % backward, where the 480 threads of an SM have
// 90 KB of reads in flight.
#include "dropout.cuh"

constexpr float LAYERNORM_EPS = 1e-5f;
constexpr int LAYERNORM_PACKS = 4;

__device__ __forceinline__ float pack_sum(const PackX& pack) {
    float x[PackX::size], sum = 0.0f;
    widen(x, pack);
#pragma unroll
    for (int k = 0; k < PackX::size; k++) sum += x[k];
    return sum;
}

// The residual, and what is kept of the product's pack at `column` of batch row `row`.
template <class Mask>
__device__ __forceinline__ PackX add_packs(const PackX& residual, const PackX& product, const Mask& mask, unsigned row,
                                           unsigned column) {
    float x[PackX::size], y[PackX::size];
    widen(x, residual);
    widen(y, product);
    mask.drop(y, row, column);
#pragma unroll
    for (int k = 0; k < PackX::size; k++) x[k] += y[k];
    return round_pack<floatX>(x);
}

// Sums over the threads of a row: a warp or, if WIDE, the block.
template <bool WIDE>
__device__ __forceinline__ float row_sum(float value, float (&partials)[WARP_SIZE][1]) {
    if constexpr (!WIDE) return warp_sum(value);
    float values[1] = {value};
    block_sum(values, partials);
    return values[0];
}

// Normalizes one row with `threads` threads, of which this is number `thread`. With RESIDUAL, the
// input is the sum of `inp` and what is kept of `product`, as rounded for `residual_out`, which the
// backward pass reads. `product` may alias `out`: a thread reads what it overwrites.
template <bool WIDE, bool RESIDUAL, class Mask = NoMask>
__device__ __forceinline__ void normalize_row(floatX* residual_out, floatX* out, float* mean, float* rstd,
                                              const floatX* inp, const floatX* product, const floatX* weight,
                                              const floatX* bias, int C, int thread, int threads,
                                              const Mask& mask = Mask(), unsigned row = 0) {
    SHARED(float, mean_partials, [WARP_SIZE][1]);
    SHARED(float, variance_partials, [WARP_SIZE][1]);
    int packs = C / PackX::size;
    PackX x[LAYERNORM_PACKS];
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < LAYERNORM_PACKS; p++) {
        int i = thread + p * threads;
        if (i >= packs) continue;
        x[p] = load128(inp + i * PackX::size);
        if constexpr (RESIDUAL) x[p] = add_packs(x[p], load128(product + i * PackX::size), mask, row, i * PackX::size);
    }
#pragma unroll
    for (int p = 0; p < LAYERNORM_PACKS; p++) {
        int i = thread + p * threads;
        if (i >= packs) continue;
        if constexpr (RESIDUAL) store128(residual_out + i * PackX::size, x[p]);
        sum += pack_sum(x[p]);
    }
    float scale = 1.0f / C;
    float m = scale * row_sum<WIDE>(sum, mean_partials);

    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < LAYERNORM_PACKS; p++) {
        if (thread + p * threads >= packs) continue;
        float distance[PackX::size];
        widen(distance, x[p]);
#pragma unroll
        for (int k = 0; k < PackX::size; k++) {
            distance[k] -= m;
            squares += distance[k] * distance[k];
        }
    }
    float s = rsqrtf(scale * row_sum<WIDE>(squares, variance_partials) + LAYERNORM_EPS);
    if (thread == 0) {
        *mean = m;
        *rstd = s;
    }

#pragma unroll
    for (int p = 0; p < LAYERNORM_PACKS; p++) {
        int i = thread + p * threads;
        if (i >= packs) continue;
        float y[PackX::size], w[PackX::size], b[PackX::size];
        widen(y, x[p]);
        widen(w, load128(weight + i * PackX::size));
        widen(b, load128(bias + i * PackX::size));
#pragma unroll
        for (int k = 0; k < PackX::size; k++) y[k] = (y[k] - m) * s * w[k] + b[k];
        store128(out + i * PackX::size, round_pack<floatX>(y));
    }
}

// out (N, C), mean (N), rstd (N); up to LAYERNORM_PACKS packs per lane.
extern "C" __global__ void __launch_bounds__(128)
    layernorm_forward(floatX* out, float* mean, float* rstd, const floatX* inp, const floatX* weight, const floatX* bias, int N,
                      int C) {
    start_in_order();
    long long row = blockIdx.x * 4ll + threadIdx.x / WARP_SIZE;
    if (row >= N) return;
    normalize_row<false, false>(nullptr, out + row * C, mean + row, rstd + row, inp + row * C, nullptr, weight, bias, C,
                                threadIdx.x % WARP_SIZE, WARP_SIZE);
}

// The same with a block per row; up to LAYERNORM_PACKS packs per thread.
extern "C" __global__ void __launch_bounds__(1024)
    layernorm_forward_wide(floatX* out, float* mean, float* rstd, const floatX* inp, const floatX* weight, const floatX* bias,
                           int C) {
    start_in_order();
    long long row = blockIdx.x;
    normalize_row<true, false>(nullptr, out + row * C, mean + row, rstd + row, inp + row * C, nullptr, weight, bias, C,
                               threadIdx.x, blockDim.x);
}

// residual_out (N, C) = residual + product; out (N, C), mean (N), rstd (N) of that.
extern "C" __global__ void __launch_bounds__(128)
    residual_layernorm_forward(floatX* residual_out, floatX* out, float* mean, float* rstd, const floatX* residual,
                               const floatX* product, const floatX* weight, const floatX* bias, int N, int C) {
    start_in_order();
    long long row = blockIdx.x * 4ll + threadIdx.x / WARP_SIZE;
    if (row >= N) return;
    normalize_row<false, true>(residual_out + row * C, out + row * C, mean + row, rstd + row, residual + row * C,
                               product + row * C, weight, bias, C, threadIdx.x % WARP_SIZE, WARP_SIZE);
}

extern "C" __global__ void __launch_bounds__(1024)
    residual_layernorm_forward_wide(floatX* residual_out, floatX* out, float* mean, float* rstd, const floatX* residual,
                                    const floatX* product, const floatX* weight, const floatX* bias, int C) {
    start_in_order();
    long long row = blockIdx.x;
    normalize_row<true, true>(residual_out + row * C, out + row * C, mean + row, rstd + row, residual + row * C,
                              product + row * C, weight, bias, C, threadIdx.x, blockDim.x);
}

// The same with dropout of the product.
extern "C" __global__ void __launch_bounds__(128)
    residual_dropout_layernorm_forward(floatX* residual_out, floatX* out, float* mean, float* rstd, const floatX* residual,
                                       const floatX* product, const floatX* weight, const floatX* bias, Dropout dropout, int N,
                                       int C) {
    start_in_order();
    long long row = blockIdx.x * 4ll + threadIdx.x / WARP_SIZE;
    if (row >= N) return;
    normalize_row<false, true>(residual_out + row * C, out + row * C, mean + row, rstd + row, residual + row * C,
                               product + row * C, weight, bias, C, threadIdx.x % WARP_SIZE, WARP_SIZE, DropoutMask(dropout), row);
}

extern "C" __global__ void __launch_bounds__(1024)
    residual_dropout_layernorm_forward_wide(floatX* residual_out, floatX* out, float* mean, float* rstd, const floatX* residual,
                                            const floatX* product, const floatX* weight, const floatX* bias, Dropout dropout,
                                            int C) {
    start_in_order();
    long long row = blockIdx.x;
    normalize_row<true, true>(residual_out + row * C, out + row * C, mean + row, rstd + row, residual + row * C,
                              product + row * C, weight, bias, C, threadIdx.x, blockDim.x, DropoutMask(dropout), row);
}

constexpr int LAYERNORM_BACKWARD_THREADS = 512;

// The sums of a group, which has row_partials[first] to row_partials[first + warps - 1]. `barrier`
// is its own.
template <int K>
__device__ __forceinline__ void group_sum(float (&values)[K], float (*row_partials)[2 * 4], int barrier, int first, int warps) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const float sum = warp_sums(values);
    if (lane < K) row_partials[warp][lane] = sum;
    if (warps == 1) __syncwarp();
    else barrier_sync(barrier, warps * WARP_SIZE);
#pragma unroll
    for (int k = 0; k < K; k++) values[k] = 0.0f;
#pragma unroll 1
    for (int other = first; other < first + warps; other++)
#pragma unroll
        for (int k = 0; k < K; k++) values[k] += row_partials[other][k];
}

// With norm = (inp - mean) rstd and dnorm = dout weight: dinp += rstd (dnorm - mean(dnorm) - norm
// mean(dnorm norm)), or = with `overwrite`. An element takes six multiply-adds before the sums of
// its row are known and three after: rstd is left out of norm where it can be, and the correction
// to dnorm at the end is inp slope + offset, with four numbers per row.
//
// The columns of a thread of a group: PACKS packs of channels, `threads` packs apart.
template <int PACKS>
struct BackwardColumns {
    // If registers allow, dinp is loaded while the sums are computed, and the weights stay.
    static constexpr bool PREFETCH = PACKS == 1;

    const floatX* weight;
    int thread, threads, packs;
    float scale;
    float kept_weights[PackX::size] = {};
    float dweight[PACKS][PackX::size] = {}, dbias[PACKS][PackX::size] = {};

    __device__ __forceinline__ BackwardColumns(const floatX* weight, int thread, int threads, int C)
        : weight(weight), thread(thread), threads(threads), packs(C / PackX::size), scale(1.0f / C) {
        if (PREFETCH && thread < packs) widen(kept_weights, load128(weight + thread * PackX::size));
    }

    __device__ __forceinline__ void weights(float (&w)[PackX::size], int i) const {
        if constexpr (PREFETCH) {
#pragma unroll
            for (int k = 0; k < PackX::size; k++) w[k] = kept_weights[k];
        } else {
            widen(w, load128(weight + i * PackX::size));
        }
    }

    // ROWS rows; the pointers are to the first, `sum` adds up over the group.
    template <int ROWS, class Sum>
    __device__ __forceinline__ void rows(floatX* dinp, const floatX* dout, const floatX* inp, const float* mean,
                                         const float* rstd, bool overwrite, Sum sum) {
        const int C = packs * PackX::size;
        PackX x[ROWS][PACKS], d[ROWS][PACKS], g[ROWS][PACKS] = {};
        float m[ROWS], s[ROWS], sums[2 * ROWS] = {};
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int i = thread + p * threads;
            if (i >= packs) continue;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const int at = r * C + i * PackX::size;
                d[r][p] = load128_streaming(dout + at);
                x[r][p] = load128_streaming(inp + at);
                if (PREFETCH && !overwrite) g[r][p] = load128(dinp + at);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) m[r] = mean[r], s[r] = rstd[r];
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int i = thread + p * threads;
            if (i >= packs) continue;
            float w[PackX::size];
            weights(w, i);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float dy[PackX::size], values[PackX::size];
                widen(dy, d[r][p]);
                widen(values, x[r][p]);
#pragma unroll
                for (int k = 0; k < PackX::size; k++) {
                    const float product = dy[k] * (values[k] - m[r]);
                    dweight[p][k] += product * s[r];
                    dbias[p][k] += dy[k];
                    sums[2 * r] += dy[k] * w[k];
                    sums[2 * r + 1] += product * w[k];
                }
            }
        }
        sum(sums);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int i = thread + p * threads;
            if (i >= packs) continue;
            float w[PackX::size];
            weights(w, i);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const int at = r * C + i * PackX::size;
                const float slope = -s[r] * s[r] * scale * sums[2 * r + 1], offset = -m[r] * slope - scale * sums[2 * r];
                if (!PREFETCH && !overwrite) g[r][p] = load128(dinp + at);
                float dx[PackX::size], dy[PackX::size], values[PackX::size];
                widen(dx, g[r][p]);
                widen(values, x[r][p]);
                widen(dy, d[r][p]);
#pragma unroll
                for (int k = 0; k < PackX::size; k++) dx[k] += s[r] * (dy[k] * w[k] + (values[k] * slope + offset));
                store128(dinp + at, round_pack<floatX>(dx));
            }
        }
    }

    // Adds the sums of the other groups to those of group 0.
    __device__ __forceinline__ void merge(int groups) {
        SHARED(float, others, [2 * PackX::size][LAYERNORM_BACKWARD_THREADS]);
#pragma unroll
        for (int k = 0; k < PackX::size; k++) {
            others[2 * k][threadIdx.x] = dweight[0][k];
            others[2 * k + 1][threadIdx.x] = dbias[0][k];
        }
        __syncthreads();
        if (threadIdx.x >= threads) return;
        for (int group = 1; group < groups; group++)
#pragma unroll
            for (int k = 0; k < PackX::size; k++) {
                dweight[0][k] += others[2 * k][group * threads + thread];
                dbias[0][k] += others[2 * k + 1][group * threads + thread];
            }
    }

    // sums (2, C): of dout norm and of dout over the rows of a block.
    __device__ __forceinline__ void store(float* sums) const {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int i = thread + p * threads;
            if (i >= packs) continue;
#pragma unroll
            for (int k = 0; k < PackX::size; k += 4) {
                Pack<float> dw = {dweight[p][k], dweight[p][k + 1], dweight[p][k + 2], dweight[p][k + 3]};
                Pack<float> db = {dbias[p][k], dbias[p][k + 1], dbias[p][k + 2], dbias[p][k + 3]};
                store128(sums + i * PackX::size + k, dw);
                store128(sums + (packs + i) * PackX::size + k, db);
            }
        }
    }
};

// Walks down the rows with groups of `threads` threads, ROWS rows at a time, and then the last rows
// one by one. partials (gridDim.x, 2, C).
template <int PACKS, int ROWS>
__device__ __forceinline__ void backward_rows(floatX* dinp, float* partials, const floatX* dout, const floatX* inp,
                                              const floatX* weight, const float* mean, const float* rstd, bool overwrite,
                                              int threads, int N, int C) {
    // Two buffers, used alternately, so that one barrier is enough.
    SHARED(float, row_partials, [2][LAYERNORM_BACKWARD_THREADS / WARP_SIZE][2 * 4]);
    const int groups = PACKS == 1 ? blockDim.x / threads : 1, group = threadIdx.x / threads;
    BackwardColumns<PACKS> columns(weight, threadIdx.x - group * threads, threads, C);
    int turn = 0;
    const auto sum = [&](auto& values) {
        group_sum(values, row_partials[turn], 1 + group, group * threads / WARP_SIZE, threads / WARP_SIZE);
        turn ^= 1;
    };
    const int index = blockIdx.x * groups + group, stride = gridDim.x * groups * ROWS, whole = N / ROWS * ROWS;
    for (int row = index * ROWS; row < whole; row += stride) {
        const long long at = (long long)row * C;
        columns.template rows<ROWS>(dinp + at, dout + at, inp + at, mean + row, rstd + row, overwrite, sum);
    }
    if constexpr (ROWS > 1) {
        for (int row = whole + index; row < N; row += stride / ROWS) {
            const long long at = (long long)row * C;
            columns.template rows<1>(dinp + at, dout + at, inp + at, mean + row, rstd + row, overwrite, sum);
        }
    }
    if constexpr (PACKS == 1) columns.merge(groups);
    if (group == 0) columns.store(partials + blockIdx.x * 2ll * C);
}

extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward(floatX* dinp, float* partials, const floatX* dout, const floatX* inp, const floatX* weight,
                       const float* mean, const float* rstd, int overwrite, int threads, int N, int C) {
    start_in_order();
    backward_rows<1, 4>(dinp, partials, dout, inp, weight, mean, rstd, overwrite, threads, N, C);
}

// For more than 512 packs; up to 12,288 channels. A block is a group.
extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward_wide(floatX* dinp, float* partials, const floatX* dout, const floatX* inp, const floatX* weight,
                            const float* mean, const float* rstd, int overwrite, int N, int C) {
    start_in_order();
    backward_rows<12288 / 512 / PackX::size, 1>(dinp, partials, dout, inp, weight, mean, rstd, overwrite, blockDim.x, N, C);
}

// dweight (C), dbias (C) += the sums over `blocks` rows of partials (blocks, 2, C). A block sums 16
// of the 2 C columns: four adjacent threads of 128 groups read 64 bytes of a row; then each of the
// 16 warps merges a column.
extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward_sum(floatX* dweight, floatX* dbias, const float* partials, int blocks, int C) {
    start_in_order();
    constexpr int COLUMNS = 16, THREADS = 512 / 4;
    // One column of padding: the lanes of a warp then read from different banks.
    SHARED(float, merged, [THREADS][COLUMNS + 1]);
    int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, quad = threadIdx.x % 4 * 4;
    float sums[4] = {};
    const float* column = partials + blockIdx.x * COLUMNS + quad;
#pragma unroll 4
    for (int row = threadIdx.x / 4; row < blocks; row += THREADS) {
        Pack<float> pack = load128(column + (long long)row * 2 * C);
#pragma unroll
        for (int k = 0; k < 4; k++) sums[k] += pack.v[k];
    }
#pragma unroll
    for (int k = 0; k < 4; k++) merged[threadIdx.x / 4][quad + k] = sums[k];
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = lane; i < THREADS; i += WARP_SIZE) sum += merged[i][warp];
    sum = warp_sum(sum);
    int c = blockIdx.x * COLUMNS + warp;
    floatX* target = c < C ? dweight + c : dbias + (c - C);
    if (lane == 0) *target = from_f32<floatX>(to_f32(*target) + sum);
}
