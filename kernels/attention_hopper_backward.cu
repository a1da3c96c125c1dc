// Attention's backward pass for Hopper, in one kernel: 16-bit floatX.
//
// With S = Q K^T, P = exp(scale S - lse), dP = dO V^T and delta = the row sums of dO * O:
//
//     dS = P * (dP - delta),  dV = P^T dO,  dK = scale dS^T Q,  dQ = scale dS K
//
// Work is numbered. A number is a head and a tile of 128 keys, which stay in shared memory while
// the tiles of 128 queries that see them stream past, the diagonal first. Two warpgroups (the
// consumers) have 64 keys each. They multiply transposed scores, S^T and dP^T, so that P^T and dS^T
// are in registers as the left operands of dV and dK. Only dS passes through shared memory: for dQ
// a consumer has 64 queries and needs the keys of both. A third warpgroup has a warp that loads tiles
// by TMA and a warp that carries dQ away.
//
// A tile of dQ is a sum over key tiles. They add to it in turn, from the diagonal down to the first
// keys, so the result is the same every time. A number in memory for each tile of queries counts the
// turns. The first adds to nothing: it stores its sums. The last one gets the sums so far, adds its
// own, and writes dQ. Key tiles in between leave it to the TMA to add theirs in L2. The sums keep the
// layout that they have in registers.
//
// In that order nobody waits for long: the key tile that is one further ahead started earlier, and
// was at every tile of queries one tile before. The diagonal also finds delta, and leaves it to the
// key tiles that come after. Blocks are persistent and take numbers from a counter, so that
// a number waits only for lower ones, which a block has taken before: the lowest unfinished number never
// waits. A group of heads goes through its last keys first, all heads at once. Sums and turns are needed
// for two groups at a time: the next but one reuses them, which continues the count of turns.
#include "attention_hopper.cuh"

namespace attention_hopper {
#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

constexpr int KEYS = 128, QUERIES = 128, STAGES = 2, CONSUMERS = 2;
constexpr int CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP_SIZE;

// A tile of keys of a head.
struct alignas(16) Item {
    int head;      // b * NH + h; the number of all heads at the end
    int key_tile;
    // Of the head's first tile of queries: the place in `sums`, `deltas` and `turns`.
    int first_place;
    int earlier_heads;  // that had the same place

    // The number of turns that earlier heads took at a tile of queries: one for each key tile.
    __device__ __forceinline__ unsigned turns_before(int query_tile) const { return earlier_heads * (query_tile + 1); }
};

struct Problem {
    int T, NH, heads, group;
    float* sums;      // of dQ, for the tiles of queries of two groups
    float* deltas;    // of the same
    unsigned* turns;  // of the same; 0 before and after
    unsigned* counter;  // 0 before and after

    __device__ __forceinline__ int tiles() const { return ceil_div(T, QUERIES); }
    __device__ __forceinline__ int items() const { return heads * tiles(); }
    // Takes the next number. Each block stops at the first one that is too large; then the counter
    // is back at 0.
    __device__ __forceinline__ int take() const { return (int)atomicInc(counter, (unsigned)(items() + (int)gridDim.x - 1)); }
    __device__ __forceinline__ Item item(int number) const {
        const int group_items = group * tiles(), first = number / group_items * group, place = number % group_items;
        const int size = min(group, heads - first), head = first + place % size, places = 2 * group;
        return {head, tiles() - 1 - place / size, head % places * tiles(), head / places};
    }
    __device__ __forceinline__ bool is_last_use(int head) const { return head + 2 * group >= heads; }
};

template <int HS>
struct Shared {
    using Keys = Tile<HS, KEYS>;
    using Queries = Tile<HS, QUERIES>;
    static constexpr int SUM_BYTES = QUERIES * HS * 4, SLOPE_BYTES = KEYS * QUERIES * 2, STATS_BYTES = 2 * QUERIES * 4;
    // Where a warp leaves its share of dQ.
    static constexpr int WARP_SUM_BYTES = SUM_BYTES / CONSUMER_WARPS;

    static constexpr int QUERIES_OFFSET = STAGES * 2 * Keys::BYTES;
    static constexpr int SLOPES_OFFSET = QUERIES_OFFSET + STAGES * 2 * Queries::BYTES;
    static constexpr int SUMS_OFFSET = SLOPES_OFFSET + SLOPE_BYTES;
    static constexpr int OUT_OFFSET = SUMS_OFFSET + SUM_BYTES;
    static constexpr int STATS_OFFSET = OUT_OFFSET + Queries::BYTES;
    static constexpr int ITEMS_OFFSET = STATS_OFFSET + STAGES * STATS_BYTES;
    static constexpr int BARRIERS_OFFSET = ITEMS_OFFSET + STAGES * sizeof(Item);

    unsigned char* const base;
    const uint32_t address;

    __device__ __forceinline__ explicit Shared(unsigned char* base) : base(base), address(shared_address(base)) {}

    // Item i is described and has its keys and values in one of two stages, tile j (of queries, over all
    // items) in one of two others.
    __device__ __forceinline__ uint32_t offset_of_key(int i) const { return i % STAGES * 2 * Keys::BYTES; }
    __device__ __forceinline__ uint32_t offset_of_query(int j) const { return QUERIES_OFFSET + j % STAGES * 2 * Queries::BYTES; }
    __device__ __forceinline__ Keys key(int i) const { return {address + offset_of_key(i)}; }
    __device__ __forceinline__ Keys value(int i) const { return {address + offset_of_key(i) + Keys::BYTES}; }
    __device__ __forceinline__ Queries query(int j) const { return {address + offset_of_query(j)}; }
    __device__ __forceinline__ Queries dout(int j) const { return {address + offset_of_query(j) + Queries::BYTES}; }
    // For the diagonal alone.
    __device__ __forceinline__ Queries out() const { return {address + OUT_OFFSET}; }
    // Of each query -log2(e) lse, then delta of each.
    __device__ __forceinline__ float* stats(int j) const {
        return reinterpret_cast<float*>(base + STATS_OFFSET + j % STAGES * STATS_BYTES);
    }
    __device__ __forceinline__ Item& item(int i) const { return reinterpret_cast<Item*>(base + ITEMS_OFFSET)[i % STAGES]; }
    // dS^T: a row for each key, 64 queries in each of two halves.
    __device__ __forceinline__ uint32_t slopes(int half) const { return address + SLOPES_OFFSET + half * KEYS * 128; }

    __device__ __forceinline__ uint32_t barrier(int n) const { return address + BARRIERS_OFFSET + 8 * n; }
    __device__ __forceinline__ uint32_t item_full(int i) const { return barrier(i % STAGES); }
    __device__ __forceinline__ uint32_t item_empty(int i) const { return barrier(STAGES + i % STAGES); }
    __device__ __forceinline__ uint32_t tile_full(int j) const { return barrier(2 * STAGES + j % STAGES); }
    __device__ __forceinline__ uint32_t tile_empty(int j) const { return barrier(3 * STAGES + j % STAGES); }
    __device__ __forceinline__ uint32_t stats_full(int j) const { return barrier(4 * STAGES + j % STAGES); }
    // The diagonal's deltas are known, and its output is no longer needed.
    __device__ __forceinline__ uint32_t deltas_full() const { return barrier(5 * STAGES); }
    // Both consumers have written dS, and have read it.
    __device__ __forceinline__ uint32_t slopes_full() const { return barrier(5 * STAGES + 1); }
    __device__ __forceinline__ uint32_t slopes_empty() const { return barrier(5 * STAGES + 2); }
    // The consumers may add dQ to the sums so far, or write it, and have done so.
    __device__ __forceinline__ uint32_t sums_ready() const { return barrier(5 * STAGES + 3); }
    __device__ __forceinline__ uint32_t sums_full() const { return barrier(5 * STAGES + 4); }
    static __device__ __forceinline__ uint32_t stage_parity(int n) { return n / STAGES & 1; }

    __device__ __forceinline__ void initialize() const {
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                mbarrier_init(item_full(i), 1);
                mbarrier_init(item_empty(i), CONSUMER_WARPS + 1);
                mbarrier_init(tile_full(i), 1);
                mbarrier_init(stats_full(i), 1 + WARP_SIZE);
                mbarrier_init(tile_empty(i), CONSUMER_WARPS);
            }
            mbarrier_init(deltas_full(), CONSUMER_WARPS);
            mbarrier_init(slopes_full(), CONSUMER_WARPS);
            mbarrier_init(slopes_empty(), CONSUMER_WARPS);
            mbarrier_init(sums_ready(), 1);
            mbarrier_init(sums_full(), CONSUMER_WARPS);
            mbarrier_init_fence();
        }
        __syncthreads();
    }
};

struct Maps {
    const TensorMap *qkv, *dout, *out;
};

// The warp that loads: items, tiles of queries and their statistics.
template <int HS>
__device__ __forceinline__ void load(const Shared<HS>& shared, const Problem& problem, const Maps& maps, const float* lse) {
    const int lane = threadIdx.x % WARP_SIZE, C = problem.NH * HS, tiles = problem.tiles();
    for (int i = 0, j = 0;; i++) {
        if (lane == 0) {
            const int number = problem.take();
            mbarrier_wait(shared.item_empty(i), Shared<HS>::stage_parity(i) ^ 1);
            shared.item(i) = number < problem.items() ? problem.item(number) : Item{problem.heads, 0, 0, 0};
        }
        __syncwarp();
        const Item item = shared.item(i);
        if (item.head == problem.heads) {
            if (lane == 0) mbarrier_arrive(shared.item_full(i));
            return;
        }
        const int head = item.head, row = head / problem.NH * problem.T, column = head % problem.NH * HS;
        if (lane == 0) {
            const uint32_t barrier = shared.item_full(i);
            mbarrier_arrive_expect(barrier, 2 * Tile<HS, KEYS>::BYTES);
            shared.key(i).load({maps.qkv, nullptr}, column + C, row + item.key_tile * KEYS, barrier);
            shared.value(i).load({maps.qkv, nullptr}, column + 2 * C, row + item.key_tile * KEYS, barrier);
        }
        for (int tile = item.key_tile; tile < tiles; tile++, j++) {
            const bool is_diagonal = tile == item.key_tile;
            const int first = tile * QUERIES, place = item.first_place + tile;
            mbarrier_wait(shared.tile_empty(j), Shared<HS>::stage_parity(j) ^ 1);
            if (lane == 0) {
                const uint32_t barrier = shared.tile_full(j), stats_barrier = shared.stats_full(j);
                mbarrier_arrive_expect(barrier, 2 * Tile<HS, QUERIES>::BYTES);
                shared.query(j).load({maps.qkv, nullptr}, column, row + first, barrier);
                shared.dout(j).load({maps.dout, nullptr}, column, row + first, barrier);
                if (is_diagonal) {
                    mbarrier_wait(shared.deltas_full(), (i & 1) ^ 1);
                    mbarrier_arrive_expect(stats_barrier, Tile<HS, QUERIES>::BYTES);
                    shared.out().load({maps.out, nullptr}, column, row + first, stats_barrier);
                } else {
                    mbarrier_arrive(stats_barrier);
                }
            }
            // Past the end, exponentials of scores must be 0.
            float lse2[QUERIES / WARP_SIZE];
#pragma unroll
            for (int k = 0; k < QUERIES / WARP_SIZE; k++) {
                const int query = first + k * WARP_SIZE + lane;
                lse2[k] = query < problem.T ? lse[(size_t)head * problem.T + query] * -LOG2_E : -INFINITY;
            }
            // The diagonal needs the place for its deltas, others need the deltas.
            if (lane == 0) turn_wait(problem.turns + place, item.turns_before(tile) + (is_diagonal ? 0 : 1));
            __syncwarp();
#pragma unroll
            for (int k = 0; k < QUERIES / WARP_SIZE; k++) {
                const int query = k * WARP_SIZE + lane;
                shared.stats(j)[query] = lse2[k];
                if (!is_diagonal) shared.stats(j)[QUERIES + query] = problem.deltas[place * QUERIES + query];
            }
            mbarrier_arrive(shared.stats_full(j));
        }
    }
}

// The thread that carries dQ from the consumers to its sums in memory, in turn. A turn is passed on
// when the sums are written, but their place in shared memory is free as soon as they are read.
template <int HS>
__device__ __forceinline__ void carry(const Shared<HS>& shared, const Problem& problem) {
    constexpr int BYTES = Shared<HS>::SUM_BYTES;
    const uint32_t sums = shared.address + Shared<HS>::SUMS_OFFSET;
    for (int i = 0, j = 0;; i++) {
        mbarrier_wait(shared.item_full(i), Shared<HS>::stage_parity(i));
        const Item item = shared.item(i);
        mbarrier_arrive(shared.item_empty(i));
        if (item.head == problem.heads) return;
        const bool is_last = item.key_tile == 0;
        for (int tile = item.key_tile; tile < problem.tiles(); tile++, j++) {
            const int earlier = tile - item.key_tile, place = item.first_place + tile;
            const auto pass = [&](int place, unsigned turn) {
                tma_store_wait<0>();
                turn_pass(problem.turns + place, turn);
            };
            if (!is_last) mbarrier_arrive(shared.sums_ready());
            if (!is_last && earlier > 0) pass(place - 1, item.turns_before(tile - 1) + earlier);
            const unsigned turn = item.turns_before(tile) + earlier;
            turn_wait(problem.turns + place, turn);
            proxy_fence_global();
            float* const in_memory = problem.sums + (size_t)place * (BYTES / 4);
            if (is_last && earlier > 0) {
                mbarrier_arrive_expect(shared.sums_ready(), BYTES);
                bulk_load(sums, in_memory, BYTES, shared.sums_ready());
                mbarrier_wait(shared.sums_ready(), j & 1);
            } else if (is_last) {
                mbarrier_arrive(shared.sums_ready());
            }
            mbarrier_wait(shared.sums_full(), j & 1);
            if (is_last) {
                turn_pass(problem.turns + place, problem.is_last_use(item.head) ? 0 : turn + 1);
            } else {
                if (earlier == 0) bulk_store(in_memory, sums, BYTES);
                else bulk_reduce_add(in_memory, sums, BYTES);
                tma_store_commit();
                tma_store_wait_read<0>();
                if (tile + 1 == problem.tiles()) pass(place, turn + 1);
            }
        }
    }
}

// A consumer warp.
template <int HS>
struct Consumer {
    static constexpr int PIECE = 32;

    const Shared<HS>& shared;
    const Problem& problem;
    floatX* const dqkv;
    const float scale;
    const int warp, group;
    const bool leader;

    __device__ __forceinline__ Consumer(const Shared<HS>& shared, const Problem& problem, floatX* dqkv, float scale)
        : shared(shared), problem(problem), dqkv(dqkv), scale(scale),
          // The shuffle shows the compiler that all lanes agree, so that addresses are uniform.
          warp(__shfl_sync(FULL_MASK, (int)threadIdx.x / WARP_SIZE, 0) - WARPGROUP / WARP_SIZE), group(warp / 4),
          leader(threadIdx.x % WARP_SIZE == 0) {}

    // The numbers of the item and of the tile, the tile's place in its head, and whether a tile follows.
    int i, j, tile;
    bool more;

    __device__ __forceinline__ void run() {
        i = j = 0;
        receive(0);
        if (!more) return;
        WarpgroupSums<QUERIES> scores;
        mbarrier_wait(shared.tile_full(0), 0);
        wgmma_fence();
        multiply_transposed(scores, shared.key(0), ROWS * group, shared.query(0));
        wgmma_wait<0>();
        for (; more; i++) {
            WarpgroupSums<HS> dk, dv;
            tile = shared.item(i).key_tile;
            differentiate<true>(scores, dk, dv);
#pragma unroll 1
            for (j++, tile++; tile < problem.tiles(); j++, tile++) differentiate<false>(scores, dk, dv);
            store(dk, dv);
        }
    }

    __device__ __forceinline__ void receive(int item) {
        mbarrier_wait(shared.item_full(item), Shared<HS>::stage_parity(item));
        more = shared.item(item).head < problem.heads;
    }

    // Queues the scores of the next tile, which may be that of the next item. After the last one, it
    // queues those of this tile again: if they were not always assigned, their registers would stay occupied.
    __device__ __forceinline__ void queue_next(WarpgroupSums<QUERIES>& scores) {
        const bool is_last = tile + 1 == problem.tiles();
        if (is_last) receive(i + 1);
        const int next = j + more;
        if (more) mbarrier_wait(shared.tile_full(next), Shared<HS>::stage_parity(next));
        wgmma_fence();
        multiply_transposed(scores, shared.key(i + (is_last && more)), ROWS * group, shared.query(next));
    }

    // Adds a tile of queries to dK, dV and dQ, and turns its scores into those of the next one.
    template <bool IS_DIAGONAL>
    __device__ __forceinline__ void differentiate(WarpgroupSums<QUERIES>& scores, WarpgroupSums<HS>& dk, WarpgroupSums<HS>& dv) {
        WarpgroupSums<QUERIES> dp;
        const float* const stats = shared.stats(j) + threadIdx.x % 4 * 2;
        mbarrier_wait(shared.stats_full(j), Shared<HS>::stage_parity(j));
        if constexpr (IS_DIAGONAL) find_deltas();
        wgmma_fence();
        multiply_transposed(dp, shared.value(i), ROWS * group, shared.dout(j));
        if constexpr (IS_DIAGONAL) hide_later_keys<false>(scores, -16 * warp);
        // Pieces of the queries: while one is weighed, the tensor cores multiply the one before.
        Weights<PIECE> weights;
#pragma unroll
        for (int piece = 0; piece < QUERIES / PIECE; piece++) {
            const auto p = [&](int n) -> float(&)[4] { return scores.v[0][piece * PIECE / 8 + n]; };
#pragma unroll
            for (int n = 0; n < PIECE / 8; n++) {
                const float2 lse = *reinterpret_cast<const float2*>(stats + piece * PIECE + 8 * n);
#pragma unroll
                for (int k = 0; k < 4; k++) p(n)[k] = exp2_approx(fmaf(p(n)[k], scale * LOG2_E, k % 2 == 0 ? lse.x : lse.y));
            }
            if (piece > 0) wgmma_wait<0>();
#pragma unroll
            for (int n = 0; n < PIECE / 8; n++) {
                weights[n / 2][n % 2 * 2] = pack2<floatX>(p(n)[0], p(n)[1]);
                weights[n / 2][n % 2 * 2 + 1] = pack2<floatX>(p(n)[2], p(n)[3]);
            }
            wgmma_fence();
            add_product<PIECE>(dv, weights, shared.dout(j), !IS_DIAGONAL || piece > 0, piece * PIECE);
        }
        mbarrier_wait(shared.slopes_empty(), (j & 1) ^ 1);
        const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
        for (int piece = 0; piece < QUERIES / PIECE; piece++) {
            const auto ds = [&](int n) -> float(&)[4] { return dp.v[0][piece * PIECE / 8 + n]; };
#pragma unroll
            for (int n = 0; n < PIECE / 8; n++) {
                const float(&p)[4] = scores.v[0][piece * PIECE / 8 + n];
                const float2 delta = *reinterpret_cast<const float2*>(stats + QUERIES + piece * PIECE + 8 * n);
#pragma unroll
                for (int k = 0; k < 4; k++) ds(n)[k] = p[k] * (ds(n)[k] - (k % 2 == 0 ? delta.x : delta.y));
            }
            wgmma_wait<0>();
#pragma unroll
            for (int n = 0; n < PIECE / 8; n++) {
                weights[n / 2][n % 2 * 2] = pack2<floatX>(ds(n)[0], ds(n)[1]);
                weights[n / 2][n % 2 * 2 + 1] = pack2<floatX>(ds(n)[2], ds(n)[3]);
            }
#pragma unroll
            for (int k = 0; k < PIECE / 16; k++) {
                const int column = piece * PIECE + 16 * k;
                const uint32_t place = tile_offset<64>(16 * warp + lane % 16, column % 64 / 8 + lane / 16);
                stmatrix_x4(shared.slopes(column / 64) + place, weights[k]);
            }
            wgmma_fence();
            add_product<PIECE>(dk, weights, shared.query(j), !IS_DIAGONAL || piece > 0, piece * PIECE);
        }
        proxy_fence();
        __syncwarp();
        if (leader) mbarrier_arrive(shared.slopes_full());
        WarpgroupSums<QUERIES> next;
        queue_next(next);
        mbarrier_wait(shared.slopes_full(), j & 1);
        WarpgroupSums<HS> dq;
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            constexpr uint32_t UNUSED = 16;
            wgmma<floatX, true, true>(registers_of<0, HS>(dq), matrix_descriptor(shared.slopes(group) + 16 * k * 128, UNUSED),
                                      shared.key(i).wide_rows(16 * k), k > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        if (leader) {
            mbarrier_arrive(shared.tile_empty(j));
            mbarrier_arrive(shared.slopes_empty());
        }
        hand_over(dq);
        scores = next;
    }

    // Finds delta of the diagonal's queries, for both consumers and for the key tiles after.
    __device__ __forceinline__ void find_deltas() const {
        const int row = ((int)threadIdx.x - WARPGROUP) / 2, half = threadIdx.x % 2;
        const unsigned char* const dout = shared.base + shared.offset_of_query(j) + Shared<HS>::Queries::BYTES;
        const unsigned char* const out = shared.base + Shared<HS>::OUT_OFFSET;
        float delta = 0.0f;
#pragma unroll
        for (int chunk = 0; chunk < HS / 16; chunk++) {
            const uint32_t offset = tile_offset<HS>(row, half * (HS / 16) + chunk);
            float x[8], y[8];
            widen(x, load128(reinterpret_cast<const floatX*>(dout + offset)));
            widen(y, load128(reinterpret_cast<const floatX*>(out + offset)));
#pragma unroll
            for (int k = 0; k < 8; k++) delta += x[k] * y[k];
        }
        delta += __shfl_xor_sync(FULL_MASK, delta, 1);
        if (half == 0) {
            shared.stats(j)[QUERIES + row] = delta;
            problem.deltas[(shared.item(i).first_place + tile) * QUERIES + row] = delta;
        }
        __syncwarp();
        if (leader) mbarrier_arrive(shared.deltas_full());
        mbarrier_wait(shared.deltas_full(), i & 1);
    }

    __device__ __forceinline__ void hand_over(WarpgroupSums<HS>& dq) const {
        unsigned char* const place = shared.base + Shared<HS>::SUMS_OFFSET + warp * Shared<HS>::WARP_SUM_BYTES;
        float4* const pieces = reinterpret_cast<float4*>(place) + threadIdx.x % WARP_SIZE;
        mbarrier_wait(shared.sums_ready(), j & 1);
        if (shared.item(i).key_tile > 0) {
#pragma unroll
            for (int n = 0; n < HS / 8; n++) {
                const float(&own)[4] = dq.v[0][n];
                pieces[n * WARP_SIZE] = make_float4(own[0], own[1], own[2], own[3]);
            }
        } else {
            if (tile > 0) {
#pragma unroll
                for (int n = 0; n < HS / 8; n++) {
                    float(&own)[4] = dq.v[0][n];
                    const float4 others = pieces[n * WARP_SIZE];
                    own[0] += others.x, own[1] += others.y, own[2] += others.z, own[3] += others.w;
                }
            }
            dq.scale(scale);
            store_rows_at(0, shared.item(i).head, tile * QUERIES, dq, place);
        }
        proxy_fence();
        __syncwarp();
        if (leader) mbarrier_arrive(shared.sums_full());
    }

    // Stores the warp's rows of dQ, dK or dV (0 to 2) of a tile, through shared memory at `place`.
    __device__ __forceinline__ void store_rows_at(int matrix, int head, int first, const WarpgroupSums<HS>& sums,
                                                  unsigned char* place) const {
        const int C = problem.NH * HS, row = first + 16 * warp;
        floatX* const to = dqkv + offset_in_qkv(head, problem.T, problem.NH, HS) + matrix * C + (size_t)row * 3 * C;
        store_warp_rows<HS>(to, 3 * C, problem.T - row, sums, shared_address(place), place);
    }

    // Stores dK and dV of an item through its keys and values, which both consumers no longer need.
    __device__ __forceinline__ void store(WarpgroupSums<HS>& dk, const WarpgroupSums<HS>& dv) const {
        mbarrier_wait(shared.slopes_empty(), (j & 1) ^ 1);
        dk.scale(scale);
        unsigned char* const place = shared.base + shared.offset_of_key(i) + tile_bytes<HS>(16 * warp);
        const Item item = shared.item(i);
        store_rows_at(1, item.head, item.key_tile * KEYS, dk, place);
        store_rows_at(2, item.head, item.key_tile * KEYS, dv, place + Shared<HS>::Keys::BYTES);
        proxy_fence();
        __syncwarp();
        if (leader) mbarrier_arrive(shared.item_empty(i));
    }
};

template <int HS>
__device__ __forceinline__ void backward(unsigned char* memory, floatX* dqkv, const Maps& maps, const float* lse,
                                         const Problem& problem, float scale) {
    const Shared<HS> shared(memory);
    launch_dependents();
    shared.initialize();
    wait_for_dependencies();
    if (threadIdx.x < WARPGROUP) {
        registers_decrease<40>();
        if (threadIdx.x < WARP_SIZE) load(shared, problem, maps, lse);
        else if (threadIdx.x == WARP_SIZE) carry(shared, problem);
    } else {
        registers_increase<232>();
        Consumer<HS>(shared, problem, dqkv, scale).run();
    }
}
#else
struct Problem {
    int T, NH, heads, group;
    float *sums, *deltas;
    unsigned *turns, *counter;
};
struct Maps {
    const TensorMap *qkv, *dout, *out;
};
template <int HS>
__device__ __forceinline__ void backward(unsigned char*, floatX*, const Maps&, const float*, const Problem&, float) {}
#endif
}  // namespace attention_hopper

extern "C" __global__ void __launch_bounds__(384, 1)
    attention_hopper_backward_hs64(floatX* dqkv, GRID_CONSTANT TensorMap qkv, GRID_CONSTANT TensorMap dout,
                                   GRID_CONSTANT TensorMap out, const float* lse, float* sums, float* deltas, unsigned* turns,
                                   unsigned* counter, int T, int NH, int heads, int group, float scale) {
    DYNAMIC_SHARED(shared);
    const attention_hopper::Problem problem{T, NH, heads, group, sums, deltas, turns, counter};
    attention_hopper::backward<64>(shared, dqkv, {&qkv, &dout, &out}, lse, problem, scale);
}
