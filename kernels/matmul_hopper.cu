// Matmuls of 16-bit numbers by wgmma and TMA, on Hopper (sm_90a). See matmul_hopper.cuh for the
// design. For other architectures and for f32 the kernels are empty and never launched.
#include "common.cuh"
#include "matmul_hopper.cuh"

using matmul::Contiguous, matmul_hopper::multiply, matmul_hopper::Problem;

// forward: out (N, OC) = inp (N, C) @ weight (OC, C)^T
// dgrad:   dinp (N, C) = dout (N, OC) @ weight (OC, C)
// wgrad:   dweight (OC, C) = or += dout (N, OC)^T @ inp (N, C); dbias (OC) += column sums of dout
#define MATMUL_HOPPER_KERNELS(BN)                                                                                    \
    extern "C" __global__ void __launch_bounds__(384, 1) matmul_hopper_forward_128x##BN(                             \
        floatX* out, floatX* pre_gelu, floatX* gelu_gradient, float* partials, GRID_CONSTANT TensorMap inp,          \
        GRID_CONSTANT TensorMap weight, const floatX* bias, const floatX* residual, int N, int C, int OC,            \
        int splits, unsigned* counter) {                                                                             \
        DYNAMIC_SHARED(shared);                                                                                      \
        multiply<BN, Contiguous::InK, Contiguous::InK>(                                                              \
            shared, &inp, &weight, Problem{N, OC, C, splits, counter}, matmul::Partials{partials, N, OC},            \
            matmul::ForwardSink<floatX>(out, pre_gelu, gelu_gradient, bias, residual));                              \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(384, 1) matmul_hopper_dgrad_128x##BN(                               \
        floatX* dinp, float* partials, GRID_CONSTANT TensorMap dout, GRID_CONSTANT TensorMap weight,                 \
        const floatX* gelu_gradient, int N, int C, int OC, int splits, unsigned* counter) {                          \
        DYNAMIC_SHARED(shared);                                                                                      \
        multiply<BN, Contiguous::InK, Contiguous::InMN>(                                                             \
            shared, &dout, &weight, Problem{N, C, OC, splits, counter}, matmul::Partials{partials, N, C},            \
            matmul::DgradSink<floatX>(dinp, gelu_gradient));                                                         \
    }                                                                                                                \
    extern "C" __global__ void __launch_bounds__(384, 1) matmul_hopper_wgrad_128x##BN(                               \
        floatX* dweight, floatX* dbias, float* partials, GRID_CONSTANT TensorMap dout, GRID_CONSTANT TensorMap inp,  \
        int N, int C, int OC, int accumulate, int splits, unsigned* counter) {                                       \
        DYNAMIC_SHARED(shared);                                                                                      \
        multiply<BN, Contiguous::InMN, Contiguous::InMN>(                                                            \
            shared, &dout, &inp, Problem{OC, C, N, splits, counter}, matmul::Partials{partials, OC, C},              \
            matmul::WgradSink<floatX>(dweight, dbias, accumulate));                                                  \
    }

MATMUL_HOPPER_KERNELS(256)
MATMUL_HOPPER_KERNELS(128)
