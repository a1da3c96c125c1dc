// The masks of dropout, drawn from counters: src/ops/dropout.rs defines them.
#pragma once
#include "common.cuh"

// A DropoutState of src/ops/dropout.rs, in device memory.
struct DropoutState {
    unsigned key[2], first_row, unused;
};

// Dropout in one place of the net; without a state there is none.
struct Dropout {
    const DropoutState* state;
    unsigned stream, threshold;
    float scale;
};

// Philox-4x32 with 7 rounds.
__device__ __forceinline__ uint4 philox(uint4 counter, unsigned key0, unsigned key1) {
#pragma unroll
    for (int round = 0; round < 7; round++) {
        const unsigned high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        const unsigned high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
    return counter;
}
