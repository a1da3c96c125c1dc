// Kernels whose accesses can be counted by hand. Blocks are multiples of a warp; `i` numbers all
// threads.
#include "hopper.cuh"

extern "C" __global__ void copy_words(float* out, const float* in, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = in[i];
}
// Reads every `stride`-th number from `first` on.
extern "C" __global__ void gather(float* out, const float* in, int stride, int first) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = in[first + i * stride];
}
extern "C" __global__ void copy_packs(float* out, const float* in) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    store128(out + i * 4, load128(in + i * 4));
}
// The threads of a block go through n numbers without ever synchronizing.
extern "C" __global__ void copy_in_turns(float* out, const float* in, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = in[i];
}
// Lanes diverge: even lanes of a warp read twice in the loop, odd ones once; then all read once
// from the same place.
__device__ __forceinline__ float sum_to(const float* in, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum += in[i * 32 + threadIdx.x];
    return sum;
}
extern "C" __global__ void parting(float* out, const float* in) {
    float sum = 0.0f;
    for (int turn = 0; turn < 2; turn++) {
        sum += sum_to(in, turn == 0 && threadIdx.x % 2 == 0 ? 2 : 1);
        __syncwarp();
    }
    out[threadIdx.x] = sum;
}
extern "C" __global__ void add_unsigned(unsigned* sums) { atomicAdd(&sums[blockIdx.x * blockDim.x + threadIdx.x], 1u); }
extern "C" __global__ void add_float(float* sums) { atomicAdd(&sums[threadIdx.x / 8], 1.0f); }

// Writes and reads every `stride`-th word of shared memory.
extern "C" __global__ void __launch_bounds__(32) bank_words(float* out, int stride) {
    SHARED(float, words, [32 * 32]);
    words[threadIdx.x * stride] = threadIdx.x;
    __syncwarp();
    out[threadIdx.x] = words[threadIdx.x * stride];
}
// The same for pairs and packs of words; then every lane reads the first one.
extern "C" __global__ void __launch_bounds__(32) bank_pairs(float2* out, int stride) {
    SHARED(float2, pairs, [32 * 16]);
    pairs[threadIdx.x * stride] = make_float2(threadIdx.x, 1.0f);
    __syncwarp();
    out[threadIdx.x] = pairs[0];
}
extern "C" __global__ void __launch_bounds__(32) bank_packs(float* out, int stride) {
    DYNAMIC_SHARED(shared);
    float* packs = reinterpret_cast<float*>(shared);
    Pack<float> pack = {{1.0f, 2.0f, 3.0f, 4.0f}};
    store128(packs + threadIdx.x * stride * 4, pack);
    __syncwarp();
    store128(out + threadIdx.x * 4, load128(packs));
}

// out (32, 32) = in transposed, by 8 warps through a tile with rows of 32 + PADDING words.
template <int PADDING>
__device__ __forceinline__ void transpose(float* out, const float* in) {
    SHARED(float, tile, [32][32 + PADDING]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int row = warp; row < 32; row += 8) tile[row][lane] = in[row * 32 + lane];
    __syncthreads();
    for (int row = warp; row < 32; row += 8) out[row * 32 + lane] = tile[lane][row];
}
extern "C" __global__ void __launch_bounds__(256) transpose_plain(float* out, const float* in) { transpose<0>(out, in); }
extern "C" __global__ void __launch_bounds__(256) transpose_padded(float* out, const float* in) { transpose<1>(out, in); }

// Copies 32 chunks of 16 bytes to rows of `pitch` bytes by cp.async and reads them by ldmatrix. The
// last lanes copy only `bytes` bytes.
extern "C" __global__ void __launch_bounds__(32) load_matrices(unsigned* out, const unsigned* in, int pitch, int bytes) {
    DYNAMIC_SHARED(shared);
    const uint32_t row = shared_address(shared) + threadIdx.x * pitch;
    cp_async16(row, in + threadIdx.x * 4, threadIdx.x < 16 ? 16 : bytes);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    uint32_t fragment[4];
    ldmatrix_x4(fragment, row);
    for (int i = 0; i < 4; i++) out[i * 32 + threadIdx.x] = fragment[i];
}
