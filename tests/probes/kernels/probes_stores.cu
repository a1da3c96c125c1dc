// Kernels for the functions of ptx.cuh and hopper.cuh by which results leave: matrices to shared
// memory, boxes and bytes to global memory, flags, and turns. For other architectures than
// Hopper's, all but `flags` and `turns` are empty and never launched.
#include "hopper.cuh"

// Lane l stores four registers, and names row row_of[l], over a pattern.
extern "C" __global__ void __launch_bounds__(32) stmatrix(unsigned* out, const unsigned* registers, const unsigned* row_of) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    SHARED(uint4, tile, [32]);
    const int lane = threadIdx.x;
    tile[lane] = uint4{0x55555555, 0x55555555, 0x55555555, 0x55555555};
    __syncwarp();
    const uint4 v = load_u128(registers + 4 * lane);
    const uint32_t r[4] = {v.x, v.y, v.z, v.w};
    stmatrix_x4(shared_address(&tile[row_of[lane]]), r);
    __syncwarp();
    store_u128(out + 4 * lane, tile[lane]);
#endif
}

// Copies the words of a box to a slab, as they lie there.
__device__ __forceinline__ void fill(unsigned char* slab, const unsigned* words, int count) {
    for (int i = threadIdx.x; i < count; i += 128) reinterpret_cast<unsigned*>(slab)[i] = words[i];
#if defined(HAS_HOPPER_INSTRUCTIONS)
    proxy_fence();
#endif
    __syncthreads();
}
// Stores three boxes, each a group of its own: the one at (x, y) and its right neighbor, then, from
// the slab of the first again, the one below.
extern "C" __global__ void __launch_bounds__(128)
    tma_store_boxes(GRID_CONSTANT TensorMap map, const unsigned* boxes, int x, int y, int rows, int columns) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    DYNAMIC_SHARED(shared);
    const int words = rows * columns / 2;
    const uint32_t slabs = shared_address(shared);
    fill(shared, boxes, 2 * words);
    if (threadIdx.x == 0) {
        tma_store(&map, x, y, slabs);
        tma_store_commit();
        tma_store(&map, x + columns, y, slabs + 4 * words);
        tma_store_commit();
        tma_store_wait_read<1>();
    }
    __syncthreads();
    fill(shared, boxes + 2 * words, words);
    if (threadIdx.x == 0) {
        tma_store(&map, x, y + rows, slabs);
        tma_store_commit();
        tma_store_wait_read<0>();
    }
#endif
}

// Each block adds three rows of 128 numbers: two to those that all blocks have in common, each by a
// group of its own, then, from the slab of the first again, one to numbers of its own, which its
// first thread reads back.
extern "C" __global__ void __launch_bounds__(128) additions(float* sums, float* copy, const unsigned* in) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    SHARED(uint4, slabs, [2 * 32]);
    unsigned char* const shared = reinterpret_cast<unsigned char*>(slabs);
    const uint32_t first = shared_address(slabs), second = first + 512;
    const unsigned* const rows = in + blockIdx.x * 3 * 128;
    float* const own = sums + (2 + blockIdx.x) * 128;
    fill(shared, rows, 2 * 128);
    if (threadIdx.x == 0) {
        bulk_reduce_add(sums, first, 512);
        tma_store_commit();
        bulk_reduce_add(sums + 128, second, 512);
        tma_store_commit();
        tma_store_wait_read<1>();
    }
    __syncthreads();
    fill(shared, rows + 2 * 128, 128);
    if (threadIdx.x == 0) {
        bulk_reduce_add(own, first, 512);
        tma_store_commit();
        tma_store_wait<0>();
        for (int i = 0; i < 128; i++) copy[blockIdx.x * 128 + i] = own[i];
    }
#endif
}

// Blocks pass numbers on in the order of their ranks, which come from a counter: each adds its own
// to those of the one before.
extern "C" __global__ void __launch_bounds__(64)
    flags(unsigned* out, unsigned* raised, unsigned* counter, const unsigned* in) {
    SHARED(int, rank_of_block, [1]);
    const int t = threadIdx.x;
    if (t == 0) rank_of_block[0] = (int)atomicAdd(counter, 1u);
    __syncthreads();
    const int rank = rank_of_block[0];
    unsigned sum = in[rank * 64 + t];
    if (rank > 0) {
        if (t == 0) flag_wait(raised + rank - 1);
        __syncthreads();
        sum += out[(rank - 1) * 64 + 63 - t];
    }
    out[rank * 64 + t] = sum;
    __syncthreads();
    if (t == 0) flag_raise(raised + rank);
}

// The same with one number that counts the turns.
extern "C" __global__ void __launch_bounds__(64) turns(unsigned* out, unsigned* turn, unsigned* counter, const unsigned* in) {
    SHARED(int, rank_of_block, [1]);
    const int t = threadIdx.x;
    if (t == 0) rank_of_block[0] = (int)atomicAdd(counter, 1u);
    __syncthreads();
    const int rank = rank_of_block[0];
    if (t == 0) turn_wait(turn, rank);
    __syncthreads();
    unsigned sum = in[rank * 64 + t];
    if (rank > 0) sum += out[(rank - 1) * 64 + 63 - t];
    out[rank * 64 + t] = sum;
    __syncthreads();
    if (t == 0) turn_pass(turn, rank + 1);
}

// Copies 64 words to shared memory, from there to the first half of `out`, and from the last 32 of
// those in global memory, when they are written, through shared memory to the last words of `out`.
extern "C" __global__ void __launch_bounds__(32) bulk_copies(float* out, const float* in) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    DYNAMIC_SHARED(shared);
    const uint32_t words = shared_address(shared), barrier = words + 256;
    if (threadIdx.x != 0) return;
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, 256);
    bulk_load(words, in, 256, barrier);
    mbarrier_wait(barrier, 0);
    bulk_store(out, words, 256);
    tma_store_commit();
    tma_store_wait<0>();
    proxy_fence_global();
    mbarrier_arrive_expect(barrier, 128);
    bulk_load(words, out + 32, 128, barrier);
    mbarrier_wait(barrier, 1);
    bulk_store(out + 96, words, 128);
    tma_store_commit();
    tma_store_wait<0>();
#endif
}
