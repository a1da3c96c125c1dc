// Kernels that may start before earlier launches have ended, with one bug each, by number; numbers
// below 10 have none. dependencies.rs tests that each is caught.
#include "hopper.cuh"

// The ways in which threads come to know that earlier launches have ended, and the bugs.
enum Way {
    ALL_WAIT = 0,
    ONE_WAITS = 1,
    A_WARP_ARRIVES = 2,
    A_THREAD_ARRIVES = 3,
    NO_WAIT = 10,
    READS_BEFORE = 11,
    WRITES_BEFORE = 12,
    NO_BARRIER = 13,
    BARRIER_BEFORE = 14,
    COPIES_BEFORE = 15,
    ATOMIC_BEFORE = 16,
    TMA_BEFORE = 17,
    RAISES_BEFORE = 18,
    ADDS_BEFORE = 19,
    A_BLOCK_ENDS = 20,
    ANOTHER_LANE = 21,
    NOT_IN_BARRIER = 22,
};

// out (blocks x 128) = in + 1.
template <int WAY>
__device__ __forceinline__ void increment(unsigned char* shared, unsigned* out, const unsigned* in, unsigned* counter,
                                          const TensorMap* map) {
    SHARED(unsigned long long, barrier, [1]);
    SHARED(uint4, slab, [1]);
    const int t = threadIdx.x, i = blockIdx.x * 128 + t, warp = t / WARP_SIZE;
    const uint32_t arrived = shared_address(barrier);
    launch_dependents();
    if (t == 0) {
        mbarrier_init(arrived, 1);
        mbarrier_init_fence();
        slab[0] = uint4{0, 0, 0, 0};
        proxy_fence();
    }
    __syncthreads();
    unsigned early = 0;
    if (WAY == READS_BEFORE) early = in[i];
    if (WAY == WRITES_BEFORE) out[i] = 0;
    if (WAY == COPIES_BEFORE && t == 0) {
        cp_async16(shared_address(slab), in);
        cp_async_commit();
        cp_async_wait<0>();
    }
    if (WAY == ATOMIC_BEFORE && t == 0) atomicAdd(counter, 1u);
    if (WAY == RAISES_BEFORE && t == 0 && blockIdx.x == 0) flag_raise(counter);
    if (WAY == TMA_BEFORE && t == 0) {
        tma_prefetch(map);
        mbarrier_arrive_expect(arrived, 8 * 128);
        tma_load(shared_address(shared), map, 0, 0, arrived);
        mbarrier_wait(arrived, 0);
    }
    if (WAY == ADDS_BEFORE && t == 0) {
        bulk_reduce_add(reinterpret_cast<float*>(out), shared_address(slab), 16);
        tma_store_commit();
        tma_store_wait<0>();
    }
    if (WAY == A_BLOCK_ENDS && blockIdx.x == 1) return;
    if (WAY == ONE_WAITS || WAY == NO_BARRIER || WAY == BARRIER_BEFORE || WAY == ANOTHER_LANE) {
        if (WAY == BARRIER_BEFORE) __syncthreads();
        if (WAY == ANOTHER_LANE ? t % WARP_SIZE == 3 : t == 0) wait_for_dependencies();
        if (WAY == ONE_WAITS) __syncthreads();
    } else if (WAY == A_WARP_ARRIVES || WAY == NOT_IN_BARRIER) {
        if (warp == 0) {
            wait_for_dependencies();
            barrier_arrive(1, WAY == NOT_IN_BARRIER ? 96 : 128);
        } else if (WAY != NOT_IN_BARRIER || warp != 3) {
            barrier_sync(1, WAY == NOT_IN_BARRIER ? 96 : 128);
        }
    } else if (WAY == A_THREAD_ARRIVES) {
        if (t == 0) {
            wait_for_dependencies();
            mbarrier_arrive(arrived);
        }
        mbarrier_wait(arrived, 0);
        // For the other lanes of that warp.
        __syncwarp();
    } else if (WAY != NO_WAIT) {
        wait_for_dependencies();
    }
    out[i] = in[i] + 1 + (early >> 31);
}
#define INCREMENT(WAY)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128)                                                           \
        increment_##WAY(unsigned* out, const unsigned* in, unsigned* counter, GRID_CONSTANT TensorMap map) {    \
        DYNAMIC_SHARED(shared);                                                                                 \
        increment<WAY>(shared, out, in, counter, &map);                                                         \
    }
INCREMENT(0)
INCREMENT(1)
INCREMENT(2)
INCREMENT(3)
INCREMENT(10)
INCREMENT(11)
INCREMENT(12)
INCREMENT(13)
INCREMENT(14)
INCREMENT(15)
INCREMENT(16)
INCREMENT(17)
INCREMENT(18)
INCREMENT(19)
INCREMENT(20)
INCREMENT(21)
INCREMENT(22)
