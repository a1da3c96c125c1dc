// Kernels of clusters of two blocks, and every mistake that is possible in them.
#include "hopper.cuh"

enum Mistake {
    NONE,
    NO_SYNC_AFTER_INIT,
    NO_INIT_FENCE,
    NO_SYNC_AT_END,
    OWN_CONSUMERS_ONLY,
    QUEUE_NOT_WAITED_FOR,
    WAIT_OF_BLOCK,
    WRONG_MASK,
    MASK_OF_OTHER,
    EXPECTS_HALF,
    EXPECTS_MORE,
    ENDS_BEFORE_SYNC,
    SLOT_NOT_WAITED_FOR,
    SLOT_RELEASED_EARLY,
    ARRIVES_WITHOUT_CLUSTER,
    REPORTS_ELSEWHERE,
    NO_FENCE_BEFORE_RELEASE,
    QUEUE_WAIT_OF_BLOCK,
    ARRIVES_TOO_OFTEN,
    COPIES_TO_CLUSTER_ADDRESS,
};

// d (tiles, 2, 64 x 128, f32) = a (tiles, 2, 64 x K) * b (128 x K)^T. The blocks of a cluster
// compute the two halves of a tile and share b, of which each copies half to both. The first block
// takes the numbers of tiles from a counter and stores them in the queues of both.
template <Mistake MISTAKE>
__device__ __forceinline__ void run_cluster(unsigned char* shared, float* d, unsigned* counter, const TensorMap* a,
                                            const TensorMap* b, int K, int tiles) {
    constexpr int STAGES = 3, QUEUE = 2, BOX_BYTES = 64 * 128, STAGE_BYTES = 3 * BOX_BYTES, BLOCKS = 2, WARPS = 4;
    const uint32_t stages = shared_address(shared), slots = stages + STAGES * STAGE_BYTES;
    const uint32_t full = slots + QUEUE * 16, empty = full + STAGES * 8;
    const uint32_t queue_full = empty + STAGES * 8, queue_empty = queue_full + QUEUE * 8;
    const uint32_t rank = cluster_rank();
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(full + s * 8, 1);
            mbarrier_init(empty + s * 8, MISTAKE == OWN_CONSUMERS_ONLY ? WARPS : BLOCKS * WARPS);
        }
        for (int s = 0; s < QUEUE; s++) {
            mbarrier_init(queue_full + s * 8, 1);
            mbarrier_init(queue_empty + s * 8, BLOCKS * (WARPS + 1));
        }
        if (MISTAKE != NO_INIT_FENCE) mbarrier_init_fence();
    }
    if (MISTAKE == NO_SYNC_AFTER_INIT) __syncthreads();
    else cluster_sync();
    // The number of the tile in a slot of the queue, which is released at once.
    auto next_tile = [&](int round, bool releases) {
        const int slot = round % QUEUE, parity = round / QUEUE & 1;
        if (MISTAKE == WAIT_OF_BLOCK) mbarrier_wait(queue_full + slot * 8, parity);
        else if (MISTAKE != SLOT_NOT_WAITED_FOR || warp == 0) mbarrier_wait_cluster(queue_full + slot * 8, parity);
        const uint32_t released = cluster_address(queue_empty + slot * 8, 0);
        if (MISTAKE == SLOT_RELEASED_EARLY && releases) {
            __threadfence();
            mbarrier_arrive_cluster(released);
        }
        const int tile = reinterpret_cast<const volatile int*>(shared + STAGES * STAGE_BYTES)[slot * 4];
        if (warp > 0) __syncwarp();
        if (MISTAKE != NO_FENCE_BEFORE_RELEASE && releases) __threadfence();
        if (MISTAKE == ARRIVES_WITHOUT_CLUSTER && releases) mbarrier_arrive(released);
        else if (MISTAKE != SLOT_RELEASED_EARLY && releases) mbarrier_arrive_cluster(released);
        return tile;
    };
    if (threadIdx.x == 0) {
        for (int round = 0, i = 0;; round++) {
            const int slot = round % QUEUE, parity = round / QUEUE & 1;
            if (rank == 0) {
                if (MISTAKE == QUEUE_WAIT_OF_BLOCK) mbarrier_wait(queue_empty + slot * 8, parity ^ 1);
                else if (MISTAKE != QUEUE_NOT_WAITED_FOR) mbarrier_wait_cluster(queue_empty + slot * 8, parity ^ 1);
                const int tile = (int)atomicAdd(counter, 1u);
                for (int r = 0; r < BLOCKS; r++)
                    store_async(cluster_address(slots + slot * 16, r), make_int4(tile, 0, 0, 0),
                                cluster_address(queue_full + slot * 8, MISTAKE == REPORTS_ELSEWHERE ? 0 : r));
            }
            mbarrier_arrive_expect(queue_full + slot * 8, 16);
            const int tile = next_tile(round, true);
            if ((unsigned)tile >= (unsigned)tiles) break;
            for (int k = 0; k < K; k += 64, i++) {
                const int s = i % STAGES;
                const uint32_t stage = stages + s * STAGE_BYTES;
                mbarrier_wait(empty + s * 8, i / STAGES & 1 ^ 1);
                mbarrier_arrive_expect(full + s * 8, MISTAKE == EXPECTS_HALF   ? 2 * BOX_BYTES
                                                     : MISTAKE == EXPECTS_MORE ? 4 * BOX_BYTES
                                                                               : STAGE_BYTES);
                const uint32_t to = MISTAKE == COPIES_TO_CLUSTER_ADDRESS ? cluster_address(stage, rank) : stage;
                tma_load(to, a, k, (tile * BLOCKS + rank) * 64, full + s * 8);
                tma_load_multicast(stage + (1 + rank) * BOX_BYTES, b, k, rank * 64, full + s * 8,
                                   MISTAKE == WRONG_MASK      ? 1 << rank
                                   : MISTAKE == MASK_OF_OTHER ? 2 >> rank
                                                              : 3);
            }
        }
    } else if (warp >= 4) {
        float sums[64];
        for (int round = 0, i = 0;; round++) {
            const int tile = next_tile(round, lane == 0);
            if ((unsigned)tile >= (unsigned)tiles) break;
            for (int k = 0; k < K; k += 64, i++) {
                const int s = i % STAGES;
                const uint32_t stage = stages + s * STAGE_BYTES;
                mbarrier_wait(full + s * 8, i / STAGES & 1);
                wgmma_fence();
#pragma unroll
                for (int step = 0; step < 4; step++)
                    wgmma<bf16, false, false>(sums, matrix_descriptor(stage + step * 32, 16),
                                              matrix_descriptor(stage + BOX_BYTES + step * 32, 16), k + step > 0);
                wgmma_commit();
                wgmma_wait<0>();
                if (MISTAKE == OWN_CONSUMERS_ONLY) {
                    if (lane == 0) mbarrier_arrive(empty + s * 8);
                } else if (lane < BLOCKS || MISTAKE == ARRIVES_TOO_OFTEN && lane < 2 * BLOCKS) {
                    mbarrier_arrive_cluster(cluster_address(empty + s * 8, lane % BLOCKS));
                }
            }
            float* const half = d + (tile * BLOCKS + rank) * 64 * 128;
#pragma unroll
            for (int i = 0; i < 64; i++) {
                const int row = warp % 4 * 16 + i / 2 % 2 * 8 + lane / 4;
                half[row * 128 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
            }
        }
    }
    if (MISTAKE == ENDS_BEFORE_SYNC && warp == 1) return;
    __syncwarp();
    if (MISTAKE != NO_SYNC_AT_END) cluster_sync();
}
#define CLUSTER_KERNEL(NAME, MISTAKE)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 1) CLUSTER(2)                                                    \
        NAME(float* d, unsigned* counter, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K, int tiles) {    \
        DYNAMIC_SHARED(shared);                                                                                        \
        run_cluster<MISTAKE>(shared, d, counter, &a, &b, K, tiles);                                                    \
    }
CLUSTER_KERNEL(cluster, NONE)
CLUSTER_KERNEL(cluster_no_sync_after_init, NO_SYNC_AFTER_INIT)
CLUSTER_KERNEL(cluster_no_init_fence, NO_INIT_FENCE)
CLUSTER_KERNEL(cluster_no_sync_at_end, NO_SYNC_AT_END)
CLUSTER_KERNEL(cluster_own_consumers_only, OWN_CONSUMERS_ONLY)
CLUSTER_KERNEL(cluster_queue_not_waited_for, QUEUE_NOT_WAITED_FOR)
CLUSTER_KERNEL(cluster_wait_of_block, WAIT_OF_BLOCK)
CLUSTER_KERNEL(cluster_wrong_mask, WRONG_MASK)
CLUSTER_KERNEL(cluster_mask_of_other, MASK_OF_OTHER)
CLUSTER_KERNEL(cluster_expects_half, EXPECTS_HALF)
CLUSTER_KERNEL(cluster_expects_more, EXPECTS_MORE)
CLUSTER_KERNEL(cluster_ends_before_sync, ENDS_BEFORE_SYNC)
CLUSTER_KERNEL(cluster_slot_not_waited_for, SLOT_NOT_WAITED_FOR)
CLUSTER_KERNEL(cluster_slot_released_early, SLOT_RELEASED_EARLY)
CLUSTER_KERNEL(cluster_arrives_without_cluster, ARRIVES_WITHOUT_CLUSTER)
CLUSTER_KERNEL(cluster_reports_elsewhere, REPORTS_ELSEWHERE)
CLUSTER_KERNEL(cluster_no_fence_before_release, NO_FENCE_BEFORE_RELEASE)
CLUSTER_KERNEL(cluster_queue_wait_of_block, QUEUE_WAIT_OF_BLOCK)
CLUSTER_KERNEL(cluster_arrives_too_often, ARRIVES_TOO_OFTEN)
CLUSTER_KERNEL(cluster_copies_to_cluster_address, COPIES_TO_CLUSTER_ADDRESS)

// The first block copies a box to both, and the second does not wait for it, or ends without it.
template <int BUG>
__device__ __forceinline__ void copy_to_both(unsigned char* shared, float* out, const TensorMap* map) {
    const uint32_t box = shared_address(shared), full = box + 64 * 128;
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
    }
    cluster_sync();
    if (BUG == 1 && cluster_rank() == 1) return;
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(full, 64 * 128);
        if (cluster_rank() == 0) tma_load_multicast(box, map, 0, 0, full, BUG == 3 ? 7 : 3);
    }
    if (BUG != 2 || cluster_rank() == 0) mbarrier_wait(full, 0);
    if (BUG == 4 && threadIdx.x == 0) cluster_address(box, 2);
    if (BUG == 5) {
        if (threadIdx.x < 32) cluster_sync();
        else cluster_sync();
    }
    out[blockIdx.x * 64 + threadIdx.x] = to_f32(reinterpret_cast<const bf16*>(shared)[threadIdx.x]);
}
#define COPY_KERNEL(BUG)                                                                      \
    extern "C" __global__ void __launch_bounds__(64) CLUSTER(2)                               \
        copy_to_both_##BUG(float* out, GRID_CONSTANT TensorMap map) {                         \
        DYNAMIC_SHARED(shared);                                                               \
        copy_to_both<BUG>(shared, out, &map);                                                 \
    }
COPY_KERNEL(0)
COPY_KERNEL(1)
COPY_KERNEL(2)
COPY_KERNEL(3)
COPY_KERNEL(4)
COPY_KERNEL(5)

// out[n] = n + 1 for cluster n in the order of a counter. The first block of a cluster waits for
// the cluster before, the second one for the first, and passes on what that one knew.
extern "C" __global__ void __launch_bounds__(32) CLUSTER(2)
    flags_in_clusters(unsigned* out, unsigned* numbers, unsigned* flags, unsigned* counter) {
    if (threadIdx.x > 0) return;
    const int pair = blockIdx.x / 2;
    unsigned* const of_pairs = flags + gridDim.x / 2;
    if (cluster_rank() == 0) {
        const unsigned n = atomicAdd(counter, 1u);
        if (n > 0) flag_wait(flags + n - 1);
        numbers[pair] = n;
        flag_raise(of_pairs + pair);
    } else {
        flag_wait(of_pairs + pair);
        const unsigned n = numbers[pair];
        out[n] = (n > 0 ? out[n - 1] : 0) + 1;
        flag_raise(flags + n);
    }
}

extern "C" __global__ void CLUSTER(8) too_large_clusters(unsigned*) {}
