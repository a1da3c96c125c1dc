// GELU alone, for passes in which no matrix product does it on the way.
//
// One thread, one pack. Bytes for an element of 16 bits: forward 4 (read, write), backward 6 (two reads, write); nothing is
// used twice, and 2,048 threads of a multiprocessor have 32 KB (backward 64 KB) of reads under way: 93 % of bandwidth expected.
#include "gelu.cuh"

// out (n) = gelu(inp)
extern "C" __global__ void __launch_bounds__(256) gelu_forward(floatX* out, const floatX* inp, unsigned long long n) {
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    PackX pack = load128_streaming(inp + i);
#pragma unroll
    for (int k = 0; k < PackX::size; k++) pack.v[k] = from_f32<floatX>(gelu(to_f32(pack.v[k])));
    store128(out + i, pack);
}

// dinp (n) *= gelu'(pre_gelu)
extern "C" __global__ void __launch_bounds__(256)
    gelu_backward_inplace(floatX* dinp, const floatX* pre_gelu, unsigned long long n) {
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    PackX gradient = load128(dinp + i);
    PackX pre = load128_streaming(pre_gelu + i);
#pragma unroll
    for (int k = 0; k < PackX::size; k++)
        gradient.v[k] = from_f32<floatX>(to_f32(gradient.v[k]) * gelu_grad(to_f32(pre.v[k])));
    store128(dinp + i, gradient);
}
