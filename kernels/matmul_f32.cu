// f32 matmuls without operand rounding: fused multiply-adds on the ordinary units, in the order of
// K. See matmul.cuh.
//
// A lane has 8 x 8 sums and reads 8 + 8 numbers per 64 multiply-adds, 128 bits at a time: half of
// what shared memory delivers in that time. A tensor core would be eight times as fast, but only on
// operands truncated to 19 bits.
//
// These kernels are empty for a 16-bit floatX, whose products are exact on tensor cores.
#include "common.cuh"
#include "matmul_epilogue.cuh"

using ExactTile128x128 = matmul::Tile<floatX, matmul::ExactSums, 128, 128, 2, 4, sizeof(floatX) != 4>;
using ExactTile64x64 = matmul::Tile<floatX, matmul::ExactSums, 64, 64, 1, 2, sizeof(floatX) != 4>;

// out (N, OC) = inp (N, C) @ weight (OC, C)^T
extern "C" __global__ void __launch_bounds__(256) matmul_f32_forward_128x128(
    floatX* out, floatX* pre_gelu, float* partials, const floatX* inp, const floatX* weight, const floatX* bias,
    const floatX* residual, int N, int C, int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::ForwardSink<floatX> sink(out, pre_gelu, bias, residual);
    matmul::forward<ExactTile128x128>(shared, partials, inp, weight, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(64) matmul_f32_forward_64x64(
    floatX* out, floatX* pre_gelu, float* partials, const floatX* inp, const floatX* weight, const floatX* bias,
    const floatX* residual, int N, int C, int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::ForwardSink<floatX> sink(out, pre_gelu, bias, residual);
    matmul::forward<ExactTile64x64>(shared, partials, inp, weight, N, C, OC, sink);
}

// dinp (N, C) = dout (N, OC) @ weight (OC, C)
extern "C" __global__ void __launch_bounds__(256) matmul_f32_dgrad_128x128(
    floatX* dinp, float* partials, const floatX* dout, const floatX* weight, const floatX* through_gelu, int N, int C,
    int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::DgradSink<floatX> sink(dinp, through_gelu);
    matmul::dgrad<ExactTile128x128>(shared, partials, dout, weight, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(64) matmul_f32_dgrad_64x64(
    floatX* dinp, float* partials, const floatX* dout, const floatX* weight, const floatX* through_gelu, int N, int C,
    int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::DgradSink<floatX> sink(dinp, through_gelu);
    matmul::dgrad<ExactTile64x64>(shared, partials, dout, weight, N, C, OC, sink);
}

// dweight (OC, C) = or += dout (N, OC)^T @ inp (N, C); dbias (OC) += column sums of dout
extern "C" __global__ void __launch_bounds__(256) matmul_f32_wgrad_128x128(
    floatX* dweight, floatX* dbias, float* partials, const floatX* dout, const floatX* inp, int N, int C, int OC,
    int accumulate) {
    DYNAMIC_SHARED(shared);
    const matmul::WgradSink<floatX> sink(dweight, dbias, accumulate);
    matmul::wgrad<ExactTile128x128>(shared, partials, dout, inp, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(64) matmul_f32_wgrad_64x64(
    floatX* dweight, floatX* dbias, float* partials, const floatX* dout, const floatX* inp, int N, int C, int OC,
    int accumulate) {
    DYNAMIC_SHARED(shared);
    const matmul::WgradSink<floatX> sink(dweight, dbias, accumulate);
    matmul::wgrad<ExactTile64x64>(shared, partials, dout, inp, N, C, OC, sink);
}
