// Everything that nvcc provides without a header, for a C++17 compiler: CUDA's keywords, built-in
// variables, warp and atomic functions, arithmetic.
#pragma once
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// `__shared__` stays undefined: a variable declared with it would not be in the block's shared
// memory.

// --- vectors

struct alignas(4) uchar4 {
    unsigned char x, y, z, w;
};
struct alignas(4) ushort2 {
    unsigned short x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
EMULATED_INLINE float2 make_float2(float x, float y) { return {x, y}; }
EMULATED_INLINE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
EMULATED_INLINE int2 make_int2(int x, int y) { return {x, y}; }
EMULATED_INLINE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
EMULATED_INLINE uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
EMULATED_INLINE uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --- built-in variables

#define threadIdx (::emulated::block().thread_index[::emulated::thread()])
#define blockIdx (::emulated::block().block_index)
#define blockDim (::emulated::block().block_dim)
#define gridDim (::emulated::block().grid_dim)
constexpr int warpSize = 32;

// --- synchronization

EMULATED_INLINE void __syncthreads(EMULATED_SITE) { cuda_emulator_barrier(0, file, line); }
EMULATED_INLINE int __syncthreads_count(int predicate, EMULATED_SITE) {
    return (int)cuda_emulator_barrier(predicate != 0, file, line);
}
EMULATED_INLINE int __syncthreads_or(int predicate, EMULATED_SITE) {
    return cuda_emulator_barrier(predicate != 0, file, line) != 0;
}
EMULATED_INLINE int __syncthreads_and(int predicate, EMULATED_SITE) {
    return cuda_emulator_barrier(predicate != 0, file, line) == emulated::block_threads();
}
EMULATED_INLINE void __syncwarp(unsigned mask = 0xffffffffu, EMULATED_SITE) {
    cuda_emulator_collective(emulated::SYNCWARP, mask, nullptr, file, line);
}
// Memory is always in order here; the checker needs to know that a kernel asked for it.
EMULATED_INLINE void __threadfence() { cuda_emulator_fence(); }
EMULATED_INLINE void __threadfence_block() { cuda_emulator_fence(); }

#define assert(condition) \
    ((condition) ? (void)0 : cuda_emulator_fail("assertion failed: " #condition, nullptr, __FILE__, __LINE__))

// --- warps

namespace emulated {
template <class T>
EMULATED_INLINE T shuffle(Op op, unsigned mask, T value, unsigned source, const char* file, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    Shuffle lane = {0, 0, source};
    memcpy(&lane.value, &value, sizeof(T));
    cuda_emulator_collective(op, mask, &lane, file, line);
    memcpy(&value, &lane.result, sizeof(T));
    return value;
}
EMULATED_INLINE unsigned vote(Op op, unsigned mask, unsigned value, const char* file, int line) {
    Vote lane = {value, 0};
    cuda_emulator_collective(op, mask, &lane, file, line);
    return lane.result;
}
}  // namespace emulated

template <class T>
EMULATED_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATED_SITE) {
    unsigned segment = emulated::lane() & ~(width - 1u);
    return emulated::shuffle(emulated::SHFL, mask, value, segment | (source & (width - 1u)), file, line);
}
template <class T>
EMULATED_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_SITE) {
    unsigned lane = emulated::lane(), inside = lane & (width - 1u);
    return emulated::shuffle(emulated::SHFL_UP, mask, value, inside >= delta ? lane - delta : lane, file, line);
}
template <class T>
EMULATED_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_SITE) {
    unsigned lane = emulated::lane(), inside = lane & (width - 1u);
    bool within = delta < width - inside;
    return emulated::shuffle(emulated::SHFL_DOWN, mask, value, within ? lane + delta : lane, file, line);
}
template <class T>
EMULATED_INLINE T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATED_SITE) {
    unsigned lane = emulated::lane(), source = lane ^ bits, last = lane | (width - 1u);
    return emulated::shuffle(emulated::SHFL_XOR, mask, value, source <= last ? source : lane, file, line);
}
EMULATED_INLINE unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_SITE) {
    return emulated::vote(emulated::BALLOT, mask, predicate != 0, file, line);
}
EMULATED_INLINE int __any_sync(unsigned mask, int predicate, EMULATED_SITE) {
    return emulated::vote(emulated::BALLOT, mask, predicate != 0, file, line) != 0;
}
EMULATED_INLINE int __all_sync(unsigned mask, int predicate, EMULATED_SITE) {
    return emulated::vote(emulated::BALLOT, mask, predicate == 0, file, line) == 0;
}
EMULATED_INLINE unsigned __reduce_add_sync(unsigned mask, unsigned value, EMULATED_SITE) {
    return emulated::vote(emulated::REDUCE_ADD, mask, value, file, line);
}
EMULATED_INLINE int __reduce_add_sync(unsigned mask, int value, EMULATED_SITE) {
    return (int)emulated::vote(emulated::REDUCE_ADD, mask, (unsigned)value, file, line);
}
EMULATED_INLINE unsigned __reduce_min_sync(unsigned mask, unsigned value, EMULATED_SITE) {
    return emulated::vote(emulated::REDUCE_MIN, mask, value, file, line);
}
EMULATED_INLINE int __reduce_min_sync(unsigned mask, int value, EMULATED_SITE) {
    return (int)emulated::vote(emulated::REDUCE_MIN_SIGNED, mask, (unsigned)value, file, line);
}
EMULATED_INLINE unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATED_SITE) {
    return emulated::vote(emulated::REDUCE_MAX, mask, value, file, line);
}
EMULATED_INLINE int __reduce_max_sync(unsigned mask, int value, EMULATED_SITE) {
    return (int)emulated::vote(emulated::REDUCE_MAX_SIGNED, mask, (unsigned)value, file, line);
}
EMULATED_INLINE unsigned __reduce_and_sync(unsigned mask, unsigned value, EMULATED_SITE) {
    return emulated::vote(emulated::REDUCE_AND, mask, value, file, line);
}
EMULATED_INLINE unsigned __reduce_or_sync(unsigned mask, unsigned value, EMULATED_SITE) {
    return emulated::vote(emulated::REDUCE_OR, mask, value, file, line);
}
EMULATED_INLINE unsigned __reduce_xor_sync(unsigned mask, unsigned value, EMULATED_SITE) {
    return emulated::vote(emulated::REDUCE_XOR, mask, value, file, line);
}

// --- bits and arithmetic

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

extern "C" {
float expf(float) noexcept;
float exp2f(float) noexcept;
float logf(float) noexcept;
float log2f(float) noexcept;
float log1pf(float) noexcept;
float expm1f(float) noexcept;
float tanhf(float) noexcept;
float coshf(float) noexcept;
float sinhf(float) noexcept;
float erff(float) noexcept;
float powf(float, float) noexcept;
float sqrtf(float) noexcept;
float sinf(float) noexcept;
float cosf(float) noexcept;
float fabsf(float) noexcept;
float floorf(float) noexcept;
float ceilf(float) noexcept;
float rintf(float) noexcept;
float truncf(float) noexcept;
float copysignf(float, float) noexcept;
float fmaf(float, float, float) noexcept;
double fma(double, double, double) noexcept;
double sqrt(double) noexcept;
}

EMULATED_INLINE unsigned __float_as_uint(float v) {
    unsigned bits;
    memcpy(&bits, &v, 4);
    return bits;
}
EMULATED_INLINE float __uint_as_float(unsigned bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
EMULATED_INLINE int __float_as_int(float v) { return (int)__float_as_uint(v); }
EMULATED_INLINE float __int_as_float(int bits) { return __uint_as_float((unsigned)bits); }

// As IEEE's maxNum: the result is the operand that is not NaN.
EMULATED_INLINE float fmaxf(float a, float b) { return a > b || b != b ? a : b; }
EMULATED_INLINE float fminf(float a, float b) { return a < b || b != b ? a : b; }
EMULATED_INLINE float max(float a, float b) { return fmaxf(a, b); }
EMULATED_INLINE float min(float a, float b) { return fminf(a, b); }
#define EMULATED_MIN_MAX(T)                                   \
    EMULATED_INLINE T max(T a, T b) { return a > b ? a : b; } \
    EMULATED_INLINE T min(T a, T b) { return a < b ? a : b; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
EMULATED_INLINE int abs(int v) { return v < 0 ? -v : v; }

EMULATED_INLINE float rsqrtf(float v) { return 1.0f / sqrtf(v); }
EMULATED_INLINE float __expf(float v) { return expf(v); }
EMULATED_INLINE float __logf(float v) { return logf(v); }
EMULATED_INLINE float __log2f(float v) { return log2f(v); }
EMULATED_INLINE float __powf(float a, float b) { return powf(a, b); }
EMULATED_INLINE float __sinf(float v) { return sinf(v); }
EMULATED_INLINE float __cosf(float v) { return cosf(v); }
EMULATED_INLINE float __fdividef(float a, float b) { return a / b; }
EMULATED_INLINE float __fdiv_rn(float a, float b) { return a / b; }
EMULATED_INLINE float __frcp_rn(float v) { return 1.0f / v; }
EMULATED_INLINE float __fsqrt_rn(float v) { return sqrtf(v); }
EMULATED_INLINE float __frsqrt_rn(float v) { return 1.0f / sqrtf(v); }
EMULATED_INLINE float __fadd_rn(float a, float b) { return a + b; }
EMULATED_INLINE float __fsub_rn(float a, float b) { return a - b; }
EMULATED_INLINE float __fmul_rn(float a, float b) { return a * b; }
EMULATED_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMULATED_INLINE int __float2int_rn(float v) { return (int)rintf(v); }
EMULATED_INLINE int __float2int_rd(float v) { return (int)floorf(v); }
EMULATED_INLINE float __saturatef(float v) { return fminf(fmaxf(v, 0.0f), 1.0f); }
EMULATED_INLINE bool isfinite(float v) { return v - v == 0.0f; }
EMULATED_INLINE bool isnan(float v) { return v != v; }
EMULATED_INLINE bool isinf(float v) { return v == v && v - v != 0.0f; }
EMULATED_INLINE int __popc(unsigned v) { return __builtin_popcount(v); }
EMULATED_INLINE int __clz(int v) { return v == 0 ? 32 : __builtin_clz((unsigned)v); }
EMULATED_INLINE int __ffs(int v) { return __builtin_ffs(v); }
EMULATED_INLINE unsigned __brev(unsigned v) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (v >> i & 1) << (31 - i);
    return reversed;
}
EMULATED_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
EMULATED_INLINE unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return result;
}

// --- memory

template <class T>
EMULATED_INLINE T __ldg(const T* p) {
    return *p;
}
template <class T>
EMULATED_INLINE T __ldcs(const T* p) {
    return *p;
}
template <class T>
EMULATED_INLINE T __ldcg(const T* p) {
    return *p;
}
template <class T>
EMULATED_INLINE void __stcs(T* p, T v) {
    *p = v;
}
template <class T>
EMULATED_INLINE void __stcg(T* p, T v) {
    *p = v;
}

#define EMULATED_ATOMICS(T)                                                                                        \
    EMULATED_INLINE T atomicAdd(T* p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }                  \
    EMULATED_INLINE T atomicExch(T* p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }                \
    EMULATED_INLINE T atomicOr(T* p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }                    \
    EMULATED_INLINE T atomicAnd(T* p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }                  \
    EMULATED_INLINE T atomicCAS(T* p, T expected, T v) {                                                           \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                   \
        return expected;                                                                                           \
    }                                                                                                              \
    EMULATED_INLINE T atomicMax(T* p, T v) {                                                                       \
        T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                              \
        while (!__atomic_compare_exchange_n(p, &old, max(old, v), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {    \
        }                                                                                                          \
        return old;                                                                                                \
    }                                                                                                              \
    EMULATED_INLINE T atomicMin(T* p, T v) {                                                                       \
        T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                              \
        while (!__atomic_compare_exchange_n(p, &old, min(old, v), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {    \
        }                                                                                                          \
        return old;                                                                                                \
    }
EMULATED_ATOMICS(int)
EMULATED_ATOMICS(unsigned)
EMULATED_ATOMICS(unsigned long long)
EMULATED_INLINE unsigned atomicInc(unsigned* p, unsigned last) {
    unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, old >= last ? 0 : old + 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
EMULATED_INLINE float atomicAdd(float* p, float v) {
    unsigned* bits = (unsigned*)p;
    unsigned old = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(bits, &old, __float_as_uint(__uint_as_float(old) + v), false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
    }
    return __uint_as_float(old);
}
