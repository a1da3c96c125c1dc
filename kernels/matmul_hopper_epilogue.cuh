// The epilogue of matmul_hopper.cuh: sums leave through shared memory.
//
// A warp has slabs of 16 rows x 64 columns, in the layout of the TMA: it writes its rounded sums
// there by stmatrix, and one lane starts the store, which drains under the next tile's main loop.
// An extra operand arrives in the same slabs, requested during the main loop. Warps do not wait for
// each other.
#pragma once
#include "matmul_hopper.cuh"

namespace matmul_hopper {

// The arrays of the epilogue.
struct Arrays {
    const TensorMap* out;
    const TensorMap* kept;   // null if absent, like all below
    const TensorMap* extra;  // same shape as out
    const floatX* bias;      // (N)
    floatX* row_sums;        // (M): the sums over K of A's rows are added to it
};

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

// The columns of the bias that a lane needs, in pairs, as wgmma leaves the sums. One half of the
// tile is loaded before the main loop and the other one after it: there are not enough registers
// for both.
struct Bias {
    uint32_t pairs[BN / 8];

    __device__ __forceinline__ void load(int half, const floatX* bias, int n, int N) {
        const int column = n + threadIdx.x % 4 * 2;
#pragma unroll
        for (int i = half * BN / 16; i < (half + 1) * BN / 16; i++) {
            pairs[i] = 0;
            if (bias != nullptr && column + i * 8 < N) pairs[i] = *reinterpret_cast<const uint32_t*>(bias + column + i * 8);
        }
    }
    // The bias of 16 columns, twice for the two rows of a lane.
    __device__ __forceinline__ PackX columns(int sixteen) const {
        const uint32_t left = pairs[sixteen * 2], right = pairs[sixteen * 2 + 1];
        return unpack_bits<floatX>({left, left, right, right});
    }
};

// A consumer warp's slabs.
template <class Block>
struct Slabs {
    static constexpr int SLABS = Block::SLABS;
    const Block& block;
    const Arrays& arrays;
    const int warp;
    const bool leader;
    const uint32_t start;
    // A lane's 16 bytes of the first 16 columns, for ldmatrix and stmatrix: row l % 16 and chunk
    // l / 16.
    const uint32_t place;
    int loads = 0;  // slabs that got an extra operand so far

    __device__ __forceinline__ Slabs(const Block& block, const Arrays& arrays, int warp, bool leader)
        : block(block), arrays(arrays), warp(warp), leader(leader), start(block.slabs + warp * SLABS * SLAB_BYTES),
          place(start + lane_offset()) {}

    static __device__ __forceinline__ uint32_t lane_offset() {
        const int lane = threadIdx.x % WARP_SIZE, row = lane % 16, chunk = lane / 16;
        return row * ROW_BYTES + (chunk ^ row % 8) * 16;
    }

    // Requests the extra operand for all slabs, from row m and column n on, once the stores from
    // them have read them. Run by the leader.
    __device__ __forceinline__ void request(int m, int n) const {
        tma_store_wait_read<0>();
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++) {
            const uint32_t loaded = block.loaded(warp, slab);
            mbarrier_arrive_expect(loaded, SLAB_BYTES);
            tma_load(start + slab * SLAB_BYTES, arrays.extra, n + slab * SLAB_COLUMNS, m, loaded);
        }
    }

    // Finishes a warp's 16 x 256 sums and starts their stores, as many slabs at a time as it has.
    template <class Epilogue>
    __device__ __forceinline__ void store(const float (&sums)[BN / 2], const Bias& bias, int m, int n) {
        constexpr int OUTPUTS = Epilogue::KEEPS ? 2 : 1, GROUP = SLABS / OUTPUTS;
#pragma unroll
        for (int first = 0; first < TILE_SLABS; first += GROUP) {
            if constexpr (!Epilogue::EXTRA) {
                if (leader) tma_store_wait_read<0>();
                __syncwarp();
            }
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                if constexpr (Epilogue::EXTRA) {
                    mbarrier_wait(block.loaded(warp, i), (loads + first) / SLABS & 1);
                    __syncwarp();
                }
                finish_slab<Epilogue>(sums, bias, first + i, i * OUTPUTS);
            }
            proxy_fence();
            __syncwarp();
            if (!leader) continue;
#pragma unroll
            for (int i = 0; i < GROUP; i++) {
                const int column = n + (first + i) * SLAB_COLUMNS;
                tma_store(arrays.out, column, m, start + i * OUTPUTS * SLAB_BYTES);
                if constexpr (Epilogue::KEEPS) tma_store(arrays.kept, column, m, start + (i * OUTPUTS + 1) * SLAB_BYTES);
            }
            tma_store_commit();
            if constexpr (Epilogue::EXTRA && GROUP < TILE_SLABS) {
                if (first + GROUP < TILE_SLABS) request(m, n + (first + GROUP) * SLAB_COLUMNS);
            }
        }
        if constexpr (Epilogue::EXTRA) loads += TILE_SLABS;
    }
    // Finishes the columns of a slab. What is kept goes to the next slab.
    template <class Epilogue>
    __device__ __forceinline__ void finish_slab(const float (&sums)[BN / 2], const Bias& bias, int number, int slab) const {
        static_assert(Epilogue::WIDTH == 8);
#pragma unroll
        for (int sixteen = 0; sixteen < SLAB_COLUMNS / 16; sixteen++) {
            const uint32_t at = (place + slab * SLAB_BYTES) ^ sixteen * 32;
            const int i = number * 4 + sixteen;
            float piece[8];
#pragma unroll
            for (int e = 0; e < 8; e++) piece[e] = sums[i * 8 + e];
            PackX extra = {}, kept = {};
            if constexpr (Epilogue::EXTRA) extra = load_matrices(at);
            store_matrices(at, Epilogue::finish(piece, bias.columns(i), extra, kept));
            if constexpr (Epilogue::KEEPS) store_matrices(at + SLAB_BYTES, kept);
        }
    }
    static __device__ __forceinline__ PackX load_matrices(uint32_t at) {
        uint32_t words[4];
        ldmatrix_x4(words, at);
        return unpack_bits<floatX>({words[0], words[1], words[2], words[3]});
    }
    static __device__ __forceinline__ void store_matrices(uint32_t at, const PackX& pack) {
        const uint4 bits = pack_bits(pack);
        stmatrix_x4(at, {bits.x, bits.y, bits.z, bits.w});
    }
};

// Adds the sums of A's rows; all their columns are equal.
__device__ __forceinline__ void add_row_sums(floatX* to, const float (&row_sums)[4], int m, int M) {
    const int lane = threadIdx.x % WARP_SIZE;
    if (lane % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = m + half * 8 + lane / 4;
        if (row < M) to[row] = from_f32<floatX>(to_f32(to[row]) + row_sums[half * 2]);
    }
}
#endif
}  // namespace matmul_hopper
