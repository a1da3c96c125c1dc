// Causal attention for Hopper, forward, 16-bit floatX. The formulas are in attention_forward.cu,
// tiles and products in attention_hopper.cuh.
//
// Blocks are persistent. One thread (the producer) takes items of work from a counter, 128 queries
// of a head each, and has the TMA copy them, and the keys and values that they see in tiles of 128,
// to shared memory. It runs ahead of two warpgroups (the consumers) that have 64 of the queries
// each. Tiles come in descending order: only the first one, on the diagonal, has keys to hide.
//
// A consumer queues the scores of the next tile together with the product of this one, and computes
// the exponentials of those scores while the product runs. Across items it is the same: the scores
// of the next item's first tile are queued with the last product, and run while this item's results
// are stored. The consumers take turns to queue, so that one has its exponentials while the tensor
// cores have the products of the other.
//
// Exponentials are relative to the largest score of a row's first tile, without a look at later
// ones, as long as they stay within f16. Otherwise, which is rare, the warp alone computes the
// scores again, by mma.sync, as a warpgroup could only do so together.
//
// Limits for HS = 64: two products of a tile take 1,024 clocks of the tensor cores, and 16,384
// exponentials as many of the special function unit. A part of the exponentials as polynomials does
// not pay: their instructions lengthen what each warp has to wait for by more than they take from
// that unit. Larger heads are bound by the tensor cores.
#include "attention_hopper.cuh"

namespace attention_hopper {

// The arrays and dimensions of a call.
struct Call {
    floatX* out;
    float* lse;
    unsigned* counter;  // 0 before and after
    int heads, T, NH;   // heads: of all sequences
    float scale;
};

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

constexpr int CONSUMERS = 2, CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP_SIZE;
// Rows per tile: queries of an item, and keys.
constexpr int TILE_ROWS = CONSUMERS * ROWS;

// Shared memory beside tiles: items and barriers.
constexpr int OTHER_BYTES = 256;

// A tile of queries of a head.
struct alignas(16) Item {
    int row, column;  // of its first element, in the rows of all sequences
    int head;
    int tiles;  // of keys; 0: the end
};

// Shared memory of a block. Two items are in flight from the producer to the consumers.
template <int HS>
struct Block {
    using Rows = Tile<HS, TILE_ROWS>;
    static constexpr int ITEMS = 2, STAGES = HS <= 96 ? 3 : 2;

    const uint32_t tiles;     // ITEMS of queries, STAGES of keys, STAGES of values
    const uint32_t barriers;  // see below
    Item* const items;
    unsigned char* const results;  // rounded, in rows of 16 per consumer warp

    static constexpr int RESULTS_OFFSET = (ITEMS + 2 * STAGES) * Rows::BYTES;
    static constexpr int ITEMS_OFFSET = RESULTS_OFFSET + Rows::BYTES;
    static constexpr int BARRIERS_OFFSET = ITEMS_OFFSET + ITEMS * sizeof(Item);
    static constexpr int BARRIERS = 2 * ITEMS + 4 * STAGES;
    static_assert(BARRIERS_OFFSET + 8 * BARRIERS - ITEMS_OFFSET <= OTHER_BYTES);

    __device__ __forceinline__ explicit Block(unsigned char* shared)
        : tiles(shared_address(shared)), barriers(tiles + BARRIERS_OFFSET), items(reinterpret_cast<Item*>(shared + ITEMS_OFFSET)),
          results(shared + RESULTS_OFFSET) {}

    __device__ __forceinline__ Rows queries(int item) const { return {tiles + item % ITEMS * Rows::BYTES}; }
    __device__ __forceinline__ Rows keys(int stage) const { return {tiles + (ITEMS + stage) * Rows::BYTES}; }
    __device__ __forceinline__ Rows values(int stage) const { return keys(STAGES + stage); }

    // An item and its queries have landed; all consumer warps are done with them.
    __device__ __forceinline__ uint32_t item_full(int item) const { return barriers + item % ITEMS * 8; }
    __device__ __forceinline__ uint32_t item_empty(int item) const { return item_full(item) + ITEMS * 8; }
    static __device__ __forceinline__ uint32_t item_parity(int item) { return item / ITEMS & 1; }
    // The same for keys, then for values.
    __device__ __forceinline__ uint32_t keys_full(int stage) const { return barriers + (2 * ITEMS + stage) * 8; }
    __device__ __forceinline__ uint32_t values_full(int stage) const { return keys_full(STAGES + stage); }
    __device__ __forceinline__ uint32_t keys_empty(int stage) const { return keys_full(2 * STAGES + stage); }
    __device__ __forceinline__ uint32_t values_empty(int stage) const { return keys_full(3 * STAGES + stage); }

    __device__ __forceinline__ void initialize() const {
        if (threadIdx.x == 0) {
            for (int i = 0; i < BARRIERS; i++) {
                const bool counts_warps = (i >= ITEMS && i < 2 * ITEMS) || i >= 2 * ITEMS + 2 * STAGES;
                mbarrier_init(barriers + 8 * i, counts_warps ? CONSUMER_WARPS : 1);
            }
            mbarrier_init_fence();
        }
    }
};

// A stage, and the parity of its barriers, which changes on each pass.
template <int STAGES>
struct Position {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        stage++;
        if (stage == STAGES) stage = 0, parity ^= 1;
    }
};

template <int HS>
struct Producer {
    using OwnBlock = Block<HS>;
    const OwnBlock& block;
    const Call& call;
    const HeadMaps maps;

    __device__ __forceinline__ int count() const { return call.heads * ceil_div(call.T, TILE_ROWS); }
    // Takes the next number. Each block stops at the first one that is too large; then the counter
    // is back at 0.
    __device__ __forceinline__ int take() const { return (int)atomicInc(call.counter, (unsigned)(count() + gridDim.x - 1)); }

    __device__ __forceinline__ Item item_of(int number) const {
        const int tiles = ceil_div(call.T, TILE_ROWS);
        const Work work = work_of_number(number, call.heads, tiles);
        Item item;
        item.tiles = tiles - work.rank;
        item.row = work.head / call.NH * call.T + (item.tiles - 1) * TILE_ROWS;
        item.column = work.head % call.NH * HS;
        item.head = work.head;
        return item;
    }

    // Run by one thread, with the first number that it has taken.
    __device__ __forceinline__ void produce(int number) const {
        const int C = call.NH * HS;
        Position<OwnBlock::STAGES> at;
        int i = 0;
        for (; number < count(); i++) {
            const Item item = item_of(number);
            hand_over(i, item);
            block.queries(i).load(maps, item.column, item.row, block.item_full(i));
            for (int tile = item.tiles - 1, row = item.row; tile >= 0; tile--, row -= TILE_ROWS, at.advance()) {
                load(block.keys(at.stage), block.keys_full(at.stage), block.keys_empty(at.stage), at.parity, item.column + C, row);
                // While the consumers are busy with what is queued.
                if (tile == 0) number = take();
                load(block.values(at.stage), block.values_full(at.stage), block.values_empty(at.stage), at.parity,
                     item.column + 2 * C, row);
            }
        }
        hand_over(i, Item{});
    }
    // On the first pass everything is empty: the phase before the first counts as ended.
    __device__ __forceinline__ void hand_over(int i, const Item& item) const {
        mbarrier_wait(block.item_empty(i), OwnBlock::item_parity(i) ^ 1);
        block.items[i % OwnBlock::ITEMS] = item;
        if (item.tiles > 0) mbarrier_arrive_expect(block.item_full(i), OwnBlock::Rows::BYTES);
        else mbarrier_arrive(block.item_full(i));
    }
    __device__ __forceinline__ void load(typename OwnBlock::Rows tile, uint32_t full, uint32_t empty, uint32_t parity, int column,
                                         int row) const {
        mbarrier_wait(empty, parity ^ 1);
        mbarrier_arrive_expect(full, OwnBlock::Rows::BYTES);
        tile.load(maps, column, row, full);
    }
};

// A consumer warp. DIAGONAL: the keys of the tile on the diagonal that its warpgroup sees.
template <int HS, int DIAGONAL>
struct Consumer {
    using OwnBlock = Block<HS>;
    using Rows = typename OwnBlock::Rows;
    static constexpr int NUMBER = DIAGONAL / ROWS - 1, FIRST_ROW = NUMBER * ROWS;

    const OwnBlock& block;
    const Call& call;
    const bool leader;
    const float scale;  // of scores in base 2
    WarpgroupSums<HS> sums;
    Weights<TILE_ROWS> weights;
    Softmax<1> softmax;
    Position<OwnBlock::STAGES> keys, values;

    __device__ __forceinline__ Consumer(const Block<HS>& block, const Call& call)
        : block(block), call(call), leader(threadIdx.x % WARP_SIZE == 0), scale(call.scale * LOG2_E) {}

    __device__ __forceinline__ void consume() {
        Item item = receive(0);
        if (item.tiles == 0) return;
        // The second consumer has the second turn.
        if (NUMBER == 1) barrier_arrive(turn_of(0), CONSUMERS * WARPGROUP);
        WarpgroupSums<DIAGONAL> diagonal;
        wait_for_keys();
        wait_for_turn();
        wgmma_fence();
        queue_scores(diagonal, block.queries(0));
        pass_turn();
        for (int i = 0;; i++) {
            wgmma_wait<0>();
            release(next_keys());
            weigh_diagonal(diagonal);
            const Rows queries = block.queries(uniform(i));
            for (int tile = 1; tile < item.tiles; tile++) add_tile(queries);
            // All scores of this item are done.
            release(block.item_empty(i));
            const Item next = receive(i + 1);
            if (next.tiles == 0) break;
            wait_for_keys();
            wait_for_turn();
            wgmma_fence();
            queue_product();
            queue_scores(diagonal, block.queries(uniform(i + 1)));
            pass_turn();
            wgmma_wait<1>();
            release(next_values());
            store(item);
            item = next;
        }
        wait_for_turn();
        wgmma_fence();
        queue_product();
        pass_turn();
        wgmma_wait<0>();
        store(item);
        // The turn that the other consumer has passed last.
        if (NUMBER == 0) wait_for_turn();
    }

    // The same value, which all lanes have, where the compiler cannot tell that: it computes
    // descriptors once per warp then.
    static __device__ __forceinline__ int uniform(int value) { return __shfl_sync(FULL_MASK, value, 0); }
    // The warp's first row of its warpgroup's.
    static __device__ __forceinline__ int warp_row() { return (int)threadIdx.x / WARP_SIZE % 4 * 16; }

    __device__ __forceinline__ Item receive(int i) const {
        mbarrier_wait(block.item_full(i), OwnBlock::item_parity(i));
        Item item = block.items[i % OwnBlock::ITEMS];
        item.tiles = uniform(item.tiles);
        return item;
    }

    // Weights of the tile on the diagonal, the first of an item.
    __device__ __forceinline__ void weigh_diagonal(WarpgroupSums<DIAGONAL>& scores) {
        hide_later_keys<true>(columns_of<FIRST_ROW, ROWS>(scores), warp_row());
        softmax.start(scores, scale);
        sums.clear();
#pragma unroll
        for (auto& rows : weights)
#pragma unroll
            for (uint32_t& pair : rows) pair = 0;
        round(reinterpret_cast<Weights<DIAGONAL>&>(weights), scores);
        wait_for_values();
    }

    // Adds the product of the tile that has weights, and computes those of the next one.
    __device__ __forceinline__ void add_tile(Rows queries) {
        WarpgroupSums<TILE_ROWS> scores;
        wait_for_keys();
        const Rows own_keys = block.keys(keys.stage);
        wait_for_turn();
        wgmma_fence();
        queue_scores(scores, queries);
        queue_product();
        pass_turn();
        wgmma_wait<1>();
        const uint32_t used_keys = next_keys();
        const bool serves = softmax.try_update(scores, scale);
        const uint32_t used_values = next_values();
        // The compiler moves no exponential across this wait, so the product is still running.
        wait_for_values();
        wgmma_wait<0>();
        release(used_values);
        if (!serves) {
            multiply_transposed_by_warp(scores, queries, FIRST_ROW + warp_row(), own_keys);
            softmax.update(scores, sums, scale);
        }
        release(used_keys);
        round(weights, scores);
    }

    template <int N>
    __device__ __forceinline__ void queue_scores(WarpgroupSums<N>& scores, Rows queries) const {
        multiply_transposed(scores, queries, FIRST_ROW, block.keys(uniform(keys.stage)));
    }
    __device__ __forceinline__ void queue_product() {
        add_product<TILE_ROWS>(sums, weights, block.values(uniform(values.stage)), true);
    }

    __device__ __forceinline__ void wait_for_keys() const { mbarrier_wait(block.keys_full(keys.stage), keys.parity); }
    __device__ __forceinline__ void wait_for_values() const { mbarrier_wait(block.values_full(values.stage), values.parity); }
    // Moves on to the next stage, and returns the barrier that releases the one before.
    __device__ __forceinline__ uint32_t next_keys() {
        const uint32_t used = block.keys_empty(keys.stage);
        keys.advance();
        return used;
    }
    __device__ __forceinline__ uint32_t next_values() {
        const uint32_t used = block.values_empty(values.stage);
        values.advance();
        return used;
    }
    __device__ __forceinline__ void release(uint32_t empty) const {
        if (leader) mbarrier_arrive(empty);
    }

    // Both consumers queue products equally often.
    static __device__ __forceinline__ uint32_t turn_of(int number) { return 1 + number; }
    __device__ __forceinline__ void wait_for_turn() const { barrier_sync(turn_of(NUMBER), CONSUMERS * WARPGROUP); }
    __device__ __forceinline__ void pass_turn() const { barrier_arrive(turn_of(1 - NUMBER), CONSUMERS * WARPGROUP); }

    __device__ __forceinline__ void store(const Item& item) {
        const int in_tile = FIRST_ROW + warp_row(), C = call.NH * HS;
        const int position = (item.tiles - 1) * TILE_ROWS + in_tile, valid = call.T - position;
        // A copy, as the next item's scores are being computed: the sums may not change.
        WarpgroupSums<HS> result = sums;
        softmax.finish(result, call.lse + (size_t)item.head * call.T + position, valid, call.scale);
        unsigned char* const rows = block.results + tile_bytes<HS>(in_tile);
        store_warp_rows(call.out + (size_t)(item.row + in_tile) * C + item.column, C, valid, result, shared_address(rows), rows);
    }
};

// All the work of a thread.
template <int HS>
__device__ __forceinline__ void forward(unsigned char* shared, const HeadMaps& maps, const Call& call) {
    const Block<HS> block(shared);
    const Producer<HS> producer{block, call, maps};
    launch_dependents();
    if (threadIdx.x == 0) {
        tma_prefetch(maps.wide);
        if constexpr (Block<HS>::Rows::REST > 0) tma_prefetch(maps.rest);
    }
    block.initialize();
    wait_for_dependencies();
    // The request for the first number is in flight while the threads meet.
    int first = 0;
    if (threadIdx.x == 0) first = producer.take();
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        registers_decrease<40>();
        if (threadIdx.x == 0) producer.produce(first);
        __syncwarp();
    } else {
        registers_increase<232>();
        // The same in all lanes, which the compiler cannot tell from the thread's number.
        if (__shfl_sync(FULL_MASK, (int)threadIdx.x / WARPGROUP, 0) == 1) Consumer<HS, ROWS>(block, call).consume();
        else Consumer<HS, 2 * ROWS>(block, call).consume();
    }
}
#else
template <int HS>
__device__ __forceinline__ void forward(unsigned char*, const HeadMaps&, const Call&) {}
#endif
}  // namespace attention_hopper

// `wide` and `rest` are maps of qkv (B, T, 3, NH, HS).
#define ATTENTION_HOPPER_FORWARD(HS)                                                                        \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                    \
        attention_hopper_forward_hs##HS(floatX* out, float* lse, GRID_CONSTANT TensorMap wide,              \
                                        GRID_CONSTANT TensorMap rest, unsigned* counter, int heads, int T,  \
                                        int NH, float scale) {                                              \
        DYNAMIC_SHARED(shared);                                                                             \
        attention_hopper::forward<HS>(shared, {&wide, &rest}, {out, lse, counter, heads, T, NH, scale});    \
    }

ATTENTION_HOPPER_FORWARD(64)
ATTENTION_HOPPER_FORWARD(80)
ATTENTION_HOPPER_FORWARD(96)
ATTENTION_HOPPER_FORWARD(128)
