// The gradient of dropout, where no other kernel of the backward pass reads it element by element.
//
// One thread, one pack. Bytes per 16-bit element: 4 (read, write). The masks of 8 elements take 100
// instructions, a third of what the memory leaves time for: 93 % of bandwidth expected.
#include "dropout.cuh"

// dinp (N, C) = dropout'(dout)
extern "C" __global__ void __launch_bounds__(256)
    dropout_backward(floatX* dinp, const floatX* dout, Dropout dropout, int N, int C) {
    start_in_order();
    const unsigned packs = C / PackX::size;
    const unsigned long long i = blockIdx.x * 256ull + threadIdx.x;
    if (i >= (unsigned long long)N * packs) return;
    const unsigned row = (unsigned)i / packs;
    float x[PackX::size];
    widen(x, load128(dout + i * PackX::size));
    DropoutMask(dropout).drop(x, row, ((unsigned)i - row * packs) * PackX::size);
    store128(dinp + i * PackX::size, round_pack<floatX>(x));
}
