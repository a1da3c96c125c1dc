// The consumers of matmul_hopper.cuh, and the entry of its kernels.
#pragma once
#include "matmul_hopper_epilogue.cuh"
#include "matmul_hopper_fixup.cuh"

namespace matmul_hopper {

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

// A consumer warp. EXTRA: whether the epilogue may read an extra operand.
template <class Block, bool EXTRA>
struct Consumer {
    using A = typename Block::A;
    using B = typename Block::B;

    const Block& block;
    const Problem& problem;
    const Arrays& arrays;
    const int number;                  // of the warpgroup among the consumers
    const int row;                     // the warpgroup's first row in a tile
    const int warp;                    // among all consumers
    const bool leader, signals_empty;  // one lane; one lane for each block of the cluster
    const uint32_t their_barriers;     // those of the lane's block
    Slabs<Block> slabs;
    PipelineState<Block::STAGES> state;

    __device__ __forceinline__ Consumer(const Block& block, const Problem& problem, const Arrays& arrays, int number)
        : block(block), problem(problem), arrays(arrays), number(number), row(Block::PING_PONG ? 0 : number * 64),
          warp((threadIdx.x - WARPGROUP) / WARP_SIZE), leader(threadIdx.x % WARP_SIZE == 0),
          signals_empty(threadIdx.x % WARP_SIZE < Block::BLOCKS),
          their_barriers(cluster_address(block.barriers, threadIdx.x % Block::BLOCKS)), slabs(block, arrays, warp, leader) {}

    // Processes all work items. `visit` calls its argument with the epilogue.
    template <class Visit>
    __device__ __forceinline__ void consume(Visit visit) {
        for (int item = 0;; item++) {
            const Work work = receive(item);
            if (work.stages == 0) break;
            if (Block::PING_PONG && item % CONSUMERS != number) state.advance(work.stages);
            else process(item, work, visit);
        }
        if (leader) tma_store_wait_read<0>();
        __syncwarp();
    }

    // Receives a work item from the producer.
    __device__ __forceinline__ Work receive(int item) const {
        mbarrier_wait(block.work_full(item), block.parity(item));
        const Work work = block.queue[item % QUEUE];
        __syncwarp();
        if (leader) mbarrier_arrive(block.work_empty(item));
        return work;
    }

    template <class Visit>
    __device__ __forceinline__ void process(int item, const Work& work, Visit visit) {
        const int m = work.m + row + warp % 4 * 16;
        const bool is_final = work.earlier >= 0, with_row_sums = arrays.row_sums != nullptr && work.n == 0;
        Bias bias;
        bias.load(0, arrays.bias, work.n, problem.N);
        float sums[BN / 2], row_sums[4];
        if constexpr (Block::PING_PONG) wait_for_turn(item);
        const bool wants_extra = EXTRA && is_final && arrays.extra != nullptr;
        if (with_row_sums) multiply_columns<256, true>(sums, row_sums, work, m, wants_extra);
        else multiply_tile(sums, row_sums, work, m, wants_extra);
        if constexpr (Block::PING_PONG) pass_turn(item);
        release_last_stage();
        const Partials<Block> partials{problem, row / 16 + warp % 4, (int)block.rank};
        if (!is_final) {
            partials.store(sums, row_sums, with_row_sums, work.run, leader);
            return;
        }
        partials.add(sums, row_sums, with_row_sums, work.run, work.earlier, leader);
        bias.load(1, arrays.bias, work.n, problem.N);
        visit([&](auto epilogue) { slabs.template store<decltype(epilogue)>(sums, bias, m, work.n); });
        if (with_row_sums) add_row_sums(arrays.row_sums, row_sums, m, problem.M);
    }

    // Waits until the other consumer has seen all stages of item - 1 land. A barrier tells only the
    // parity of its phase, so a consumer that went ahead by two phases would take an earlier stage
    // for its own.
    __device__ __forceinline__ void wait_for_turn(int item) const {
        if (item > 0) mbarrier_wait(block.multiplied(item - 1), (item - 1) / CONSUMERS & 1);
    }
    // The other consumer's wgmmas queue up behind the last ones of this.
    __device__ __forceinline__ void pass_turn(int item) const {
        if (leader) mbarrier_arrive(block.multiplied(item));
    }

    // The last tile of a row may be narrower: 64 columns of 1,600.
    __device__ __forceinline__ void multiply_tile(float (&sums)[BN / 2], float (&row_sums)[4], const Work& work, int m,
                                                  bool wants_extra) {
        const int columns = problem.N - work.n;
        if (columns > 128) multiply_columns<256, false>(sums, row_sums, work, m, wants_extra);
        else if (columns > 64) multiply_columns<128, false>(sums, row_sums, work, m, wants_extra);
        else multiply_columns<64, false>(sums, row_sums, work, m, wants_extra);
    }

    template <int COLUMNS, bool ROW_SUMS>
    __device__ __forceinline__ void multiply_columns(float (&sums)[BN / 2], float (&row_sums)[4], const Work& work, int m,
                                                     bool wants_extra) {
        // If the consumers share a tile, the previous tile's stores still read the slabs here. They
        // have the time of two stages to finish.
        constexpr int STAGES_OF_STORES = EXTRA && !Block::PING_PONG ? 2 : 0;
        const int before = min(work.stages, STAGES_OF_STORES);
        if constexpr (STAGES_OF_STORES > 0) multiply_stages<COLUMNS, ROW_SUMS>(sums, row_sums, true, before);
        if (wants_extra && leader) slabs.request(m, work.n);
        multiply_stages<COLUMNS, ROW_SUMS>(sums, row_sums, STAGES_OF_STORES == 0, work.stages - before);
    }

    // Multiplies the consumer's 64 rows by the first COLUMNS columns of the next `count` stages,
    // and assigns the first of them if `assigns`. The last stage's wgmmas are still in flight at
    // the end: `release_last_stage` waits for them.
    template <int COLUMNS, bool ROW_SUMS>
    __device__ __forceinline__ void multiply_stages(float (&sums)[BN / 2], float (&row_sums)[4], bool assigns, int count) {
        float(&accumulators)[COLUMNS / 2] = reinterpret_cast<float(&)[COLUMNS / 2]>(sums);
#pragma unroll 1
        for (int i = 0; i < count; i++, state.advance()) {
            mbarrier_wait(block.full(state.index), state.parity);
            const uint64_t a = A::descriptor(block.stage(state.index), row);
            const uint64_t b = B::descriptor(block.stage(state.index) + A::BYTES, 0);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < BK / 16; step++) {
                const uint64_t a_step = a + (step * A::STEP_BYTES >> 4), b_step = b + (step * B::STEP_BYTES >> 4);
                const bool accumulate = !assigns || i + step > 0;
                wgmma<floatX, A::ACROSS, B::ACROSS>(accumulators, a_step, b_step, accumulate);
                if constexpr (ROW_SUMS)
                    wgmma<floatX, A::ACROSS, false>(row_sums, a_step, matrix_descriptor(block.ones, IMPLIED_BYTES), accumulate);
            }
            wgmma_commit();
            // The previous stage is no longer needed.
            wgmma_wait<1>();
            if (!(assigns && i == 0) && signals_empty) signal_empty();
        }
    }
    __device__ __forceinline__ void release_last_stage() const {
        wgmma_wait<0>();
        if (signals_empty) signal_empty();
    }
    __device__ __forceinline__ void signal_empty() const {
        mbarrier_arrive_cluster(their_barriers + Block::empty_offset(state.previous()));
    }
};

// All the work of a thread.
template <int BM, int SLABS, bool EXTRA, Contiguous A_ORDER, Contiguous B_ORDER, class Visit>
__device__ __forceinline__ void run(unsigned char* shared, const TensorMap* a, const TensorMap* b, const Problem& problem,
                                    const Arrays& arrays, Visit visit) {
    using OwnBlock = Block<BM, SLABS, A_ORDER, B_ORDER>;
    const OwnBlock block(shared);
    launch_dependents();
    if (threadIdx.x == 0) {
        const TensorMap* const maps[] = {a, b, arrays.out, arrays.kept, arrays.extra};
        for (const TensorMap* map : maps) {
            if (map != nullptr) tma_prefetch(map);
        }
    }
    block.initialize(shared);
    wait_for_dependencies();
    // The request for the first run number is in flight while the blocks of the cluster meet.
    int first = 0;
    if (threadIdx.x == 0 && block.rank == 0) first = block.take(problem);
    cluster_sync();
    // In wgrad the producer weighs runs, for which it needs more registers, and the consumers need
    // none for a bias.
    constexpr bool IS_WGRAD = A_ORDER == Contiguous::InMN;
    if (threadIdx.x < WARPGROUP) {
        registers_decrease<IS_WGRAD ? 56 : 40>();
        if (threadIdx.x == 0) block.produce(shared, problem, a, b, first, arrays.row_sums != nullptr);
        __syncwarp();
    } else {
        registers_increase<IS_WGRAD ? 224 : 232>();
        // The same in all lanes, which the compiler cannot tell from the thread's number.
        const int number = __shfl_sync(FULL_MASK, (int)threadIdx.x / WARPGROUP, 0) - 1;
        Consumer<OwnBlock, EXTRA> consumer(block, problem, arrays, number);
        consumer.consume(visit);
    }
    // Other blocks may still write to this one's memory.
    cluster_sync();
}
#endif
}  // namespace matmul_hopper
