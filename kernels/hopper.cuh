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

// Describes a matrix in shared memory for wgmma: 16-bit elements in swizzled rows of ROW_BYTES
// (128, 64 or 32), as a copy of a box that wide leaves them. Each 1024 bytes are 8 lines of 128,
// and the 16-byte chunk c of line l is at chunk c ^ (l % (ROW_BYTES / 16)). Rows run along K, or
// across it (in M or N); in the latter case the matrix continues `block_bytes` further after each
// ROW_BYTES / 2 elements. Eight rows must start at a multiple of their size.
template <int ROW_BYTES = 128>
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t block_bytes) {
    static_assert(ROW_BYTES == 128 || ROW_BYTES == 64 || ROW_BYTES == 32, "CUDA's swizzles");
    constexpr uint64_t SWIZZLE = ROW_BYTES == 128 ? 1 : ROW_BYTES == 64 ? 2 : 3, EIGHT_ROWS = 8 * ROW_BYTES;
    return (uint64_t)(address >> 4) | (uint64_t)(block_bytes >> 4) << 16 | EIGHT_ROWS >> 4 << 32 | SWIZZLE << 62;
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

// Orders what this thread knows of global memory before its copies that follow.
__device__ __forceinline__ void proxy_fence_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

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
// Copies `bytes` bytes; both places and `bytes` are multiples of 16.
__device__ __forceinline__ void bulk_load(uint32_t dst, const float* src, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst), "l"(src),
                 "r"(bytes), "r"(barrier)
                 : "memory");
}
// Copies `bytes` bytes of shared memory to `dst`; both places and `bytes` are multiples of 16. What
// holds for the source of tma_store holds here.
__device__ __forceinline__ void bulk_store(float* dst, uint32_t src, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(src), "r"(bytes) : "memory");
}
// Adds `bytes` bytes of f32 numbers in shared memory to those at `dst`; both places and `bytes` are
// multiples of 16. Each number is added atomically, in any order with what other blocks add. What
// holds for the source of tma_store holds here.
__device__ __forceinline__ void bulk_reduce_add(float* dst, uint32_t src, uint32_t bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(dst), "r"(src), "r"(bytes)
                 : "memory");
}
// Ends a group of this thread's stores and additions.
__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups still read shared memory, which may then be
// written again. Every thread that stores must wait for <0> before it ends.
template <int N>
__device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
// The same until at most N groups have not been written: this thread sees the others.
template <int N>
__device__ __forceinline__ void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
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
#define WGMMA_SUMS_8 WGMMA_SUMS_4 ",%4,%5,%6,%7"
#define WGMMA_SUMS_16 WGMMA_SUMS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_SUMS_32 WGMMA_SUMS_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_SUMS_40 WGMMA_SUMS_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define WGMMA_SUMS_48 WGMMA_SUMS_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_SUMS_64 WGMMA_SUMS_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_SUMS_128 \
    WGMMA_SUMS_64 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
    ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95" \
    ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
    ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA_OPERANDS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_OPERANDS_8(i) WGMMA_OPERANDS_4(i), WGMMA_OPERANDS_4(i + 4)
#define WGMMA_OPERANDS_16(i) WGMMA_OPERANDS_8(i), WGMMA_OPERANDS_8(i + 8)
#define WGMMA_OPERANDS_32(i) WGMMA_OPERANDS_16(i), WGMMA_OPERANDS_16(i + 16)
#define WGMMA_OPERANDS_40(i) WGMMA_OPERANDS_32(i), WGMMA_OPERANDS_8(i + 32)
#define WGMMA_OPERANDS_48(i) WGMMA_OPERANDS_32(i), WGMMA_OPERANDS_16(i + 32)
#define WGMMA_OPERANDS_64(i) WGMMA_OPERANDS_32(i), WGMMA_OPERANDS_32(i + 32)
#define WGMMA_OPERANDS_128(i) WGMMA_OPERANDS_64(i), WGMMA_OPERANDS_64(i + 64)
// A, B, ACCUMULATE, ACROSS: numbers of the operands after the sums.
#define WGMMA_PTX(N, TYPE, SUMS, A, B, ACCUMULATE, ACROSS)                                     \
    "{\n"                                                                                      \
    ".reg .pred accumulate;\n"                                                                 \
    "setp.ne.b32 accumulate, " ACCUMULATE ", 0;\n"                                             \
    "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WGMMA_SUMS_##SUMS "}, " A \
    ", " B ", accumulate, 1, 1, " ACROSS ";\n"                                                 \
    "}"

// Both functions for one N, with SUMS = N / 2 and the numbers of the operands that follow the sums.
#define WGMMA_SHAPE(TYPE, N, SUMS, I0, I1, I2, I3, I4, I5, I6)                                                                   \
    template <int ACROSS_A, int ACROSS_B>                                                                                       \
    static __device__ __forceinline__ void multiply(float (&d)[SUMS], uint64_t a, uint64_t b, bool accumulate) {                \
        asm volatile(WGMMA_PTX(N, TYPE, SUMS, I0, I1, I2, I3 ", " I4)                                                            \
                     : WGMMA_OPERANDS_##SUMS(0)                                                                                 \
                     : "l"(a), "l"(b), "r"((int)accumulate), "n"(ACROSS_A), "n"(ACROSS_B));                                     \
    }                                                                                                                           \
    template <int ACROSS_B>                                                                                                     \
    static __device__ __forceinline__ void multiply_rs(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
        asm volatile(WGMMA_PTX(N, TYPE, SUMS, "{" I0 "," I1 "," I2 "," I3 "}", I4, I5, I6)                                       \
                     : WGMMA_OPERANDS_##SUMS(0)                                                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(ACROSS_B));                \
    }
template <class T>
struct Wgmma;
#define WGMMA_OF(T, TYPE)                                                                \
    template <>                                                                          \
    struct Wgmma<T> {                                                                    \
        WGMMA_SHAPE(TYPE, 8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")               \
        WGMMA_SHAPE(TYPE, 16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")          \
        WGMMA_SHAPE(TYPE, 32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")       \
        WGMMA_SHAPE(TYPE, 64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")       \
        WGMMA_SHAPE(TYPE, 80, 40, "%40", "%41", "%42", "%43", "%44", "%45", "%46")       \
        WGMMA_SHAPE(TYPE, 96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54")       \
        WGMMA_SHAPE(TYPE, 128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")      \
        WGMMA_SHAPE(TYPE, 256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134") \
    };
WGMMA_OF(bf16, "bf16")
WGMMA_OF(f16, "f16")

// d (64 x N, f32) = a (64 x 16) * b (16 x N), plus d if `accumulate`; N = 2 SUMS, one of the above.
// ACROSS_A, ACROSS_B: whether the rows of the operand run across K; N is then a multiple of their
// length. Lane l of warp w holds in d[4 j + 2 h + e] row 16 w + 8 h + l / 4, column 8 j + 2 (l % 4)
// + e.
template <class T, bool ACROSS_A, bool ACROSS_B, int SUMS>
__device__ __forceinline__ void wgmma(float (&d)[SUMS], uint64_t a, uint64_t b, bool accumulate) {
    Wgmma<T>::template multiply<ACROSS_A, ACROSS_B>(d, a, b, accumulate);
}

// The same with `a` in registers, as for mma_m16n8k16: each warp has its own 16 rows. They may
// change only after wgmma_wait.
template <class T, bool ACROSS_B, int SUMS>
__device__ __forceinline__ void wgmma_rs(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    Wgmma<T>::template multiply_rs<ACROSS_B>(d, a, b, accumulate);
}
#endif
