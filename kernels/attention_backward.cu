// Causal attention, backward (Dao 2023), from the log-sum-exp saved by the forward pass: with P =
// exp(scale QK' - lse) and dS = P * (dout V' - delta),  dV = P' dout,  dK = scale dS' Q,  dQ =
// scale dS K.
//
// Two kernels compute P and dS, each in the orientation in which it can use them without leaving
// its registers: one has keys and values stationary (rows of the fragments are keys) and sums dK
// and dV over queries, the other has queries stationary and sums dQ over keys. Here every element
// is summed by one thread in one order.
//
// That is 7 products instead of the 5 of attention_backward_atomic.cu, a single kernel, which has
// to move dS through shared memory and to add dQ to f32 in global memory with atomics (4.5 times 4
// bytes per element at T = 1024), in a different order every time. For 128 keys, 32 queries and 64
// columns, in clocks of an SM at the rates of the hardware (1024 multiply-adds per clock on an
// A100, 256 on a 4090 or a 5090; 128 bytes of shared memory), and in instructions of a quarter of
// it:
//
//               tensor cores, A100   4090, 5090   shared memory   instructions   dQ to the L2 cache
//   two kernels               1792         7168            1280           1053                    -
//   one kernel                1280         5120            1344            897                8 KiB
//
// So the single kernel should take 3/4 of the time on an A100, where shared memory limits it, and
// 5/7 on the others, if the L2 cache keeps up: at these clocks all SMs together add 21 sectors of
// 32 bytes (165 numbers) per clock on an A100, whose L2 cache has 80 slices, 6 on a 4090 and 9 on a
// 5090. Slices that add a sector per clock are not noticed; at one number per clock, an A100 would
// take twice as long. None of this was measured, so the device is asked: attention/choose.rs.
//
// Tiles have 32 rows, not 64 as in the forward pass: here two sets of scores are in registers, P
// and dS.
#include "attention_view.cuh"

namespace attention {

[[maybe_unused]] constexpr int TILE_ROWS = 32;

// Keys stationary, 16-bit floatX. Dynamic shared memory: keys, values, then two stages of queries,
// dout and their stats.
template <int HS, bool DROPOUT>
__device__ __forceinline__ void backward_keys_tensor_cores(floatX* dqkv, const floatX* dout, const float* stats,
                                                           const floatX* qkv, const View& view, int T, int NH,
                                                           float scale) {
    constexpr int M = HS <= (DROPOUT ? 32 : 64) ? 2 : 1, KEYS = 64 * M;
    constexpr uint32_t TILE = tile_bytes<HS>(TILE_ROWS), STAGE = 2 * TILE + TILE_ROWS * 8;
    DYNAMIC_SHARED(shared);
    Work work = work_of_block(ceil_div(T, KEYS));
    int C = NH * HS, stride = 3 * C;
    int first = work.rank * KEYS, in_block = (int)threadIdx.x / WARP_SIZE * 16 * M, warp_first = first + in_block;
    size_t head = offset_in_qkv(work.head, T, NH, HS);
    const floatX* q = qkv + head;
    dout += offset_in_out(work.head, T, NH, HS);
    stats += offset_in_stats(work.head, T);

    uint32_t key_tile = shared_address(shared), value_tile = key_tile + tile_bytes<HS>(KEYS);
    uint32_t stages = value_tile + tile_bytes<HS>(KEYS);
    auto load_stage = [&](int j) {
        int row = j * TILE_ROWS, valid = T - row;
        uint32_t stage = stages + j % 2 * STAGE;
        load_tile<HS, TILE_ROWS>(stage, q + (size_t)row * stride, stride, valid);
        load_tile<HS, TILE_ROWS>(stage + TILE, dout + (size_t)row * C, C, valid);
        // Two rows are 16 bytes. For rows past the end, queries, dout and these are 0, and so are
        // their contributions to dK and dV.
        int pair = 2 * (int)threadIdx.x;
        if (pair < TILE_ROWS)
            cp_async16(stage + 2 * TILE + pair * 8, stats + (pair < valid ? (row + pair) * 2 : 0),
                       pair < valid ? min(2, valid - pair) * 8 : 0);
        cp_async_commit();
    };
    const Documents documents(view.positions, work.head, T, NH);
    int start = first / TILE_ROWS;
    int end = documents.end_of_tiles<TILE_ROWS>(first + KEYS - 1, start);
    load_tile<HS, KEYS>(key_tile, q + (size_t)first * stride + C, stride, T - first);
    load_tile<HS, KEYS>(value_tile, q + (size_t)first * stride + 2 * C, stride, T - first);
    load_stage(start);

    constexpr bool KEEP = HS == 32;
    StationaryRows<HS, M, KEEP> keys(key_tile + tile_bytes<HS>(in_block)), values(value_tile + tile_bytes<HS>(in_block));
    Sums<M, HS> dk, dv;
    dk.clear();
    dv.clear();
    for (int j = start; j < end; j++) {
        cp_async_wait<0>();
        __syncthreads();
        if (j == start) keys.keep(), values.keep();
        if (j + 1 < end) load_stage(j + 1);
        // The first query of the tile minus the first key of the warp.
        int ahead = j * TILE_ROWS - warp_first;
        if (ahead + TILE_ROWS <= 0) continue;
        uint32_t stage = stages + j % 2 * STAGE;
        Sums<M, TILE_ROWS> p, ds;
        multiply_transposed(p, keys, stage);
        if (ahead < 16 * M - 1) hide_later_keys<false>(p, ahead);
        if (view.positions != nullptr)
            hide_earlier_documents<false>(p, Documents(view.positions, find_work<KEYS>(T).head, T, NH), j * TILE_ROWS, warp_first);
        multiply_transposed(ds, values, stage + TILE);
        const unsigned char* stage_stats = shared + (stage - key_tile) + 2 * TILE;
        if constexpr (DROPOUT)
            differentiate_columns(p, ds, scale * LOG2_E, stage_stats, WeightMask(view.dropout, find_work<KEYS>(T).head, T, NH), j * TILE_ROWS, warp_first);
        else
            differentiate_columns(p, ds, scale * LOG2_E, stage_stats);
        add_product(dv, p, stage + TILE);
        add_product(dk, ds, stage);
    }
    dk.scale(scale);
    floatX* dst = dqkv + head + (size_t)warp_first * stride + C;
    store_rows(dst, stride, T - warp_first, dk, shared + tile_bytes<HS>(in_block));
    store_rows(dst + C, stride, T - warp_first, dv, shared + tile_bytes<HS>(KEYS + in_block));
}

// Queries stationary, 16-bit floatX. Dynamic shared memory: queries, dout, then two stages of keys
// and values.
template <int HS, bool DROPOUT>
__device__ __forceinline__ void backward_queries_tensor_cores(floatX* dqkv, const floatX* dout, const float* stats,
                                                              const floatX* qkv, const View& view, int T, int NH,
                                                              float scale) {
    constexpr int M = 2, QUERIES = 64 * M;
    constexpr uint32_t TILE = tile_bytes<HS>(TILE_ROWS), STAGE = 2 * TILE;
    DYNAMIC_SHARED(shared);
    int tiles = ceil_div(T, QUERIES), C = NH * HS, stride = 3 * C, lane = threadIdx.x % WARP_SIZE;
    Work work = work_of_block(tiles);
    int first = (tiles - 1 - work.rank) * QUERIES;
    int in_block = (int)threadIdx.x / WARP_SIZE * 16 * M, warp_first = first + in_block;
    size_t head = offset_in_qkv(work.head, T, NH, HS);
    const floatX* q = qkv + head;
    dout += offset_in_out(work.head, T, NH, HS) + (size_t)first * C;

    uint32_t query_tile = shared_address(shared), dout_tile = query_tile + tile_bytes<HS>(QUERIES);
    uint32_t stages = dout_tile + tile_bytes<HS>(QUERIES);
    auto load_stage = [&](int j) {
        const floatX* k = q + (size_t)j * TILE_ROWS * stride + C;
        uint32_t stage = stages + j % 2 * STAGE;
        load_tile<HS, TILE_ROWS>(stage, k, stride, T - j * TILE_ROWS);
        load_tile<HS, TILE_ROWS>(stage + TILE, k + C, stride, T - j * TILE_ROWS);
        cp_async_commit();
    };
    load_tile<HS, QUERIES>(query_tile, q + (size_t)first * stride, stride, T - first);
    load_tile<HS, QUERIES>(dout_tile, dout, C, T - first);
    const int begin = Documents(view.positions, work.head, T, NH).first_key(first) / TILE_ROWS;
    load_stage(begin);

    float lse2[M][2], delta[M][2];
    stats += offset_in_stats(work.head, T);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = warp_first + 16 * m + 8 * i + lane / 4;
            lse2[m][i] = row < T ? stats[2 * row] : 0.0f;
            delta[m][i] = row < T ? stats[2 * row + 1] : 0.0f;
        }
    constexpr bool KEEP = HS <= (DROPOUT ? 32 : 64);
    StationaryRows<HS, M, KEEP> queries(query_tile + tile_bytes<HS>(in_block)), douts(dout_tile + tile_bytes<HS>(in_block));
    cp_async_wait<0>();
    __syncthreads();
    queries.keep(), douts.keep();
    Sums<M, HS> dq;
    dq.clear();
    int count = ceil_div(min(first + QUERIES, T), TILE_ROWS);
    for (int j = begin; j < count; j++) {
        cp_async_wait<0>();
        __syncthreads();
        if (j + 1 < count) load_stage(j + 1);
        // The first query of the warp minus the first key of the tile.
        int ahead = warp_first - j * TILE_ROWS;
        if (ahead + 16 * M <= 0) continue;
        uint32_t stage = stages + j % 2 * STAGE;
        Sums<M, TILE_ROWS> p, ds;
        multiply_transposed(p, queries, stage);
        if (ahead < TILE_ROWS - 1) hide_later_keys<true>(p, ahead);
        if (view.positions != nullptr)
            hide_earlier_documents<true>(p, Documents(view.positions, find_work<QUERIES>(T).head, T, NH), warp_first, j * TILE_ROWS);
        multiply_transposed(ds, douts, stage + TILE);
        if constexpr (DROPOUT) {
            const WeightMask mask(view.dropout, find_work<QUERIES>(T).head, T, NH);
            for_each_factor<true, M, TILE_ROWS>(mask, warp_first, j * TILE_ROWS, [&](int m, int n, int i, float factor) {
                differentiate(p.v[m][n][i], ds.v[m][n][i], scale * LOG2_E, lse2[m][i / 2], delta[m][i / 2], factor);
            });
        } else {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < TILE_ROWS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        differentiate(p.v[m][n][i], ds.v[m][n][i], scale * LOG2_E, lse2[m][i / 2], delta[m][i / 2]);
        }
        add_product(dq, ds, stage);
    }
    dq.scale(scale);
    store_rows(dqkv + head + (size_t)warp_first * stride, stride, T - warp_first, dq, shared + tile_bytes<HS>(in_block));
}

// Keys stationary, f32: LANES threads share a key and its value.
template <int HS, bool DROPOUT>
__device__ __forceinline__ void backward_keys_f32(float* dqkv, const float* dout, const float* stats, const float* qkv,
                                                  const View& view, int T, int NH, float scale) {
    SHARED(float, queries, [F32_TILE * HS]);
    SHARED(float, douts, [F32_TILE * HS]);
    Work work = work_of_block(ceil_div(T, F32_ROWS));
    int C = NH * HS, stride = 3 * C, first = work.rank * F32_ROWS, row = first + (int)threadIdx.x / LANES;
    size_t head = offset_in_qkv(work.head, T, NH, HS), place = head + (size_t)row * stride + C;
    dout += offset_in_out(work.head, T, NH, HS);
    stats += offset_in_stats(work.head, T);

    Slice<HS> key, value, dk, dv;
    key.clear();
    value.clear();
    dk.clear();
    dv.clear();
    if (row < T) key.load(qkv + place), value.load(qkv + place + C);
    const Documents documents(view.positions, work.head, T, NH);
    for (int start = first; start < T && documents.first_key(start) < first + F32_ROWS; start += F32_TILE) {
        __syncthreads();
        load_tile_f32<HS>(queries, qkv + head + (size_t)start * stride, stride, T - start);
        load_tile_f32<HS>(douts, dout + (size_t)start * C, C, T - start);
        __syncthreads();
        for (int i = 0; i < min(F32_TILE, T - start); i++) {
            int query = start + i;
            float score = key.dot(queries + i * HS), dp = value.dot(douts + i * HS);
            if (row > query || row < documents.first_key(query)) score = -INFINITY;
            const float lse2 = stats[2 * query], delta = stats[2 * query + 1];
            if constexpr (!DROPOUT)
                differentiate(score, dp, scale * LOG2_E, lse2, delta);
            else
                differentiate(score, dp, scale * LOG2_E, lse2, delta,
                              WeightMask(view.dropout, work.head, T, NH).draw_one(query, row));
            dv.add(score, douts + i * HS);
            dk.add(dp, queries + i * HS);
        }
    }
    if (row >= T) return;
    dk.scale(scale);
    dk.store(dqkv + place);
    dv.store(dqkv + place + C);
}

// Queries stationary, f32: LANES threads share a query and its dout.
template <int HS, bool DROPOUT>
__device__ __forceinline__ void backward_queries_f32(float* dqkv, const float* dout, const float* stats,
                                                     const float* qkv, const View& view, int T, int NH, float scale) {
    SHARED(float, keys, [F32_TILE * HS]);
    SHARED(float, values, [F32_TILE * HS]);
    int tiles = ceil_div(T, F32_ROWS), C = NH * HS, stride = 3 * C;
    Work work = work_of_block(tiles);
    int first = (tiles - 1 - work.rank) * F32_ROWS, row = first + (int)threadIdx.x / LANES;
    size_t head = offset_in_qkv(work.head, T, NH, HS), place = head + (size_t)row * stride;

    Slice<HS> query, dout_row, dq;
    query.clear();
    dout_row.clear();
    dq.clear();
    float lse2 = 0.0f, delta = 0.0f;
    if (row < T) {
        query.load(qkv + place);
        dout_row.load(dout + offset_in_out(work.head, T, NH, HS) + (size_t)row * C);
        stats += offset_in_stats(work.head, T) + 2 * row;
        lse2 = stats[0];
        delta = stats[1];
    }
    const Documents documents(view.positions, work.head, T, NH);
    const int first_key = documents.first_key(row);
    for (int start = documents.first_key(first) / F32_TILE * F32_TILE; start < min(first + F32_ROWS, T); start += F32_TILE) {
        const float* k = qkv + head + (size_t)start * stride + C;
        __syncthreads();
        load_tile_f32<HS>(keys, k, stride, T - start);
        load_tile_f32<HS>(values, k + C, stride, T - start);
        __syncthreads();
#pragma unroll 1
        for (int i = 0; i < F32_TILE; i++) {
            float score = query.dot(keys + i * HS), dp = dout_row.dot(values + i * HS);
            const int key = start + i;
            if (key > row || key < first_key) score = -INFINITY;
            if constexpr (!DROPOUT)
                differentiate(score, dp, scale * LOG2_E, lse2, delta);
            else
                differentiate(score, dp, scale * LOG2_E, lse2, delta,
                              WeightMask(view.dropout, work.head, T, NH).draw_one(row, key));
            dq.add(dp, keys + i * HS);
        }
    }
    if (row >= T) return;
    dq.scale(scale);
    // The offset is recomputed rather than kept in registers through the loop.
    dq.store(dqkv + offset_in_qkv(work.head, opaque(T), NH, HS) + (size_t)row * stride);
}

template <int HS, bool DROPOUT>
__device__ __forceinline__ void backward_keys(floatX* dqkv, const floatX* dout, const float* stats, const floatX* qkv,
                                              const View& view, int T, int NH, float scale) {
    if constexpr (sizeof(floatX) == 4) backward_keys_f32<HS, DROPOUT>(dqkv, dout, stats, qkv, view, T, NH, scale);
    else backward_keys_tensor_cores<HS, DROPOUT>(dqkv, dout, stats, qkv, view, T, NH, scale);
}
template <int HS, bool DROPOUT>
__device__ __forceinline__ void backward_queries(floatX* dqkv, const floatX* dout, const float* stats, const floatX* qkv,
                                                 const View& view, int T, int NH, float scale) {
    if constexpr (sizeof(floatX) == 4) backward_queries_f32<HS, DROPOUT>(dqkv, dout, stats, qkv, view, T, NH, scale);
    else backward_queries_tensor_cores<HS, DROPOUT>(dqkv, dout, stats, qkv, view, T, NH, scale);
}

}  // namespace attention

// stats = (log2(e) lse, sum of dout * out) per row and head. Eight threads share a row of a head;
// heads are adjacent in memory as in the grid. Bound by memory: it reads all of out and dout.
extern "C" __global__ void __launch_bounds__(256)
    attention_backward_stats(float* stats, const floatX* dout, const floatX* out, const float* lse, int B, int T, int NH,
                             int HS) {
    start_in_order();
    constexpr int LANES = 8;
    size_t place = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
    size_t row = place / NH;
    bool exists = row < (size_t)B * T;
    float sum = 0.0f;
    for (int i = threadIdx.x % LANES * PackX::size; i < HS && exists; i += LANES * PackX::size) {
        PackX a = load128_streaming(dout + place * HS + i), b = load128_streaming(out + place * HS + i);
#pragma unroll
        for (int j = 0; j < PackX::size; j++) sum += to_f32(a.v[j]) * to_f32(b.v[j]);
    }
#pragma unroll
    for (int offset = 1; offset < LANES; offset *= 2) sum += __shfl_xor_sync(FULL_MASK, sum, offset);
    if (!exists || threadIdx.x % LANES != 0) return;
    int head = (int)(row / T) * NH + (int)(place % NH), t = (int)(row % T);
    float* pair = stats + attention::offset_in_stats(head, T) + 2 * t;
    pair[0] = lse[(size_t)head * T + t] * attention::LOG2_E;
    pair[1] = sum;
}

#define ATTENTION_BACKWARD(KEYS, QUERIES, HS, DROPOUT)                                                        \
    extern "C" __global__ void __launch_bounds__(128) KEYS##HS(                                               \
        floatX* dqkv, const floatX* dout, const float* stats, const floatX* qkv, const int* positions,        \
        const Dropout dropout, int T, int NH, float scale) {                                                  \
        start_in_order();                                                                                     \
        attention::backward_keys<HS, DROPOUT>(dqkv, dout, stats, qkv, {positions, dropout}, T, NH, scale);    \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128) QUERIES##HS(                                            \
        floatX* dqkv, const floatX* dout, const float* stats, const floatX* qkv, const int* positions,        \
        const Dropout dropout, int T, int NH, float scale) {                                                  \
        start_in_order();                                                                                     \
        attention::backward_queries<HS, DROPOUT>(dqkv, dout, stats, qkv, {positions, dropout}, T, NH, scale); \
    }

ATTENTION_BACKWARD(attention_backward_keys_hs, attention_backward_queries_hs, 32, false)
ATTENTION_BACKWARD(attention_backward_keys_hs, attention_backward_queries_hs, 64, false)
ATTENTION_BACKWARD(attention_backward_keys_hs, attention_backward_queries_hs, 80, false)
ATTENTION_BACKWARD(attention_backward_keys_hs, attention_backward_queries_hs, 96, false)
ATTENTION_BACKWARD(attention_backward_keys_hs, attention_backward_queries_hs, 128, false)
ATTENTION_BACKWARD(attention_backward_keys_dropout_hs, attention_backward_queries_dropout_hs, 32, true)
ATTENTION_BACKWARD(attention_backward_keys_dropout_hs, attention_backward_queries_dropout_hs, 64, true)
ATTENTION_BACKWARD(attention_backward_keys_dropout_hs, attention_backward_queries_dropout_hs, 80, true)
ATTENTION_BACKWARD(attention_backward_keys_dropout_hs, attention_backward_queries_dropout_hs, 96, true)
ATTENTION_BACKWARD(attention_backward_keys_dropout_hs, attention_backward_queries_dropout_hs, 128, true)
