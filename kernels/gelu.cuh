// GELU in its tanh form (Hendrycks & Gimpel 2016), as in GPT-2, and its gradient: for gelu.cu and
// for matmul epilogues.
#pragma once
#include "common.cuh"

constexpr float GELU_SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float GELU_CUBIC = 0.044715f;

// One instruction is accurate enough where the result is rounded to 16 bits.
__device__ __forceinline__ float gelu_tanh(float u) {
    if constexpr (sizeof(floatX) == 4) return tanhf(u);
    return tanh_approx(u);
}

// tanh(u) with u = sqrt(2 / pi) (x + 0.044715 x^3)
__device__ __forceinline__ float gelu_tanh_of(float x, float x2) {
    return gelu_tanh(x * fmaf(GELU_SCALE * GELU_CUBIC, x2, GELU_SCALE));
}

// x (1 + tanh(u)) / 2. Products and sums are fused by hand, so that gelu and gelu_and_gradient have
// the same bits.
__device__ __forceinline__ float gelu(float x) { return x * fmaf(0.5f, gelu_tanh_of(x, x * x), 0.5f); }

struct GeluAndGradient {
    float value;     // x s, with s = (1 + tanh(u)) / 2
    float gradient;  // s + x s (1 - s) 2 du/dx
};

// Both with one tanh. From |x| = 10 on s is 0 or 1, and so is the gradient for any x^2, which is
// therefore clamped: an infinite one would be multiplied by zero.
__device__ __forceinline__ GeluAndGradient gelu_and_gradient(float x) {
    float x2 = fminf(x * x, 100.0f);
    float s = fmaf(0.5f, gelu_tanh_of(x, x2), 0.5f);
    float slope = fmaf(6.0f * GELU_SCALE * GELU_CUBIC, x2, 2.0f * GELU_SCALE);
    float value = x * s;
    return {value, fmaf(value, fmaf(-s, slope, slope), s)};
}
