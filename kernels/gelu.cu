// GELU alone, for passes in which no matmul applies it in its epilogue.
//
// One thread, one pack. Bytes per 16-bit element: forward 4 (read, write), recompute 6 (read, two
// writes), backward 6 (two reads, write). Nothing is used twice, and the 2,048 threads of an SM
// have 32 KB (backward 64 KB) of reads in flight: 93 % of bandwidth expected.
#include "gelu.cuh"

// out (n) = gelu(inp)
extern "C" __global__ void __launch_bounds__(256) gelu_forward(floatX* out, const floatX* inp, unsigned long long n) {
    start_in_order();
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    float x[PackX::size];
    widen(x, load128_streaming(inp + i));
#pragma unroll
    for (int k = 0; k < PackX::size; k++) x[k] = gelu(x[k]);
    store128(out + i, round_pack<floatX>(x));
}

// out (n) = gelu(kept); kept (n) = gelu'(kept)
extern "C" __global__ void __launch_bounds__(256) gelu_recompute(floatX* out, floatX* kept, unsigned long long n) {
    start_in_order();
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    float x[PackX::size], gradient[PackX::size];
    widen(x, load128(kept + i));
#pragma unroll
    for (int k = 0; k < PackX::size; k++) {
        GeluAndGradient gelu = gelu_and_gradient(x[k]);
        x[k] = gelu.value;
        gradient[k] = gelu.gradient;
    }
    store128(out + i, round_pack<floatX>(x));
    store128(kept + i, round_pack<floatX>(gradient));
}

// dinp (n) *= gelu_gradient
extern "C" __global__ void __launch_bounds__(256)
    gelu_backward_inplace(floatX* dinp, const floatX* gelu_gradient, unsigned long long n) {
    start_in_order();
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    PackX dinp_pack = load128(dinp + i), gradient_pack = load128_streaming(gelu_gradient + i);
    float product[PackX::size], gradient[PackX::size];
    widen(product, dinp_pack);
    widen(gradient, gradient_pack);
#pragma unroll
    for (int k = 0; k < PackX::size; k++) product[k] *= gradient[k];
    store128(dinp + i, round_pack<floatX>(product));
}
