// LayerNorm over C channels (Ba et al. 2016), forward and backward, C any multiple of 8.
//
// Forward: a row is read once and stays in registers, up to four packs a thread, while its mean and then the variance
// about it are summed. Up to 128 packs a warp owns a row, and no barrier is needed; beyond, a block.
//
// Backward: one pass, in which a thread owns one pack of channels and walks down the rows with the block, four rows at a time,
// so the sums for dweight and dbias never leave its registers, and there is one barrier in four rows. A warp for a row lost: it
// needs three times the accumulators a lane, which leaves registers for half the loads. As many blocks as the device holds each
// write one row of sums, which a second kernel adds up in a fixed order: 3 % of the traffic.
//
// Bytes for an element of 16 bits: forward 4 (read, write), with residual 8, backward 8 (three reads, one write). Expected: 93 %
// of bandwidth forward, 90 % backward, where 480 threads of a multiprocessor have 90 KB of reads under way.
#include "common.cuh"

constexpr float LAYERNORM_EPS = 1e-5f;
constexpr int LAYERNORM_PACKS = 4;

__device__ __forceinline__ float pack_sum(const PackX& pack) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < PackX::size; k++) sum += to_f32(pack.v[k]);
    return sum;
}

__device__ __forceinline__ PackX add_packs(PackX a, const PackX& b) {
#pragma unroll
    for (int k = 0; k < PackX::size; k++) a.v[k] = from_f32<floatX>(to_f32(a.v[k]) + to_f32(b.v[k]));
    return a;
}

// Over the threads of a row: a warp or, if WIDE, the block.
template <bool WIDE>
__device__ __forceinline__ float row_sum(float value, float (&partials)[WARP_SIZE][1]) {
    if constexpr (!WIDE) return warp_sum(value);
    float values[1] = {value};
    block_sum(values, partials);
    return values[0];
}

// One row, by `threads` threads of which this is number `thread`. With RESIDUAL, what is normalised is the sum of `inp` and
// `product` as it is rounded for `residual_out`, which the backward pass reads. `product` may be `out`: a thread reads
// what it overwrites.
template <bool WIDE, bool RESIDUAL>
__device__ __forceinline__ void normalize_row(floatX* residual_out, floatX* out, float* mean, float* rstd,
                                              const floatX* inp, const floatX* product, const floatX* weight,
                                              const floatX* bias, int C, int thread, int threads) {
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
        if constexpr (RESIDUAL) x[p] = add_packs(x[p], load128(product + i * PackX::size));
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
#pragma unroll
        for (int k = 0; k < PackX::size; k++) {
            float distance = to_f32(x[p].v[k]) - m;
            squares += distance * distance;
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
        PackX w = load128(weight + i * PackX::size), b = load128(bias + i * PackX::size), y;
#pragma unroll
        for (int k = 0; k < PackX::size; k++)
            y.v[k] = from_f32<floatX>((to_f32(x[p].v[k]) - m) * s * to_f32(w.v[k]) + to_f32(b.v[k]));
        store128(out + i * PackX::size, y);
    }
}

// out (N, C), mean (N), rstd (N); up to LAYERNORM_PACKS packs a lane.
extern "C" __global__ void __launch_bounds__(128)
    layernorm_forward(floatX* out, float* mean, float* rstd, const floatX* inp, const floatX* weight, const floatX* bias, int N,
                      int C) {
    long long row = blockIdx.x * 4ll + threadIdx.x / WARP_SIZE;
    if (row >= N) return;
    normalize_row<false, false>(nullptr, out + row * C, mean + row, rstd + row, inp + row * C, nullptr, weight, bias, C,
                                threadIdx.x % WARP_SIZE, WARP_SIZE);
}

// The same, a block for a row; up to LAYERNORM_PACKS packs a thread.
extern "C" __global__ void __launch_bounds__(1024)
    layernorm_forward_wide(floatX* out, float* mean, float* rstd, const floatX* inp, const floatX* weight, const floatX* bias,
                           int C) {
    long long row = blockIdx.x;
    normalize_row<true, false>(nullptr, out + row * C, mean + row, rstd + row, inp + row * C, nullptr, weight, bias, C,
                               threadIdx.x, blockDim.x);
}

// residual_out (N, C) = residual + product; out (N, C), mean (N), rstd (N) of that.
extern "C" __global__ void __launch_bounds__(128)
    residual_layernorm_forward(floatX* residual_out, floatX* out, float* mean, float* rstd, const floatX* residual,
                               const floatX* product, const floatX* weight, const floatX* bias, int N, int C) {
    long long row = blockIdx.x * 4ll + threadIdx.x / WARP_SIZE;
    if (row >= N) return;
    normalize_row<false, true>(residual_out + row * C, out + row * C, mean + row, rstd + row, residual + row * C,
                               product + row * C, weight, bias, C, threadIdx.x % WARP_SIZE, WARP_SIZE);
}

extern "C" __global__ void __launch_bounds__(1024)
    residual_layernorm_forward_wide(floatX* residual_out, floatX* out, float* mean, float* rstd, const floatX* residual,
                                    const floatX* product, const floatX* weight, const floatX* bias, int C) {
    long long row = blockIdx.x;
    normalize_row<true, true>(residual_out + row * C, out + row * C, mean + row, rstd + row, residual + row * C,
                              product + row * C, weight, bias, C, threadIdx.x, blockDim.x);
}

// With norm = (inp - mean) rstd and dnorm = dout weight: dinp += rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)).
// partials (gridDim.x, 2, C): sums of dout norm and of dout over the rows of a block. ROWS rows at a time, PACKS packs a
// thread.
template <int PACKS, int ROWS>
__device__ __forceinline__ void backward_rows(floatX* dinp, float* partials, const floatX* dout, const floatX* inp,
                                              const floatX* weight, const float* mean, const float* rstd, int N, int C) {
    // Where registers allow, dinp is under way while the sums are made.
    constexpr bool PREFETCH = PACKS == 1;
    // Two of them, used in turn: one barrier is enough.
    SHARED(float, row_partials, [2][WARP_SIZE][2 * ROWS]);
    int packs = C / PackX::size;
    float scale = 1.0f / C;
    float dweight[PACKS][PackX::size] = {}, dbias[PACKS][PackX::size] = {};

    int turn = 0;
    for (long long first = (long long)blockIdx.x * ROWS; first < N; first += (long long)gridDim.x * ROWS, turn ^= 1) {
        PackX x[ROWS][PACKS], d[ROWS][PACKS], g[ROWS][PACKS];
        float m[ROWS], s[ROWS], sums[2 * ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (first + r >= N) continue;
            m[r] = mean[first + r];
            s[r] = rstd[first + r];
#pragma unroll
            for (int p = 0; p < PACKS; p++) {
                int i = threadIdx.x + p * blockDim.x;
                if (i >= packs) continue;
                long long at = (first + r) * C + i * PackX::size;
                d[r][p] = load128_streaming(dout + at);
                x[r][p] = load128_streaming(inp + at);
                if constexpr (PREFETCH) g[r][p] = load128(dinp + at);
            }
        }
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = threadIdx.x + p * blockDim.x;
            if (i >= packs) continue;
            PackX w = load128(weight + i * PackX::size);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (first + r >= N) continue;
#pragma unroll
                for (int k = 0; k < PackX::size; k++) {
                    float dy = to_f32(d[r][p].v[k]), norm = (to_f32(x[r][p].v[k]) - m[r]) * s[r];
                    float dnorm = dy * to_f32(w.v[k]);
                    dweight[p][k] += dy * norm;
                    dbias[p][k] += dy;
                    sums[2 * r] += dnorm;
                    sums[2 * r + 1] += dnorm * norm;
                }
            }
        }
        block_sum(sums, row_partials[turn]);
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            int i = threadIdx.x + p * blockDim.x;
            if (i >= packs) continue;
            PackX w = load128(weight + i * PackX::size);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (first + r >= N) continue;
                long long at = (first + r) * C + i * PackX::size;
                if constexpr (!PREFETCH) g[r][p] = load128(dinp + at);
#pragma unroll
                for (int k = 0; k < PackX::size; k++) {
                    float norm = (to_f32(x[r][p].v[k]) - m[r]) * s[r];
                    float dnorm = to_f32(d[r][p].v[k]) * to_f32(w.v[k]);
                    float dx = s[r] * (dnorm - scale * sums[2 * r] - norm * (scale * sums[2 * r + 1]));
                    g[r][p].v[k] = from_f32<floatX>(to_f32(g[r][p].v[k]) + dx);
                }
                store128(dinp + at, g[r][p]);
            }
        }
    }

    float* block_partials = partials + (long long)blockIdx.x * 2 * C;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        int i = threadIdx.x + p * blockDim.x;
        if (i >= packs) continue;
#pragma unroll
        for (int k = 0; k < PackX::size; k += 4) {
            Pack<float> dw = {dweight[p][k], dweight[p][k + 1], dweight[p][k + 2], dweight[p][k + 3]};
            Pack<float> db = {dbias[p][k], dbias[p][k + 1], dbias[p][k + 2], dbias[p][k + 3]};
            store128(block_partials + i * PackX::size + k, dw);
            store128(block_partials + C + i * PackX::size + k, db);
        }
    }
}

extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward(floatX* dinp, float* partials, const floatX* dout, const floatX* inp, const floatX* weight,
                       const float* mean, const float* rstd, int N, int C) {
    backward_rows<1, 4>(dinp, partials, dout, inp, weight, mean, rstd, N, C);
}

// For more than 512 packs; up to 12,288 channels.
extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward_wide(floatX* dinp, float* partials, const floatX* dout, const floatX* inp, const floatX* weight,
                            const float* mean, const float* rstd, int N, int C) {
    backward_rows<12288 / 512 / PackX::size, 1>(dinp, partials, dout, inp, weight, mean, rstd, N, C);
}

// dweight (C), dbias (C) += the sums over `blocks` rows of partials (blocks, 2, C). A block sums 16 of the 2 C columns: four threads
// side by side, of 128, read 64 bytes of a row; then each of the 16 warps merges a column.
extern "C" __global__ void __launch_bounds__(512)
    layernorm_backward_sum(floatX* dweight, floatX* dbias, const float* partials, int blocks, int C) {
    constexpr int COLUMNS = 16, THREADS = 512 / 4;
    // One more than there are columns: the lanes of a warp then read from different banks.
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
