// Inline PTX, one instruction per function, which only this file and hopper.cuh contain; and a few
// names that nvcc and the host's compiler spell differently. Each function has a twin of the same
// name in emulated/ptx.h, which the emulated device runs.
#pragma once

#if defined(WARPSMITH_EMULATED)
#include "emulated/cuda.h"
#include "emulated/ptx.h"
#else
#include <cstdint>
#include <cstring>

// Shared memory: SHARED(float, sums, [32]) declares float sums[32]; DYNAMIC_SHARED(buffer) declares
// the bytes requested at launch.
#define SHARED(T, name, dims) __shared__ T name dims
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

// --- 16-bit floating point

struct bf16 {
    uint16_t x;
};
struct f16 {
    uint16_t x;
};

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(bf16 v) { return __uint_as_float((uint32_t)v.x << 16); }
__device__ __forceinline__ float to_f32(f16 v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.x));
    return r;
}

// Packs two numbers rounded to nearest even, `lo` in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <>
__device__ __forceinline__ uint32_t pack2<bf16>(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
template <>
__device__ __forceinline__ uint32_t pack2<f16>(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

template <class T>
__device__ __forceinline__ T from_f32(float v);
template <>
__device__ __forceinline__ float from_f32<float>(float v) {
    return v;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float v) {
    bf16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.x) : "f"(v));
    return r;
}
template <>
__device__ __forceinline__ f16 from_f32<f16>(float v) {
    f16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.x) : "f"(v));
    return r;
}

// --- 128-bit accesses to global memory

__device__ __forceinline__ uint4 load_u128(const void* p) { return *static_cast<const uint4*>(p); }
__device__ __forceinline__ uint4 load_u128_streaming(const void* p) { return __ldcs(static_cast<const uint4*>(p)); }
// Stored as one number: the compiler splits a uint4 into four stores and does not always merge them
// again.
__device__ __forceinline__ void store_u128(void* p, uint4 v) {
    unsigned __int128 bits;
    memcpy(&bits, &v, 16);
    *static_cast<unsigned __int128*>(p) = bits;
}
__device__ __forceinline__ void store_u128_streaming(void* p, uint4 v) { __stcs(static_cast<uint4*>(p), v); }

// --- flags in global memory, for other blocks of the same launch: 0 until they are raised

// Raises a flag after everything that this thread has written, or has synchronized with.
__device__ __forceinline__ void flag_raise(unsigned* flag) {
    asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
}
// Waits until the flag is raised, and lowers it again: a flag has one waiting thread. A wait of
// more than FLAG_PATIENCE_NS traps, so that a hang becomes a launch error.
constexpr unsigned long long FLAG_PATIENCE_NS = 10000000000;
__device__ __forceinline__ void flag_wait(unsigned* flag) {
    asm volatile(
        "{\n"
        ".reg .pred raised, late;\n"
        ".reg .u32 value;\n"
        ".reg .u64 start, now;\n"
        "mov.u64 start, %%globaltimer;\n"
        "again:\n"
        "ld.acquire.gpu.global.u32 value, [%0];\n"
        "setp.ne.u32 raised, value, 0;\n"
        "@raised bra done;\n"
        "mov.u64 now, %%globaltimer;\n"
        "sub.u64 now, now, start;\n"
        "setp.gt.u64 late, now, %1;\n"
        "@late trap;\n"
        "bra again;\n"
        "done:\n"
        "st.relaxed.gpu.global.u32 [%0], 0;\n"
        "}" ::"l"(flag),
        "n"(FLAG_PATIENCE_NS)
        : "memory");
}

// --- turns in global memory: numbers that count up, 0 before and after a launch. Many threads may
// wait for a turn; one at a time passes it on.

// Writes the number of the next turn after everything that this thread has written, or has
// synchronized with.
__device__ __forceinline__ void turn_pass(unsigned* turn, unsigned number) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(turn), "r"(number) : "memory");
}
// Waits until the turn has reached `number`. A wait of more than FLAG_PATIENCE_NS traps.
__device__ __forceinline__ void turn_wait(const unsigned* turn, unsigned number) {
    asm volatile(
        "{\n"
        ".reg .pred reached, late;\n"
        ".reg .u32 value;\n"
        ".reg .u64 start, now;\n"
        "mov.u64 start, %%globaltimer;\n"
        "again:\n"
        "ld.acquire.gpu.global.u32 value, [%0];\n"
        "setp.ge.u32 reached, value, %1;\n"
        "@reached bra done;\n"
        "mov.u64 now, %%globaltimer;\n"
        "sub.u64 now, now, start;\n"
        "setp.gt.u64 late, now, %2;\n"
        "@late trap;\n"
        "bra again;\n"
        "done:\n"
        "}" ::"l"(turn),
        "r"(number), "n"(FLAG_PATIENCE_NS)
        : "memory");
}

// --- barriers among whole warps of a block, `threads` in all: numbers 1 to 15 (__syncthreads is
// 0). A number serves again once a thread knows that its last use has ended: because it waited
// itself, or was told by one that did.

// Waits until `threads` threads have arrived, the own warp among them, and sees what they wrote.
__device__ __forceinline__ void barrier_sync(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Arrives without waiting; others wait by barrier_sync with the same numbers.
__device__ __forceinline__ void barrier_arrive(uint32_t id, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- additions to global memory

// Adds to a number to which other threads may add at the same time. It orders
// nothing. (atomicAdd would do, but is sometimes compiled to an instruction that returns the sum.)
__device__ __forceinline__ void red_add(float* p, float v) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(p), "f"(v) : "memory");
}

// --- arithmetic

// Returns x, but the compiler cannot tell, and so recomputes values instead of keeping them in
// registers since an earlier use of x.
__device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// 2^x, accurate to about 2 ulp
__device__ __forceinline__ float exp2_approx(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// The larger of two numbers in each half of two words; of a number and a NaN, the number.
template <class T>
__device__ __forceinline__ uint32_t max2(uint32_t a, uint32_t b);
template <>
__device__ __forceinline__ uint32_t max2<bf16>(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
template <>
__device__ __forceinline__ uint32_t max2<f16>(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("max.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
// tanh(x), accurate to about 2^-11
__device__ __forceinline__ float tanh_approx(float x) {
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// The square root and the reciprocal, accurate to about 1 ulp; subnormal numbers count as zero.
__device__ __forceinline__ float sqrt_approx(float x) {
    float r;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
__device__ __forceinline__ float reciprocal_approx(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
// Rounds an f32 to the 19 bits of TF32, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
}

// --- shared memory and tensor cores

// The 32-bit address that the instructions below take.
__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Loads four 8x8 matrices of 16-bit elements. Lane l addresses row l % 8 of matrix l / 8 (16 bytes
// at `row`), and gets element (l / 4, 2 (l % 4)) of matrix i and the next one in r[i]; with _trans,
// of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// d (16x8, f32) += a (16x16, row-major fragments) * b (16x8, column-major fragments) for T = bf16
// or f16.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d (16x8, f32) += a (16x8) * b (8x8), operands TF32.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- programmatic dependent launch: on compute capability 9.0 or newer, the blocks of a kernel may
// start while those of the kernel before it end. Nothing happens on an older GPU.

// Lets the next kernel start its blocks once every block of this one has called this or ended.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Waits until the kernel before has ended, and all that it wrote can be read. Every thread of every
// kernel calls this before it touches global memory: a kernel that did not would end, and let the
// next one go on, before the kernels before it have ended.
__device__ __forceinline__ void wait_for_dependencies() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// --- asynchronous copies, global to shared, 16 bytes each; bytes from `src_bytes` on are zero

__device__ __forceinline__ void cp_async16(uint32_t dst, const void* src, uint32_t src_bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(src_bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are in flight.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#endif
