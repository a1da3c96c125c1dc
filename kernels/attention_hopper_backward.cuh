// Attention's backward pass for Hopper in one kernel, 16-bit floatX, heads of 64.
//
// With S = Q K^T, P = exp(scale S - lse), dP = dO V^T and delta = the row sums of dO * O:
//
//     dS = P * (dP - delta),  dV = P^T dO,  dK = scale dS^T Q,  dQ = scale dS K
//
// An item of work is 128 keys of a head, which stay in shared memory while the tiles of 128 queries
// that see them stream past, the diagonal first. Two warpgroups (the consumers) have 64 keys each.
// They multiply transposed scores, S^T and dP^T, so that P^T and dS^T are in registers as the left
// operands of dV and dK. Only dS passes through shared memory: for dQ a consumer has 64 queries,
// and needs the keys of both. A third warpgroup has a warp that loads tiles and a thread that
// carries dQ away.
//
// A tile of dQ is a sum over items. They add to it in turn, from the diagonal down to the first
// keys, so the result is the same every time. The first stores its sums, the last one gets the sums
// so far, adds its own and writes dQ, and those in between leave adding to the TMA, which does it
// in L2. The sums keep the layout that they have in registers. A number in memory counts the turns
// of each tile. The diagonal, which is first, also finds delta and leaves it to the others.
//
// Blocks are persistent and take items from a counter. An item waits only for items with lower
// numbers, and a block finishes its items in the order in which it takes them, so the lowest
// unfinished item never waits for an unfinished one. Nor should others wait for long: a group of
// heads goes through its last keys first, all heads at once, so that the item before in turn
// started earlier, and one tile closer. Two groups of heads have memory for sums and turns at a
// time; the next but one uses the same again, and goes on with the count of turns.
#pragma once
#include "attention_hopper.cuh"

namespace attention_hopper {
constexpr int KEYS = 128, QUERIES = 128, STAGES = 2, CONSUMERS = 2;

// A tile of keys of a head.
struct alignas(16) Item {
    int head;  // b * NH + h; the number of all heads at the end
    int key_tile;
    int first_place;    // of the head's tiles of queries in `sums`, `deltas` and `turns`
    int earlier_heads;  // that had the same places

    // The number of turns that earlier heads took at a tile of queries: one for each key tile.
    __device__ __forceinline__ unsigned turns_before(int query_tile) const { return earlier_heads * (query_tile + 1); }
};

struct Problem {
    int T, NH, heads;
    int group;          // heads that are worked on at the same time
    float* sums;        // of dQ, for the tiles of queries of two groups
    float* deltas;      // of the same queries
    unsigned* turns;    // of the same tiles; 0 before and after
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

struct Maps {
    const TensorMap *qkv, *dout, *out;
};

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

constexpr int CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP_SIZE;

template <int HS>
struct Shared {
    using Keys = Tile<HS, KEYS>;
    using Queries = Tile<HS, QUERIES>;
    static constexpr int SUM_BYTES = QUERIES * HS * 4, SLOPE_BYTES = KEYS * QUERIES * 2, STATS_BYTES = 2 * QUERIES * 4;
    // A warp's share of dQ.
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

    // Item i has its description, keys and values in one of two stages, and tile j (of queries,
    // over all items) is in one of two others.
    __device__ __forceinline__ uint32_t offset_of_key(int i) const { return i % STAGES * 2 * Keys::BYTES; }
    __device__ __forceinline__ uint32_t offset_of_query(int j) const {
        return QUERIES_OFFSET + j % STAGES * 2 * Queries::BYTES;
    }
    __device__ __forceinline__ Keys key(int i) const { return {address + offset_of_key(i)}; }
    __device__ __forceinline__ Keys value(int i) const { return {address + offset_of_key(i) + Keys::BYTES}; }
    __device__ __forceinline__ Queries query(int j) const { return {address + offset_of_query(j)}; }
    __device__ __forceinline__ Queries dout(int j) const { return {address + offset_of_query(j) + Queries::BYTES}; }
    // For the diagonal alone.
    __device__ __forceinline__ Queries out() const { return {address + OUT_OFFSET}; }
    // The numbers -log2(e) lse of all queries, then their deltas.
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
#endif
}  // namespace attention_hopper
