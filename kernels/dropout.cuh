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

// A dropout with the state that it has in this launch.
struct DropoutMask {
    unsigned key0, key1, first_row, stream, threshold;
    float scale;

    __device__ __forceinline__ explicit DropoutMask(const Dropout& dropout)
        : key0(dropout.state->key[0]), key1(dropout.state->key[1]), first_row(dropout.state->first_row),
          stream(dropout.stream), threshold(dropout.threshold), scale(dropout.scale) {}

    __device__ __forceinline__ float factor(unsigned random) const { return random < threshold ? 0.0f : scale; }

    // Multiplies the pack at `column` of batch row `row` by its factors (Mask::of_columns).
    __device__ __forceinline__ void drop(float (&x)[PackX::size], unsigned row, unsigned column) const {
#pragma unroll
        for (int k = 0; k < PackX::size; k += 4) {
            const uint4 random = philox(make_uint4((column + k) / 4, first_row + row, stream, 0), key0, key1);
            x[k] *= factor(random.x);
            x[k + 1] *= factor(random.y);
            x[k + 2] *= factor(random.z);
            x[k + 3] *= factor(random.w);
        }
    }
};

// In its place where nothing is dropped.
struct NoMask {
    __device__ __forceinline__ void drop(float (&)[PackX::size], unsigned, unsigned) const {}
};
