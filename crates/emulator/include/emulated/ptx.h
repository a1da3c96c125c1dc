// The twins of the functions in kernels/ptx.cuh: same names, same arguments, same results, except
// that approximations err as much as hardware may. The runtime carries out and checks operations of
// a warp.
#pragma once
#include "cuda.h"

// The key is the address of a static variable: one per declaration and template instantiation, as
// in CUDA.
#define SHARED(T, name, dims)             \
    typedef T shared_type_of_##name dims; \
    static char shared_key_of_##name;     \
    auto& name = *(shared_type_of_##name*)cuda_emulator_shared(&shared_key_of_##name, sizeof(shared_type_of_##name), #name, __FILE__, __LINE__)
#define DYNAMIC_SHARED(name) \
    auto* name = (unsigned char*)(::emulated::region() + ::emulated::ARENA_OFFSET + ::emulated::DYNAMIC_SHARED_OFFSET)

// --- 16-bit floating point

struct bf16 {
    uint16_t x;
};
struct f16 {
    uint16_t x;
};

namespace emulated {
// Rounds to nearest even; NaN becomes the NaN of the hardware.
EMULATED_INLINE uint16_t round_to_bf16(float v) {
    uint32_t bits = __float_as_uint(v);
    return v != v ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
EMULATED_INLINE uint16_t round_to_f16(float v) {
    uint32_t bits = __float_as_uint(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (v != v) return 0x7fff;
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  // from 65520 on: infinity
    if (magnitude < 0x38800000) {
        // Subnormal: near 0.5 an f32 has steps of 2^-24, as these numbers do.
        uint32_t steps = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000;
        return (uint16_t)(sign | steps);
    }
    magnitude -= (127 - 15) << 23;
    return (uint16_t)(sign | (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13);
}
EMULATED_INLINE float widen_f16(uint16_t x) {
    // The exponent is off by 112, also for subnormals, which the multiplication makes normal.
    // Infinity and NaN end up at the top of the range.
    float v = __uint_as_float((x & 0x7fffu) << 13) * 0x1p112f;
    uint32_t bits = __float_as_uint(v) | (v >= 65536.0f ? 0x7f800000u : 0);
    return __uint_as_float(bits | (x & 0x8000u) << 16);
}
}  // namespace emulated

EMULATED_INLINE float to_f32(float v) { return v; }
EMULATED_INLINE float to_f32(bf16 v) { return __uint_as_float((uint32_t)v.x << 16); }
EMULATED_INLINE float to_f32(f16 v) { return emulated::widen_f16(v.x); }

template <class T>
T from_f32(float v);
template <>
__forceinline__ float from_f32<float>(float v) {
    return v;
}
template <>
__forceinline__ bf16 from_f32<bf16>(float v) {
    return {emulated::round_to_bf16(v)};
}
template <>
__forceinline__ f16 from_f32<f16>(float v) {
    return {emulated::round_to_f16(v)};
}
template <class T>
EMULATED_INLINE uint32_t pack2(float lo, float hi) {
    return from_f32<T>(lo).x | (uint32_t)from_f32<T>(hi).x << 16;
}

// --- 128-bit accesses to global memory

namespace emulated {
// Read and written in one piece, so that the checker sees one access.
typedef uint32_t Quad __attribute__((vector_size(16), may_alias));
EMULATED_INLINE void require_aligned(const void* p, const char* message, const char* file, int line) {
    if ((uintptr_t)p % 16 != 0) cuda_emulator_fail(message, p, file, line);
}
}  // namespace emulated
EMULATED_INLINE uint4 load_u128(const void* p, EMULATED_SITE) {
    emulated::require_aligned(p, "128-bit load from a misaligned address", file, line);
    emulated::Quad quad = *(const emulated::Quad*)p;
    return {quad[0], quad[1], quad[2], quad[3]};
}
EMULATED_INLINE uint4 load_u128_streaming(const void* p, EMULATED_SITE) { return load_u128(p, file, line); }
EMULATED_INLINE void store_u128(void* p, uint4 v, EMULATED_SITE) {
    emulated::require_aligned(p, "128-bit store to a misaligned address", file, line);
    *(emulated::Quad*)p = emulated::Quad{v.x, v.y, v.z, v.w};
}
EMULATED_INLINE void store_u128_streaming(void* p, uint4 v, EMULATED_SITE) { store_u128(p, v, file, line); }

// --- flags in global memory

EMULATED_INLINE void flag_raise(unsigned* flag, EMULATED_SITE) { cuda_emulator_flag_raise(flag, file, line); }
EMULATED_INLINE void flag_wait(unsigned* flag, EMULATED_SITE) { cuda_emulator_flag_wait(flag, file, line); }
EMULATED_INLINE void turn_pass(unsigned* turn, unsigned number, EMULATED_SITE) {
    cuda_emulator_turn_pass(turn, number, file, line);
}
EMULATED_INLINE void turn_wait(const unsigned* turn, unsigned number, EMULATED_SITE) {
    cuda_emulator_turn_wait(turn, number, file, line);
}

// --- barriers among whole warps of a block

EMULATED_INLINE void barrier_sync(uint32_t id, uint32_t threads, EMULATED_SITE) {
    emulated::BarrierArrival lane = {id, threads, 0};
    cuda_emulator_collective(emulated::BARRIER_SYNC, 0xffffffffu, &lane, file, line);
    cuda_emulator_barrier_wait(id, lane.used);
}
EMULATED_INLINE void barrier_arrive(uint32_t id, uint32_t threads, EMULATED_SITE) {
    emulated::BarrierArrival lane = {id, threads, 0};
    cuda_emulator_collective(emulated::BARRIER_ARRIVE, 0xffffffffu, &lane, file, line);
}

// --- additions to global memory

EMULATED_INLINE void red_add(float* p, float v) { atomicAdd(p, v); }

// --- arithmetic

EMULATED_INLINE int opaque(int x) { return x; }

namespace emulated {
// The larger of two 16-bit numbers: the positive one of two zeros, and the hardware's NaN of two.
template <class T>
EMULATED_INLINE uint32_t larger(uint16_t a, uint16_t b) {
    const float x = to_f32(T{a}), y = to_f32(T{b});
    if (x != x) return y != y ? 0x7fff : b;
    if (y != y || x > y) return a;
    return x < y ? b : a & b;
}
}  // namespace emulated
template <class T>
EMULATED_INLINE uint32_t max2(uint32_t a, uint32_t b) {
    return emulated::larger<T>((uint16_t)a, (uint16_t)b) | emulated::larger<T>((uint16_t)(a >> 16), (uint16_t)(b >> 16)) << 16;
}

// The instructions below approximate. Their twins err within the bounds of the PTX ISA, by an
// amount that depends on the bits of the argument. So a test whose tolerance only fits exact
// functions fails here, and not on the first GPU.
namespace emulated {
// A fraction of the largest error, from -1 to 1, spread evenly over arguments.
EMULATED_INLINE float share_of_error(float x) {
    uint32_t bits = __float_as_uint(x) * 0x9e3779b1u;
    bits = (bits ^ bits >> 15) * 0x9e3779b1u;
    return (float)(int32_t)(bits ^ bits >> 16) * 0x1p-31f;
}
}  // namespace emulated

// Within 2^-22 of 2^x: exp2f is good to half a unit in the last place, and this adds one unit,
// subtracts one, or does neither. Exact for zeros, subnormal numbers, infinities and NaN. .ftz: a
// result below the smallest normal number becomes zero.
EMULATED_INLINE float exp2_approx(float x) {
    float power = exp2f(x);
    bool ordinary = fabsf(x) >= 0x1p-126f && power > 0.0f && power < 0x1.fffffep127f;
    if (ordinary) power = __uint_as_float(__float_as_uint(power) + (int)rintf(1.4f * emulated::share_of_error(x)));
    return power < 0x1p-126f ? 0.0f : power;
}
// Within a relative 2^-11 of tanh(x), and never beyond 1; the factor leaves room for the rounding
// of tanhf and of the sum. Exact for zeros and subnormal numbers, where tanh rounds to 1 or -1, and
// for NaN.
EMULATED_INLINE float tanh_approx(float x) {
    if (!(fabsf(x) >= 0x1p-126f)) return x;
    float y = tanhf(x);
    if (fabsf(y) == 1.0f) return y;
    y += y * (0x1.ff8p-12f * emulated::share_of_error(x));
    return fmaxf(fminf(y, 1.0f), -1.0f);
}
namespace emulated {
EMULATED_INLINE float flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
// One of the two f32 neighbors of a number, off by less than a unit in the last place. Exact if the
// number is an f32.
EMULATED_INLINE float neighbor(double exact, float x) {
    float nearest = (float)exact;
    if (nearest == exact || !isfinite(nearest) || share_of_error(x) < 0.0f) return nearest;
    bool away = (nearest < exact) == (nearest > 0.0f);
    return __uint_as_float(__float_as_uint(nearest) + (away ? 1 : -1));
}
}  // namespace emulated
// Within one unit in the last place. .ftz: subnormal arguments and results become zero.
EMULATED_INLINE float sqrt_approx(float x) {
    x = emulated::flush(x);
    return emulated::neighbor(sqrt((double)x), x);
}
EMULATED_INLINE float reciprocal_approx(float x) {
    x = emulated::flush(x);
    return emulated::flush(emulated::neighbor(1.0 / (double)x, x));
}
// NaNs are truncated, so one with only low bits set becomes infinity, as on Hopper.
EMULATED_INLINE uint32_t to_tf32(float x) {
    uint32_t bits = __float_as_uint(x);
    return (isfinite(x) ? bits + 0x1000 : bits) & ~0x1fffu;
}

// --- shared memory and tensor cores

EMULATED_INLINE uint32_t shared_address(const void* p, EMULATED_SITE) {
    uintptr_t offset = (uintptr_t)p - emulated::region() - emulated::ARENA_OFFSET;
    if (offset >= emulated::ARENA_BYTES) cuda_emulator_fail("not an address of shared memory", p, file, line);
    return (uint32_t)offset;
}

EMULATED_INLINE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, EMULATED_SITE) {
    emulated::Ldmatrix lane = {r, row};
    cuda_emulator_collective(emulated::LDMATRIX, 0xffffffffu, &lane, file, line);
}
EMULATED_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, EMULATED_SITE) {
    emulated::Ldmatrix lane = {r, row};
    cuda_emulator_collective(emulated::LDMATRIX_TRANS, 0xffffffffu, &lane, file, line);
}

namespace emulated {
template <class T>
constexpr Op MMA_OF;
template <>
constexpr Op MMA_OF<bf16> = MMA_BF16;
template <>
constexpr Op MMA_OF<f16> = MMA_F16;
}  // namespace emulated
template <class T>
EMULATED_INLINE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMULATED_SITE) {
    emulated::Mma lane = {d, a, {b0, b1}};
    cuda_emulator_collective(emulated::MMA_OF<T>, 0xffffffffu, &lane, file, line);
}
EMULATED_INLINE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMULATED_SITE) {
    emulated::Mma lane = {d, a, {b0, b1}};
    cuda_emulator_collective(emulated::MMA_TF32, 0xffffffffu, &lane, file, line);
}

// --- programmatic dependent launch: kernels run one after the other

EMULATED_INLINE void launch_dependents() {}
EMULATED_INLINE void wait_for_dependencies() { cuda_emulator_wait_for_dependencies(); }

// --- asynchronous copies

EMULATED_INLINE void cp_async16(uint32_t dst, const void* src, uint32_t src_bytes = 16, EMULATED_SITE) {
    cuda_emulator_cp_async(dst, src, 16, src_bytes, file, line);
}
EMULATED_INLINE void cp_async_commit() { cuda_emulator_cp_async_commit(); }
template <int N>
EMULATED_INLINE void cp_async_wait() {
    cuda_emulator_cp_async_wait(N);
}
