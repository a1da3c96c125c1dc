// Matmuls of 16-bit numbers by wgmma and TMA, on Hopper (sm_90a). See matmul_hopper.cuh for the
// design. For other architectures and for f32 the kernels are empty and never launched.
#include "common.cuh"
#include "matmul_hopper.cuh"

using matmul::Contiguous;

// out (N, OC) = inp (N, C) @ weight (OC, C)^T
template <int BN>
__device__ __forceinline__ void forward(unsigned char* shared, floatX* out, floatX* pre_gelu, float* partials,
                                        const TensorMap* inp, const TensorMap* weight, const floatX* bias,
                                        const floatX* residual, int N, int C, int OC, int splits, unsigned* counter) {
    matmul_hopper::multiply<BN, Contiguous::InK, Contiguous::InK>(
        shared, inp, weight, matmul_hopper::Problem{N, OC, C, splits, counter}, matmul::Partials{partials, N, OC},
        matmul::ForwardSink<floatX>(out, pre_gelu, bias, residual));
}
extern "C" __global__ void __launch_bounds__(384, 1)
    matmul_hopper_forward_128x256(floatX* out, floatX* pre_gelu, float* partials, GRID_CONSTANT TensorMap inp,
                                  GRID_CONSTANT TensorMap weight, const floatX* bias, const floatX* residual, int N, int C,
                                  int OC, int splits, unsigned* counter) {
    DYNAMIC_SHARED(shared);
    forward<256>(shared, out, pre_gelu, partials, &inp, &weight, bias, residual, N, C, OC, splits, counter);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    matmul_hopper_forward_128x128(floatX* out, floatX* pre_gelu, float* partials, GRID_CONSTANT TensorMap inp,
                                  GRID_CONSTANT TensorMap weight, const floatX* bias, const floatX* residual, int N, int C,
                                  int OC, int splits, unsigned* counter) {
    DYNAMIC_SHARED(shared);
    forward<128>(shared, out, pre_gelu, partials, &inp, &weight, bias, residual, N, C, OC, splits, counter);
}

// dinp (N, C) = dout (N, OC) @ weight (OC, C)
template <int BN>
__device__ __forceinline__ void dgrad(unsigned char* shared, floatX* dinp, float* partials, const TensorMap* dout,
                                      const TensorMap* weight, const floatX* through_gelu, int N, int C, int OC, int splits, unsigned* counter) {
    matmul_hopper::multiply<BN, Contiguous::InK, Contiguous::InMN>(
        shared, dout, weight, matmul_hopper::Problem{N, C, OC, splits, counter}, matmul::Partials{partials, N, C},
        matmul::DgradSink<floatX>(dinp, through_gelu));
}
extern "C" __global__ void __launch_bounds__(384, 1)
    matmul_hopper_dgrad_128x256(floatX* dinp, float* partials, GRID_CONSTANT TensorMap dout, GRID_CONSTANT TensorMap weight,
                                const floatX* through_gelu, int N, int C, int OC, int splits, unsigned* counter) {
    DYNAMIC_SHARED(shared);
    dgrad<256>(shared, dinp, partials, &dout, &weight, through_gelu, N, C, OC, splits, counter);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    matmul_hopper_dgrad_128x128(floatX* dinp, float* partials, GRID_CONSTANT TensorMap dout, GRID_CONSTANT TensorMap weight,
                                const floatX* through_gelu, int N, int C, int OC, int splits, unsigned* counter) {
    DYNAMIC_SHARED(shared);
    dgrad<128>(shared, dinp, partials, &dout, &weight, through_gelu, N, C, OC, splits, counter);
}

// dweight (OC, C) = or += dout (N, OC)^T @ inp (N, C); dbias (OC) += column sums of dout
template <int BN>
__device__ __forceinline__ void wgrad(unsigned char* shared, floatX* dweight, floatX* dbias, float* partials,
                                      const TensorMap* dout, const TensorMap* inp, int N, int C, int OC, int accumulate,
                                      int splits, unsigned* counter) {
    matmul_hopper::multiply<BN, Contiguous::InMN, Contiguous::InMN>(
        shared, dout, inp, matmul_hopper::Problem{OC, C, N, splits, counter}, matmul::Partials{partials, OC, C},
        matmul::WgradSink<floatX>(dweight, dbias, accumulate));
}
extern "C" __global__ void __launch_bounds__(384, 1)
    matmul_hopper_wgrad_128x256(floatX* dweight, floatX* dbias, float* partials, GRID_CONSTANT TensorMap dout,
                                GRID_CONSTANT TensorMap inp, int N, int C, int OC, int accumulate, int splits, unsigned* counter) {
    DYNAMIC_SHARED(shared);
    wgrad<256>(shared, dweight, dbias, partials, &dout, &inp, N, C, OC, accumulate, splits, counter);
}
extern "C" __global__ void __launch_bounds__(384, 1)
    matmul_hopper_wgrad_128x128(floatX* dweight, floatX* dbias, float* partials, GRID_CONSTANT TensorMap dout,
                                GRID_CONSTANT TensorMap inp, int N, int C, int OC, int accumulate, int splits, unsigned* counter) {
    DYNAMIC_SHARED(shared);
    wgrad<128>(shared, dweight, dbias, partials, &dout, &inp, N, C, OC, accumulate, splits, counter);
}
