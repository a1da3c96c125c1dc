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
// element keep the special function units 70 % busy, so the sum is computed in the pass that finds
// the maximum, and an element takes five instructions in that pass and four in the other. Packs
// after the last whole batch are looked at one by one. Rows go last to first: the last
// ones are what the previous matmul left in the L2 cache, and the first ones are what the next
// matmul starts with.
#include "common.cuh"

constexpr int CLASSIFIER_THREADS = 512;
constexpr int CLASSIFIER_WARPS = CLASSIFIER_THREADS / WARP_SIZE;
constexpr int CLASSIFIER_BATCH = 4;

// log2(e) max, rounded: what is subtracted from exponents of two. An exponent is the difference of
// an exact product and this, one multiply-add, so the rounding of this is a factor common to all
// exponentials, which cancels in probabilities.
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.69314718055994531f;
__device__ __forceinline__ float reference(float max) { return __fmul_rn(LOG2_E, max); }

// factor exp(x - max), for many x. In 16 bits the subtraction is in the exponent, and the factor
// too if FOLDED, while that is far from losing a bit of the result.
template <bool FOLDED>
struct Exponentials {
    float max, factor, shift;

    __device__ __forceinline__ Exponentials(float max, float factor)
        : max(max), factor(factor), shift((FOLDED ? log2f(factor) : 0.0f) - reference(max)) {}

    __device__ __forceinline__ float operator()(float x) const {
        if constexpr (sizeof(floatX) == 4) return factor * expf(x - max);
        const float power = exp2_approx(fmaf(LOG2_E, x, shift));
        return FOLDED ? power : factor * power;
    }
};
__device__ __forceinline__ bool can_fold(float max) { return fabsf(max) < 512.0f; }

// The largest of some logits, and the sum of exp(logit - max), with the rounding of `reference`.
// The maximum of no logits is finite, since infinity minus infinity is NaN.
struct MaxSum {
    float max, sum;

    // The sum with a larger maximum.
    __device__ __forceinline__ float sum_below(float larger) const {
        if constexpr (sizeof(floatX) == 4) return sum * expf(max - larger);
        return sum * exp2_approx(reference(max) - reference(larger));
    }
    // ln sum exp(logit - max), without that rounding.
    __device__ __forceinline__ float log_sum() const {
        if constexpr (sizeof(floatX) == 4) return logf(sum);
        return logf(sum) - LN_2 * fmaf(LOG2_E, max, -reference(max));
    }
};
__device__ __forceinline__ MaxSum no_logits() { return {-1e38f, 0.0f}; }

// The largest of `max` and the elements of some packs; 16-bit ones are compared in pairs.
template <class T, int COUNT>
__device__ __forceinline__ float largest(float max, const Pack<T> (&packs)[COUNT]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int k = 0; k < Pack<T>::size; k++) max = fmaxf(max, packs[i].v[k]);
        return max;
    } else {
        uint32_t words[COUNT];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const uint4 bits = pack_bits(packs[i]);
            words[i] = max2<T>(max2<T>(bits.x, bits.y), max2<T>(bits.z, bits.w));
        }
#pragma unroll
        for (int i = 1; i < COUNT; i++) words[0] = max2<T>(words[0], words[i]);
        float lo, hi;
        widen2<T>(lo, hi, words[0]);
        return fmaxf(max, fmaxf(lo, hi));
    }
}

template <int COUNT>
__device__ __forceinline__ void add_logits(MaxSum& total, const PackX (&packs)[COUNT]) {
    const float max = largest(total.max, packs);
    const Exponentials<false> exponential(max, 1.0f);
    float sum = total.sum_below(max);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float x[PackX::size];
        widen(x, packs[i]);
#pragma unroll
        for (int k = 0; k < PackX::size; k++) sum += exponential(x[k]);
    }
    total = {max, sum};
}

// Replaces all but the first `valid` elements by minus infinity.
__device__ __forceinline__ void mask(PackX& pack, int valid) {
#pragma unroll
    for (int k = 0; k < PackX::size; k++)
        if (k >= valid) pack.v[k] = from_f32<floatX>(-INFINITY);
}

__device__ __forceinline__ MaxSum warp_merge(MaxSum total) {
    float max = warp_max(total.max);
    return {max, warp_sum(total.sum_below(max))};
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
    constexpr int BATCH = CLASSIFIER_BATCH, THREADS = CLASSIFIER_THREADS;
    // The owner of the target's pack reads the target before it overwrites it.
    const bool owns_target = threadIdx.x == target / PackX::size % THREADS;
    const float target_logit = owns_target ? to_f32(logits[target]) : 0.0f;
    // Whole packs, and those with a column below V.
    const int whole = V / PackX::size, packs = ceil_div(V, PackX::size);
    MaxSum total = no_logits();
    int i = threadIdx.x;
    for (; i + (BATCH - 1) * THREADS < whole; i += BATCH * THREADS) {
        const floatX* first = logits + i * PackX::size;
        PackX batch[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) batch[b] = load128(first + b * THREADS * PackX::size);
        add_logits(total, batch);
        if (KEPT)
#pragma unroll
            for (int b = 0; b < BATCH; b++) kept[i + b * THREADS] = batch[b];
    }
#pragma unroll 1
    for (; i < packs; i += THREADS) {
        PackX last[1] = {load128(logits + i * PackX::size)};
        if (i == whole) mask(last[0], V % PackX::size);
        add_logits(total, last);
        if (KEPT) kept[i] = last[0];
    }
    total = block_merge(total);
    if (owns_target) *loss += total.max - target_logit + total.log_sum();
    if (!with_gradient) return;

    const float factor = dloss / total.sum;
    const Exponentials<true> folded(total.max, factor);
    const Exponentials<false> probability(total.max, factor);
    const auto gradients = [](const auto& of, const PackX& pack) {
        float x[PackX::size];
        widen(x, pack);
#pragma unroll
        for (int k = 0; k < PackX::size; k++) x[k] = of(x[k]);
        return round_pack<floatX>(x);
    };
    i = threadIdx.x;
    for (; can_fold(total.max) && i + (BATCH - 1) * THREADS < whole; i += BATCH * THREADS) {
        floatX* first = logits + i * PackX::size;
        PackX batch[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) batch[b] = KEPT ? kept[i + b * THREADS] : load128(first + b * THREADS * PackX::size);
#pragma unroll
        for (int b = 0; b < BATCH; b++) store128(first + b * THREADS * PackX::size, gradients(folded, batch[b]));
    }
#pragma unroll 1
    for (; i < packs; i += THREADS) {
        PackX last = KEPT ? kept[i] : load128(logits + i * PackX::size);
        if (!KEPT && i == whole) mask(last, V % PackX::size);
        store128(logits + i * PackX::size, gradients(probability, last));
    }
    if (owns_target) logits[target] = from_f32<floatX>(probability(target_logit) - dloss);
    // Packs that contain only padding.
    PackX zeros = {};
#pragma unroll 1
    for (i = packs + threadIdx.x; i < Vp / PackX::size; i += THREADS) store128(logits + i * PackX::size, zeros);
}

// losses (N) += max - logits[target] + ln sum exp(logits - max) over columns below V; with a dloss
// (1), logits (N, Vp) = dloss (softmax - onehot(target)), 0 from column V on. Rows of a negative
// target have no loss, and a gradient of 0. With keep_row, there is dynamic shared memory for a
// row.
extern "C" __global__ void __launch_bounds__(512, 2)
    classifier(float* losses, floatX* logits, const int* targets, const float* dloss, int keep_row, int V, int Vp) {
    start_in_order();
    DYNAMIC_SHARED(row_memory);
    unsigned row = gridDim.x - 1 - blockIdx.x;
    floatX* row_logits = logits + (long long)row * Vp;
    const int target = targets[row];
    if (target < 0) {
        PackX zeros = {};
#pragma unroll 1
        for (int i = threadIdx.x; dloss && i < Vp / PackX::size; i += CLASSIFIER_THREADS)
            store128(row_logits + i * PackX::size, zeros);
        return;
    }
    // Loaded before it is needed.
    float weight = dloss ? *dloss : 0.0f;
    if (keep_row)
        classify_row<true>(losses + row, row_logits, (PackX*)row_memory, target, weight, dloss != nullptr, V,
                           Vp);
    else
        classify_row<false>(losses + row, row_logits, nullptr, target, weight, dloss != nullptr, V, Vp);
}
