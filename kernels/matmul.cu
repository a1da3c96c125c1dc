// Matmuls on tensor cores (mma.sync): bf16 and f16, and f32 rounded to TF32. See matmul.cuh for the
// design.
#include "common.cuh"
#include "matmul_tiles.cuh"

using Tile128x256 = matmul::Tile<floatX, matmul::TensorCoreSums, 128, 256, 2, 4>;
using Tile128x128 = matmul::Tile<floatX, matmul::TensorCoreSums, 128, 128, 2, 2>;
using Tile64x64 = matmul::Tile<floatX, matmul::TensorCoreSums, 64, 64, 2, 2>;

MATMUL_KERNELS(matmul, 128x256, Tile128x256)
MATMUL_KERNELS(matmul, 128x128, Tile128x128)
MATMUL_KERNELS(matmul, 64x64, Tile64x64)

// The sums of all splits, through the epilogues of the three. At four blocks per SM the forward
// pass may take 64 registers; left alone, nvcc spills on some GPUs to make do with 32.
extern "C" __global__ void __launch_bounds__(256, 4) matmul_forward_reduce(
    floatX* out, floatX* pre_gelu, floatX* gelu_gradient, float* partials, const floatX* bias, const floatX* residual,
    int N, int OC, int splits) {
    start_in_order();
    const matmul::ForwardSink<floatX> sink(out, pre_gelu, gelu_gradient, bias, residual);
    matmul::reduce(matmul::Partials{partials, N, OC}, splits, sink);
}
extern "C" __global__ void __launch_bounds__(256) matmul_dgrad_reduce(
    floatX* dinp, float* partials, const floatX* gelu_gradient, int N, int C, int splits) {
    start_in_order();
    const matmul::DgradSink<floatX> sink(dinp, gelu_gradient);
    matmul::reduce(matmul::Partials{partials, N, C}, splits, sink);
}
extern "C" __global__ void __launch_bounds__(256) matmul_wgrad_reduce(
    floatX* dweight, floatX* dbias, float* partials, int C, int OC, int accumulate, int splits) {
    start_in_order();
    const matmul::WgradSink<floatX> sink(dweight, dbias, accumulate);
    matmul::reduce(matmul::Partials{partials, OC, C}, splits, sink);
}
