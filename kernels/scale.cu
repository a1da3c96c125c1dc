// Multiplies a tensor by a number.
//
// One thread, one pack. Bytes per 16-bit element: 4 (read, write). The tensors are the narrow ones
// between the adapters of LoRA, which mostly stay in the L2 cache.
#include "common.cuh"

// dst (n) *= factor, rounded to nearest.
extern "C" __global__ void __launch_bounds__(256) scale_x(floatX* dst, float factor, unsigned long long n) {
    start_in_order();
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    PackX product = load128(dst + i);
#pragma unroll
    for (int k = 0; k < PackX::size; k++) product.v[k] = from_f32<floatX>(to_f32(product.v[k]) * factor);
    store128(dst + i, product);
}
