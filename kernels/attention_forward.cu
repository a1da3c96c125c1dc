// Causal attention, forward (Dao 2023): a block has 128 queries of one head and iterates over tiles
// of 64 or 32 keys up to the diagonal, updating the softmax after each (Milakov & Gimelshein 2018).
// It outputs the result and the log-sum-exp of each row. Where documents are packed into a
// sequence, it begins at that of the tile's first query.
//
// Scores stay in base 2: exp2(log2(e) scale s - maximum) is one FMA and one instruction of the
// special function unit.
//
// Limits, counted in the machine code for HS = 64 on Hopper: per tile, a warp has 128 mma, 64
// exponentials, and 700 instructions in all, which take its quarter of an SM 800 (at the rate that
// mma.sync reaches), 512 and 700 clocks. Full overlap of the three would be 600 TFLOP/s. With two
// warps per quarter, which wait for each other's units, half of that can be expected, less the work
// above the diagonal (a ninth at T = 1024): 249 TFLOP/s were measured on an H100, which uses
// attention_hopper_forward.cu instead.
//
// 128 threads of at most 255 registers allow two blocks per SM, one computing while the other
// waits. Queries stay in registers at HS = 64; the number of keys per tile is limited by the
// registers for scores.
#include "attention_softmax.cuh"

namespace attention {

// Rounds and stores the result of a block. The block's work is recomputed here: kept in registers,
// it would displace other values throughout the loop over keys.
template <int HS, int M>
__device__ __forceinline__ void store_result(floatX* out, float* lse, Sums<M, HS>& sums, Softmax<M>& softmax,
                                             unsigned char* queries, int T, int NH, float scale) {
    T = opaque(T);
    int tiles = ceil_div(T, 64 * M), C = NH * HS, in_block = (int)threadIdx.x / WARP_SIZE * 16 * M;
    Work work = work_of_block(tiles);
    int warp_first = (tiles - 1 - work.rank) * 64 * M + in_block, valid = T - warp_first;
    softmax.finish(sums, lse + (size_t)work.head * T + warp_first, valid, scale);
    store_rows(out + offset_in_out(work.head, T, NH, HS) + (size_t)warp_first * C, C, valid, sums,
               queries + tile_bytes<HS>(in_block));
}

// 16-bit floatX. Dynamic shared memory: queries, then two stages of keys and values.
template <int HS, bool DROPOUT>
__device__ __forceinline__ void forward_tensor_cores(floatX* out, float* lse, const floatX* qkv, const View& view, int T,
                                                     int NH, float scale) {
    constexpr int M = 2, QUERIES = 64 * M, KEYS = HS <= (DROPOUT ? 64 : 80) ? 64 : 32;
    constexpr uint32_t TILE = tile_bytes<HS>(KEYS);
    DYNAMIC_SHARED(shared);
    int tiles = ceil_div(T, QUERIES), C = NH * HS, stride = 3 * C;
    Work work = work_of_block(tiles);
    int first = (tiles - 1 - work.rank) * QUERIES, warp_first = first + (int)threadIdx.x / WARP_SIZE * 16 * M;
    const floatX* q = qkv + offset_in_qkv(work.head, T, NH, HS);
    const int begin = Documents(view.positions, work.head, T, NH).first_key(first) / KEYS;

    uint32_t query_tile = shared_address(shared), stages = query_tile + tile_bytes<HS>(QUERIES);
    auto load_stage = [&](int j) {
        const floatX* k = q + (size_t)j * KEYS * stride + C;
        uint32_t stage = stages + j % 2 * 2 * TILE;
        load_tile<HS, KEYS>(stage, k, stride, T - j * KEYS);
        load_tile<HS, KEYS>(stage + TILE, k + C, stride, T - j * KEYS);
        cp_async_commit();
    };
    load_tile<HS, QUERIES>(query_tile, q + (size_t)first * stride, stride, T - first);
    load_stage(begin);

    StationaryRows<HS, M, (HS == 64 && !DROPOUT)> queries(query_tile + tile_bytes<HS>(warp_first - first));
    Sums<M, HS> sums;
    Softmax<M> softmax;
    sums.clear();
    softmax.clear();
    int count = ceil_div(min(first + QUERIES, T), KEYS);
    for (int j = begin; j < count; j++) {
        cp_async_wait<0>();
        __syncthreads();
        if (j == begin) queries.keep();
        if (j + 1 < count) load_stage(j + 1);
        int ahead = warp_first - j * KEYS;
        if (ahead + 16 * M <= 0) continue;
        uint32_t stage = stages + j % 2 * 2 * TILE;
        Sums<M, KEYS> scores;
        multiply_transposed(scores, queries, stage);
        if (ahead < KEYS - 1) hide_later_keys<true>(scores, ahead);
        if (view.positions != nullptr)
            hide_earlier_documents<true>(scores, Documents(view.positions, find_work<QUERIES>(T).head, T, NH), warp_first, j * KEYS);
        softmax.update(scores, sums, scale * LOG2_E);
        if constexpr (DROPOUT) drop(scores, WeightMask(view.dropout, find_work<QUERIES>(T).head, T, NH), warp_first, j * KEYS);
        add_product(sums, scores, stage + TILE);
    }
    store_result<HS, M>(out, lse, sums, softmax, shared, T, NH, scale);
}

// f32: LANES threads share a query and process KEYS keys at a time.
template <int HS, bool DROPOUT>
__device__ __forceinline__ void forward_f32(float* out, float* lse, const float* qkv, const View& view, int T, int NH,
                                            float scale) {
    constexpr int KEYS = 2;
    SHARED(float, keys, [F32_TILE * HS]);
    SHARED(float, values, [F32_TILE * HS]);
    int tiles = ceil_div(T, F32_ROWS), C = NH * HS, stride = 3 * C;
    Work work = work_of_block(tiles);
    int first = (tiles - 1 - work.rank) * F32_ROWS, row = first + (int)threadIdx.x / LANES;
    const float* q = qkv + offset_in_qkv(work.head, T, NH, HS);
    const Documents documents(view.positions, work.head, T, NH);
    const int first_key = documents.first_key(row);

    Slice<HS> query, sums;
    query.clear();
    sums.clear();
    if (row < T) query.load(q + (size_t)row * stride);
    query.scale(scale * LOG2_E);
    float max = -INFINITY, sum = 0.0f;
    for (int start = documents.first_key(first) / F32_TILE * F32_TILE; start < min(first + F32_ROWS, T); start += F32_TILE) {
        const float* k = q + (size_t)start * stride + C;
        __syncthreads();
        load_tile_f32<HS>(keys, k, stride, T - start);
        load_tile_f32<HS>(values, k + C, stride, T - start);
        __syncthreads();
#pragma unroll 1
        for (int part = 0; part < F32_TILE; part += KEYS) {
            float scores[KEYS], new_max = max;
#pragma unroll
            for (int i = 0; i < KEYS; i++) {
                float score = query.dot(keys + (part + i) * HS);
                scores[i] = start + part + i <= row ? score : -INFINITY;
                if (start + part + i < first_key) scores[i] = HIDDEN;
                new_max = fmaxf(new_max, scores[i]);
            }
            float shrink = exp2_approx(max - new_max);
            max = new_max;
            sum *= shrink;
            sums.scale(shrink);
#pragma unroll
            for (int i = 0; i < KEYS; i++) {
                float weight = exp2_approx(scores[i] - max);
                sum += weight;
                if constexpr (DROPOUT)
                    weight *= WeightMask(view.dropout, work.head, T, NH).draw_one(row, start + part + i);
                sums.add(weight, values + (part + i) * HS);
            }
        }
    }
    if (row >= T) return;
    sums.scale(1.0f / sum);
    sums.store(out + offset_in_out(work.head, T, NH, HS) + (size_t)row * C);
    if (threadIdx.x % LANES == 0) lse[(size_t)work.head * T + row] = (max + log2f(sum)) * LN_2;
}

template <int HS, bool DROPOUT>
__device__ __forceinline__ void forward(floatX* out, float* lse, const floatX* qkv, const View& view, int T, int NH,
                                        float scale) {
    if constexpr (sizeof(floatX) == 4) forward_f32<HS, DROPOUT>(out, lse, qkv, view, T, NH, scale);
    else forward_tensor_cores<HS, DROPOUT>(out, lse, qkv, view, T, NH, scale);
}

// f32 requests four blocks, or the compiler would use more registers and spill; with 16 bits all
// registers are in use.
constexpr int MIN_BLOCKS = sizeof(floatX) == 4 ? 4 : 1;

}  // namespace attention

#define ATTENTION_FORWARD(NAME, HS, DROPOUT)                                                                             \
    extern "C" __global__ void __launch_bounds__(128, attention::MIN_BLOCKS)                                             \
        NAME##HS(floatX* out, float* lse, const floatX* qkv, const int* positions, const Dropout dropout, int T, int NH, \
                 float scale) {                                                                                          \
        start_in_order();                                                                                                \
        attention::forward<HS, DROPOUT>(out, lse, qkv, {positions, dropout}, T, NH, scale);                              \
    }

ATTENTION_FORWARD(attention_forward_hs, 32, false)
ATTENTION_FORWARD(attention_forward_hs, 64, false)
ATTENTION_FORWARD(attention_forward_hs, 80, false)
ATTENTION_FORWARD(attention_forward_hs, 96, false)
ATTENTION_FORWARD(attention_forward_hs, 128, false)
ATTENTION_FORWARD(attention_forward_dropout_hs, 32, true)
ATTENTION_FORWARD(attention_forward_dropout_hs, 64, true)
ATTENTION_FORWARD(attention_forward_dropout_hs, 80, true)
ATTENTION_FORWARD(attention_forward_dropout_hs, 96, true)
ATTENTION_FORWARD(attention_forward_dropout_hs, 128, true)

// Attention of the single query at position t, for sampling: a block has one head of a sequence,
// eight of its threads process every 32nd key, and their softmaxes are merged at the end. Bound by
// memory latency.
extern "C" __global__ void __launch_bounds__(256)
    attention_decode(floatX* out, const floatX* qkv, int T, int NH, int HS, int t, float scale) {
    start_in_order();
    constexpr int LANES = 8, GROUPS = 256 / LANES, WIDTH = PackX::size, PARTS = 128 / (LANES * WIDTH);
    SHARED(float, group_max, [GROUPS]);
    SHARED(float, group_total, [GROUPS]);
    SHARED(float, group_sums, [GROUPS * 128]);
    int head = (int)blockIdx.x, C = NH * HS, group = (int)threadIdx.x / LANES;
    int column = (int)threadIdx.x % LANES * WIDTH;  // and every LANES * WIDTH further on
    const floatX* q = qkv + attention::offset_in_qkv(head, T, NH, HS);

    float query[PARTS][WIDTH], sums[PARTS][WIDTH], max = -INFINITY, total = 0.0f;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        int at = column + p * LANES * WIDTH;
        PackX part = load128(q + (size_t)t * 3 * C + (at < HS ? at : 0));
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            query[p][i] = at < HS ? to_f32(part.v[i]) * scale * attention::LOG2_E : 0.0f;
            sums[p][i] = 0.0f;
        }
    }
#pragma unroll 2
    for (int first = 0; first <= t; first += GROUPS) {
        int key = first + group;
        const floatX* k = q + (size_t)min(key, t) * 3 * C + C;
        PackX values[PARTS];
        float score = 0.0f;
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            int at = column + p * LANES * WIDTH;
            PackX part = load128(k + (at < HS ? at : 0));
            values[p] = load128(k + C + (at < HS ? at : 0));
#pragma unroll
            for (int i = 0; i < WIDTH; i++) score += query[p][i] * to_f32(part.v[i]);
        }
#pragma unroll
        for (int offset = 1; offset < LANES; offset *= 2) score += __shfl_xor_sync(FULL_MASK, score, offset);
        if (key > t) continue;
        float new_max = fmaxf(max, score), shrink = exp2_approx(max - new_max), weight = exp2_approx(score - new_max);
        max = new_max;
        total = total * shrink + weight;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int i = 0; i < WIDTH; i++) sums[p][i] = sums[p][i] * shrink + weight * to_f32(values[p].v[i]);
    }
    if (column == 0) group_max[group] = max, group_total[group] = total;
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int i = 0; i < WIDTH; i++) group_sums[group * 128 + column + p * LANES * WIDTH + i] = sums[p][i];
    __syncthreads();
    if ((int)threadIdx.x >= HS) return;
    for (int g = 0; g < GROUPS; g++) max = fmaxf(max, group_max[g]);
    float sum = 0.0f;
    total = 0.0f;
    for (int g = 0; g < GROUPS; g++) {
        float weight = exp2_approx(group_max[g] - max);
        total += weight * group_total[g];
        sum += weight * group_sums[g * 128 + threadIdx.x];
    }
    out[(size_t)head * HS + threadIdx.x] = from_f32<floatX>(sum / total);
}
