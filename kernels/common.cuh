// Shared by all kernels: the type of activations, 128-bit accesses, reductions, stochastic
// rounding.
//
// A kernel file is compiled once per floatX (FLOATX_F32, FLOATX_F16, neither: bf16), by nvcc for
// GPUs and by the host's C++ compiler for the emulated device. Therefore kernels include only this
// header (or gelu.cuh, which includes it), declare shared memory with SHARED or DYNAMIC_SHARED (see
// ptx.cuh), and reach instructions without a C++ name through ptx.cuh.
#pragma once
#include "ptx.cuh"

#if defined(FLOATX_F32)
using floatX = float;
#elif defined(FLOATX_F16)
using floatX = f16;
#else
using floatX = bf16;
#endif

constexpr int WARP_SIZE = 32;
constexpr unsigned FULL_MASK = 0xffffffffu;

// The start of a kernel that has nothing to prepare: its blocks may be launched while the kernel
// before it ends, but go on only after that. One that prepares shared memory in the meantime makes
// the two calls itself.
__device__ __forceinline__ void start_in_order() {
    launch_dependents();
    wait_for_dependencies();
}

// 128 bits of elements: the most that a thread can load or store with one instruction.
template <class T>
struct alignas(16) Pack {
    static constexpr int size = 16 / sizeof(T);
    T v[size];
};
using PackX = Pack<floatX>;

// Elements must be aligned to 16 bytes. The bits go through a uint4: read through the array, they
// would become one load per element.
template <class T>
__device__ __forceinline__ Pack<T> unpack_bits(uint4 bits) {
    Pack<T> pack;
    memcpy(&pack, &bits, 16);
    return pack;
}
template <class T>
__device__ __forceinline__ uint4 pack_bits(const Pack<T>& pack) {
    uint4 bits;
    memcpy(&bits, &pack, 16);
    return bits;
}
template <class T>
__device__ __forceinline__ Pack<T> load128(const T* address) {
    return unpack_bits<T>(load_u128(address));
}
// For data that is used once: it is evicted from the caches first.
template <class T>
__device__ __forceinline__ Pack<T> load128_streaming(const T* address) {
    return unpack_bits<T>(load_u128_streaming(address));
}
template <class T>
__device__ __forceinline__ void store128(T* address, const Pack<T>& pack) {
    store_u128(address, pack_bits(pack));
}
template <class T>
__device__ __forceinline__ void store128_streaming(T* address, const Pack<T>& pack) {
    store_u128_streaming(address, pack_bits(pack));
}

// Widens the two 16-bit numbers in a word, the low half first. This takes one instruction each,
// where an element picked from a pack takes two.
template <class T>
__device__ __forceinline__ void widen2(float& lo, float& hi, uint32_t word);
template <>
__device__ __forceinline__ void widen2<bf16>(float& lo, float& hi, uint32_t word) {
    lo = __uint_as_float(word << 16);
    hi = __uint_as_float(word & 0xffff0000u);
}
template <>
__device__ __forceinline__ void widen2<f16>(float& lo, float& hi, uint32_t word) {
    lo = to_f32(f16{(uint16_t)word});
    hi = to_f32(f16{(uint16_t)(word >> 16)});
}

// Widens the elements of a pack to f32.
template <class T>
__device__ __forceinline__ void widen(float (&values)[Pack<T>::size], const Pack<T>& pack) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int i = 0; i < Pack<T>::size; i++) values[i] = pack.v[i];
    } else {
        const uint4 bits = pack_bits(pack);
        widen2<T>(values[0], values[1], bits.x);
        widen2<T>(values[2], values[3], bits.y);
        widen2<T>(values[4], values[5], bits.z);
        widen2<T>(values[6], values[7], bits.w);
    }
}

// Rounds to nearest; 16-bit types in pairs, because converting a single number takes as long as a
// tanh.
template <class T>
__device__ __forceinline__ Pack<T> round_pack(const float (&values)[Pack<T>::size]) {
    if constexpr (sizeof(T) == 4) {
        return {values[0], values[1], values[2], values[3]};
    } else {
        const float(&v)[8] = values;
        return unpack_bits<T>({pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7])});
    }
}

template <class T>
__device__ __forceinline__ T zero() {
    return from_f32<T>(0.0f);
}

constexpr __host__ __device__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Every lane gets the result; all 32 lanes must take part.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = WARP_SIZE / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(FULL_MASK, value, offset);
    return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int offset = WARP_SIZE / 2; offset > 0; offset /= 2)
        value = fmaxf(value, __shfl_xor_sync(FULL_MASK, value, offset));
    return value;
}

// The sums over the warp of K values each, K a power of two: lane l gets the sum of value l % K. A
// lane hands on half of its values with each exchange, which takes K + 4 - log2 K shuffles, 9 for K
// = 8; a butterfly per value would take 5 K, 40 for K = 8.
template <int K>
__device__ __forceinline__ float warp_sums(const float (&values)[K]) {
    static_assert(K >= 1 && K <= WARP_SIZE && (K & (K - 1)) == 0, "a power of two up to 32");
    const int lane = threadIdx.x % WARP_SIZE;
    float left[K];
#pragma unroll
    for (int k = 0; k < K; k++) left[k] = values[k];
#pragma unroll
    for (int half = K / 2; half > 0; half /= 2) {
        const bool upper = lane & half;
#pragma unroll
        for (int k = 0; k < half; k++) {
            const float give = upper ? left[k] : left[k + half], keep = upper ? left[k + half] : left[k];
            left[k] = keep + __shfl_xor_sync(FULL_MASK, give, half);
        }
    }
    float sum = left[0];
#pragma unroll
    for (int offset = K; offset < WARP_SIZE; offset *= 2) sum += __shfl_xor_sync(FULL_MASK, sum, offset);
    return sum;
}

// Sums K values each over the block, K a power of two, in a fixed order. Every thread gets the
// sums, and all threads must take part. `partials` is in shared memory and free again after the
// next barrier.
template <int K>
__device__ __forceinline__ void block_sum(float (&values)[K], float (&partials)[WARP_SIZE][K]) {
    int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    float sum = warp_sums(values);
    if (lane < K) partials[warp][lane] = sum;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) values[k] = 0.0f;
    for (int other = 0; other < warps; other++) {
#pragma unroll
        for (int k = 0; k < K; k++) values[k] += partials[other][k];
    }
}

// One round of MurmurHash3's finalizer.
__device__ __forceinline__ unsigned mix_bits(unsigned h) {
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

// A stream of random bits, 32 for each index. Rounding only needs bits that look independent. The
// key, which takes as long as the bits, is the same for 2^32 indices.
struct RandomBits {
    unsigned key;

    __device__ __forceinline__ RandomBits(unsigned seed, unsigned long long index)
        : key(mix_bits(seed ^ (unsigned)(index >> 32) * 0x9e3779b9u)) {}
    __device__ __forceinline__ unsigned operator()(unsigned long long index) const { return mix_bits(key ^ (unsigned)index); }
};

// Rounds each of two numbers to one of its two neighbors in T, with probabilities that make the
// mean exact, given 16 uniform bits for each, those of `lo` at the low end. Packs the results, `lo`
// in the low half. Infinities and NaN stay as they are.
template <class T>
__device__ __forceinline__ uint32_t pack2_at_random(float lo, float hi, unsigned bits);
// Adds less than one last place, then drops the bits below it. The low 16 bits of an infinity are
// zero, so nothing is carried; those of a NaN may all be set.
template <>
__device__ __forceinline__ uint32_t pack2_at_random<bf16>(float lo, float hi, unsigned bits) {
    uint32_t low = __float_as_uint(lo), high = __float_as_uint(hi);
    if (lo == lo) low += bits & 0xffffu;
    if (hi == hi) high += bits >> 16;
    return __byte_perm(low, high, 0x7632);
}
// The same, except below the smallest normal f16: there its last place is 2^-24 whatever the
// exponent, and the result is a multiple of that.
__device__ __forceinline__ float round_to_f16_at_random(float value, unsigned bits) {
    unsigned x = __float_as_uint(value);
    float magnitude = fabsf(value);
    float rounded = __uint_as_float((x + (bits & 0x1fffu)) & 0xffffe000u);
    if (magnitude < 6.103515625e-5f) {
        float places = magnitude * 16777216.0f;
        rounded = copysignf(floorf(places + (float)(bits & 0x1fffu) * 0x1p-13f) * 0x1p-24f, value);
    }
    return magnitude < 65504.0f ? rounded : value;
}
template <>
__device__ __forceinline__ uint32_t pack2_at_random<f16>(float lo, float hi, unsigned bits) {
    return pack2<f16>(round_to_f16_at_random(lo, bits), round_to_f16_at_random(hi, bits >> 16));
}
