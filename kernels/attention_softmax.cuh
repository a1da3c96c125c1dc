// The softmax of attention's forward pass, updated tile by tile (Milakov & Gimelshein 2018).
#pragma once
#include "attention.cuh"

namespace attention {

// 2^(score * scale + shift), for an integer `shift`, without the special function unit: 2^n of the
// nearest integer n is an addition to the exponent, and 2^f of the rest, from -1/2 to 1/2, a
// polynomial with a relative error below 7.5e-5. For results from 2^-125 on; smaller ones become
// about that. Scores must be below 2^22 / scale.
struct PolynomialExp2 {
    // Added to a number, it leaves the nearest integer in the last bits.
    static constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23
    float scale, shift, lowest;

    __device__ __forceinline__ PolynomialExp2(float scale, float shift, float inverse_scale)
        : scale(scale), shift(shift + ROUNDER), lowest((-125.0f - shift) * inverse_scale) {}

    __device__ __forceinline__ float operator()(float score) const {
        score = fmaxf(score, lowest);
        const float rounded = fmaf(score, scale, shift), f = fmaf(score, scale, shift - rounded);
        const float power = fmaf(fmaf(fmaf(C3, f, C2), f, C1), f, C0);
        return __uint_as_float(__float_as_uint(power) + (__float_as_uint(rounded) << 23));
    }

   private:
    // They minimize the largest relative error.
    static constexpr float C0 = 0.99992806f, C1 = 0.69326097f, C2 = 0.24261113f, C3 = 0.05517167f;
};

// The running maximum and sum of exponentials of a warp's rows. A thread has rows lane / 4 and lane
// / 4 + 8 of every 16, and sums over its own columns only.
//
// The maximum is a whole power of two not far from the largest exponential: any number serves that
// keeps exponentials and their sums in range. So rescaling is exact, and rare: sums are not
// rescaled at every new maximum, but only when one row of the warp has grown by more than a factor
// of 2^8 (as in FlashAttention-4): weights of up to 256 are harmless.
template <int M>
struct Softmax {
    float max[M][2], sum[M][2];  // max: log2

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) max[m][i] = -INFINITY, sum[m][i] = 0.0f;
    }

    // scores = exp(scale * scores - maximum). The first tile must have a key that the query sees, so
    // that its maximum is finite.
    template <int N, int HS>
    __device__ __forceinline__ void update(Sums<M, N>& scores, Sums<M, HS>& out, float scale_log2) {
        float shrink[M][2];
        if (raise(scores, shrink, scale_log2)) rescale(out, shrink);
        weigh(scores, scale_log2);
    }

    // Raises the maximum if scores have grown too much. Then `shrink` is what earlier results must
    // be multiplied by. The same for all lanes of a warp.
    template <int N>
    __device__ __forceinline__ bool raise(const Sums<M, N>& scores, float (&shrink)[M][2], float scale_log2) {
        float largest[M][2];
        bool grown = false;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                largest[m][i] = scale_log2 * largest_of_row(scores, m, i);
                grown |= largest[m][i] - max[m][i] > 8.0f;
            }
        grown = __any_sync(FULL_MASK, grown);
        if (grown) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float raised = fmaxf(max[m][i], ceilf(largest[m][i]));
                    shrink[m][i] = exp2_approx(max[m][i] - raised);
                    max[m][i] = raised;
                    sum[m][i] *= shrink[m][i];
                }
        }
        return grown;
    }

    template <int N>
    static __device__ __forceinline__ float largest_of_row(const Sums<M, N>& scores, int m, int i) {
        float largest = -INFINITY;
#pragma unroll
        for (auto& s : scores.v[m]) largest = fmaxf(largest, fmaxf(s[2 * i], s[2 * i + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, 1));
        return fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, 2));
    }

    // Replaces scores by their exponentials. One of every POLYNOMIALS groups of 8 columns, if that
    // is not 0, is computed without the special function unit.
    template <int POLYNOMIALS = 0, int N>
    __device__ __forceinline__ void weigh(Sums<M, N>& scores, float scale_log2, float inverse_scale = 0.0f) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const PolynomialExp2 polynomial(scale_log2, -max[m][i], inverse_scale);
#pragma unroll
                for (int n = 0; n < N / 8; n++)
#pragma unroll
                    for (int j = 2 * i; j < 2 * i + 2; j++) {
                        float& s = scores.v[m][n][j];
                        if (POLYNOMIALS > 0 && n % POLYNOMIALS == 0) s = polynomial(s);
                        else s = exp2_approx(fmaf(s, scale_log2, -max[m][i]));
                        sum[m][i] += s;
                    }
            }
    }

    template <int HS>
    static __device__ __forceinline__ void rescale(Sums<M, HS>& out, const float (&shrink)[M][2]) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (auto& o : out.v[m]) o[2 * i] *= shrink[m][i], o[2 * i + 1] *= shrink[m][i];
            }
    }

    // out = weighted mean of values; stores the lse of row r in lse[r] if r < valid.
    template <int HS>
    __device__ __forceinline__ void finish(Sums<M, HS>& out, float* lse, int valid) {
        int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float total = sum[m][i];
                total += __shfl_xor_sync(FULL_MASK, total, 1);
                total += __shfl_xor_sync(FULL_MASK, total, 2);
                float inverse = 1.0f / total;
#pragma unroll
                for (auto& o : out.v[m]) o[2 * i] *= inverse, o[2 * i + 1] *= inverse;
                int row = 16 * m + 8 * i + lane / 4;
                if (lane % 4 == 0 && row < valid) lse[row] = max[m][i] * LN_2 + logf(total);
            }
    }
};

}  // namespace attention
