// Four elements at a time: how the kernels of the optimizer walk over parameters and their state.
//
// A thread takes four parameters, and four more 128 elements later if they have 16 bits: so a warp
// reads 512 contiguous bytes of f32, and every sector of memory once. Eight in a row would touch
// each sector twice.
#pragma once
#include "common.cuh"

constexpr int QUADS = PackX::size / 4;
// Distance from a thread's first four parameters to the next: those of the warp.
constexpr int QUAD_STRIDE = 4 * WARP_SIZE;
// Parameters of a block of 256 threads.
constexpr unsigned QUAD_BLOCK = 256 * 4 * QUADS;

// Seeds of the rounding of the state, apart from that of the parameters.
constexpr unsigned SEED_OF_M = 0x6d000000u, SEED_OF_V = 0x76000000u;

// The first of a thread's elements in its block.
__device__ __forceinline__ unsigned first_quad() {
    return threadIdx.x / WARP_SIZE * (QUADS * QUAD_STRIDE) + threadIdx.x % WARP_SIZE * 4;
}

// Four elements as they are in memory, f32 or 16-bit. They are widened after all loads are issued:
// an instruction on the first would stall the loads of the next.
__device__ __forceinline__ Pack<float> load_quad(const float* address) { return load128_streaming(address); }
template <class T>
__device__ __forceinline__ uint2 load_quad(const T* address) {
    return __ldcs(reinterpret_cast<const uint2*>(address));
}
template <class T>
using Quad = decltype(load_quad((const T*)nullptr));
template <class T>
__device__ __forceinline__ void widen_quad(float (&values)[4], const Pack<float>& quad) {
    widen(values, quad);
}
template <class T>
__device__ __forceinline__ void widen_quad(float (&values)[4], uint2 quad) {
    widen2<T>(values[0], values[1], quad.x);
    widen2<T>(values[2], values[3], quad.y);
}

// Stores four numbers rounded to nearest.
__device__ __forceinline__ void store_quad(float* address, const float (&values)[4]) {
    store128_streaming(address, round_pack<float>(values));
}
template <class T>
__device__ __forceinline__ void store_quad(T* address, const float (&values)[4]) {
    *reinterpret_cast<uint2*>(address) = make_uint2(pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3]));
}

// Stores four numbers rounded at random; `index` is that of the first of them among all parameters.
__device__ __forceinline__ void store_at_random(float* address, const float (&values)[4], unsigned, unsigned long long) {
    store128(address, round_pack<float>(values));
}
template <class T>
__device__ __forceinline__ void store_at_random(T* address, const float (&values)[4], unsigned seed, unsigned long long index) {
    // 16 random bits are enough for a number, so two share 32.
    const RandomBits random(seed, index / 2);
    *reinterpret_cast<uint2*>(address) = make_uint2(pack2_at_random<T>(values[0], values[1], random(index / 2)),
                                                    pack2_at_random<T>(values[2], values[3], random(index / 2 + 1)));
}
// Stores four numbers of the state, which is f32 or, rounded at random, bf16.
__device__ __forceinline__ void store_state(float* address, const float (&values)[4], unsigned, unsigned long long) {
    store_quad(address, values);
}
__device__ __forceinline__ void store_state(bf16* address, const float (&values)[4], unsigned seed, unsigned long long index) {
    store_at_random(address, values, seed, index);
}
