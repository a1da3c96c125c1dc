// Kernels that add to global memory by bulk_reduce_add, with one bug each, by number; number 0 has
// none. additions.rs tests that each is caught.
#include "hopper.cuh"

// sums (256) += the rows of in (rows x 256). Each row leaves through one of two slabs. The block
// that counts last rounds the sums.
template <int BUG>
__device__ __forceinline__ void add_rows(float* sums, bf16* rounded, unsigned* counter, const float* in, int rows) {
    constexpr int COLUMNS = 256, SLAB_BYTES = COLUMNS * 4;
    SHARED(float4, slabs, [2 * COLUMNS / 4 + 1]);
    SHARED(unsigned, is_last, [1]);
    float* const slab_of[] = {reinterpret_cast<float*>(slabs), reinterpret_cast<float*>(slabs) + COLUMNS};
    const int t = threadIdx.x;
    if (BUG == 8 && t == 0) sums[3] = 0;
    if (BUG == 9 && t == 0 && sums[3] == -1) in = nullptr;
    if (BUG == 10 && t == 0) atomicAdd(sums + 3, 1.0f);
    for (int row = blockIdx.x, i = 0; row < rows; row += gridDim.x, i++) {
        float* const slab = slab_of[i % 2];
        // The slab's last addition was two groups ago.
        if (t == 0 && BUG != 2) tma_store_wait_read<1>();
        __syncthreads();
        for (int column = t; column < COLUMNS; column += 128) slab[column] = in[row * COLUMNS + column];
        if (BUG != 1) proxy_fence();
        __syncthreads();
        if (t == 0) {
            const uint32_t src = shared_address(slab) + (BUG == 7 ? 4 : 0);
            bulk_reduce_add(sums + (BUG == 5 ? 1 : BUG == 13 ? 4 : 0), src, SLAB_BYTES - (BUG == 6 ? 8 : 0));
            if (BUG != 4) tma_store_commit();
        }
    }
    if (t == 0) {
        if (BUG == 3) tma_store_wait_read<0>();
        else if (BUG == 12) tma_store_wait<1>();
        else if (BUG != 4) tma_store_wait<0>();
        if (BUG != 11) __threadfence();
        is_last[0] = atomicAdd(counter, 1u) + 1 == gridDim.x;
        if (BUG == 12) tma_store_wait_read<0>();
    }
    __syncthreads();
    if (!is_last[0]) return;
    for (int column = t; column < COLUMNS; column += 128) rounded[column] = from_f32<bf16>(sums[column]);
}
#define ADD_ROWS(BUG)                                                                              \
    extern "C" __global__ void __launch_bounds__(128)                                              \
        add_rows_##BUG(float* sums, bf16* rounded, unsigned* counter, const float* in, int rows) { \
        add_rows<BUG>(sums, rounded, counter, in, rows);                                           \
    }
ADD_ROWS(0)
ADD_ROWS(1)
ADD_ROWS(2)
ADD_ROWS(3)
ADD_ROWS(4)
ADD_ROWS(5)
ADD_ROWS(6)
ADD_ROWS(7)
ADD_ROWS(8)
ADD_ROWS(9)
ADD_ROWS(10)
ADD_ROWS(11)
ADD_ROWS(12)
ADD_ROWS(13)
