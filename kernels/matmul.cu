// Matmuls on tensor cores (mma.sync): bf16 and f16, and f32 rounded to TF32. See matmul.cuh for the
// design.
#include "common.cuh"
#include "matmul_epilogue.cuh"

using Tile128x256 = matmul::Tile<floatX, matmul::TensorCoreSums, 128, 256, 2, 4>;
using Tile128x128 = matmul::Tile<floatX, matmul::TensorCoreSums, 128, 128, 2, 2>;
using Tile64x64 = matmul::Tile<floatX, matmul::TensorCoreSums, 64, 64, 2, 2>;

// out (N, OC) = inp (N, C) @ weight (OC, C)^T
extern "C" __global__ void __launch_bounds__(256) matmul_forward_128x256(
    floatX* out, floatX* pre_gelu, float* partials, const floatX* inp, const floatX* weight, const floatX* bias,
    const floatX* residual, int N, int C, int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::ForwardSink<floatX> sink(out, pre_gelu, bias, residual);
    matmul::forward<Tile128x256>(shared, partials, inp, weight, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(128) matmul_forward_128x128(
    floatX* out, floatX* pre_gelu, float* partials, const floatX* inp, const floatX* weight, const floatX* bias,
    const floatX* residual, int N, int C, int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::ForwardSink<floatX> sink(out, pre_gelu, bias, residual);
    matmul::forward<Tile128x128>(shared, partials, inp, weight, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(128) matmul_forward_64x64(
    floatX* out, floatX* pre_gelu, float* partials, const floatX* inp, const floatX* weight, const floatX* bias,
    const floatX* residual, int N, int C, int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::ForwardSink<floatX> sink(out, pre_gelu, bias, residual);
    matmul::forward<Tile64x64>(shared, partials, inp, weight, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(256) matmul_forward_reduce(
    floatX* out, floatX* pre_gelu, float* partials, const floatX* bias, const floatX* residual, int N, int OC,
    int splits) {
    const matmul::ForwardSink<floatX> sink(out, pre_gelu, bias, residual);
    matmul::reduce(matmul::Partials{partials, N, OC}, splits, sink);
}

// dinp (N, C) = dout (N, OC) @ weight (OC, C)
extern "C" __global__ void __launch_bounds__(256) matmul_dgrad_128x256(
    floatX* dinp, float* partials, const floatX* dout, const floatX* weight, const floatX* through_gelu, int N, int C,
    int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::DgradSink<floatX> sink(dinp, through_gelu);
    matmul::dgrad<Tile128x256>(shared, partials, dout, weight, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(128) matmul_dgrad_128x128(
    floatX* dinp, float* partials, const floatX* dout, const floatX* weight, const floatX* through_gelu, int N, int C,
    int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::DgradSink<floatX> sink(dinp, through_gelu);
    matmul::dgrad<Tile128x128>(shared, partials, dout, weight, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(128) matmul_dgrad_64x64(
    floatX* dinp, float* partials, const floatX* dout, const floatX* weight, const floatX* through_gelu, int N, int C,
    int OC) {
    DYNAMIC_SHARED(shared);
    const matmul::DgradSink<floatX> sink(dinp, through_gelu);
    matmul::dgrad<Tile64x64>(shared, partials, dout, weight, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(256) matmul_dgrad_reduce(
    floatX* dinp, float* partials, const floatX* through_gelu, int N, int C, int splits) {
    const matmul::DgradSink<floatX> sink(dinp, through_gelu);
    matmul::reduce(matmul::Partials{partials, N, C}, splits, sink);
}

// dweight (OC, C) = or += dout (N, OC)^T @ inp (N, C); dbias (OC) += column sums of dout
extern "C" __global__ void __launch_bounds__(256) matmul_wgrad_128x256(
    floatX* dweight, floatX* dbias, float* partials, const floatX* dout, const floatX* inp, int N, int C, int OC,
    int accumulate) {
    DYNAMIC_SHARED(shared);
    const matmul::WgradSink<floatX> sink(dweight, dbias, accumulate);
    matmul::wgrad<Tile128x256>(shared, partials, dout, inp, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(128) matmul_wgrad_128x128(
    floatX* dweight, floatX* dbias, float* partials, const floatX* dout, const floatX* inp, int N, int C, int OC,
    int accumulate) {
    DYNAMIC_SHARED(shared);
    const matmul::WgradSink<floatX> sink(dweight, dbias, accumulate);
    matmul::wgrad<Tile128x128>(shared, partials, dout, inp, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(128) matmul_wgrad_64x64(
    floatX* dweight, floatX* dbias, float* partials, const floatX* dout, const floatX* inp, int N, int C, int OC,
    int accumulate) {
    DYNAMIC_SHARED(shared);
    const matmul::WgradSink<floatX> sink(dweight, dbias, accumulate);
    matmul::wgrad<Tile64x64>(shared, partials, dout, inp, N, C, OC, sink);
}
extern "C" __global__ void __launch_bounds__(256) matmul_wgrad_reduce(
    floatX* dweight, floatX* dbias, float* partials, int C, int OC, int accumulate, int splits) {
    const matmul::WgradSink<floatX> sink(dweight, dbias, accumulate);
    matmul::reduce(matmul::Partials{partials, OC, C}, splits, sink);
}
