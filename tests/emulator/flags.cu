// Blocks that wait for each other's flags, with one bug each, by number; number 0 has none.
// flags.rs tests that each is caught.
#include "common.cuh"

// out[t] = the sum of in[r * n + t] over the ranks r of all blocks, added in their order: each
// block adds its numbers to the sums of the one before, and leaves them to the next. Ranks come
// from a counter, so that no block waits for one that starts later.
template <int BUG>
__device__ __forceinline__ void add_in_turn(float* out, float* sums, unsigned* flags, unsigned* counter, const float* in) {
    SHARED(int, rank_of_block, [1]);
    const int t = threadIdx.x, n = blockDim.x, last = gridDim.x - 1;
    // A block of one warp needs no more than __syncwarp.
    auto sync = [&] {
        if (n == WARP_SIZE) __syncwarp();
        else __syncthreads();
    };
    if (t == 0) rank_of_block[0] = atomicInc(counter, last);
    sync();
    const int rank = BUG == 5 ? last - blockIdx.x : rank_of_block[0];
    // Each thread adds what another one left.
    const int other = n - 1 - t;
    float sum = in[rank * n + other];
    if (rank > 0) {
        if (t == 0 && BUG != 6) flag_wait(flags + rank - 1);
        sync();
        sum += sums[(rank - 1) * n + other];
    }
    sums[rank * n + other] = sum;
    if (rank < last) {
        if (BUG != 1) sync();
        if (t == 0 && BUG == 3) *(volatile unsigned*)(flags + rank) = 1;
        else if (t == 0 && (BUG != 4 || rank != 1)) flag_raise(flags + rank);
        if (t == 0 && BUG == 7) flag_raise(flags + rank);
    } else {
        // Known through all blocks in between.
        out[other] = sum + 0.0f * sums[t];
    }
}
#define ADD_IN_TURN(BUG)                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                     \
        add_in_turn_##BUG(float* out, float* sums, unsigned* flags, unsigned* counter, const float* in) { \
        add_in_turn<BUG>(out, sums, flags, counter, in);                                                  \
    }
ADD_IN_TURN(0)
ADD_IN_TURN(1)
ADD_IN_TURN(3)
ADD_IN_TURN(4)
ADD_IN_TURN(5)
ADD_IN_TURN(6)
ADD_IN_TURN(7)

// Two warps of a block hand numbers to each other: the first waits for the second.
extern "C" __global__ void __launch_bounds__(64) pass_to_warp(float* out, float* left, unsigned* flag) {
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    if (warp == 1) {
        left[lane] = 1.0f + lane;
        __syncwarp();
        if (lane == 0) flag_raise(flag);
    } else {
        if (lane == 0) flag_wait(flag);
        __syncwarp();
        out[lane] = left[31 - lane];
    }
}
// All threads wait for one flag.
extern "C" __global__ void __launch_bounds__(64) wait_together(unsigned* flag) { flag_wait(flag); }
