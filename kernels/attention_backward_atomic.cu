// Causal attention, backward, in one kernel: the formulas, and the kernels that it competes with,
// are in attention_backward.cu, which also says what each form costs.
//
// A block of eight warps has 128 keys and values of a head, and tiles of queries stream past them,
// from the diagonal on. dV and dK are summed in registers as in attention_backward.cu. dS, rounded
// for dK anyway, also goes through shared memory to the other warps: one step later each of them
// multiplies its share of the tile's queries and columns by all 128 keys, and adds the product to
// sums of dQ in global memory. So a barrier per tile is enough.
//
// Sums are in the order of the fragments, 128 adjacent numbers for 16 x 8 of dQ: an addition of a
// warp covers 128 adjacent bytes. Each block reports to a counter of its head when it has added all
// that it has to add, and the last one rounds the sums, which are still in the L2 cache. It leaves
// sums and counter at zero, as it found them.
#include "attention_view.cuh"

namespace attention {
#if !defined(FLOATX_F32)

constexpr int WARPS = 8, KEYS = 128;

// Registers decide the shape, and shared memory of 99 KiB: keys, two stages of queries, dout and
// their stats, two tiles of dS, and values. Up to 64 columns, four warps have all keys, 32 each,
// and a second team of four has them for the other half of the queries. Values that are kept in
// registers arrive in memory that is used for something else afterwards.
template <int HS>
struct Shape {
    static constexpr bool KEEP_KEYS = HS == 32 || HS == 80 || HS == 96, KEEP_VALUES = HS != 64;
    // Steps of multiply_transposed for keys that are not kept.
    static constexpr int UNROLL = HS == 128 ? 2 : HS / 16;
    static constexpr int M = HS <= 64 ? 2 : 1, KEY_WARPS = KEYS / (16 * M), TEAMS = WARPS / KEY_WARPS;
    static constexpr int TEAM_QUERIES = 32, QUERIES = TEAMS * TEAM_QUERIES;
    static constexpr uint32_t TILE = tile_bytes<HS>(QUERIES), STAGE = 2 * TILE + QUERIES * 8;
    static constexpr uint32_t DS = tile_bytes<QUERIES>(KEYS);
    static constexpr uint32_t STAGES_AT = tile_bytes<HS>(KEYS), DS_AT = STAGES_AT + 2 * STAGE, END = DS_AT + 2 * DS;
    static constexpr uint32_t VALUES_AT = KEEP_VALUES ? END - tile_bytes<HS>(KEYS) : END;
    static_assert(VALUES_AT >= STAGES_AT + STAGE, "the first stage arrives together with the values");
    // A warp's share of the memory, at the end: its sums of dK or dV.
    static constexpr uint32_t SUMS = 16 * M * HS * 4;
    static_assert(WARPS * SUMS <= END, "");
};

// The sums of dQ for 16 queries and 8 columns. `at` counts 16 queries of a head, `n` 8 columns.
template <int HS>
__device__ __forceinline__ float* sums_of(float* head, int at, int n) {
    return head + ((size_t)at * (HS / 8) + n) * 128 + threadIdx.x % WARP_SIZE;
}

// The length of a head's sums.
template <int HS>
__device__ __forceinline__ size_t sums_of_head(int T) {
    return (size_t)ceil_div(T, Shape<HS>::QUERIES) * (Shape<HS>::QUERIES * HS);
}

// Adds dS K of a tile to dQ. The tile of dS has a row per key; keys from `keys` on, a multiple of
// 32, have no part in it. `at` is the first query of the tile over 16.
template <int HS>
__device__ __forceinline__ void add_dq(float* head, int at, uint32_t ds, uint32_t key_tile, int keys) {
    constexpr int QUERIES = Shape<HS>::QUERIES, ROWS = QUERIES / 16, GROUPS = WARPS / ROWS, N = ceil_div(HS / 8, GROUPS);
    int thread = opaque(threadIdx.x), lane = thread % WARP_SIZE, warp = thread / WARP_SIZE, row = warp % ROWS, group = warp / ROWS;
    float dq[N][4] = {};
#pragma unroll 1
    for (int k = 0; k < keys; k += 32) {
        uint32_t a[2][4];
#pragma unroll
        for (int half = 0; half < 2; half++)
            ldmatrix_x4_trans(a[half], ds + tile_offset<QUERIES>(k + 16 * half + lane / 16 * 8 + lane % 8, 2 * row + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < N; i++) {
            int n = group + i * GROUPS;
            if (HS / 8 % GROUPS != 0 && n >= HS / 8) break;
            uint32_t b[4];
            ldmatrix_x4_trans(b, key_tile + tile_offset<HS>(k + lane, n));
            mma_m16n8k16<floatX>(dq[i], a[0], b[0], b[1]);
            mma_m16n8k16<floatX>(dq[i], a[1], b[2], b[3]);
        }
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        int n = group + i * GROUPS;
        if (HS / 8 % GROUPS != 0 && n >= HS / 8) break;
#pragma unroll
        for (int j = 0; j < 4; j++) red_add(sums_of<HS>(head, at + row, n) + j * WARP_SIZE, dq[i][j]);
    }
}

// Leaves sums to the warp of the other team that has the same keys, and adds what that one left.
template <int HS, int M>
__device__ __forceinline__ void give(unsigned char* place, const Sums<M, HS>& sums) {
    Pack<float>* packs = reinterpret_cast<Pack<float>*>(place) + threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < HS / 8; n++) {
            auto& v = sums.v[m][n];
            store128(packs[(m * (HS / 8) + n) * WARP_SIZE].v, Pack<float>{v[0], v[1], v[2], v[3]});
        }
}
template <int HS, int M>
__device__ __forceinline__ void take(Sums<M, HS>& sums, const unsigned char* place) {
    const Pack<float>* packs = reinterpret_cast<const Pack<float>*>(place) + threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < HS / 8; n++) {
            Pack<float> others = load128(packs[(m * (HS / 8) + n) * WARP_SIZE].v);
#pragma unroll
            for (int i = 0; i < 4; i++) sums.v[m][n][i] += others.v[i];
        }
}

// dQ of a head = scale * its sums, which become zero.
template <int HS>
__device__ __forceinline__ void finish_dq(floatX* dq, int stride, int T, float* head, float scale, unsigned char* shared) {
    int warp = threadIdx.x / WARP_SIZE;
    unsigned char* rows = shared + warp * tile_bytes<HS>(16);
    for (int at = warp; at < ceil_div(T, 16); at += WARPS) {
        Sums<1, HS> sums;
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums.v[0][n][i] = sums_of<HS>(head, at, n)[i * WARP_SIZE];
#pragma unroll
        for (int n = 0; n < HS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums_of<HS>(head, at, n)[i * WARP_SIZE] = 0.0f;
        sums.scale(scale);
        store_rows(dq + (size_t)at * 16 * stride, stride, T - at * 16, sums, rows);
    }
}

// Stores dK and dV, and dQ if this is the last block of its head. The block's work is recomputed:
// kept in registers, it would displace other values throughout the loop over queries.
template <int HS, int M>
__device__ __forceinline__ void finish(floatX* dqkv, float* sums, unsigned* counters, Sums<M, HS>& dk, Sums<M, HS>& dv,
                                       unsigned char* shared, int first_head, int T, int NH, float scale) {
    using S = Shape<HS>;
    T = opaque(T);
    int tiles = ceil_div(T, KEYS), C = NH * HS, stride = 3 * C;
    int warp = threadIdx.x / WARP_SIZE, team = warp / S::KEY_WARPS;
    Work work = work_of_block(tiles);
    int warp_first = work.rank * KEYS + warp % S::KEY_WARPS * 16 * M, valid = T - warp_first;
    dqkv += offset_in_qkv(first_head + work.head, T, NH, HS);
    floatX* dk_rows = dqkv + (size_t)warp_first * stride + C;
    unsigned char *own = shared + warp * S::SUMS, *others = shared + (warp + S::KEY_WARPS) % WARPS * S::SUMS;

    // All warps have added their last products, and no longer need their tiles.
    __syncthreads();
    bool is_last = false;
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicInc(counters + work.head, tiles - 1) == tiles - 1;
        __threadfence();
    }
    if constexpr (S::TEAMS == 2) {
        if (team == 0) give(others, dv);
        else give(others, dk);
        __syncthreads();
        if (team == 0) take(dk, own);
        else take(dv, own);
    }
    if (S::TEAMS == 1 || team == 0) {
        dk.scale(scale);
        store_rows(dk_rows, stride, valid, dk, own);
    }
    if (S::TEAMS == 1 || team == 1) store_rows(dk_rows + C, stride, valid, dv, own);
    if (__syncthreads_or(is_last)) finish_dq<HS>(dqkv, stride, T, sums + work.head * sums_of_head<HS>(T), scale, shared);
}

// Computes the heads from `first_head` on, which have `sums` and a counter each.
template <int HS>
__device__ __forceinline__ void backward_atomic(floatX* dqkv, float* sums, unsigned* counters, const floatX* dout,
                                                const float* stats, const floatX* qkv, const int* positions,
                                                int first_head, int T, int NH, float scale) {
    using S = Shape<HS>;
    constexpr int M = S::M, QUERIES = S::QUERIES, TEAM_QUERIES = S::TEAM_QUERIES;
    DYNAMIC_SHARED(shared);
    int C = NH * HS, stride = 3 * C;
    int warp = threadIdx.x / WARP_SIZE, team = warp / S::KEY_WARPS, in_block = warp % S::KEY_WARPS * 16 * M;
    Work work = work_of_block(ceil_div(T, KEYS));
    // Everything is counted from the first key on.
    int first = work.rank * KEYS, rows = T - first;
    const Documents documents(positions, first_head + work.head, T, NH);
    const int count = documents.template end_of_tiles<QUERIES>(first + KEYS - 1, first / QUERIES) - first / QUERIES;
    qkv += offset_in_qkv(first_head + work.head, T, NH, HS) + (size_t)first * stride;
    dout += offset_in_out(first_head + work.head, T, NH, HS) + (size_t)first * C;
    unsigned stats_at = (unsigned)offset_in_stats(first_head + work.head, T) + 2 * first;
    unsigned dq_at = (unsigned)(work.head * sums_of_head<HS>(T)) + first * HS;

    uint32_t key_tile = shared_address(shared), stages = key_tile + S::STAGES_AT;
    auto load_stage = [&](int j) {
        int row = j * QUERIES, valid = rows - row;
        uint32_t stage = stages + j % 2 * S::STAGE;
        int thread = opaque(threadIdx.x);
        load_tile<HS, QUERIES, WARPS * WARP_SIZE>(stage, qkv + (size_t)row * stride, stride, valid, thread);
        load_tile<HS, QUERIES, WARPS * WARP_SIZE>(stage + S::TILE, dout + (size_t)row * C, C, valid, thread);
        // Two rows are 16 bytes. For rows past the end, queries, dout and these are 0, and so are
        // their contributions to dK, dV and dQ.
        int pair = 2 * thread;
        if (pair < QUERIES)
            cp_async16(stage + 2 * S::TILE + pair * 8, stats + (stats_at + (pair < valid ? (row + pair) * 2 : 0)),
                       pair < valid ? min(2, valid - pair) * 8 : 0);
        cp_async_commit();
    };
    load_tile<HS, KEYS, WARPS * WARP_SIZE>(key_tile, qkv + C, stride, rows);
    load_tile<HS, KEYS, WARPS * WARP_SIZE>(key_tile + S::VALUES_AT, qkv + 2 * C, stride, rows);
    load_stage(0);

    StationaryRows<HS, M, S::KEEP_KEYS> keys(key_tile + tile_bytes<HS>(in_block));
    StationaryRows<HS, M, S::KEEP_VALUES> values(key_tile + S::VALUES_AT + tile_bytes<HS>(in_block));
    cp_async_wait<0>();
    __syncthreads();
    keys.keep(), values.keep();
    Sums<M, HS> dk, dv;
    dk.clear();
    dv.clear();
    for (int j = 0;; j++) {
        cp_async_wait<0>();
        __syncthreads();
        if (j + 1 < count) load_stage(j + 1);
        if (j > 0)
            add_dq<HS>(sums + dq_at, (j - 1) * (QUERIES / 16), key_tile + S::DS_AT + (j - 1) % 2 * S::DS, key_tile, min(KEYS, j * QUERIES));
        if (j == count) break;
        // The first query of the team minus the first key of the warp.
        int ahead = j * QUERIES + team * TEAM_QUERIES - in_block;
        uint32_t stage = stages + j % 2 * S::STAGE;
        uint32_t queries = stage + tile_bytes<HS>(team * TEAM_QUERIES), douts = queries + S::TILE;
        Sums<M, TEAM_QUERIES> p, ds;
        bool visible = ahead + TEAM_QUERIES > 0;
        if (visible) {
            multiply_transposed<HS, M, TEAM_QUERIES, S::KEEP_KEYS, S::UNROLL>(p, keys, queries);
            if (ahead < 16 * M - 1) hide_later_keys<false>(p, ahead);
            if (positions != nullptr) {
                const Work work = find_work<KEYS>(T);
                const int warp = opaque(threadIdx.x) / WARP_SIZE, key = work.rank * KEYS + warp % S::KEY_WARPS * 16 * M;
                const int query = work.rank * KEYS + opaque(j) * QUERIES + warp / S::KEY_WARPS * TEAM_QUERIES;
                hide_earlier_documents<false>(p, Documents(positions, first_head + work.head, opaque(T), NH), query, key);
            }
            multiply_transposed<HS, M, TEAM_QUERIES, S::KEEP_VALUES, HS / 16>(ds, values, douts);
            const unsigned char* stage_stats = shared + (stage - key_tile) + 2 * S::TILE + team * TEAM_QUERIES * 8;
            differentiate_columns(p, ds, scale * LOG2_E, stage_stats);
        } else {
            ds.clear();
        }
        unsigned char* ds_tile = shared + S::DS_AT + j % 2 * S::DS;
        int lane = opaque(threadIdx.x) % WARP_SIZE;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < TEAM_QUERIES / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    unsigned row = in_block + 16 * m + 8 * i + lane / 4;
                    unsigned char* chunk = ds_tile + tile_offset<QUERIES>(row, team * (TEAM_QUERIES / 8) + n);
                    *reinterpret_cast<uint32_t*>(chunk + lane % 4 * 4) = pack2<floatX>(ds.v[m][n][2 * i], ds.v[m][n][2 * i + 1]);
                }
        if (!visible) continue;
        add_product(dv, p, douts);
        add_product(dk, ds, queries);
    }

    finish(dqkv, sums, counters, dk, dv, shared, first_head, T, NH, scale);
}
#endif
}  // namespace attention

#if defined(FLOATX_F32)
#define ATTENTION_BACKWARD_ATOMIC_BODY(HS)
#else
#define ATTENTION_BACKWARD_ATOMIC_BODY(HS) \
    attention::backward_atomic<HS>(dqkv, sums, counters, dout, stats, qkv, positions, first_head, T, NH, scale);
#endif

#define ATTENTION_BACKWARD_ATOMIC(HS)                                                                            \
    extern "C" __global__ void __launch_bounds__(256) attention_backward_atomic_hs##HS(                          \
        floatX* dqkv, float* sums, unsigned* counters, const floatX* dout, const float* stats, const floatX* qkv, \
        const int* positions, int first_head, int T, int NH, float scale) {                                      \
        start_in_order();                                                                                        \
        ATTENTION_BACKWARD_ATOMIC_BODY(HS)                                                                       \
    }

ATTENTION_BACKWARD_ATOMIC(32)
ATTENTION_BACKWARD_ATOMIC(64)
ATTENTION_BACKWARD_ATOMIC(80)
ATTENTION_BACKWARD_ATOMIC(96)
ATTENTION_BACKWARD_ATOMIC(128)
