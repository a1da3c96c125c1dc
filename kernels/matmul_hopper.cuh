// Matrix products on Hopper's own tensor core instructions; what is computed, and the sinks, are those of matmul.cuh.
//
// One block stays on each multiprocessor and goes through tiles of 128 x BN. A stage is 64 numbers of K of both operands,
// which the TMA brings to shared memory swizzled as wgmma wants it: one thread asks for it (the producer), so no other
// thread computes addresses, and the ends of the matrices are the TMA's business (it fills in zeros). Two warpgroups (the
// consumers) multiply, 64 x BN of the tile each, their sums in registers that the producer's warpgroup gave up. Each of the
// four stages has two barriers: `full` (its bytes have landed) and `empty` (all consumer warps are done with it). The
// producer runs ahead over tiles, so the next tile's first stages land during the epilogue.
//
// Why 128 x 256: with wgmma 64 x 256 a stage takes 1,024 clocks of tensor cores and reads 48 KiB from L2; 128 x 128 reads a
// third more for the same work. Shared memory delivers 80 of its 128 bytes a clock.
//
// One arrival per consumer warp, not per warpgroup: wgmma_wait speaks for the warp that asks, and the other three may
// still be reading. `leader` is computed once: as a condition inside the loop it makes ptxas serialise the wgmmas.
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
// The rows of an operand in shared memory: 64 numbers of 16 bits, as far as the swizzle reaches.
constexpr int ROW = 64, ROW_BYTES = 128;
// For the sums of A's rows: a matrix of ones. All ones, it is the same in any layout.
constexpr int ONES_BYTES = 1024;

// Which tile, and which stages of its K.
struct Work {
    int m, n;  // first row and column
    int split, first_stage, stages;
};

struct Problem {
    int M, N, K, splits;

    __device__ __forceinline__ int tiles_m() const { return ceil_div(M, BM); }
    __device__ __forceinline__ int count(int BN) const { return tiles_m() * ceil_div(N, BN) * splits; }
    __device__ __forceinline__ Work work(int number, int BN) const {
        const int tiles_n = ceil_div(N, BN), tiles = tiles_m() * tiles_n;
        const matmul::Position position = matmul::tile_position(number % tiles, tiles_m(), tiles_n);
        const int all_stages = ceil_div(K, BK), split_stages = ceil_div(all_stages, splits);
        const int split = number / tiles, first_stage = split * split_stages;
        return {position.m * BM, position.n * BN, split, first_stage, min(split_stages, all_stages - first_stage)};
    }
};

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

// MN rows (columns, for B) of an operand, at one stage of K.
template <Contiguous ORDER, int MN>
struct Operand {
    static constexpr bool ACROSS = ORDER == Contiguous::InMN;
    static constexpr int BYTES = MN * BK * 2;
    // Where rows run across K, a panel is 64 numbers across and all of the stage's K.
    static constexpr int PANEL_BYTES = BK * ROW_BYTES;
    // From one wgmma to the next, 16 numbers of K on.
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
    // From row mn on, a multiple of 64: which is a panel, or 64 rows.
    static __device__ __forceinline__ uint64_t descriptor(uint32_t stage, int mn) {
        static_assert(PANEL_BYTES == ROW * ROW_BYTES);
        return matrix_descriptor(stage + mn / ROW * PANEL_BYTES, PANEL_BYTES);
    }
};

template <int BN, Contiguous A_ORDER, Contiguous B_ORDER>
struct Block {
    using A = Operand<A_ORDER, BM>;
    using B = Operand<B_ORDER, BN>;
    static constexpr int STAGE_BYTES = A::BYTES + B::BYTES;

    uint32_t stages;    // STAGES of A and B
    uint32_t ones;      // ONES_BYTES
    uint32_t barriers;  // STAGES full, STAGES empty

    __device__ __forceinline__ explicit Block(const unsigned char* shared)
        : stages(shared_address(shared)), ones(stages + STAGES * STAGE_BYTES), barriers(ones + ONES_BYTES) {}

    __device__ __forceinline__ uint32_t stage(int turn) const { return stages + turn % STAGES * STAGE_BYTES; }
    __device__ __forceinline__ uint32_t full(int turn) const { return barriers + turn % STAGES * 8; }
    __device__ __forceinline__ uint32_t empty(int turn) const { return barriers + (STAGES + turn % STAGES) * 8; }
    // How often the stage was used before, by which the parity of its barriers' phases goes.
    static __device__ __forceinline__ int parity(int turn) { return turn / STAGES & 1; }

    __device__ __forceinline__ void initialise(unsigned char* shared) const {
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; s++) {
                mbarrier_init(full(s), 1);
                mbarrier_init(empty(s), CONSUMERS * WARPGROUP / WARP_SIZE);
            }
            mbarrier_init_fence();
        }
        uint32_t* words = reinterpret_cast<uint32_t*>(shared + STAGES * STAGE_BYTES);
        for (int i = threadIdx.x; i < ONES_BYTES / 4; i += THREADS) words[i] = pack2<floatX>(1.0f, 1.0f);
        proxy_fence();
        __syncthreads();
    }

    // One thread.
    __device__ __forceinline__ void produce(const Problem& problem, const TensorMap* a, const TensorMap* b) const {
        int turn = 0;
        for (int number = blockIdx.x; number < problem.count(BN); number += gridDim.x) {
            const Work work = problem.work(number, BN);
            for (int i = 0; i < work.stages; i++, turn++) {
                // The first time round the stages are empty: the phase before the first counts as ended.
                mbarrier_wait(empty(turn), parity(turn) ^ 1);
                mbarrier_arrive_expect(full(turn), STAGE_BYTES);
                const int k = (work.first_stage + i) * BK;
                A::load(stage(turn), a, work.m, k, full(turn));
                B::load(stage(turn) + A::BYTES, b, work.n, k, full(turn));
            }
        }
    }

    // A consumer's 64 rows of a tile. Leaves the sums in registers and every stage released.
    template <bool ROW_SUMS>
    __device__ __forceinline__ void multiply(float (&sums)[BN / 2], float (&row_sums)[4], int stages, int& turn, int consumer,
                                             bool leader) const {
        for (int i = 0; i < stages; i++, turn++) {
            mbarrier_wait(full(turn), parity(turn));
            const uint64_t a = A::descriptor(stage(turn), consumer * 64);
            const uint64_t b = B::descriptor(stage(turn) + A::BYTES, 0);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < BK / 16; step++) {
                const uint64_t a_step = a + (step * A::STEP_BYTES >> 4), b_step = b + (step * B::STEP_BYTES >> 4);
                wgmma<floatX, A::ACROSS, B::ACROSS>(sums, a_step, b_step, i + step > 0);
                if constexpr (ROW_SUMS)
                    wgmma<floatX, A::ACROSS, false>(row_sums, a_step, matrix_descriptor(ones, 0), i + step > 0);
            }
            wgmma_commit();
            // The stage before this one is done with.
            wgmma_wait<1>();
            if (i > 0 && leader) mbarrier_arrive(empty(turn - 1));
        }
        wgmma_wait<0>();
        if (leader) mbarrier_arrive(empty(turn - 1));
    }
};

// Lanes that differ in `bit` exchange: one keeps `low` and gets the other's `low`, which becomes its `high`; and conversely.
__device__ __forceinline__ void exchange(float& low, float& high, int bit, bool upper) {
    const float got = __shfl_xor_sync(FULL_MASK, upper ? low : high, bit);
    low = upper ? got : low;
    high = upper ? high : got;
}
// Of four blocks of 8 columns each lane of a quad holds two columns, and gets all eight of the block with its number.
__device__ __forceinline__ void gather_columns(matmul::Row<8>& row) {
    const int lane = threadIdx.x % 4;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        float(&v)[8] = row.v;
        exchange(v[e], v[2 + e], 1, lane & 1);
        exchange(v[4 + e], v[6 + e], 1, lane & 1);
        exchange(v[e], v[4 + e], 2, lane & 2);
        exchange(v[2 + e], v[6 + e], 2, lane & 2);
    }
}

// A warpgroup's 64 x BN sums to the sink, or to the sums of this split. Shuffles, because through shared memory the same
// would cost twice the bytes, and room that stages could have.
template <int BN, class Sink>
__device__ __forceinline__ void store_sums(const float (&sums)[BN / 2], int first_m, int first_n, int split,
                                           const matmul::Partials& partials, const Sink& sink) {
    static_assert(Sink::WIDTH == 8);
    const int warp = threadIdx.x / WARP_SIZE % 4, lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int group = 0; group < BN / 32; group++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            matmul::Row<8> row;
#pragma unroll
            for (int i = 0; i < 8; i++) row.v[i] = sums[(group * 4 + i / 2) * 4 + half * 2 + i % 2];
            gather_columns(row);
            const int m = first_m + warp * 16 + half * 8 + lane / 4, n = first_n + group * 32 + lane % 4 * 8;
            if (m >= partials.M || n >= partials.N) continue;
            const size_t index = (size_t)m * partials.N + n;
            if (partials.start == nullptr) sink.finish(row, index, n);
            else row.store(partials.sums(split) + index);
        }
    }
}

// Of the sums of A's rows, all columns are alike.
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

template <int BN, Contiguous A_ORDER, Contiguous B_ORDER, class Sink>
__device__ __forceinline__ void multiply(unsigned char* shared, const TensorMap* a, const TensorMap* b, const Problem& problem,
                                         const matmul::Partials& partials, const Sink& sink) {
    const Block<BN, A_ORDER, B_ORDER> block(shared);
    block.initialise(shared);
    if (threadIdx.x < WARPGROUP) {
        registers_decrease<40>();
        if (threadIdx.x == 0) block.produce(problem, a, b);
        return;
    }
    registers_increase<232>();
    const int consumer = threadIdx.x / WARPGROUP - 1;
    const bool leader = threadIdx.x % WARP_SIZE == 0;
    int turn = 0;
    for (int number = blockIdx.x; number < problem.count(BN); number += gridDim.x) {
        const Work work = problem.work(number, BN);
        const int m = work.m + consumer * 64;
        float sums[BN / 2], row_sums[4];
        if (sink.wants_row_sums() && work.n == 0) {
            block.template multiply<true>(sums, row_sums, work.stages, turn, consumer, leader);
            store_row_sums(row_sums, m, work.split, problem.splits, partials, sink);
        } else {
            block.template multiply<false>(sums, row_sums, work.stages, turn, consumer, leader);
        }
        store_sums<BN>(sums, m, work.n, work.split, partials, sink);
    }
}
#else
template <int BN, Contiguous A_ORDER, Contiguous B_ORDER, class Sink>
__device__ __forceinline__ void multiply(unsigned char*, const TensorMap*, const TensorMap*, const Problem&,
                                         const matmul::Partials&, const Sink&) {}
#endif
}  // namespace matmul_hopper
