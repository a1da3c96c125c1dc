// GELU alone, for passes in which no matmul applies it in its epilogue.
//
// One thread, one pack. Bytes per 16-bit element: forward 4 (read, write), backward 6 (two reads,
// write). Nothing is used twice, and the 2,048 threads of an SM have 32 KB (backward 64 KB) of
// reads in flight: 93 % of bandwidth expected.
#include "gelu.cuh"

// out (n) = gelu(inp)
extern "C" __global__ void __launch_bounds__(256) gelu_forward(floatX* out, const floatX* inp, unsigned long long n) {
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    float x[PackX::size];
    widen(x, load128_streaming(inp + i));
#pragma unroll
    for (int k = 0; k < PackX::size; k++) x[k] = gelu(x[k]);
    store128(out + i, round_pack<floatX>(x));
}

// dinp (n) *= gelu'(pre_gelu)
extern "C" __global__ void __launch_bounds__(256)
    gelu_backward_inplace(floatX* dinp, const floatX* pre_gelu, unsigned long long n) {
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    PackX gradient_pack = load128(dinp + i), pre_pack = load128_streaming(pre_gelu + i);
    float gradient[PackX::size], pre[PackX::size];
    widen(gradient, gradient_pack);
    widen(pre, pre_pack);
#pragma unroll
    for (int k = 0; k < PackX::size; k++) gradient[k] *= gelu_grad(pre[k]);
    store128(dinp + i, round_pack<floatX>(gradient));
}
