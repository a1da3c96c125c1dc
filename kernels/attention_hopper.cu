// Causal attention for Hopper, backward, 16-bit floatX, heads of 64: tiles come by TMA, warpgroups
// multiply them. The formulas, and why there are two large kernels, are in attention_backward.cu.
//
// A warpgroup has 64 rows of one side (queries or keys), which stay in shared memory. Tiles of 64
// rows of the other side stream through a ring of three stages, requested two tiles ahead. Scores
// are sums of wgmma, and, rounded to floatX, they are the left operand of the next wgmma without
// leaving their registers. The scores of the next tile are queued together with the products of
// this one, so that the tensor cores do not wait for the softmax.
//
// Registers allow four warpgroups per SM for a pass over keys and three for the one over queries,
// which has two sums.
#include "attention.cuh"
#include "hopper.cuh"

namespace attention_hopper {
#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)
using namespace attention;

constexpr int HS = 64, ROWS = 64, WARPGROUP = 128, STAGES = 3;
constexpr uint32_t TILE = tile_bytes<HS>(ROWS);

// 64 x 64 sums of a warpgroup: 16 rows per warp.
using Scores = Sums<1, ROWS>;
using Weights = uint32_t[ROWS / 16][4];

__device__ __forceinline__ float (&registers_of(Scores& sums))[32] { return reinterpret_cast<float(&)[32]>(sums.v); }

// Queues scores = the 64 rows at `rows` * transpose of a tile.
__device__ __forceinline__ void multiply_transposed(Scores& scores, uint32_t rows, uint32_t tile) {
    // Rows along K need no distance to the next 64 elements across.
    constexpr uint32_t UNUSED = 16;
#pragma unroll
    for (int k = 0; k < HS / 16; k++)
        wgmma<floatX, false, false>(registers_of(scores), matrix_descriptor(rows + 32 * k, UNUSED),
                                    matrix_descriptor(tile + 32 * k, UNUSED), k > 0);
    wgmma_commit();
}

// Queues sums += weights * a tile.
__device__ __forceinline__ void add_product(Scores& sums, const Weights& weights, uint32_t tile) {
#pragma unroll
    for (int k = 0; k < ROWS / 16; k++)
        wgmma_rs<floatX, true>(registers_of(sums), weights[k], matrix_descriptor(tile + 16 * k * HS * 2, TILE), true);
    wgmma_commit();
}

// Rounds scores to the left operand of add_product.
__device__ __forceinline__ void round(Weights& weights, const Scores& scores) {
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            weights[n / 2][n % 2 * 2 + i] = pack2<floatX>(scores.v[0][n][2 * i], scores.v[0][n][2 * i + 1]);
}

// One of two matrices from which a stage gets a tile each: rows from `row` on, at `column`.
struct Source {
    const TensorMap* map;
    int row, column;

    __device__ __forceinline__ void load(uint32_t tile, int rows_on, uint32_t barrier) const {
        tma_load(tile, map, column, row + rows_on, barrier);
    }
};

// The stationary tiles of a block, and the ring of stages with two tiles each. Rows past the end of
// a sequence are those of the next one. They have weight 0, so that they change no result, unless
// they are not finite.
template <int STATIONARY>
struct Tiles {
    uint32_t stationary, stages, barriers;

    static constexpr int BYTES = (STATIONARY + 2 * STAGES) * TILE;

    __device__ __forceinline__ explicit Tiles(unsigned char* shared) {
        stationary = shared_address(shared);
        stages = stationary + STATIONARY * TILE;
        barriers = stages + 2 * STAGES * TILE;
    }
    // The memory after the barriers: two numbers for each of 128 queries.
    static __device__ __forceinline__ float* statistics(unsigned char* shared) {
        return reinterpret_cast<float*>(shared + BYTES + ceil_div(8 * STAGES, 16) * 16);
    }
    // Global memory may be read after this.
    __device__ __forceinline__ void initialize() const {
        launch_dependents();
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) mbarrier_init(barriers + 8 * i, 1);
            mbarrier_init_fence();
        }
        wait_for_dependencies();
        __syncthreads();
    }
    __device__ __forceinline__ uint32_t first_of(int tile) const { return stages + tile % STAGES * 2 * TILE; }
    __device__ __forceinline__ uint32_t second_of(int tile) const { return first_of(tile) + TILE; }
    // Called by one thread. `extra` bytes of other tiles arrive at the same barrier.
    __device__ __forceinline__ void request(int tile, const Source& first, const Source& second, uint32_t extra) const {
        const uint32_t barrier = barriers + tile % STAGES * 8;
        mbarrier_arrive_expect(barrier, 2 * TILE + extra);
        first.load(first_of(tile), tile * ROWS, barrier);
        second.load(second_of(tile), tile * ROWS, barrier);
    }
    // Requests the tile after the next into the stage of the tile before this one, which no thread
    // of the block needs any more.
    __device__ __forceinline__ void recycle(int tile, int count, const Source& first, const Source& second) const {
        if (tile + 2 >= count) return;
        __syncthreads();
        if (threadIdx.x == 0) request(tile + 2, first, second, 0);
    }
    __device__ __forceinline__ void wait(int tile) const { mbarrier_wait(barriers + tile % STAGES * 8, tile / STAGES % 2); }
};

// A block of two warpgroups with 64 queries each.
constexpr int QUERIES = 2 * ROWS;

struct Queries {
    Work work;
    int first, warpgroup, count;

    // The last queries, which have the most keys, come first.
    __device__ __forceinline__ explicit Queries(int T) {
        const int tiles = ceil_div(T, QUERIES);
        work = work_of_block(tiles);
        first = (tiles - 1 - work.rank) * QUERIES;
        // The shuffle shows the compiler that all lanes agree, so that addresses are uniform.
        warpgroup = __shfl_sync(FULL_MASK, (int)threadIdx.x / WARPGROUP, 0);
        count = ceil_div(min(first + QUERIES, T), ROWS);
    }
    // The number of the last tile of keys that a query of the warpgroup sees.
    __device__ __forceinline__ int diagonal() const { return first / ROWS + warpgroup; }
    __device__ __forceinline__ int warp_first() const {
        return first + warpgroup * ROWS + (int)threadIdx.x / WARP_SIZE % 4 * 16;
    }
};

// Two numbers per query, in a plane each: log2(e) lse, and delta, the sum of dout * out.
struct Stats {
    float* planes;
    size_t plane, head;

    __device__ __forceinline__ Stats(float* planes, int heads, int head, int T)
        : planes(planes), plane((size_t)heads * T), head((size_t)head * T) {}
    __device__ __forceinline__ float* at(int number, int query) const { return planes + number * plane + head + query; }
    // Returns this thread's number of the 64 queries from `first` on: half of the threads read each
    // plane. Past the end, exponentials of scores must be 0.
    __device__ __forceinline__ float of_tile(int first, int T) const {
        const int number = (int)threadIdx.x / ROWS, query = first + (int)threadIdx.x % ROWS;
        return query < T ? *at(number, query) : number == 0 ? INFINITY : 0.0f;
    }
};

__device__ __forceinline__ void backward_keys(unsigned char* shared, floatX* dqkv, const TensorMap* qkv, const TensorMap* dout,
                                              float* planes, int T, int NH, float scale) {
    const Tiles<2> tiles(shared);
    // Two sets, used in turn.
    float* const shared_stats = tiles.statistics(shared);
    const int blocks = ceil_div(T, ROWS);
    const Work work = work_of_block(blocks);
    const int first = work.rank * ROWS, count = blocks - work.rank;
    const int C = NH * HS, row = work.head / NH * T + first, column = work.head % NH * HS, lane = threadIdx.x % WARP_SIZE;
    const Source query{qkv, row, column}, dout_tile{dout, row, column};
    const Stats stats(planes, (int)gridDim.x / blocks, work.head, T);
    tiles.initialize();
    if (threadIdx.x == 0) {
        tiles.request(0, query, dout_tile, 2 * TILE);
        tma_load(tiles.stationary, qkv, column + C, row, tiles.barriers);
        tma_load(tiles.stationary + TILE, qkv, column + 2 * C, row, tiles.barriers);
        if (count > 1) tiles.request(1, query, dout_tile, 0);
    }
    shared_stats[threadIdx.x] = stats.of_tile(first, T);
    float next = stats.of_tile(first + ROWS, T);
    Scores dk, dv;
    dk.clear();
    dv.clear();
    Scores p, ds;
    Weights weights, slopes;
    // Scores of a tile to weights and slopes.
    auto differentiate = [&](int j) {
        wgmma_fence();
        multiply_transposed(ds, tiles.stationary + TILE, tiles.second_of(j));
        __syncthreads();
        if (threadIdx.x == 0 && j + 2 < count) tiles.request(j + 2, query, dout_tile, 0);
        shared_stats[(j + 1) % 2 * 2 * ROWS + threadIdx.x] = next;
        next = stats.of_tile(first + (j + 2) * ROWS, T);
        // The first query of the tile minus the first key of the warp.
        if (j == 0) hide_later_keys<false>(p, -((int)threadIdx.x / WARP_SIZE * 16));
        const float* set = shared_stats + j % 2 * 2 * ROWS + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            const float2 lse2 = *reinterpret_cast<const float2*>(set + 8 * n);
#pragma unroll
            for (int i = 0; i < 4; i++)
                p.v[0][n][i] = exp2_approx(fmaf(p.v[0][n][i], scale * LOG2_E, -(i % 2 == 0 ? lse2.x : lse2.y)));
        }
        wgmma_wait<0>();
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            const float2 delta = *reinterpret_cast<const float2*>(set + ROWS + 8 * n);
#pragma unroll
            for (int i = 0; i < 4; i++) ds.v[0][n][i] = p.v[0][n][i] * (ds.v[0][n][i] - (i % 2 == 0 ? delta.x : delta.y));
        }
        round(weights, p);
        round(slopes, ds);
    };
    tiles.wait(0);
    wgmma_fence();
    multiply_transposed(p, tiles.stationary, tiles.first_of(0));
    wgmma_wait<0>();
    for (int j = 0; j < count - 1; j++) {
        differentiate(j);
        tiles.wait(j + 1);
        wgmma_fence();
        multiply_transposed(p, tiles.stationary, tiles.first_of(j + 1));
        add_product(dv, weights, tiles.second_of(j));
        add_product(dk, slopes, tiles.first_of(j));
        wgmma_wait<0>();
    }
    differentiate(count - 1);
    wgmma_fence();
    add_product(dv, weights, tiles.second_of(count - 1));
    add_product(dk, slopes, tiles.first_of(count - 1));
    wgmma_wait<0>();
    __syncthreads();
    const int in_block = (int)threadIdx.x / WARP_SIZE * 16, valid = T - first - in_block;
    floatX* const to = dqkv + offset_in_qkv(work.head, T, NH, HS) + (size_t)(first + in_block) * 3 * C;
    dk.scale(scale);
    store_rows(to + C, 3 * C, valid, dk, shared + tile_bytes<HS>(in_block));
    store_rows(to + 2 * C, 3 * C, valid, dv, shared + TILE + tile_bytes<HS>(in_block));
}

// The sum of products of 32 elements of a row of two tiles: the first half of it, or the second.
__device__ __forceinline__ float dot_of_half(const unsigned char* a, const unsigned char* b, int row, int half) {
    float sum = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < HS / 16; chunk++) {
        const uint32_t offset = tile_offset<HS>(row, half * (HS / 16) + chunk);
        const PackX x = load128(reinterpret_cast<const floatX*>(a + offset)), y = load128(reinterpret_cast<const floatX*>(b + offset));
#pragma unroll
        for (int i = 0; i < PackX::size; i++) sum += to_f32(x.v[i]) * to_f32(y.v[i]);
    }
    return sum;
}

// Also leaves the statistics of its queries, which backward_keys needs.
__device__ __forceinline__ void backward_queries(unsigned char* shared, floatX* dqkv, const TensorMap* qkv, const TensorMap* dout,
                                                 const TensorMap* out, const float* lse, float* planes, int T, int NH, float scale) {
    const Tiles<4> tiles(shared);
    float* const shared_stats = tiles.statistics(shared);
    const Queries queries(T);
    const int C = NH * HS, row = queries.work.head / NH * T, column = queries.work.head % NH * HS, lane = threadIdx.x % WARP_SIZE;
    const Source key{qkv, row, column + C}, value{qkv, row, column + 2 * C};
    tiles.initialize();
    if (threadIdx.x == 0) {
        tiles.request(0, key, value, 6 * TILE);
        for (int i = 0; i < 2; i++) {
            const int rows = row + queries.first + i * ROWS;
            tma_load(tiles.stationary + i * TILE, qkv, column, rows, tiles.barriers);
            tma_load(tiles.stationary + (2 + i) * TILE, dout, column, rows, tiles.barriers);
            // The last stage is free until the loop.
            tma_load(tiles.first_of(2) + i * TILE, out, column, rows, tiles.barriers);
        }
        if (queries.count > 1) tiles.request(1, key, value, 0);
    }
    const int diagonal = queries.diagonal(), warp_first = queries.warp_first();
    {
        const Stats stats(planes, (int)gridDim.x / ceil_div(T, QUERIES), queries.work.head, T);
        const int in_block = (int)threadIdx.x / 2, half = threadIdx.x % 2, query = queries.first + in_block;
        const float lse2 = query < T ? lse[(size_t)queries.work.head * T + query] * LOG2_E : 0.0f;
        tiles.wait(0);
        float delta = dot_of_half(shared + 2 * TILE, shared + 8 * TILE, in_block, half);
        delta += __shfl_xor_sync(FULL_MASK, delta, 1);
        if (half == 0) {
            shared_stats[in_block] = lse2;
            shared_stats[QUERIES + in_block] = delta;
            if (query < T) *stats.at(0, query) = lse2, *stats.at(1, query) = delta;
        }
    }
    __syncthreads();
    float lse2[2], delta[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        lse2[i] = shared_stats[warp_first - queries.first + 8 * i + lane / 4];
        delta[i] = shared_stats[QUERIES + warp_first - queries.first + 8 * i + lane / 4];
    }
    const uint32_t own = tiles.stationary + queries.warpgroup * TILE;
    Scores dq;
    dq.clear();
    const int last = min(diagonal, queries.count - 1);
    Scores p, ds;
    Weights slopes;
    // Scores of a tile to their slopes.
    auto differentiate = [&](int j) {
        wgmma_fence();
        multiply_transposed(ds, own + 2 * TILE, tiles.second_of(j));
        tiles.recycle(j, queries.count, key, value);
        if (j == diagonal) hide_later_keys<true>(p, warp_first - j * ROWS);
#pragma unroll
        for (auto& s : p.v[0])
#pragma unroll
            for (int i = 0; i < 4; i++) s[i] = exp2_approx(fmaf(s[i], scale * LOG2_E, -lse2[i / 2]));
        wgmma_wait<0>();
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) ds.v[0][n][i] = p.v[0][n][i] * (ds.v[0][n][i] - delta[i / 2]);
        round(slopes, ds);
    };
    wgmma_fence();
    multiply_transposed(p, own, tiles.first_of(0));
    wgmma_wait<0>();
    for (int j = 0; j < last; j++) {
        differentiate(j);
        tiles.wait(j + 1);
        wgmma_fence();
        multiply_transposed(p, own, tiles.first_of(j + 1));
        add_product(dq, slopes, tiles.first_of(j));
        wgmma_wait<0>();
    }
    differentiate(last);
    wgmma_fence();
    add_product(dq, slopes, tiles.first_of(last));
    wgmma_wait<0>();
    __syncthreads();
    dq.scale(scale);
    store_rows(dqkv + offset_in_qkv(queries.work.head, T, NH, HS) + (size_t)warp_first * 3 * C, 3 * C, T - warp_first, dq,
               shared + tile_bytes<HS>(warp_first - queries.first));
}
#else
__device__ __forceinline__ void backward_keys(unsigned char*, floatX*, const TensorMap*, const TensorMap*, float*, int, int,
                                              float) {}
__device__ __forceinline__ void backward_queries(unsigned char*, floatX*, const TensorMap*, const TensorMap*, const TensorMap*,
                                                 const float*, float*, int, int, float) {}
#endif
}  // namespace attention_hopper

extern "C" __global__ void __launch_bounds__(256, 2)
    attention_hopper_backward_queries_hs64(floatX* dqkv, GRID_CONSTANT TensorMap qkv, GRID_CONSTANT TensorMap dout,
                                           GRID_CONSTANT TensorMap out, const float* lse, float* stats, int T, int NH,
                                           float scale) {
    DYNAMIC_SHARED(shared);
    attention_hopper::backward_queries(shared, dqkv, &qkv, &dout, &out, lse, stats, T, NH, scale);
}
extern "C" __global__ void __launch_bounds__(128, 3)
    attention_hopper_backward_keys_hs64(floatX* dqkv, GRID_CONSTANT TensorMap qkv, GRID_CONSTANT TensorMap dout, float* stats,
                                        int T, int NH, float scale) {
    DYNAMIC_SHARED(shared);
    attention_hopper::backward_keys(shared, dqkv, &qkv, &dout, stats, T, NH, scale);
}
