// Hopper's instructions (sm_90a): barriers in shared memory, tile copies in both directions by the
// tensor memory accelerator (TMA), clusters of blocks, and warpgroup matmuls. One instruction per
// function; only this file and ptx.cuh contain inline PTX. The twins are in emulated/hopper.h.
#pragma once
#include "common.cuh"

// The functions below exist only where this is defined.
#if defined(WARPSMITH_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_HOPPER_INSTRUCTIONS
#endif

#if defined(WARPSMITH_EMULATED)
#include "emulated/hopper.h"
#define GRID_CONSTANT const
#else
// The part of a matrix that a copy transfers, and its layout in shared memory. The driver encodes
// it (cuTensorMapEncodeTiled).
struct alignas(128) TensorMap {
    unsigned long long opaque[16];
};
// A kernel parameter whose address can be taken without copying it.
#define GRID_CONSTANT const __grid_constant__
// After __launch_bounds__: groups of n adjacent blocks (clusters) run at the same time, and can
// reach each other's shared memory. The grid must be a multiple of n.
#if defined(HAS_HOPPER_INSTRUCTIONS)
#define CLUSTER(n) __cluster_dims__(n, 1, 1)
#else
#define CLUSTER(n)
#endif
#endif

// Describes a matrix in shared memory for wgmma: 16-bit elements in rows of 128 bytes, where each 8
// rows are swizzled: 16-byte chunk c of row r is at chunk c ^ (r % 8). Rows run along K, or across
// it (in M or N); in the latter case the matrix continues `block_bytes` further after 64 elements.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t block_bytes) {
    constexpr uint64_t SWIZZLE_128 = 1, EIGHT_ROWS = 1024;
    return (uint64_t)(address >> 4) | (uint64_t)(block_bytes >> 4) << 16 | EIGHT_ROWS >> 4 << 32 | SWIZZLE_128 << 62;
}

#if !defined(WARPSMITH_EMULATED) && defined(HAS_HOPPER_INSTRUCTIONS)

// --- barriers: 8 bytes of shared memory. A phase ends when `arrivals` have arrived and all
// expected bytes have landed.

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Needed between mbarrier_init and the first copy that signals the barrier.
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and makes the phase wait for `bytes` bytes of copies.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives at a barrier of any block of the cluster, at a `cluster_address`. Other blocks see only
// what a __threadfence before it covers; without one it says that operations which the thread has
// waited for, such as wgmma, no longer read shared memory. Ordering everything would take a fence
// of hundreds of clocks per arrival.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Waits until the phase of this parity (0 for the first, 1 for the second, 0 for the third) has
// ended. A wait of more than BARRIER_PATIENCE_NS traps, so that a hang becomes a launch error. The
// timer is wall-clock time: a debugger that stops a kernel for longer also triggers the trap.
// try_wait itself sleeps for a while, so the timer is read rarely, and not at all where the phase
// has ended.
constexpr unsigned long long BARRIER_PATIENCE_NS = 10000000000;
#define MBARRIER_WAIT_PTX(SCOPE)                                           \
    "{\n"                                                                  \
    ".reg .pred ended, late;\n"                                            \
    ".reg .u64 start, now;\n"                                              \
    "mbarrier.try_wait.parity" SCOPE ".shared::cta.b64 ended, [%0], %1;\n" \
    "@ended bra done;\n"                                                   \
    "mov.u64 start, %%globaltimer;\n"                                      \
    "again:\n"                                                             \
    "mbarrier.try_wait.parity" SCOPE ".shared::cta.b64 ended, [%0], %1;\n" \
    "@ended bra done;\n"                                                   \
    "mov.u64 now, %%globaltimer;\n"                                        \
    "sub.u64 now, now, start;\n"                                           \
    "setp.gt.u64 late, now, %2;\n"                                         \
    "@late trap;\n"                                                        \
    "bra again;\n"                                                         \
    "done:\n"                                                              \
    "}"
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(MBARRIER_WAIT_PTX("") ::"r"(barrier), "r"(parity), "n"(BARRIER_PATIENCE_NS) : "memory");
}
// The same for what other blocks of the cluster have written with `store_async`.
__device__ __forceinline__ void mbarrier_wait_cluster(uint32_t barrier, uint32_t parity) {
    asm volatile(MBARRIER_WAIT_PTX(".acquire.cluster") ::"r"(barrier), "r"(parity), "n"(BARRIER_PATIENCE_NS) : "memory");
}
// Makes this thread's writes to shared memory visible to copies and to wgmma.
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- copies

// Copies the map's box with its corner at column x and row y to shared memory; elements outside the
// matrix become zeros. Column x must be a multiple of 8 (16 bytes); at any other, an H100 ends the
// kernel with CUDA_ERROR_ILLEGAL_INSTRUCTION.
__device__ __forceinline__ void tma_load(uint32_t dst, const TensorMap* map, int x, int y, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(dst),
        "l"(map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
}
// The same, to the same place in each block of the cluster that has a bit in `ranks`; each block's
// own barrier at the address `barrier` gets the bytes.
__device__ __forceinline__ void tma_load_multicast(uint32_t dst, const TensorMap* map, int x, int y, uint32_t barrier,
                                                   uint32_t ranks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], "
        "[%4], %5;" ::"r"(dst),
        "l"(map), "r"(x), "r"(y), "r"(barrier), "h"((uint16_t)ranks)
        : "memory");
}
// Copies shared memory to the map's box; elements outside the matrix are left out. The thread's
// own writes, and those that it has synchronized with, need a proxy_fence by the writers before.
__device__ __forceinline__ void tma_store(const TensorMap* map, int x, int y, uint32_t src) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x), "r"(y),
                 "r"(src)
                 : "memory");
}
// Ends a group of this thread's stores.
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups still read shared memory, which may then be
// written again. Every thread that stores must wait for <0> before it ends.
template <int N>
__device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
__device__ __forceinline__ void tma_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Stores four 8x8 matrices of 16-bit elements from the registers that ldmatrix_x4 loads them to;
// lane l addresses row l % 8 of matrix l / 8 (16 bytes at `row`).
__device__ __forceinline__ void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                 "r"(r[3])
                 : "memory");
}

// --- clusters

// This block's number in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Waits for all threads of the cluster. Needed between the initialization of barriers and their use
// by other blocks, and at the end: a block must not end while others still reach its memory.
__device__ __forceinline__ void cluster_sync() {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}
// The address by which this block reaches `address` in the shared memory of the block `rank`.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, uint32_t rank) {
    uint32_t r;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
    return r;
}
// Stores 16 bytes asynchronously at a `cluster_address`, and reports them to the barrier at another
// one in the same block.
__device__ __forceinline__ void store_async(uint32_t dst, int4 value, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(dst), "r"(value.x),
        "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier)
        : "memory");
}

// --- registers: one warpgroup releases some, others acquire them

template <int N>
__device__ __forceinline__ void registers_decrease() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void registers_increase() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// --- warpgroup matmuls (four warps), asynchronous

// Needed before the first wgmma and whenever other code has touched the registers of the sums.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N committed groups of the calling warp are in flight.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define WGMMA_SUMS_4 "%0,%1,%2,%3"
#define WGMMA_SUMS_32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_SUMS_64 \
    WGMMA_SUMS_32 "," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_SUMS_128 \
    WGMMA_SUMS_64 "," \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
    "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA_OPERANDS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_OPERANDS_16(i) \
    WGMMA_OPERANDS_4(i), WGMMA_OPERANDS_4(i + 4), WGMMA_OPERANDS_4(i + 8), WGMMA_OPERANDS_4(i + 12)
#define WGMMA_OPERANDS_32(i) WGMMA_OPERANDS_16(i), WGMMA_OPERANDS_16(i + 16)
#define WGMMA_OPERANDS_64(i) WGMMA_OPERANDS_32(i), WGMMA_OPERANDS_32(i + 32)
// A, B, ACCUMULATE, ACROSS: numbers of the operands after the sums.
#define WGMMA_PTX(N, TYPE, SUMS, A, B, ACCUMULATE, ACROSS)                           \
    "{\n"                                                                            \
    ".reg .pred accumulate;\n"                                                       \
    "setp.ne.b32 accumulate, " ACCUMULATE ", 0;\n"                                   \
    "wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" SUMS "}, " A \
    ", " B ", accumulate, 1, 1, " ACROSS ";\n"                                       \
    "}"
#define WGMMA_INPUTS "l"(a), "l"(b), "r"((int)accumulate), "n"(ACROSS_A), "n"(ACROSS_B)

// d (64 x N, f32) = a (64 x 16) * b (16 x N), plus d if `accumulate`; N = 8, 64, 128 or 256.
// ACROSS_A, ACROSS_B: whether the rows of the operand run across K. Lane l of warp w holds in d[4 j
// + 2 h + e] row 16 w + 8 h + l / 4, column 8 j + 2 (l % 4) + e.
template <class T, int ACROSS_A, int ACROSS_B>
struct Wgmma;
#define WGMMA_OF(T, TYPE)                                                                                                   \
    template <int ACROSS_A, int ACROSS_B>                                                                                   \
    struct Wgmma<T, ACROSS_A, ACROSS_B> {                                                                                   \
        static __device__ __forceinline__ void multiply(float (&d)[4], uint64_t a, uint64_t b, bool accumulate) {           \
            asm volatile(WGMMA_PTX("8", TYPE, WGMMA_SUMS_4, "%4", "%5", "%6", "%7, %8")                                   \
                         : WGMMA_OPERANDS_4(0)                                                                              \
                         : WGMMA_INPUTS);                                                                                   \
        }                                                                                                                   \
        static __device__ __forceinline__ void multiply(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {          \
            asm volatile(WGMMA_PTX("64", TYPE, WGMMA_SUMS_32, "%32", "%33", "%34", "%35, %36")                              \
                         : WGMMA_OPERANDS_32(0)                                                                             \
                         : WGMMA_INPUTS);                                                                                   \
        }                                                                                                                   \
        static __device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {          \
            asm volatile(WGMMA_PTX("128", TYPE, WGMMA_SUMS_64, "%64", "%65", "%66", "%67, %68")                           \
                         : WGMMA_OPERANDS_64(0)                                                                             \
                         : WGMMA_INPUTS);                                                                                   \
        }                                                                                                                   \
        static __device__ __forceinline__ void multiply(float (&d)[128], uint64_t a, uint64_t b, bool accumulate) {         \
            asm volatile(WGMMA_PTX("256", TYPE, WGMMA_SUMS_128, "%128", "%129", "%130", "%131, %132")                     \
                         : WGMMA_OPERANDS_64(0), WGMMA_OPERANDS_64(64)                                                      \
                         : WGMMA_INPUTS);                                                                                   \
        }                                                                                                                   \
    };
WGMMA_OF(bf16, "bf16")
WGMMA_OF(f16, "f16")

template <class T, bool ACROSS_A, bool ACROSS_B, int SUMS>
__device__ __forceinline__ void wgmma(float (&d)[SUMS], uint64_t a, uint64_t b, bool accumulate) {
    Wgmma<T, ACROSS_A, ACROSS_B>::multiply(d, a, b, accumulate);
}

// The same with `a` in registers, as for mma_m16n8k16: each warp has its own 16 rows; N = 64. They
// may change only after wgmma_wait.
template <class T, int ACROSS_B>
struct WgmmaRs;
#define WGMMA_RS_OF(T, TYPE)                                                                                                      \
    template <int ACROSS_B>                                                                                                       \
    struct WgmmaRs<T, ACROSS_B> {                                                                                                 \
        static __device__ __forceinline__ void multiply_rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
            asm volatile(WGMMA_PTX("64", TYPE, WGMMA_SUMS_32, "{%32,%33,%34,%35}", "%36", "%37", "%38")                           \
                         : WGMMA_OPERANDS_32(0)                                                                                   \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(ACROSS_B));              \
        }                                                                                                                         \
    };
WGMMA_RS_OF(bf16, "bf16")
WGMMA_RS_OF(f16, "f16")

template <class T, bool ACROSS_B, int SUMS>
__device__ __forceinline__ void wgmma_rs(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    WgmmaRs<T, ACROSS_B>::multiply_rs(d, a, b, accumulate);
}
#endif
