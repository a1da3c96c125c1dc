// GELU in its tanh form (Hendrycks & Gimpel 2016), as in GPT-2, and its derivative: for gelu.cu and
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

// x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)
__device__ __forceinline__ float gelu(float x) {
    float u = x * (GELU_SCALE + GELU_SCALE * GELU_CUBIC * (x * x));
    float half_x = 0.5f * x;
    return half_x + half_x * gelu_tanh(u);
}

// (1 + tanh(u)) / 2 + x (1 - tanh(u)^2) / 2 du/dx, where x / 2 du/dx is a polynomial like u. From
// |x| = 10 on the result is 0 or 1 for any x^2, which is therefore clamped: an infinite one would
// be multiplied by zero.
__device__ __forceinline__ float gelu_grad(float x) {
    float x2 = fminf(x * x, 100.0f);
    float t = gelu_tanh(x * (GELU_SCALE + GELU_SCALE * GELU_CUBIC * x2));
    float slope = x * (0.5f * GELU_SCALE + 1.5f * GELU_SCALE * GELU_CUBIC * x2);
    return 0.5f + 0.5f * t + slope * (1.0f - t * t);
}
