// Sums in global memory that blocks add to in turn by bulk copies, with one bug each, by number;
// number 0 has none. turns.rs tests that each is caught.
#include "hopper.cuh"

// out = the sums of the rows of `in`, one row of 64 for each block, added in the order of ranks,
// which come from a counter. The first stores its row, the others add theirs, and the last loads
// the sums.
template <int BUG>
__device__ __forceinline__ void add_in_turns(unsigned char* shared, float* out, float* sums, unsigned* turn, unsigned* counter,
                                             const float* in) {
    constexpr int COUNT = 64, BYTES = COUNT * 4;
    SHARED(int, rank_of_block, [1]);
    float* const row = reinterpret_cast<float*>(shared);
    const uint32_t address = shared_address(shared), barrier = address + 2 * BYTES;
    const int t = threadIdx.x, last = gridDim.x - 1;
    if (t == 0) {
        rank_of_block[0] = (int)atomicInc(counter, last);
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    const int rank = rank_of_block[0];
    row[t] = in[rank * COUNT + t];
    proxy_fence();
    __syncthreads();
    if (t == 0) {
        if (BUG != 1) turn_wait(turn, rank);
        proxy_fence_global();
        if (rank == 0) bulk_store(sums, address, BYTES);
        else bulk_reduce_add(sums, address, BYTES);
        tma_store_commit();
        if (BUG == 2) tma_store_wait_read<0>();
        else tma_store_wait<0>();
        if (BUG == 3 && rank == 1) turn_pass(turn, rank);
        else if (BUG != 4 || rank != 1) turn_pass(turn, rank + 1);
        if (rank == last) {
            mbarrier_arrive_expect(barrier, BYTES);
            bulk_load(address + BYTES, sums, BYTES, barrier);
        }
    }
    if (rank < last) return;
    mbarrier_wait(barrier, 0);
    out[t] = row[COUNT + t];
    if (t == 0) turn_pass(turn, 0);
}
#define ADD_IN_TURNS(BUG)                                                                                  \
    extern "C" __global__ void __launch_bounds__(64)                                                       \
        add_in_turns_##BUG(float* out, float* sums, unsigned* turn, unsigned* counter, const float* in) {  \
        DYNAMIC_SHARED(shared);                                                                            \
        add_in_turns<BUG>(shared, out, sums, turn, counter, in);                                           \
    }
ADD_IN_TURNS(0)
ADD_IN_TURNS(1)
ADD_IN_TURNS(2)
ADD_IN_TURNS(3)
ADD_IN_TURNS(4)
