// What both directions of attention are made of: which block does what, and, for 16-bit floatX, tiles in shared memory and
// products with them on tensor cores.
//
// Every tensor-core kernel here has the same form. A block of four warps holds 64 M rows of one side (queries or keys), each
// warp 16 M of them: they are stationary. Tiles of the other side stream past through shared memory, copied one tile ahead
// of their use. There are two products: stationary rows times the transpose of a tile gives scores, whose fragments, rounded
// to floatX, are as they lie in registers the left operand of scores times a tile, summed up over all tiles. No score ever
// leaves the registers of its warp, so warps meet once a tile, for the copies.
//
// M = 2 where registers allow it: an ldmatrix then feeds four mma and not two, and two are what shared memory can keep up
// with on an A100.
#pragma once
#include "common.cuh"

namespace attention {

constexpr int THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// --- which block does what

// One head of one sequence, and the place of a tile of it in the order of work.
struct Work {
    int head;  // b * NH + h
    int rank;
};

// Blocks start in the order of their index. Of a group of heads, whose keys and values the L2 cache can hold, those with most
// to do (rank 0) come first, so that none of them is left running alone at the end.
__device__ __forceinline__ Work work_of_block(int tiles) {
    constexpr int GROUP = 32;
    int heads = (int)gridDim.x / tiles;
    int group = (int)blockIdx.x / (GROUP * tiles), place = (int)blockIdx.x % (GROUP * tiles);
    int size = min(GROUP, heads - group * GROUP);
    return {group * GROUP + place % size, place / size};
}

// Where the queries of a head are in qkv (B, T, 3, NH, HS); keys and values follow C and 2 C further on.
__device__ __forceinline__ size_t offset_in_qkv(int head, int T, int NH, int HS) {
    return (size_t)(head / NH) * T * (3 * NH * HS) + head % NH * HS;
}
// Where a head is in out (B, T, NH, HS).
__device__ __forceinline__ size_t offset_in_out(int head, int T, int NH, int HS) {
    return (size_t)(head / NH) * T * (NH * HS) + head % NH * HS;
}

// The backward pass reads for each row of scores two numbers: log2(e) lse, and delta, the sum of dout * out. They are side by
// side, and a head has room for an even number of rows, so that 16 bytes are two rows.
__device__ __forceinline__ size_t offset_in_stats(int head, int T) { return (size_t)head * (T + T % 2) * 2; }

// --- tiles of HS columns in shared memory

// Byte offset of 8 elements of a tile. A row is HS / 8 such chunks without padding; chunks change places within the row so
// that the same chunk of eight rows side by side is in all 32 banks once.
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

// Starts to copy `ROWS` rows, `stride` elements apart; those from `valid` on (at least the first is) become zeros.
template <int HS, int ROWS>
__device__ __forceinline__ void load_tile(uint32_t tile, const floatX* src, int stride, int valid) {
    constexpr unsigned CHUNKS = HS / 8;
#pragma unroll
    for (unsigned i = 0; i < ROWS * CHUNKS; i += THREADS) {
        unsigned place = i + threadIdx.x, row = place / CHUNKS, chunk = place % CHUNKS;
        if (ROWS * CHUNKS % THREADS != 0 && place >= ROWS * CHUNKS) break;
        bool there = (int)row < valid;
        int offset = there ? (int)row * stride : 0;
        cp_async16(tile + tile_offset<HS>(row, chunk), src + offset + chunk * 8, there ? 16 : 0);
    }
}

// --- fragments

// 16 M rows and N columns of f32, as mma_m16n8k16 leaves them: v[m][n][i] is row 16 m + lane / 4 + 8 (i / 2), column
// 8 n + 2 (lane % 4) + i % 2.
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

// The 16 M rows of a tile that a warp multiplies again and again: held in registers (KEEP), or read every time. The first of
// them is at `address`, a multiple of 16 rows of the tile.
template <int HS, int M, bool KEEP>
struct StationaryRows {
    uint32_t address;
    uint32_t kept[KEEP ? HS / 16 : 1][M][4];

    __device__ __forceinline__ explicit StationaryRows(uint32_t address) : address(address) {}
    // To be called once they have arrived.
    __device__ __forceinline__ void keep() {
        if constexpr (KEEP) {
#pragma unroll
            for (int k = 0; k < HS / 16; k++) read(kept[k], k);
        }
    }
    // Columns 16 k to 16 k + 15, as the left operand.
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

// scores = rows * transpose of N rows of a tile
template <int HS, int M, int N, bool KEEP>
__device__ __forceinline__ void multiply_transposed(Sums<M, N>& scores, const StationaryRows<HS, M, KEEP>& rows,
                                                    uint32_t tile) {
    unsigned lane = threadIdx.x % WARP_SIZE;
    scores.clear();
    // All of it unrolled would keep so many addresses in registers that others spill.
#pragma unroll (KEEP ? HS / 16 : 2)
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

// Scores of keys after the query become -inf. Queries are the rows or the columns; `ahead` is the first one minus the first
// key.
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

// Stores sums, rounded, by way of a warp's 16 M rows of a tile that nobody needs any more, so that each access is of 128
// bits. Of the rows of dst, `stride` elements apart, those before `valid` exist.
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

// --- f32: plain FMA, nothing is rounded

// Threads that share a row of HS numbers; each has every LANES-th float4 of it.
constexpr int LANES = 4;
constexpr int F32_ROWS = THREADS / LANES;
// Rows of a tile of the other side.
constexpr int F32_TILE = 32;

// A thread's part of a row.
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
    // The product with a row in shared memory; every thread of the row gets it.
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
