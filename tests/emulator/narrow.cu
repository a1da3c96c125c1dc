// Boxes of 64, 32 and 16 columns, from copies through wgmma and back, with one bug each, by number;
// number 0 has none. narrow.rs tests that each is caught.
#include "hopper.cuh"

// From X (64 x 64), copied in 64 / COLUMNS boxes: rows (64 x 64) = X X^T, whose operands have rows
// along K, and columns (64 x 64) = X^T X, whose operands have rows across it; each as the registers
// of 128 threads. The boxes are stored again.
template <int COLUMNS, int BUG>
__device__ __forceinline__ void grams(unsigned char* shared, float* rows, float* columns, const TensorMap* in,
                                      const TensorMap* out) {
    constexpr int ROW_BYTES = COLUMNS * 2, BOX_BYTES = 64 * ROW_BYTES, BOXES = 64 / COLUMNS;
    const uint32_t boxes = shared_address(shared) + (BUG == 1 ? 128 : 0), barrier = shared_address(shared) + 64 * 128 + 128;
    const int t = threadIdx.x;
    if (t == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (t == 0) {
        mbarrier_arrive_expect(barrier, BOXES * BOX_BYTES - (BUG == 2 ? BOX_BYTES / 2 : 0));
        for (int i = 0; i < BOXES; i++) tma_load(boxes + i * BOX_BYTES, in, i * COLUMNS, 0, barrier);
    }
    if (BUG != 3) mbarrier_wait(barrier, 0);
    float sums[32];
    wgmma_fence();
    for (int k = 0; k < 64; k += 16) {
        // 16 elements too far in a row of a box.
        const uint32_t start = boxes + k / COLUMNS * BOX_BYTES + k % COLUMNS * 2 + (BUG == 4 && k == 48 ? 32 : 0);
        const uint64_t operand = matrix_descriptor<ROW_BYTES>(start, 16);
        wgmma<bf16, false, false>(sums, operand, operand, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < 32; i++) rows[t * 32 + i] = sums[i];
    wgmma_fence();
    for (int k = 0; k < 64; k += 16) {
        const uint64_t operand = matrix_descriptor<ROW_BYTES>(boxes + k * ROW_BYTES, BUG == 5 ? 1 << 17 : BOX_BYTES);
        wgmma<bf16, true, true>(sums, operand, operand, k > 0);
        // A part of a row of B.
        float part[4] = {};
        if (BUG == 6) wgmma<bf16, true, true>(part, operand, operand, true);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < 32; i++) columns[t * 32 + i] = sums[i];
    if (t == 0) {
        for (int i = 0; i < BOXES; i++) tma_store(out, i * COLUMNS, 0, boxes + i * BOX_BYTES);
        tma_store_commit();
        tma_store_wait_read<0>();
    }
}
#define GRAMS(COLUMNS, BUG)                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                        \
        grams_##COLUMNS##_##BUG(float* rows, float* columns, GRID_CONSTANT TensorMap in, GRID_CONSTANT TensorMap out) { \
        DYNAMIC_SHARED(shared);                                                                              \
        grams<COLUMNS, BUG>(shared, rows, columns, &in, &out);                                               \
    }
GRAMS(16, 0)
GRAMS(32, 0)
GRAMS(64, 0)
GRAMS(16, 1)
GRAMS(32, 1)
GRAMS(16, 2)
GRAMS(32, 3)
GRAMS(16, 4)
GRAMS(32, 4)
GRAMS(32, 5)
GRAMS(16, 6)
