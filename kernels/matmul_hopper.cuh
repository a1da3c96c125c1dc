// Matmuls on Hopper's own tensor core instructions: D (M x N) = A (M x K) * B (K x N), with the
// operations and epilogues of matmul.cuh.
//
// Blocks are persistent and come in clusters, each of which computes tiles of 256 x 256. A cluster
// takes runs of work, numbered by a counter that all share: one that starts late because a
// collective occupied its SMs finds no work left instead of delaying the others. The tiles of its
// blocks, BM x 256, lie one below the other, so all need the same part of B: each loads its share,
// and the TMA hands it to all of them (multicast). That divides the reads of B from L2.
//
// A stage is 64 elements of K of both operands, which the TMA copies to shared memory in the
// swizzle that wgmma expects; it fills in zeros past the ends of the matrices. One thread of a
// block (the producer) issues the copies. Two warpgroups (the consumers) multiply, 64 x 256 each,
// with their sums in registers that the producer's warpgroup released. A stage has two barriers:
// `full` (its bytes have landed in this block) and `empty` (the consumer warps that read it are
// done in all blocks, since all write to it). The producer runs ahead across tiles. It also
// computes the position of a tile, which takes divisions, and passes it to the consumers.
//
// BM = 128, clusters of two: the consumers share each tile, and a stage's part of B serves both.
// BM = 64, clusters of four: they take tiles in turn (ping-pong), so that one multiplies while the
// other is in its epilogue. That hides the epilogue, which pays where K is short: each 64 rows copy
// their part of B to shared memory, which takes a quarter longer than to multiply it. Both read 32
// bytes per clock and SM from L2. Forward and dgrad have both, wgrad has the first.
//
// Why 256 columns: a wgmma of 64 x 256 reads 80 bytes of shared memory per clock, of 128 that it
// delivers; 64 x 128 would read 96.
//
// Runs (stream-K): the stages of all tiles in a row, cut into equal runs. With as many runs as
// tiles, a run is a tile. With as many runs as clusters, all of them finish at the same time,
// however few tiles there are. A run that ends inside a tile leaves its sums in memory and raises a
// flag; the run that has the tile's last stage adds the earlier ones in order, so the result is the
// same every time. A run starts with its last tile: the sums that others wait for come first. Runs
// wait only for runs with lower numbers, and a cluster takes numbers in ascending order, so the
// lowest unfinished run never waits for an unfinished one.
//
// One arrival per consumer warp, not per warpgroup: wgmma_wait covers only the calling warp, and
// the other three may still be reading. The lanes that arrive are chosen before the main loop:
// choosing them inside makes ptxas serialize the wgmmas.
//
// Start reading with `run` in matmul_hopper_consumer.cuh.
#pragma once
#include "hopper.cuh"
#include "matmul_epilogue.cuh"

namespace matmul_hopper {
using matmul::Contiguous;

constexpr int CLUSTER_ROWS = 256;
constexpr int BN = 256;
constexpr int BK = 64;
constexpr int WARPGROUP = 128;
constexpr int CONSUMERS = 2;
constexpr int CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP_SIZE;
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
// The rows of an operand in shared memory, the extent of the swizzle.
constexpr int SWIZZLE_COLUMNS = 64, ROW_BYTES = 128;
// For the sums of A's rows: a matrix of ones. It is the same in any layout.
constexpr int ONES_BYTES = 1024;
// Work items in flight from the producer to the consumers, and run numbers between producers.
constexpr int QUEUE = 2;
// Offset from one group of rows to the next where rows run along K: the swizzle implies it, and the
// field is 1.
constexpr uint32_t IMPLIED_BYTES = 16;
// A warp's 16 rows of sums leave in slabs of 64 columns.
constexpr int SLAB_COLUMNS = 64, SLAB_BYTES = 16 * ROW_BYTES, TILE_SLABS = BN / SLAB_COLUMNS;
// Shared memory of a block, and what barriers, work items and the matrix of ones need of it.
constexpr int SHARED_BYTES = 227 * 1024, OTHER_BYTES = 2048;

// A block's share of a run in one tile.
struct alignas(16) Work {
    int m, n;                 // first row and column
    int first_stage, stages;  // of K; no stages: the end
    int run;
    int earlier;  // runs that have the tile's earlier stages; -1: a later run has the last stage
    int unused[2];  // copies leave no bytes undefined
};

struct Problem {
    int M, N, K, runs;
    float* partials;    // of every run; unused with a run per tile
    unsigned* flags;    // of every run; 0 before and after
    unsigned* counter;  // 0 before and after

    __device__ __forceinline__ int tile_stages() const { return ceil_div(K, BK); }
    __device__ __forceinline__ int tiles_m() const { return ceil_div(M, CLUSTER_ROWS); }
    __device__ __forceinline__ int tiles_n() const { return ceil_div(N, BN); }
    // Takes the next run number. Each cluster stops at the first number that is too large; then
    // the counter is back at 0.
    __device__ __forceinline__ int take(int clusters) const {
        return (int)atomicInc(counter, (unsigned)(runs + clusters - 1));
    }
};

// All stages of the product in a row, cut into runs of the same cost. Stages that also sum A's
// rows, in the first tiles of N, cost an eighth more.
struct Runs {
    static constexpr int STAGE_COST = 8;
    const Problem& problem;
    const int first_row;  // of the block in a tile of the cluster
    int tile_stages, extra_cost;
    int cost, with_extra_cost;  // of each run, and the number of runs that cost one more

    __device__ __forceinline__ Runs(const Problem& problem, int first_row, bool with_row_sums)
        : problem(problem), first_row(first_row), tile_stages(problem.tile_stages()), extra_cost(0) {
        const int tiles = problem.tiles_m() * problem.tiles_n();
        // As many runs as tiles end with them. No run may be empty.
        const bool cut_tiles = problem.runs != tiles && tiles * tile_stages * STAGE_COST / problem.runs > STAGE_COST;
        if (with_row_sums && cut_tiles) extra_cost = 1;
        const int all = cost_before(tiles);
        cost = all / problem.runs;
        with_extra_cost = all % problem.runs;
    }

    // The cost of all stages before a tile. The first tiles of N come first in each strip.
    __device__ __forceinline__ int cost_before(int tile) const {
        const int strip_tiles = matmul::STRIP * problem.tiles_n(), strip = tile / strip_tiles;
        const int height = min(matmul::STRIP, problem.tiles_m() - strip * matmul::STRIP);
        const int first_of_n = strip * matmul::STRIP + min(tile - strip * strip_tiles, height);
        return tile_stages * (tile * STAGE_COST + first_of_n * extra_cost);
    }
    // The first stage of a run.
    __device__ __forceinline__ int start(int run) const {
        const int before = run * cost + min(run, with_extra_cost);
        int tile = before / (tile_stages * (STAGE_COST + extra_cost));
        if (extra_cost > 0) {
#pragma unroll 1
            while (cost_before(tile + 1) <= before) tile++;
        }
        const int stage_cost = (cost_before(tile + 1) - cost_before(tile)) / tile_stages;
        return tile * tile_stages + (before - cost_before(tile)) / stage_cost;
    }
    // The run that has the first stage of a tile.
    __device__ __forceinline__ int find(int tile) const {
        const int before = cost_before(tile), in_first = with_extra_cost * (cost + 1);
        int run = before < in_first ? before / (cost + 1) : with_extra_cost + (before - in_first) / cost;
#pragma unroll 1
        while (start(run + 1) <= tile * tile_stages) run++;
        return run;
    }
    // A block's share of a run in the tile that has the stage before `end`.
    __device__ __forceinline__ Work work(int run, int end) const {
        const int tile = (end - 1) / tile_stages, tile_start = tile * tile_stages;
        const int first = max(start(run), tile_start);
        // Strips of 8 tiles, 2,048 rows: what 66 tiles next to each other read of both operands is
        // least when they cover about as many rows as columns.
        const matmul::Position position = matmul::tile_position(tile, problem.tiles_m(), problem.tiles_n());
        Work work = {};
        work.m = position.m * CLUSTER_ROWS + first_row;
        work.n = position.n * BN;
        work.first_stage = first - tile_start;
        work.stages = end - first;
        work.run = run;
        if (end < tile_start + tile_stages) work.earlier = -1;
        else if (first > tile_start) work.earlier = run - find(tile);
        return work;
    }
};

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

// MN rows (columns, for B) of an operand, at one stage of K.
template <Contiguous ORDER, int MN>
struct Operand {
    static constexpr bool ACROSS = ORDER == Contiguous::InMN;
    static constexpr int BYTES = MN * BK * 2;
    // If rows run across K, a panel is 64 elements across and all of the stage's K.
    static constexpr int PANEL_BYTES = BK * ROW_BYTES;
    // Offset from one wgmma to the next, 16 elements of K further.
    static constexpr uint32_t STEP_BYTES = ACROSS ? 16 * ROW_BYTES : 16 * 2;

    // Copies `count` rows from mn on to row `at` of the stage, in each of BLOCKS blocks. The box of
    // the map is 64 x `count`, or 64 x 64 where rows run across.
    template <int BLOCKS>
    static __device__ __forceinline__ void load(uint32_t stage, int at, int count, const TensorMap* map, int mn, int k,
                                                uint32_t barrier) {
        const auto copy = [&](uint32_t to, int x, int y) {
            if constexpr (BLOCKS > 1) tma_load_multicast(to, map, x, y, barrier, (1 << BLOCKS) - 1);
            else tma_load(to, map, x, y, barrier);
        };
        const uint32_t to = stage + at / SWIZZLE_COLUMNS * PANEL_BYTES;
        if constexpr (ACROSS) {
#pragma unroll
            for (int panel = 0; panel < count / SWIZZLE_COLUMNS; panel++) copy(to + panel * PANEL_BYTES, mn + panel * SWIZZLE_COLUMNS, k);
        } else {
            copy(to, k, mn);
        }
    }
    // The descriptor from row mn on, a multiple of 64: the start of a panel, or of 64 rows.
    static __device__ __forceinline__ uint64_t descriptor(uint32_t stage, int mn) {
        static_assert(PANEL_BYTES == SWIZZLE_COLUMNS * ROW_BYTES);
        return matrix_descriptor(stage + mn / SWIZZLE_COLUMNS * PANEL_BYTES, ACROSS ? PANEL_BYTES : IMPLIED_BYTES);
    }
};

// A stage of the pipeline, and the parity of its barriers, which changes on each pass.
template <int STAGES>
struct PipelineState {
    int index = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void advance() {
        index++;
        if (index == STAGES) index = 0, parity ^= 1;
    }
    __device__ __forceinline__ void advance(int count) {
        index += count % STAGES;
        parity ^= count / STAGES & 1;
        if (index >= STAGES) index -= STAGES, parity ^= 1;
    }
    __device__ __forceinline__ int previous() const { return index == 0 ? STAGES - 1 : index - 1; }
};

// The shared memory of a block, and what its threads do with the stages. SLABS: per consumer warp,
// for the epilogue.
template <int BM_, int SLABS_, Contiguous A_ORDER, Contiguous B_ORDER>
struct Block {
    static constexpr int BM = BM_, SLABS = SLABS_, BLOCKS = CLUSTER_ROWS / BM;
    // Whether the consumers take tiles in turn.
    static constexpr bool PING_PONG = BM == 64;
    using A = Operand<A_ORDER, BM>;
    using B = Operand<B_ORDER, BN>;
    static constexpr int STAGE_BYTES = A::BYTES + B::BYTES;
    static constexpr int STAGES = (SHARED_BYTES - OTHER_BYTES - CONSUMER_WARPS * SLABS * SLAB_BYTES) / STAGE_BYTES;
    static_assert(STAGES >= 3 && STAGES <= 4);
    // Warps that read a stage, in the cluster.
    static constexpr int READERS = BLOCKS * CONSUMER_WARPS / (PING_PONG ? CONSUMERS : 1);

    const uint32_t rank;       // in the cluster
    const uint32_t stages;     // STAGES of A and B
    const uint32_t slabs;      // SLABS of each consumer warp
    const uint32_t ones;       // ONES_BYTES
    const uint32_t numbers;    // QUEUE run numbers from the first block, 16 bytes each
    const uint32_t barriers;   // see below
    Work* const queue;         // QUEUE items

    static constexpr int SLABS_OFFSET = STAGES * STAGE_BYTES;
    static constexpr int ONES_OFFSET = SLABS_OFFSET + CONSUMER_WARPS * SLABS * SLAB_BYTES;
    static constexpr int QUEUE_OFFSET = ONES_OFFSET + ONES_BYTES;
    static constexpr int NUMBERS_OFFSET = QUEUE_OFFSET + QUEUE * sizeof(Work);
    static constexpr int BARRIERS_OFFSET = NUMBERS_OFFSET + QUEUE * 16;
    static constexpr int BARRIERS = 2 * STAGES + 4 * QUEUE + CONSUMERS + CONSUMER_WARPS * SLABS;
    static_assert(BARRIERS_OFFSET + 8 * BARRIERS - ONES_OFFSET <= OTHER_BYTES);

    __device__ __forceinline__ explicit Block(unsigned char* shared)
        : rank(cluster_rank()), stages(shared_address(shared)), slabs(stages + SLABS_OFFSET), ones(stages + ONES_OFFSET),
          numbers(stages + NUMBERS_OFFSET), barriers(stages + BARRIERS_OFFSET),
          queue(reinterpret_cast<Work*>(shared + QUEUE_OFFSET)) {}

    __device__ __forceinline__ uint32_t stage(int index) const { return stages + index * STAGE_BYTES; }
    __device__ __forceinline__ uint32_t full(int index) const { return barriers + index * 8; }
    static __device__ __forceinline__ uint32_t empty_offset(int index) { return (STAGES + index) * 8; }
    // A work item is in the queue, and all consumer warps have read it.
    __device__ __forceinline__ uint32_t work_full(int i) const { return barriers + (2 * STAGES + i % QUEUE) * 8; }
    __device__ __forceinline__ uint32_t work_empty(int i) const { return work_full(i) + QUEUE * 8; }
    // The same for run numbers: full in the other blocks of the cluster, empty in the first.
    __device__ __forceinline__ uint32_t run_full(int i) const { return work_full(i) + 2 * QUEUE * 8; }
    __device__ __forceinline__ uint32_t run_empty(int i) const { return work_full(i) + 3 * QUEUE * 8; }
    // The consumer whose turn item i is has seen all of its stages land.
    __device__ __forceinline__ uint32_t multiplied(int i) const {
        return barriers + (2 * STAGES + 4 * QUEUE + i % CONSUMERS) * 8;
    }
    // The extra operand of the epilogue has landed in a slab.
    __device__ __forceinline__ uint32_t loaded(int warp, int slab) const {
        return barriers + (2 * STAGES + 4 * QUEUE + CONSUMERS + warp * SLABS + slab) * 8;
    }
    static __device__ __forceinline__ uint32_t parity(int i) { return i / QUEUE & 1; }

    __device__ __forceinline__ void initialize(unsigned char* shared) const {
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; s++) {
                mbarrier_init(full(s), 1);
                mbarrier_init(barriers + empty_offset(s), READERS);
            }
            for (int i = 0; i < QUEUE; i++) {
                mbarrier_init(work_full(i), 1);
                mbarrier_init(work_empty(i), CONSUMER_WARPS);
                mbarrier_init(run_full(i), 1);
                mbarrier_init(run_empty(i), BLOCKS - 1);
            }
            for (int i = 0; i < CONSUMERS; i++) mbarrier_init(multiplied(i), CONSUMER_WARPS / CONSUMERS);
            for (int i = 0; i < CONSUMER_WARPS * SLABS; i++) mbarrier_init(loaded(0, i), 1);
            mbarrier_init_fence();
        }
        uint32_t* words = reinterpret_cast<uint32_t*>(shared + ONES_OFFSET);
        for (int i = threadIdx.x; i < ONES_BYTES / 4; i += THREADS) words[i] = pack2<floatX>(1.0f, 1.0f);
        proxy_fence();
    }

    // Hands run number i to the other blocks.
    __device__ __forceinline__ void send(int i, int number) const {
        mbarrier_wait_cluster(run_empty(i), parity(i) ^ 1);
#pragma unroll
        for (int other = 1; other < BLOCKS; other++)
            store_async(cluster_address(numbers + i % QUEUE * 16, other), int4{number, 0, 0, 0},
                        cluster_address(run_full(i), other));
    }
    __device__ __forceinline__ int receive_number(unsigned char* shared, int i) const {
        mbarrier_arrive_expect(run_full(i), 16);
        mbarrier_wait_cluster(run_full(i), parity(i));
        const int number = *reinterpret_cast<const int*>(shared + NUMBERS_OFFSET + i % QUEUE * 16);
        return number;
    }
    // Another number may take the place of number i, which has been read.
    __device__ __forceinline__ void release_number(int i) const {
        __threadfence();
        mbarrier_arrive_cluster(cluster_address(run_empty(i), 0));
    }

    __device__ __forceinline__ int take(const Problem& problem) const { return problem.take(gridDim.x / BLOCKS); }

    // Run by one thread. `number` is the cluster's first run number, in its first block.
    __device__ __forceinline__ void produce(unsigned char* shared, const Problem& problem, const TensorMap* a,
                                            const TensorMap* b, int number, bool with_row_sums) const {
        const Runs runs(problem, (int)rank * BM, with_row_sums);
        PipelineState<STAGES> state;
        int item = 0;
        for (int i = 0;; i++) {
            if (rank == 0) send(i, number);
            else number = receive_number(shared, i);
            if (number >= problem.runs) break;
            const int run = number, start = runs.start(run);
            for (int end = runs.start(run + 1); end > start; item++) {
                const Work work = runs.work(run, end);
                give(item, work);
                end -= work.stages;
                // The next number is requested near the end of the run: a cluster that took it
                // earlier would keep it from one that is free.
                const int last_stages = rank == 0 && end == start ? 3 : -1;
                for (int left = work.stages; left > 0; left--, state.advance()) {
                    if (left == min(last_stages, work.stages)) number = take(problem);
                    load(state, work, work.stages - left, a, b);
                }
            }
            if (rank != 0) release_number(i);
        }
        give(item, Work{});
    }
    __device__ __forceinline__ void give(int item, const Work& work) const {
        // On the first pass everything is empty: the phase before the first counts as ended.
        mbarrier_wait(work_empty(item), parity(item) ^ 1);
        queue[item % QUEUE] = work;
        mbarrier_arrive(work_full(item));
    }
    __device__ __forceinline__ void load(const PipelineState<STAGES>& state, const Work& work, int s, const TensorMap* a,
                                         const TensorMap* b) const {
        constexpr int SHARE = BN / BLOCKS;
        mbarrier_wait(barriers + empty_offset(state.index), state.parity ^ 1);
        const uint32_t to = stage(state.index), barrier = full(state.index);
        mbarrier_arrive_expect(barrier, STAGE_BYTES);
        const int k = (work.first_stage + s) * BK;
        A::template load<1>(to, 0, BM, a, work.m, k, barrier);
        B::template load<BLOCKS>(to + A::BYTES, rank * SHARE, SHARE, b, work.n + rank * SHARE, k, barrier);
    }
};
#endif
}  // namespace matmul_hopper
