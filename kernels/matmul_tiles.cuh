// The three kernels of a tile, as matmul.cu and matmul_f32.cu define them for each of theirs.
#pragma once
#include "matmul_epilogue.cuh"

// NAME_forward_SIZE: out (N, OC) = inp (N, C) @ weight (OC, C)^T
// NAME_dgrad_SIZE:   dinp (N, C) = dout (N, OC) @ weight (OC, C)
// NAME_wgrad_SIZE:   dweight (OC, C) = or += dout (N, OC)^T @ inp (N, C),
//                    dbias (OC) += column sums of dout
#define MATMUL_KERNELS(NAME, SIZE, TILE)                                                                      \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, TILE::MIN_BLOCKS) NAME##_forward_##SIZE(      \
        floatX* out, floatX* pre_gelu, floatX* gelu_gradient, float* partials, const floatX* inp,             \
        const floatX* weight, const floatX* bias, const floatX* residual, int N, int C, int OC) {             \
        start_in_order();                                                                                     \
        DYNAMIC_SHARED(shared);                                                                               \
        const matmul::ForwardSink<floatX> sink(out, pre_gelu, gelu_gradient, bias, residual);                 \
        matmul::forward<TILE>(shared, partials, inp, weight, N, C, OC, sink);                                 \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, TILE::MIN_BLOCKS) NAME##_dgrad_##SIZE(        \
        floatX* dinp, float* partials, const floatX* dout, const floatX* weight, const floatX* gelu_gradient, \
        int N, int C, int OC) {                                                                               \
        start_in_order();                                                                                     \
        DYNAMIC_SHARED(shared);                                                                               \
        const matmul::DgradSink<floatX> sink(dinp, gelu_gradient);                                            \
        matmul::dgrad<TILE>(shared, partials, dout, weight, N, C, OC, sink);                                  \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS, TILE::MIN_BLOCKS) NAME##_wgrad_##SIZE(        \
        floatX* dweight, floatX* dbias, float* partials, const floatX* dout, const floatX* inp, int N, int C, \
        int OC, int accumulate) {                                                                             \
        start_in_order();                                                                                     \
        DYNAMIC_SHARED(shared);                                                                               \
        const matmul::WgradSink<floatX> sink(dweight, dbias, accumulate);                                     \
        matmul::wgrad<TILE>(shared, partials, dout, inp, N, C, OC, sink);                                     \
    }
