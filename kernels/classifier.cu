// Softmax and cross-entropy, and in-place gradients of the logits.
//
// A block takes a row, reads it once, four packs per thread in flight, and keeps it in shared
// memory. Every thread keeps its own packs, so they need no barrier. A row takes 100 KB for 50,304
// columns of 16 bits, and two blocks still fit on an SM with 228 KB, one of which computes while
// the other waits for memory. Where two do not fit, the second reading is served by the L2 cache,
// which holds the rows of all blocks in flight. Registers lost: a row would take 98 per thread, so
// only one block would fit.
//
// Bytes per 16-bit element: 4 (read, write). Expected: 90 % of bandwidth. Two exponentials per
// element keep the special function units 60 % busy, so the sum is computed in the pass that finds
// the maximum, and an element takes six instructions in that pass and five in the other. Rows go
// last to first: the last ones are what the previous matmul left in the L2 cache, and the first
// ones are what the next matmul starts with.
#include "common.cuh"

constexpr int CLASSIFIER_THREADS = 512;
constexpr int CLASSIFIER_WARPS = CLASSIFIER_THREADS / WARP_SIZE;
constexpr int CLASSIFIER_BATCH = 4;

// factor exp(x - max), for many x, with the factor in the exponent. The difference is taken first:
// the difference of two large products, one exact and one rounded, as in a multiply-add, could be
// anything.
struct Exponentials {
    float max, factor, log2_factor;

    __device__ __forceinline__ explicit Exponentials(float max) : max(max), factor(1.0f), log2_factor(0.0f) {}
    __device__ __forceinline__ Exponentials(float max, float factor)
        : max(max), factor(factor), log2_factor(log2f(factor)) {}

    __device__ __forceinline__ float operator()(float x) const {
        if constexpr (sizeof(floatX) == 4) return factor * expf(x - max);
        return exp2_approx(fmaf(1.4426950408889634f, x - max, log2_factor));
    }
};

// The largest of some logits, and the sum of exp(logit - max). The maximum of no logits is finite,
// since infinity minus infinity is NaN.
struct MaxSum {
    float max, sum;
};
__device__ __forceinline__ MaxSum no_logits() { return {-3.402823466e38f, 0.0f}; }

// Widens the logits of a pack, `valid` of which are below V (possibly none). The others become
// minus infinity.
__device__ __forceinline__ void widen_logits(float (&x)[PackX::size], const PackX& pack, int valid) {
    widen(x, pack);
    if (valid >= PackX::size) return;
#pragma unroll
    for (int k = 0; k < PackX::size; k++)
        if (k >= valid) x[k] = -INFINITY;
}

template <int COUNT>
__device__ __forceinline__ void add_logits(MaxSum& total, const float (&x)[COUNT][PackX::size]) {
    float max = total.max, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
#pragma unroll
        for (int k = 0; k < PackX::size; k++) max = fmaxf(max, x[i][k]);
    const Exponentials exponential(max);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
#pragma unroll
        for (int k = 0; k < PackX::size; k++) sum += exponential(x[i][k]);
    total = {max, total.sum * exponential(total.max) + sum};
}

__device__ __forceinline__ MaxSum warp_merge(MaxSum total) {
    float max = warp_max(total.max);
    return {max, warp_sum(total.sum * Exponentials(max)(total.max))};
}

// Every thread gets the result.
__device__ __forceinline__ MaxSum block_merge(MaxSum total) {
    SHARED(MaxSum, warps, [CLASSIFIER_WARPS]);
    int lane = threadIdx.x % WARP_SIZE;
    total = warp_merge(total);
    if (lane == 0) warps[threadIdx.x / WARP_SIZE] = total;
    __syncthreads();
    return warp_merge(lane < CLASSIFIER_WARPS ? warps[lane] : no_logits());
}

// Processes one row. If KEPT, it is in `kept` after the first reading.
template <bool KEPT>
__device__ __forceinline__ void classify_row(float* loss, floatX* logits, PackX* kept, int target, float dloss,
                                             bool with_gradient, int V, int Vp) {
    // Read before any thread overwrites it.
    float target_logit = threadIdx.x == 0 ? to_f32(logits[target]) : 0.0f;
    int packs = ceil_div(V, PackX::size);
    MaxSum total = no_logits();
    for (int first = threadIdx.x; first < packs; first += CLASSIFIER_BATCH * CLASSIFIER_THREADS) {
        PackX batch[CLASSIFIER_BATCH];
#pragma unroll
        for (int b = 0; b < CLASSIFIER_BATCH; b++) {
            int i = first + b * CLASSIFIER_THREADS;
            if (i < packs) batch[b] = load128(logits + i * PackX::size);
        }
        // Two packs at a time, so that the running sum is scaled once for both.
#pragma unroll
        for (int b = 0; b < CLASSIFIER_BATCH; b += 2) {
            float x[2][PackX::size];
#pragma unroll
            for (int of = 0; of < 2; of++) {
                int i = first + (b + of) * CLASSIFIER_THREADS;
                if (KEPT && i < packs) kept[i] = batch[b + of];
                widen_logits(x[of], batch[b + of], V - i * PackX::size);
            }
            add_logits(total, x);
        }
    }
    total = block_merge(total);
    if (threadIdx.x == 0) *loss += total.max - target_logit + logf(total.sum);
    if (!with_gradient) return;

    const Exponentials probability(total.max, dloss / total.sum);
    for (int first = threadIdx.x; first < packs; first += CLASSIFIER_BATCH * CLASSIFIER_THREADS) {
        PackX batch[CLASSIFIER_BATCH];
#pragma unroll
        for (int b = 0; b < CLASSIFIER_BATCH; b++) {
            int i = first + b * CLASSIFIER_THREADS;
            if (i < packs) batch[b] = KEPT ? kept[i] : load128(logits + i * PackX::size);
        }
#pragma unroll
        for (int b = 0; b < CLASSIFIER_BATCH; b++) {
            int i = first + b * CLASSIFIER_THREADS;
            if (i >= packs) continue;
            float x[PackX::size];
            widen_logits(x, batch[b], V - i * PackX::size);
#pragma unroll
            for (int k = 0; k < PackX::size; k++) x[k] = probability(x[k]);
            if (i == target / PackX::size) {
                // A select per element: indexing a single element would force x into memory.
#pragma unroll
                for (int k = 0; k < PackX::size; k++) x[k] -= k == target % PackX::size ? dloss : 0.0f;
            }
            store128(logits + i * PackX::size, round_pack<floatX>(x));
        }
    }
    // Packs that contain only padding.
    PackX zeros = {};
#pragma unroll 1
    for (int i = packs + threadIdx.x; i < Vp / PackX::size; i += CLASSIFIER_THREADS) store128(logits + i * PackX::size, zeros);
}

// losses (N) += max - logits[target] + ln sum exp(logits - max) over columns below V; with a dloss
// (1), logits (N, Vp) = dloss (softmax - onehot(target)), 0 from column V on. With keep_row, there is
// dynamic shared memory for a row.
extern "C" __global__ void __launch_bounds__(512, 2)
    classifier(float* losses, floatX* logits, const int* targets, const float* dloss, int keep_row, int V, int Vp) {
    start_in_order();
    DYNAMIC_SHARED(row_memory);
    unsigned row = gridDim.x - 1 - blockIdx.x;
    floatX* row_logits = logits + (long long)row * Vp;
    // Loaded before it is needed.
    float weight = dloss ? *dloss : 0.0f;
    if (keep_row)
        classify_row<true>(losses + row, row_logits, (PackX*)row_memory, targets[row], weight, dloss != nullptr, V,
                           Vp);
    else
        classify_row<false>(losses + row, row_logits, nullptr, targets[row], weight, dloss != nullptr, V, Vp);
}
