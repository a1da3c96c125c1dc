// Common parts of both directions of attention: the assignment of work to blocks and, for 16-bit
// floatX, tiles in shared memory and tensor-core products with them.
//
// Every tensor-core kernel here has the same form. A block of four warps holds 64 M rows of one
// side (queries or keys), 16 M per warp: they are stationary. Tiles of the other side stream
// through shared memory, copied one tile ahead of their use. There are two products. Stationary
// rows times the transpose of a tile give scores. Their fragments, rounded to floatX, are already
// laid out in registers as the left operand of the second product, scores times a tile, which is
// summed over all tiles. Scores never leave the registers of their warp, so warps synchronize only
// once per tile, for the copies.
//
// M = 2 where registers allow it: an ldmatrix then feeds four mma instead of two, and two are the
// limit of what shared memory can sustain on an A100.
#pragma once
#include "common.cuh"

namespace attention {

constexpr int THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// --- assignment of work to blocks

// One head of one sequence, and the rank of one of its tiles in the order of work.
struct Work {
    int head;  // b * NH + h
    int rank;
};

// Work is numbered in the order in which it starts. Within a group of heads whose keys and values
// fit in the L2 cache, those with the most work (rank 0) come first, so that none of them is left
// running alone at the end.
__device__ __forceinline__ Work work_of_number(int number, int heads, int tiles) {
    constexpr int GROUP = 32;
    int group = number / (GROUP * tiles), place = number % (GROUP * tiles);
    int size = min(GROUP, heads - group * GROUP);
    return {group * GROUP + place % size, place / size};
}
// Blocks start in the order of their index.
__device__ __forceinline__ Work work_of_block(int tiles) {
    return work_of_number((int)blockIdx.x, (int)gridDim.x / tiles, tiles);
}

// Offset of a head's queries in qkv (B, T, 3, NH, HS); its keys and values follow at C and 2 C.
__device__ __forceinline__ size_t offset_in_qkv(int head, int T, int NH, int HS) {
    return (size_t)(head / NH) * T * (3 * NH * HS) + head % NH * HS;
}
// Offset of a head in out (B, T, NH, HS).
__device__ __forceinline__ size_t offset_in_out(int head, int T, int NH, int HS) {
    return (size_t)(head / NH) * T * (NH * HS) + head % NH * HS;
}

// The backward pass reads two numbers per row of scores: log2(e) lse, and delta, the sum of dout *
// out. They are adjacent, and a head has room for an even number of rows, so that 16 bytes hold two
// rows.
__device__ __forceinline__ size_t offset_in_stats(int head, int T) { return (size_t)head * (T + T % 2) * 2; }

// --- tiles of HS columns in shared memory

// Byte offset of 8 elements of a tile. A row consists of HS / 8 such chunks without padding; chunks
// are permuted within the row so that the same chunk of eight adjacent rows covers all 32 banks
// exactly once.
template <int HS>
__device__ __forceinline__ uint32_t tile_offset(unsigned row, unsigned chunk) {
    constexpr unsigned CHUNKS = HS / 8;
    constexpr unsigned PLACES = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    static_assert(HS % 16 == 0 && (PLACES == 8 || CHUNKS / PLACES % 2 == 1), "free of bank conflicts");
    return (row * CHUNKS + (chunk ^ (row / (8 / PLACES) % PLACES))) * 16;
}

template <int HS>
__host__ __device__ constexpr int tile_bytes(int rows) {
    return rows * HS * 2;
}

// Starts to copy `ROWS` rows, `stride` elements apart; those from `valid` on (at least 1) become
// zeros. `thread` counts the block's THREADS threads.
template <int HS, int ROWS, int THREADS = attention::THREADS>
__device__ __forceinline__ void load_tile(uint32_t tile, const floatX* src, int stride, int valid,
                                          unsigned thread = threadIdx.x) {
    constexpr unsigned CHUNKS = HS / 8;
#pragma unroll
    for (unsigned i = 0; i < ROWS * CHUNKS; i += THREADS) {
        unsigned place = i + thread, row = place / CHUNKS, chunk = place % CHUNKS;
        if (ROWS * CHUNKS % THREADS != 0 && place >= ROWS * CHUNKS) break;
        bool there = (int)row < valid;
        int offset = there ? (int)row * stride : 0;
        cp_async16(tile + tile_offset<HS>(row, chunk), src + offset + chunk * 8, there ? 16 : 0);
    }
}

// --- fragments

// 16 M rows and N columns of f32 in the layout of mma_m16n8k16: v[m][n][i] is row 16 m + lane / 4 +
// 8 (i / 2), column 8 n + 2 (lane % 4) + i % 2.
template <int M, int N>
struct Sums {
    float v[M][N / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (auto& rows : v)
#pragma unroll
            for (auto& columns : rows)
#pragma unroll
                for (float& sum : columns) sum = 0.0f;
    }
    __device__ __forceinline__ void scale(float factor) {
#pragma unroll
        for (auto& rows : v)
#pragma unroll
            for (auto& columns : rows)
#pragma unroll
                for (float& sum : columns) sum *= factor;
    }
};

// The 16 M rows of a tile that a warp multiplies repeatedly: held in registers (KEEP), or read
// every time. The first of them is at `address`, a multiple of 16 rows of the tile.
template <int HS, int M, bool KEEP>
struct StationaryRows {
    uint32_t address;
    uint32_t kept[KEEP ? HS / 16 : 1][M][4];

    __device__ __forceinline__ explicit StationaryRows(uint32_t address) : address(address) {}
    // Must be called once they have arrived.
    __device__ __forceinline__ void keep() {
        if constexpr (KEEP) {
#pragma unroll
            for (int k = 0; k < HS / 16; k++) read(kept[k], k);
        }
    }
    // Returns columns 16 k to 16 k + 15, as the left operand.
    __device__ __forceinline__ void get(uint32_t (&a)[M][4], int k) const {
        if constexpr (KEEP) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) a[m][i] = kept[k][m][i];
        } else {
            read(a, k);
        }
    }

   private:
    __device__ __forceinline__ void read(uint32_t (&a)[M][4], int k) const {
        unsigned lane = threadIdx.x % WARP_SIZE;
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix_x4(a[m], address + tile_offset<HS>(16 * m + lane % 16, 2 * k + lane / 16));
    }
};

// scores = rows * transpose of N rows of a tile. Fully unrolled, it would keep so many addresses in
// registers that others spill, in most kernels.
template <int HS, int M, int N, bool KEEP, int UNROLL = KEEP ? HS / 16 : 2>
__device__ __forceinline__ void multiply_transposed(Sums<M, N>& scores, const StationaryRows<HS, M, KEEP>& rows,
                                                    uint32_t tile) {
    unsigned lane = threadIdx.x % WARP_SIZE;
    scores.clear();
#pragma unroll (UNROLL)
    for (int k = 0; k < HS / 16; k++) {
        uint32_t a[M][4];
        rows.get(a, k);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t b[4];
            ldmatrix_x4(b, tile + tile_offset<HS>(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16<floatX>(scores.v[m][2 * n], a[m], b[0], b[1]);
                mma_m16n8k16<floatX>(scores.v[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Sets the scores of keys after the query to -inf. Queries are the rows or the columns; `ahead` is
// the first query minus the first key.
template <bool ROWS_ARE_QUERIES, int M, int N>
__device__ __forceinline__ void hide_later_keys(Sums<M, N>& scores, int ahead) {
    int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = 16 * m + lane / 4 + 8 * (i / 2), column = 8 * n + lane % 4 * 2 + i % 2;
                int query = ROWS_ARE_QUERIES ? row : column, key = ROWS_ARE_QUERIES ? column : row;
                if (key > query + ahead) scores.v[m][n][i] = -INFINITY;
            }
}

// sums += weights, rounded to floatX, * N rows of a tile
template <int HS, int M, int N>
__device__ __forceinline__ void add_product(Sums<M, HS>& sums, const Sums<M, N>& weights, uint32_t tile) {
    unsigned lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                auto& w = weights.v[m][2 * k + i / 2];
                a[m][i] = pack2<floatX>(w[i % 2 * 2], w[i % 2 * 2 + 1]);
            }
#pragma unroll
        for (int n = 0; n < HS / 16; n++) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, tile + tile_offset<HS>(16 * k + lane % 16, 2 * n + lane / 16));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16<floatX>(sums.v[m][2 * n], a[m], b[0], b[1]);
                mma_m16n8k16<floatX>(sums.v[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Stores sums, rounded, through a warp's 16 M rows of a tile that is no longer needed, so that each
// access has 128 bits. Rows of dst are `stride` elements apart; the first `valid` exist.
template <int HS, int M>
__device__ __forceinline__ void store_rows(floatX* dst, int stride, int valid, const Sums<M, HS>& sums,
                                           unsigned char* rows) {
    constexpr unsigned CHUNKS = HS / 8;
    unsigned lane = threadIdx.x % WARP_SIZE;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned char* chunk = rows + tile_offset<HS>(16 * m + 8 * i + lane / 4, n);
                uint32_t pair = pack2<floatX>(sums.v[m][n][2 * i], sums.v[m][n][2 * i + 1]);
                *reinterpret_cast<uint32_t*>(chunk + lane % 4 * 4) = pair;
            }
    __syncwarp();
#pragma unroll
    for (unsigned i = 0; i < 16 * M * CHUNKS; i += WARP_SIZE) {
        unsigned row = (i + lane) / CHUNKS, chunk = (i + lane) % CHUNKS;
        if ((int)row < valid) store_u128(dst + (size_t)row * stride + chunk * 8, load_u128(rows + tile_offset<HS>(row, chunk)));
    }
}

// --- f32: plain FMA, without rounding

// Threads that share a row of HS elements; each has every LANES-th float4 of it.
constexpr int LANES = 4;
constexpr int F32_ROWS = THREADS / LANES;
// Rows per tile of the other side.
constexpr int F32_TILE = 32;

// A thread's share of a row.
template <int HS>
struct Slice {
    static constexpr int COUNT = HS / (4 * LANES);
    Pack<float> part[COUNT];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (auto& p : part) p = Pack<float>{};
    }
    __device__ __forceinline__ void load(const float* row) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) part[i] = load128(row + 4 * (threadIdx.x % LANES + i * LANES));
    }
    __device__ __forceinline__ void store(float* row) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) store128(row + 4 * (threadIdx.x % LANES + i * LANES), part[i]);
    }
    // The dot product with a row in shared memory; every thread of the row gets it.
    __device__ __forceinline__ float dot(const float* row) const {
        Slice other;
        other.load(row);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum += part[i].v[j] * other.part[i].v[j];
#pragma unroll
        for (int offset = 1; offset < LANES; offset *= 2) sum += __shfl_xor_sync(FULL_MASK, sum, offset);
        return sum;
    }
    // this += factor * a row in shared memory
    __device__ __forceinline__ void add(float factor, const float* row) {
        Slice other;
        other.load(row);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) part[i].v[j] += factor * other.part[i].v[j];
    }
    __device__ __forceinline__ void scale(float factor) {
#pragma unroll
        for (auto& p : part)
#pragma unroll
            for (float& x : p.v) x *= factor;
    }
};

// Copies F32_TILE rows to shared memory; those from `valid` on become zeros.
template <int HS>
__device__ __forceinline__ void load_tile_f32(float* tile, const float* src, int stride, int valid) {
    for (int i = threadIdx.x; i < F32_TILE * (HS / 4); i += THREADS) {
        int row = i / (HS / 4), column = i % (HS / 4) * 4;
        store128(tile + row * HS + column, row < valid ? load128(src + (size_t)row * stride + column) : Pack<float>{});
    }
}

}  // namespace attention
