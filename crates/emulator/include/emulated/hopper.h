// The twins of the functions in kernels/hopper.cuh. src/runtime/hopper/ implements and checks them.
#pragma once
#include "ptx.h"

#define CLUSTER(n)

struct TensorMap {
    unsigned long long opaque[16];
};

namespace emulated {
struct Wgmma {
    float* d;
    uint64_t a, b;
    const uint32_t* a_registers;  // instead of `a`, or null
    uint32_t columns, accumulate, across_a, across_b;
};
}  // namespace emulated

extern "C" {
void cuda_emulator_mbarrier_init(uint32_t barrier, uint32_t arrivals, const char* file, int line);
void cuda_emulator_mbarrier_init_fence();
void cuda_emulator_mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes, const char* file, int line);
void cuda_emulator_mbarrier_wait(uint32_t barrier, uint32_t parity, const char* file, int line);
void cuda_emulator_mbarrier_arrive_cluster(uint32_t barrier, const char* file, int line);
void cuda_emulator_mbarrier_wait_cluster(uint32_t barrier, uint32_t parity, const char* file, int line);
void cuda_emulator_proxy_fence();
void cuda_emulator_tma_load(uint32_t dst, const TensorMap* map, int x, int y, uint32_t barrier, const char* file, int line);
void cuda_emulator_tma_store(const TensorMap* map, int x, int y, uint32_t src, const char* file, int line);
void cuda_emulator_tma_store_commit();
void cuda_emulator_tma_store_wait(uint32_t groups_left, uint32_t read_only, const char* file, int line);
void cuda_emulator_bulk_load(uint32_t dst, const float* src, uint32_t bytes, uint32_t barrier, const char* file, int line);
void cuda_emulator_bulk_store(float* dst, uint32_t src, uint32_t bytes, const char* file, int line);
void cuda_emulator_bulk_reduce_add(float* dst, uint32_t src, uint32_t bytes, const char* file, int line);
void cuda_emulator_tma_load_multicast(uint32_t dst, const TensorMap* map, const int* at, uint32_t barrier, uint32_t ranks,
                                      const char* file, int line);
uint32_t cuda_emulator_cluster_rank();
void cuda_emulator_cluster_sync(const char* file, int line);
uint32_t cuda_emulator_cluster_address(uint32_t address, uint32_t rank, const char* file, int line);
void cuda_emulator_store_async(uint32_t dst, const int4* value, uint32_t barrier, const char* file, int line);
}

// --- barriers

EMULATED_INLINE void mbarrier_init(uint32_t barrier, uint32_t arrivals, EMULATED_SITE) {
    cuda_emulator_mbarrier_init(barrier, arrivals, file, line);
}
EMULATED_INLINE void mbarrier_init_fence() { cuda_emulator_mbarrier_init_fence(); }
EMULATED_INLINE void mbarrier_arrive(uint32_t barrier, EMULATED_SITE) {
    cuda_emulator_mbarrier_arrive(barrier, 0, file, line);
}
EMULATED_INLINE void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes, EMULATED_SITE) {
    cuda_emulator_mbarrier_arrive(barrier, bytes, file, line);
}
EMULATED_INLINE void mbarrier_wait(uint32_t barrier, uint32_t parity, EMULATED_SITE) {
    cuda_emulator_mbarrier_wait(barrier, parity, file, line);
}
EMULATED_INLINE void mbarrier_arrive_cluster(uint32_t barrier, EMULATED_SITE) {
    cuda_emulator_mbarrier_arrive_cluster(barrier, file, line);
}
EMULATED_INLINE void mbarrier_wait_cluster(uint32_t barrier, uint32_t parity, EMULATED_SITE) {
    cuda_emulator_mbarrier_wait_cluster(barrier, parity, file, line);
}
EMULATED_INLINE void proxy_fence() { cuda_emulator_proxy_fence(); }
// The emulated device has one view of global memory.
EMULATED_INLINE void proxy_fence_global() {}

// --- copies

EMULATED_INLINE void tma_load(uint32_t dst, const TensorMap* map, int x, int y, uint32_t barrier, EMULATED_SITE) {
    cuda_emulator_tma_load(dst, map, x, y, barrier, file, line);
}
EMULATED_INLINE void tma_load_multicast(uint32_t dst, const TensorMap* map, int x, int y, uint32_t barrier, uint32_t ranks,
                                        EMULATED_SITE) {
    int at[] = {x, y};
    cuda_emulator_tma_load_multicast(dst, map, at, barrier, ranks, file, line);
}
EMULATED_INLINE void tma_prefetch(const TensorMap*) {}
EMULATED_INLINE void tma_store(const TensorMap* map, int x, int y, uint32_t src, EMULATED_SITE) {
    cuda_emulator_tma_store(map, x, y, src, file, line);
}
EMULATED_INLINE void tma_store_commit() { cuda_emulator_tma_store_commit(); }
template <int N>
EMULATED_INLINE void tma_store_wait_read(EMULATED_SITE) {
    cuda_emulator_tma_store_wait(N, true, file, line);
}
template <int N>
EMULATED_INLINE void tma_store_wait(EMULATED_SITE) {
    cuda_emulator_tma_store_wait(N, false, file, line);
}
EMULATED_INLINE void bulk_load(uint32_t dst, const float* src, uint32_t bytes, uint32_t barrier, EMULATED_SITE) {
    cuda_emulator_bulk_load(dst, src, bytes, barrier, file, line);
}
EMULATED_INLINE void bulk_store(float* dst, uint32_t src, uint32_t bytes, EMULATED_SITE) {
    cuda_emulator_bulk_store(dst, src, bytes, file, line);
}
EMULATED_INLINE void bulk_reduce_add(float* dst, uint32_t src, uint32_t bytes, EMULATED_SITE) {
    cuda_emulator_bulk_reduce_add(dst, src, bytes, file, line);
}
EMULATED_INLINE void stmatrix_x4(uint32_t row, const uint32_t (&r)[4], EMULATED_SITE) {
    emulated::Stmatrix lane = {r, row};
    cuda_emulator_collective(emulated::STMATRIX, 0xffffffffu, &lane, file, line);
}

// --- clusters

EMULATED_INLINE uint32_t cluster_rank() { return cuda_emulator_cluster_rank(); }
EMULATED_INLINE void cluster_sync(EMULATED_SITE) { cuda_emulator_cluster_sync(file, line); }
EMULATED_INLINE uint32_t cluster_address(uint32_t address, uint32_t rank, EMULATED_SITE) {
    return cuda_emulator_cluster_address(address, rank, file, line);
}
EMULATED_INLINE void store_async(uint32_t dst, int4 value, uint32_t barrier, EMULATED_SITE) {
    cuda_emulator_store_async(dst, &value, barrier, file, line);
}

// --- registers: the emulated device has enough

template <int N>
EMULATED_INLINE void registers_decrease() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "registers come in eights, 24 to 256");
}
template <int N>
EMULATED_INLINE void registers_increase() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "registers come in eights, 24 to 256");
}

// --- MMAs of a warpgroup

EMULATED_INLINE void wgmma_fence(EMULATED_SITE) {
    cuda_emulator_collective(emulated::WGMMA_FENCE, 0xffffffffu, nullptr, file, line);
}
EMULATED_INLINE void wgmma_commit(EMULATED_SITE) {
    cuda_emulator_collective(emulated::WGMMA_COMMIT, 0xffffffffu, nullptr, file, line);
}
template <int N>
EMULATED_INLINE void wgmma_wait(EMULATED_SITE) {
    uint32_t groups_left = N;
    cuda_emulator_collective(emulated::WGMMA_WAIT, 0xffffffffu, &groups_left, file, line);
}

namespace emulated {
template <class T>
constexpr Op WGMMA_OF;
template <>
constexpr Op WGMMA_OF<bf16> = WGMMA_BF16;
template <>
constexpr Op WGMMA_OF<f16> = WGMMA_F16;
constexpr bool has_wgmma(int n) {
    return n == 8 || n == 16 || n == 32 || n == 64 || n == 80 || n == 96 || n == 128 || n == 256;
}
}  // namespace emulated
template <class T, bool ACROSS_A, bool ACROSS_B, int SUMS>
EMULATED_INLINE void wgmma(float (&d)[SUMS], uint64_t a, uint64_t b, bool accumulate, EMULATED_SITE) {
    static_assert(emulated::has_wgmma(2 * SUMS), "the shapes in hopper.cuh");
    emulated::Wgmma lane = {d, a, b, nullptr, 2 * SUMS, accumulate, ACROSS_A, ACROSS_B};
    cuda_emulator_collective(emulated::WGMMA_OF<T>, 0xffffffffu, &lane, file, line);
}
template <class T, bool ACROSS_B, int SUMS>
EMULATED_INLINE void wgmma_rs(float (&d)[SUMS], const uint32_t (&a)[4], uint64_t b, bool accumulate, EMULATED_SITE) {
    static_assert(emulated::has_wgmma(2 * SUMS), "the shapes in hopper.cuh");
    emulated::Wgmma lane = {d, 0, b, a, 2 * SUMS, accumulate, false, ACROSS_B};
    cuda_emulator_collective(emulated::WGMMA_OF<T>, 0xffffffffu, &lane, file, line);
}
