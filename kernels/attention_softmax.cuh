// The softmax of attention's forward pass, updated tile by tile (Milakov & Gimelshein 2018).
#pragma once
#include "attention_view.cuh"

namespace attention {

// The running maximum and sum of exponentials of a warp's rows. A thread has rows lane / 4 and lane
// / 4 + 8 of every 16, and sums over its own columns only.
template <int M>
struct Softmax {
    float max[M][2], sum[M][2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) max[m][i] = -INFINITY, sum[m][i] = 0.0f;
    }

    // scores = exp(scale * scores - maximum). Sums are not rescaled at every new maximum, but only
    // when one row of the warp has grown by more than a factor of 2^8: weights of up to 256 are
    // harmless, and most tiles save the multiplications (as in FlashAttention-4). The first tile
    // has a key that the query sees, so after it the maximum is finite.
    template <int N, int HS>
    __device__ __forceinline__ void update(Sums<M, N>& scores, Sums<M, HS>& out, float scale_log2) {
        float new_max[M][2];
        bool grown = false;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float largest = largest_of_row(scores, m, i, max[m][i]);
                grown |= (largest - max[m][i]) * scale_log2 > 8.0f;
                new_max[m][i] = largest;
            }
        if (__any_sync(FULL_MASK, grown)) rescale(new_max, out, scale_log2);
        weigh(scores, scale_log2);
    }

    // The same for the first tile, without results so far.
    template <int N>
    __device__ __forceinline__ void start(Sums<M, N>& scores, float scale_log2) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) max[m][i] = largest_of_row(scores, m, i, -INFINITY), sum[m][i] = 0.0f;
        weigh(scores, scale_log2);
    }

    // The same as `update` as long as the maximum so far serves: returns whether it does, for all
    // lanes of the warp. This takes no maximum of the scores: their exponentials are added up
    // anyway, and a sum shows whether one is too large for f16. Otherwise only scores have changed.
    template <int N>
    __device__ __forceinline__ bool try_update(Sums<M, N>& scores, float scale_log2) {
        constexpr float LARGEST = 32768.0f;
        const Softmax before = *this;
        bool serves = true;
#pragma unroll
        for (auto& row_sums : sum)
#pragma unroll
            for (float& row_sum : row_sums) row_sum = 0.0f;
        weigh(scores, scale_log2);
#pragma unroll
        for (auto& row_sums : sum)
#pragma unroll
            for (float row_sum : row_sums) serves &= !(row_sum > LARGEST);
        serves = __all_sync(FULL_MASK, serves);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) sum[m][i] = before.sum[m][i] + (serves ? sum[m][i] : 0.0f);
        return serves;
    }

    // Replaces scores by their exponentials, and adds them up.
    template <int N>
    __device__ __forceinline__ void weigh(Sums<M, N>& scores, float scale_log2) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float shift = -max[m][i] * scale_log2;
#pragma unroll
                for (auto& s : scores.v[m])
#pragma unroll
                    for (int j = 2 * i; j < 2 * i + 2; j++) {
                        s[j] = exp2_approx(fmaf(s[j], scale_log2, shift));
                        sum[m][i] += s[j];
                    }
            }
    }

    // The largest of a thread's row and `at_least`.
    template <int N>
    static __device__ __forceinline__ float largest_of_row(const Sums<M, N>& scores, int m, int i, float at_least) {
        float largest = at_least;
#pragma unroll
        for (auto& s : scores.v[m]) largest = fmaxf(largest, fmaxf(s[2 * i], s[2 * i + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, 1));
        return fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, 2));
    }

    template <int HS>
    __device__ __forceinline__ void rescale(const float (&new_max)[M][2], Sums<M, HS>& out, float scale_log2) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float shrink = exp2_approx((max[m][i] - new_max[m][i]) * scale_log2);
                max[m][i] = new_max[m][i];
                sum[m][i] *= shrink;
#pragma unroll
                for (auto& o : out.v[m]) o[2 * i] *= shrink, o[2 * i + 1] *= shrink;
            }
    }

    // out = weighted mean of values; stores the lse of row r in lse[r] if r < valid.
    template <int HS>
    __device__ __forceinline__ void finish(Sums<M, HS>& out, float* lse, int valid, float scale) {
        int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float total = sum[m][i];
                total += __shfl_xor_sync(FULL_MASK, total, 1);
                total += __shfl_xor_sync(FULL_MASK, total, 2);
                float inverse = reciprocal_approx(total);
#pragma unroll
                for (auto& o : out.v[m]) o[2 * i] *= inverse, o[2 * i + 1] *= inverse;
                int row = 16 * m + 8 * i + lane / 4;
                if (lane % 4 == 0 && row < valid) lse[row] = max[m][i] * scale + logf(total);
            }
    }
};

}  // namespace attention
