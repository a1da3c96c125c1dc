// Common parts of attention on Hopper, in both directions: tiles of a head in shared memory, and
// products with them.
//
// wgmma reads rows of at most 128 bytes, 64 columns, which is also the widest box that the TMA
// swizzles. So a tile consists of parts: as many of 64 columns as fit into a head, then one of the
// remaining columns, in a swizzle of just their width. A head of 80 is 64 + 16, one of 96 is 64 +
// 32, one of 128 is 64 + 64. The parts lie one after the other, each with all rows of the tile.
//
// A warpgroup has 64 rows of one side, queries or keys. Scores are sums of wgmma, and, rounded to
// floatX, they are the left operand of the next wgmma without leaving their registers.
#pragma once
#include "attention_softmax.cuh"
#include "hopper.cuh"

namespace attention_hopper {
// The maps of a matrix whose rows hold heads next to each other: with boxes for wide parts, and
// with boxes for the remaining columns (unused where a head has none).
struct HeadMaps {
    const TensorMap *wide, *rest;
};

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)
using namespace attention;

constexpr int WARPGROUP = 128;
// Rows of a warpgroup, and columns of a wide part.
constexpr int ROWS = 64, WIDE_COLUMNS = 64;

// A tile of COUNT rows of a head.
template <int HS, int COUNT>
struct Tile {
    static constexpr int BYTES = COUNT * HS * 2;
    static constexpr int WIDE_PARTS = HS / WIDE_COLUMNS, REST = HS % WIDE_COLUMNS;
    static constexpr int PARTS = WIDE_PARTS + (REST > 0 ? 1 : 0);
    static constexpr int WIDE_BYTES = COUNT * WIDE_COLUMNS * 2;
    static constexpr int REST_ROW_BYTES = REST * 2;

    uint32_t address;  // a multiple of 1,024

    // Copies the rows from `row` on of the head that starts at `column`. The boxes of the maps have
    // COUNT rows. BYTES arrive at the barrier. Rows past the end of the matrix become zeros.
    __device__ __forceinline__ void load(const HeadMaps& maps, int column, int row, uint32_t barrier) const {
#pragma unroll
        for (int part = 0; part < WIDE_PARTS; part++)
            tma_load(address + part * WIDE_BYTES, maps.wide, column + part * WIDE_COLUMNS, row, barrier);
        if constexpr (REST > 0)
            tma_load(address + WIDE_PARTS * WIDE_BYTES, maps.rest, column + WIDE_PARTS * WIDE_COLUMNS, row, barrier);
    }

    // Columns 16 k to 16 k + 15 of the rows from `row` on, a multiple of 8: rows run along K.
    __device__ __forceinline__ uint64_t columns(int row, int k) const {
        const int part = k / (WIDE_COLUMNS / 16), in_part = k % (WIDE_COLUMNS / 16) * 32;
        if constexpr (REST > 0) {
            if (part == WIDE_PARTS)
                return further(matrix_descriptor<REST_ROW_BYTES>(address, UNUSED),
                               part * WIDE_BYTES + in_part + row * REST_ROW_BYTES);
        }
        return further(matrix_descriptor<128>(address, UNUSED), part * WIDE_BYTES + in_part + row * 128);
    }
    // All wide parts, or the remaining columns, of 16 rows: rows run across K.
    __device__ __forceinline__ uint64_t wide_rows(int row) const {
        return further(matrix_descriptor<128>(address, WIDE_BYTES), row * 128);
    }
    __device__ __forceinline__ uint64_t rest_rows(int row) const {
        return further(matrix_descriptor<REST_ROW_BYTES>(address, UNUSED), WIDE_PARTS * WIDE_BYTES + row * REST_ROW_BYTES);
    }

    // The address of 8 elements. In rows of ROW_BYTES, the 16-byte chunk c of line l, 128 bytes, is
    // at chunk c ^ (l % (ROW_BYTES / 16)).
    __device__ __forceinline__ uint32_t chunk(int row, int chunk) const {
        constexpr int WIDE_CHUNKS = WIDE_COLUMNS / 8;
        const int part = chunk / WIDE_CHUNKS;
        const uint32_t start = address + part * WIDE_BYTES;
        if constexpr (REST > 0) {
            if (part == WIDE_PARTS) return start + swizzled<REST / 8>(row, chunk % WIDE_CHUNKS);
        }
        return start + swizzled<WIDE_CHUNKS>(row, chunk % WIDE_CHUNKS);
    }

   private:
    template <int CHUNKS>
    static __device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
        const int line = row * CHUNKS / 8, in_line = row * CHUNKS % 8 + chunk;
        return line * 128 + (in_line ^ line % CHUNKS) * 16;
    }

    static constexpr uint32_t UNUSED = 16;
    // The descriptor of a place further on. Its low half has the address, and does not overflow.
    static __device__ __forceinline__ uint64_t further(uint64_t descriptor, uint32_t bytes) {
        return (descriptor & 0xffffffff00000000) | ((uint32_t)descriptor + (bytes >> 4));
    }
};

// The sums of a warpgroup: 64 x N, 16 rows per warp.
template <int N>
using WarpgroupSums = Sums<1, N>;
// The left operand in registers: 64 x K.
template <int K>
using Weights = uint32_t[K / 16][4];

// Some columns of sums, and the same as wgmma takes them.
template <int FIRST, int COLUMNS, int N>
__device__ __forceinline__ WarpgroupSums<COLUMNS>& columns_of(WarpgroupSums<N>& sums) {
    return reinterpret_cast<WarpgroupSums<COLUMNS>&>(sums.v[0][FIRST / 8]);
}
template <int FIRST, int COLUMNS, int N>
__device__ __forceinline__ float (&registers_of(WarpgroupSums<N>& sums))[COLUMNS / 2] {
    return reinterpret_cast<float(&)[COLUMNS / 2]>(sums.v[0][FIRST / 8]);
}

// Queues scores = 64 rows of a tile, from `row` on, * transpose of N rows of another, from `other`
// on.
template <int HS, int COUNT, int OTHERS, int N>
__device__ __forceinline__ void multiply_transposed(WarpgroupSums<N>& scores, Tile<HS, COUNT> rows, int row,
                                                    Tile<HS, OTHERS> others, int other = 0) {
#pragma unroll
    for (int k = 0; k < HS / 16; k++)
        wgmma<floatX, false, false>(registers_of<0, N>(scores), rows.columns(row, k), others.columns(other, k), k > 0);
    wgmma_commit();
}

// The same for a warp's 16 rows, without the other warps, and done at the end: for what happens
// rarely.
template <int HS, int COUNT, int N>
__device__ __forceinline__ void multiply_transposed_by_warp(WarpgroupSums<N>& scores, Tile<HS, COUNT> rows, int row,
                                                            Tile<HS, N> others) {
    const int lane = threadIdx.x % WARP_SIZE;
    scores.clear();
#pragma unroll 1
    for (int k = 0; k < HS / 16; k++) {
        uint32_t a[4];
        ldmatrix_x4(a, rows.chunk(row + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t b[4];
            ldmatrix_x4(b, others.chunk(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            mma_m16n8k16<floatX>(scores.v[0][2 * n], a, b[0], b[1]);
            mma_m16n8k16<floatX>(scores.v[0][2 * n + 1], a, b[2], b[3]);
        }
    }
}

// Queues sums = weights * K rows of a tile, from `row` on; or sums += that, if `accumulate`.
template <int K, int HS, int COUNT>
__device__ __forceinline__ void add_product(WarpgroupSums<HS>& sums, const Weights<K>& weights, Tile<HS, COUNT> tile,
                                            bool accumulate, int row = 0) {
    constexpr int WIDE = HS / WIDE_COLUMNS * WIDE_COLUMNS, REST = HS % WIDE_COLUMNS;
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        wgmma_rs<floatX, true>(registers_of<0, WIDE>(sums), weights[k], tile.wide_rows(row + 16 * k), accumulate || k > 0);
        if constexpr (REST > 0)
            wgmma_rs<floatX, true>(registers_of<WIDE, REST>(sums), weights[k], tile.rest_rows(row + 16 * k), accumulate || k > 0);
    }
    wgmma_commit();
}

// Rounds scores to the left operand of add_product.
template <int N>
__device__ __forceinline__ void round(Weights<N>& weights, const WarpgroupSums<N>& scores) {
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            weights[n / 2][n % 2 * 2 + i] = pack2<floatX>(scores.v[0][n][2 * i], scores.v[0][n][2 * i + 1]);
}

// Stores a warp's 16 rows of sums, rounded, through 16 rows of shared memory that no other warp
// uses, so that each access has 128 bits. Rows of dst are `stride` elements apart; the first
// `valid` exist.
template <int HS>
__device__ __forceinline__ void store_warp_rows(floatX* dst, int stride, int valid, const WarpgroupSums<HS>& sums,
                                                uint32_t place, const unsigned char* rows) {
    constexpr unsigned CHUNKS = HS / 8;
    const unsigned lane = threadIdx.x % WARP_SIZE;
    // The last use of these rows.
    __syncwarp();
#pragma unroll
    for (int n = 0; n < HS / 16; n++) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float* pair = &sums.v[0][2 * n + i / 2][i % 2 * 2];
            words[i] = pack2<floatX>(pair[0], pair[1]);
        }
        stmatrix_x4(place + tile_offset<HS>(lane % 16, 2 * n + lane / 16), words);
    }
    __syncwarp();
#pragma unroll
    for (unsigned i = 0; i < 16 * CHUNKS; i += WARP_SIZE) {
        const unsigned row = (i + lane) / CHUNKS, chunk = (i + lane) % CHUNKS;
        if ((int)row < valid) store_u128(dst + (int)(row * stride + chunk * 8), load_u128(rows + tile_offset<HS>(row, chunk)));
    }
}
#endif
}  // namespace attention_hopper
