// The fix-up of matmul_hopper.cuh: runs that end inside a tile hand their sums to a later one.
#pragma once
#include "matmul_hopper.cuh"

namespace matmul_hopper {

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

// The sums of unfinished tiles: for every run, every block of its cluster and every 16 rows, as the
// lanes hold them. The last piece has the sums of A's rows.
template <class Block>
struct Partials {
    static constexpr int WARPS = Block::BM / 16, PIECES = BN / 8 + 1;
    const Problem& problem;
    const int row_warp, rank;

    __device__ __forceinline__ int slot(int run) const { return (run * Block::BLOCKS + rank) * WARPS + row_warp; }
    __device__ __forceinline__ float* piece(int run, int i) const {
        const int lane = threadIdx.x % WARP_SIZE;
        return problem.partials + (((size_t)slot(run) * PIECES + i) * WARP_SIZE + lane) * 4;
    }

    // Leaves sums to the run that finishes the tile.
    __device__ __forceinline__ void store(const float (&sums)[BN / 2], const float (&row_sums)[4], bool with_row_sums, int run,
                                          bool leader) const {
#pragma unroll
        for (int i = 0; i < BN / 8; i++) store4(piece(run, i), &sums[i * 4]);
        if (with_row_sums) store4(piece(run, BN / 8), row_sums);
        __syncwarp();
        if (leader) flag_raise(problem.flags + slot(run));
    }
    // Adds the sums of the `earlier` runs before `run`, in order. A quarter of the tile at a time:
    // there are not enough registers to load all.
    __device__ __forceinline__ void add(float (&sums)[BN / 2], float (&row_sums)[4], bool with_row_sums, int run, int earlier,
                                        bool leader) const {
        constexpr int PART = BN / 32;
        if (leader) {
            for (int i = run - earlier; i < run; i++) flag_wait(problem.flags + slot(i));
        }
        __syncwarp();
#pragma unroll
        for (int part = 0; part < BN / 8; part += PART) {
#pragma unroll 1
            for (int from = run - earlier; from < run; from++) {
#pragma unroll
                for (int i = part; i < part + PART; i++) add4(&sums[i * 4], piece(from, i));
            }
        }
        if (with_row_sums) {
            for (int from = run - earlier; from < run; from++) add4(row_sums, piece(from, BN / 8));
        }
    }
    // A store128 would copy all sums to other registers, and ptxas would then serialize the wgmmas.
    static __device__ __forceinline__ void store4(float* to, const float* four) {
        *reinterpret_cast<float4*>(to) = make_float4(four[0], four[1], four[2], four[3]);
    }
    static __device__ __forceinline__ void add4(float* four, const float* from) {
        const float4 other = *reinterpret_cast<const float4*>(from);
        four[0] += other.x, four[1] += other.y, four[2] += other.z, four[3] += other.w;
    }
};
#endif
}  // namespace matmul_hopper
