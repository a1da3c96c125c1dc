// The kernel of attention_hopper_backward.cuh: its warps that load and carry, and its consumers.
#include "attention_hopper_backward.cuh"

namespace attention_hopper {
#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)

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
// when they are written, before anything else is waited for. Their place in shared memory is free
// as soon as they are read.
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

    // The numbers of the item and the tile, the tile's place in its head, and whether one follows.
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

    // Queues the scores of the next tile, which may be that of the next item. After the last one,
    // it queues those of this tile again: ptxas keeps the registers of sums occupied that are
    // assigned on one path only.
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
    __device__ __forceinline__ void differentiate(WarpgroupSums<QUERIES>& scores, WarpgroupSums<HS>& dk,
                                                  WarpgroupSums<HS>& dv) {
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
    if (threadIdx.x == 0) {
        tma_prefetch(maps.qkv);
        tma_prefetch(maps.dout);
        tma_prefetch(maps.out);
    }
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
