// Matmuls on Hopper's own tensor core instructions; the operations and the sinks are those of
// matmul.cuh.
//
// One block stays on each SM and takes tiles of 128 x BN, numbered by a counter that all blocks
// share. A block that starts late because a collective occupied its SM finds no work left instead
// of delaying the others. A stage is 64 elements of K of both operands, which the TMA copies to
// shared memory in the swizzle that wgmma expects. One thread (the producer) issues the copies, so
// no other thread computes addresses, and the TMA fills in zeros past the ends of the matrices. Two
// warpgroups (the consumers) multiply, 64 x BN of the tile each, with their sums in registers that
// the producer's warpgroup released. Each of the four stages has two barriers: `full` (its bytes
// have landed) and `empty` (all consumer warps are done with it). The producer runs ahead across
// tiles, so the next tile's first stages land during the epilogue. It also computes the position of
// a tile, which takes divisions, and passes it to the consumers.
//
// Why 128 x 256: with wgmma 64 x 256 a stage takes 1,024 clocks of tensor cores and reads 48 KiB
// from L2; 128 x 128 reads a third more for the same work. Shared memory delivers 80 of its 128
// bytes per clock.
//
// The epilogue loads its other operands in batches, two ahead of the arithmetic; the first is
// issued before the multiplication and has arrived by its end. The sums are rounded where wgmma
// leaves them, two columns per lane, and the pairs then change lanes: half as many shuffles as for
// sums in f32.
//
// One arrival per consumer warp, not per warpgroup: wgmma_wait covers only the calling warp, and
// the other three may still be reading. `leader` is computed once: as a condition inside the loop
// it makes ptxas serialize the wgmmas.
#pragma once
#include "hopper.cuh"
#include "matmul_epilogue.cuh"

namespace matmul_hopper {
using matmul::Contiguous;

constexpr int BM = 128;
constexpr int BK = 64;
constexpr int STAGES = 4;
constexpr int WARPGROUP = 128;
constexpr int CONSUMERS = 2;
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
// The rows of an operand in shared memory: 64 numbers of 16 bits, the extent of the swizzle.
constexpr int ROW = 64, ROW_BYTES = 128;
// For the sums of A's rows: a matrix of ones. It is the same in any layout.
constexpr int ONES_BYTES = 1024;
// Work items in flight from the producer, which alone computes their positions, to the consumers.
constexpr int QUEUE = 2;
// Offset from one group of rows to the next where rows run along K: the swizzle implies it, and the
// field is 1.
constexpr uint32_t IMPLIED_BYTES = 16;

// A tile's first row and column, its split of K, and its number of stages; 0 after the last item.
struct alignas(16) Work {
    int m, n, split, stages;
};

struct Problem {
    int M, N, K, splits;
    unsigned* counter;  // 0 before and after

    __device__ __forceinline__ int tiles_m() const { return ceil_div(M, BM); }
    __device__ __forceinline__ int count(int BN) const { return tiles_m() * ceil_div(N, BN) * splits; }
    // Takes the next unassigned work number. A block continues until it gets one that is too large,
    // so each number is assigned once, and the too-large ones as many times as there are blocks;
    // then the counter is back at 0.
    __device__ __forceinline__ int take(int BN) const { return (int)atomicInc(counter, count(BN) + gridDim.x - 1); }
    __device__ __forceinline__ Work work(int number, int BN) const {
        if (number >= count(BN)) return {};
        const int tiles_n = ceil_div(N, BN), tiles = tiles_m() * tiles_n;
        const matmul::Position position = matmul::tile_position(number % tiles, tiles_m(), tiles_n);
        const int split = number / tiles;
        return {position.m * BM, position.n * BN, split, min(split_stages(), ceil_div(K, BK) - first_stage(split))};
    }
    __device__ __forceinline__ int split_stages() const { return ceil_div(ceil_div(K, BK), splits); }
    __device__ __forceinline__ int first_stage(int split) const { return split * split_stages(); }
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

    // The box of the map is 64 x MN, or 64 x 64 where rows run across.
    static __device__ __forceinline__ void load(uint32_t to, const TensorMap* map, int mn, int k, uint32_t barrier) {
        if constexpr (ACROSS) {
#pragma unroll
            for (int panel = 0; panel < MN / ROW; panel++)
                tma_load(to + panel * PANEL_BYTES, map, mn + panel * ROW, k, barrier);
        } else {
            tma_load(to, map, k, mn, barrier);
        }
    }
    // The descriptor from row mn on, a multiple of 64: the start of a panel, or of 64 rows.
    static __device__ __forceinline__ uint64_t descriptor(uint32_t stage, int mn) {
        static_assert(PANEL_BYTES == ROW * ROW_BYTES);
        return matrix_descriptor(stage + mn / ROW * PANEL_BYTES, ACROSS ? PANEL_BYTES : IMPLIED_BYTES);
    }
};

template <int BN, Contiguous A_ORDER, Contiguous B_ORDER>
struct Block {
    using A = Operand<A_ORDER, BM>;
    using B = Operand<B_ORDER, BN>;
    static constexpr int STAGE_BYTES = A::BYTES + B::BYTES;
    static constexpr int CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP_SIZE;

    uint32_t stages;    // STAGES of A and B
    uint32_t ones;      // ONES_BYTES
    uint32_t barriers;  // STAGES full, STAGES empty; QUEUE given, QUEUE taken
    Work* queue;        // QUEUE pieces of work

    __device__ __forceinline__ explicit Block(unsigned char* shared)
        : stages(shared_address(shared)), ones(stages + STAGES * STAGE_BYTES), barriers(ones + ONES_BYTES),
          queue(reinterpret_cast<Work*>(shared + STAGES * STAGE_BYTES + ONES_BYTES + 2 * (STAGES + QUEUE) * 8)) {}

    __device__ __forceinline__ uint32_t stage(int turn) const { return stages + turn % STAGES * STAGE_BYTES; }
    __device__ __forceinline__ uint32_t full(int turn) const { return barriers + turn % STAGES * 8; }
    __device__ __forceinline__ uint32_t empty(int turn) const { return barriers + (STAGES + turn % STAGES) * 8; }
    __device__ __forceinline__ uint32_t given(int i) const { return barriers + (2 * STAGES + i % QUEUE) * 8; }
    __device__ __forceinline__ uint32_t taken(int i) const { return barriers + (2 * STAGES + QUEUE + i % QUEUE) * 8; }
    // The parity of a slot's barriers: it changes on each pass over the COUNT slots.
    template <int COUNT>
    static __device__ __forceinline__ int parity(int turn) {
        return turn / COUNT & 1;
    }

    __device__ __forceinline__ void initialize(unsigned char* shared) const {
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; s++) {
                mbarrier_init(full(s), 1);
                mbarrier_init(empty(s), CONSUMER_WARPS);
            }
            for (int i = 0; i < QUEUE; i++) {
                mbarrier_init(given(i), 1);
                mbarrier_init(taken(i), CONSUMER_WARPS);
            }
            mbarrier_init_fence();
        }
        uint32_t* words = reinterpret_cast<uint32_t*>(shared + STAGES * STAGE_BYTES);
        for (int i = threadIdx.x; i < ONES_BYTES / 4; i += THREADS) words[i] = pack2<floatX>(1.0f, 1.0f);
        proxy_fence();
        __syncthreads();
    }

    // Run by one thread. `number` is the first work number.
    __device__ __forceinline__ void produce(const Problem& problem, const TensorMap* a, const TensorMap* b, int number) const {
        int turn = 0;
        for (int i = 0;; i++) {
            // On the first pass everything is empty: the phase before the first counts as ended.
            mbarrier_wait(taken(i), parity<QUEUE>(i) ^ 1);
            const Work work = problem.work(number, BN);
            queue[i % QUEUE] = work;
            mbarrier_arrive(given(i));
            if (work.stages == 0) return;
            number = problem.take(BN);
            const int first_stage = problem.first_stage(work.split);
            for (int s = 0; s < work.stages; s++, turn++) {
                mbarrier_wait(empty(turn), parity<STAGES>(turn) ^ 1);
                mbarrier_arrive_expect(full(turn), STAGE_BYTES);
                const int k = (first_stage + s) * BK;
                A::load(stage(turn), a, work.m, k, full(turn));
                B::load(stage(turn) + A::BYTES, b, work.n, k, full(turn));
            }
        }
    }

    // Receives work item i from the producer.
    __device__ __forceinline__ Work receive(int i, bool leader) const {
        mbarrier_wait(given(i), parity<QUEUE>(i));
        const Work work = queue[i % QUEUE];
        __syncwarp();
        if (leader) mbarrier_arrive(taken(i));
        return work;
    }

    // Multiplies a consumer's 64 rows of a tile. The last stage's wgmmas are still in flight at the
    // end: `finish` waits for them.
    template <bool ROW_SUMS>
    __device__ __forceinline__ void multiply(float (&sums)[BN / 2], float (&row_sums)[4], int stages, int& turn, int consumer,
                                             bool leader) const {
        for (int i = 0; i < stages; i++, turn++) {
            mbarrier_wait(full(turn), parity<STAGES>(turn));
            const uint64_t a = A::descriptor(stage(turn), consumer * 64);
            const uint64_t b = B::descriptor(stage(turn) + A::BYTES, 0);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < BK / 16; step++) {
                const uint64_t a_step = a + (step * A::STEP_BYTES >> 4), b_step = b + (step * B::STEP_BYTES >> 4);
                wgmma<floatX, A::ACROSS, B::ACROSS>(sums, a_step, b_step, i + step > 0);
                if constexpr (ROW_SUMS)
                    wgmma<floatX, A::ACROSS, false>(row_sums, a_step, matrix_descriptor(ones, IMPLIED_BYTES), i + step > 0);
            }
            wgmma_commit();
            // The previous stage is no longer needed.
            wgmma_wait<1>();
            if (i > 0 && leader) mbarrier_arrive(empty(turn - 1));
        }
    }
    __device__ __forceinline__ void finish(int turn, bool leader) const {
        wgmma_wait<0>();
        if (leader) mbarrier_arrive(empty(turn - 1));
    }
};

// The output elements that a thread handles, in two rows 8 apart. Columns come in groups of 32,
// four blocks of 8: wgmma leaves the thread two columns of each block, and it loads and stores the
// block whose number is its own in the quad of lanes.
struct Place {
    int rows_left, columns_left, stride;
    int block;
    size_t start;

    __device__ __forceinline__ Place(int first_m, int first_n, const matmul::Partials& partials) {
        const int lane = threadIdx.x % WARP_SIZE, row = first_m + threadIdx.x / WARP_SIZE % 4 * 16 + lane / 4;
        rows_left = partials.M - row;
        columns_left = partials.N - first_n;
        stride = partials.N;
        block = lane % 4;
        start = (size_t)row * stride + first_n;
    }
    __device__ __forceinline__ bool inside(int half, int column) const {
        return half * 8 < rows_left && column < columns_left;
    }
    __device__ __forceinline__ size_t index(int half, int column) const {
        return start + (size_t)(half * 8 * stride + column);
    }
    __device__ __forceinline__ int block_column(int group) const { return group * 32 + block * 8; }
};

// The operands of an epilogue besides the sums, for two groups.
constexpr int BATCH = 2;
struct Ahead {
    PackX extra[BATCH][2];  // as loaded
    PackX bias[BATCH];      // as wgmma leaves the sums

    // Loads those that are wanted; the others are zero.
    template <class Sink>
    __device__ __forceinline__ void load(bool wants_extra, bool wants_bias, const Sink& sink, const Place& place, int first_n,
                                         int batch) {
#pragma unroll
        for (int g = 0; g < BATCH; g++) {
            const int group = batch * BATCH + g;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                extra[g][half] = {};
                const int column = place.block_column(group);
                if (wants_extra && place.inside(half, column))
                    extra[g][half] = load128(sink.extra + place.index(half, column));
            }
            uint4 pairs = {};
            if (wants_bias) {
                const auto pair = [&](int block) {
                    const int column = group * 32 + block * 8;
                    const uint32_t* two = reinterpret_cast<const uint32_t*>(sink.bias + first_n + column + place.block * 2);
                    return column < place.columns_left ? *two : 0;
                };
                pairs = {pair(0), pair(1), pair(2), pair(3)};
            }
            bias[g] = unpack_bits<floatX>(pairs);
        }
    }
};

// Exchanges between lanes that differ in `bit`: one keeps `low` and gets the other's `low` as its
// `high`; the other vice versa.
__device__ __forceinline__ void exchange(uint32_t& low, uint32_t& high, int bit, bool upper) {
    const uint32_t got = __shfl_xor_sync(FULL_MASK, upper ? low : high, bit);
    low = upper ? got : low;
    high = upper ? high : got;
}
// Transposes four lanes with four words each: lane i gets word i of all. It is its own inverse.
__device__ __forceinline__ PackX transpose(const PackX& pack) {
    const int lane = threadIdx.x % 4;
    uint4 w = pack_bits(pack);
    exchange(w.x, w.y, 1, lane & 1);
    exchange(w.z, w.w, 1, lane & 1);
    exchange(w.x, w.z, 2, lane & 2);
    exchange(w.y, w.w, 2, lane & 2);
    return unpack_bits<floatX>(w);
}

// Stores a batch of a warpgroup's 64 x BN sums.
template <int BN, class Epilogue>
__device__ __forceinline__ void store_batch(const Epilogue& epilogue, const float (&sums)[BN / 2], const Ahead& ahead,
                                            const Place& place, int batch) {
    static_assert(Epilogue::WIDTH == 8);
#pragma unroll
    for (int g = 0; g < BATCH; g++) {
        const int group = batch * BATCH + g, column = place.block_column(group);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float piece[8];
#pragma unroll
            for (int i = 0; i < 8; i++) piece[i] = sums[(group * 4 + i / 2) * 4 + half * 2 + i % 2];
            PackX extra = {}, kept = {};
            if constexpr (Epilogue::EXTRA) extra = transpose(ahead.extra[g][half]);
            PackX finished = transpose(epilogue.finish(piece, ahead.bias[g], extra, kept));
            if constexpr (Epilogue::KEEPS) kept = transpose(kept);
            if (place.inside(half, column)) epilogue.store(place.index(half, column), finished, kept);
        }
    }
}

// Stores the sums of a split, two at a time; a quad of lanes writes 32 contiguous bytes, the size
// of a memory transaction.
template <int BN>
__device__ __forceinline__ void store_partials(const float (&sums)[BN / 2], const Place& place, float* partials) {
#pragma unroll
    for (int i = 0; i < BN / 4; i++) {
        const int half = i % 2, column = i / 2 * 8;
        if (!place.inside(half, column)) continue;
        *reinterpret_cast<float2*>(partials + place.index(half, column + place.block * 2)) =
            make_float2(sums[i * 2], sums[i * 2 + 1]);
    }
}

// Stores the sums of A's rows; all their columns are equal.
template <class Sink>
__device__ __forceinline__ void store_row_sums(const float (&row_sums)[4], int first_m, int split, int splits,
                                               const matmul::Partials& partials, const Sink& sink) {
    const int warp = threadIdx.x / WARP_SIZE % 4, lane = threadIdx.x % WARP_SIZE;
    if (lane % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int m = first_m + warp * 16 + half * 8 + lane / 4;
        if (m >= partials.M) continue;
        if (partials.start == nullptr) sink.finish_row_sum(m, row_sums[half * 2]);
        else partials.row_sums(splits, split)[m] = row_sums[half * 2];
    }
}

// Processes a consumer's share of one work item.
template <class Block, int BN, class Sink>
__device__ __forceinline__ void consume(const Block& block, const Work& work, int splits, int& turn, int consumer, bool leader,
                                        const matmul::Partials& partials, const Sink& sink) {
    constexpr int BATCHES = BN / 32 / BATCH;
    const int m = work.m + consumer * 64;
    const bool with_row_sums = sink.wants_row_sums() && work.n == 0;
    const bool whole = partials.start == nullptr;
    const Place place(m, work.n, partials);
    Ahead ahead[2];
    ahead[0].load(whole && sink.extra != nullptr, whole && sink.bias != nullptr, sink, place, work.n, 0);
    float sums[BN / 2], row_sums[4];
    if (with_row_sums) block.template multiply<true>(sums, row_sums, work.stages, turn, consumer, leader);
    else block.template multiply<false>(sums, row_sums, work.stages, turn, consumer, leader);
    if (!whole) {
        block.finish(turn, leader);
        store_partials<BN>(sums, place, partials.sums(work.split));
    } else {
        sink.visit([&](auto epilogue) {
            ahead[1].load(epilogue.EXTRA, epilogue.BIAS, sink, place, work.n, 1);
            block.finish(turn, leader);
#pragma unroll
            for (int batch = 0; batch < BATCHES; batch++) {
                store_batch<BN>(epilogue, sums, ahead[batch % 2], place, batch);
                if (batch + 2 < BATCHES) ahead[batch % 2].load(epilogue.EXTRA, epilogue.BIAS, sink, place, work.n, batch + 2);
            }
        });
    }
    if (with_row_sums) store_row_sums(row_sums, m, work.split, splits, partials, sink);
}

template <int BN, Contiguous A_ORDER, Contiguous B_ORDER, class Sink>
__device__ __forceinline__ void multiply(unsigned char* shared, const TensorMap* a, const TensorMap* b, const Problem& problem,
                                         const matmul::Partials& partials, const Sink& sink) {
    using OwnBlock = Block<BN, A_ORDER, B_ORDER>;
    const OwnBlock block(shared);
    // The request for the first work number is in flight while the barriers are initialized.
    int first = 0;
    if (threadIdx.x == 0) {
        tma_prefetch(a);
        tma_prefetch(b);
        first = problem.take(BN);
    }
    block.initialize(shared);
    if (threadIdx.x < WARPGROUP) {
        registers_decrease<40>();
        if (threadIdx.x == 0) block.produce(problem, a, b, first);
        return;
    }
    registers_increase<232>();
    const int consumer = threadIdx.x / WARPGROUP - 1;
    const bool leader = threadIdx.x % WARP_SIZE == 0;
    int turn = 0;
    for (int i = 0;; i++) {
        const Work work = block.receive(i, leader);
        if (work.stages == 0) return;
        consume<OwnBlock, BN>(block, work, problem.splits, turn, consumer, leader, partials, sink);
    }
}
#else
template <int BN, Contiguous A_ORDER, Contiguous B_ORDER, class Sink>
__device__ __forceinline__ void multiply(unsigned char*, const TensorMap*, const TensorMap*, const Problem&,
                                         const matmul::Partials&, const Sink&) {}
#endif
}  // namespace matmul_hopper
