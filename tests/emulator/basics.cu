// Kernels that only test the emulated device, one guarantee each.
#include "common.cuh"

// out[b] = the sum of block b's elements of in.
extern "C" __global__ void __launch_bounds__(1024) block_sums(float* out, const float* in, int n) {
    SHARED(float, partial, [32]);
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = warp_sum(i < n ? in[i] : 0.0f);
    if (threadIdx.x % WARP_SIZE == 0) partial[threadIdx.x / WARP_SIZE] = sum;
    __syncthreads();
    if (threadIdx.x < WARP_SIZE) {
        sum = warp_sum(threadIdx.x < ceil_div(blockDim.x, WARP_SIZE) ? partial[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) out[blockIdx.x] = sum;
    }
}

// d (16x8) = a (16x16, row-major) b (16x8, column-major) by one warp, through shared memory.
template <class T>
__device__ __forceinline__ void product(float* d, const unsigned* a, const unsigned* b) {
    SHARED(uint4, tile, [32 + 16]);
    unsigned lane = threadIdx.x;
    uint32_t base = shared_address(tile);
    cp_async16(base + lane * 16, a + lane * 4);
    if (lane < 16) cp_async16(base + (32 + lane) * 16, b + lane * 4);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    uint32_t fragment[4], other[4];
    // Matrices: rows 0-7, rows 8-15, then the right half.
    ldmatrix_x4(fragment, base + (lane % 16 * 2 + lane / 16) * 16);
    ldmatrix_x4(other, base + (32 + lane % 8 * 2 + lane / 8 % 2) * 16);
    float sums[4] = {};
    mma_m16n8k16<T>(sums, fragment, other[0], other[1]);
    for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}
extern "C" __global__ void __launch_bounds__(32) product_bf16(float* d, const unsigned* a, const unsigned* b) {
    product<bf16>(d, a, b);
}
extern "C" __global__ void __launch_bounds__(32) product_f16(float* d, const unsigned* a, const unsigned* b) {
    product<f16>(d, a, b);
}

// One instruction each, registers in and out; the test knows the layout of the elements.
extern "C" __global__ void __launch_bounds__(32) probe_mma(float* d, const unsigned* a, const unsigned* b) {
    float sums[4] = {};
    uint32_t registers[4];
    for (int i = 0; i < 4; i++) registers[i] = a[threadIdx.x * 4 + i];
    mma_m16n8k16<bf16>(sums, registers, b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]);
    for (int i = 0; i < 4; i++) d[threadIdx.x * 4 + i] = sums[i];
}
extern "C" __global__ void __launch_bounds__(32) probe_mma_tf32(float* d, const unsigned* a, const unsigned* b) {
    float sums[4] = {};
    uint32_t registers[4];
    for (int i = 0; i < 4; i++) registers[i] = a[threadIdx.x * 4 + i];
    mma_m16n8k8_tf32(sums, registers, b[threadIdx.x * 2], b[threadIdx.x * 2 + 1]);
    for (int i = 0; i < 4; i++) d[threadIdx.x * 4 + i] = sums[i];
}
// Rows of eight 16-bit elements, numbered consecutively.
extern "C" __global__ void __launch_bounds__(32) probe_ldmatrix(unsigned* out, int transposed) {
    SHARED(uint4, rows, [32]);
    uint32_t words[4];
    for (int i = 0; i < 4; i++) words[i] = (threadIdx.x * 8 + 2 * i) | (threadIdx.x * 8 + 2 * i + 1) << 16;
    memcpy(&rows[threadIdx.x], words, 16);
    __syncwarp();
    if (transposed != 0)
        ldmatrix_x4_trans(words, shared_address(&rows[threadIdx.x]));
    else
        ldmatrix_x4(words, shared_address(&rows[threadIdx.x]));
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = words[i];
}

// Loops whose cost is measured.
extern "C" __global__ void bench_barrier(int n) {
    for (int i = 0; i < n; i++) __syncthreads();
}
extern "C" __global__ void bench_shuffle(float* out, int n) {
    float v = threadIdx.x;
    for (int i = 0; i < n; i++) v = __shfl_xor_sync(FULL_MASK, v, 1);
    out[threadIdx.x] = v;
}
extern "C" __global__ void bench_mma(float* out, int n) {
    float d[4] = {};
    uint32_t a[4] = {};
    for (int i = 0; i < n; i++) mma_m16n8k16<bf16>(d, a, 0, 0);
    out[threadIdx.x] = d[0];
}
