// Kernels with one bug each, by number; number 0 has none. mutants.rs tests that each is caught.
#include "common.cuh"

// out = 2 in through two buffers of asynchronous copies; each thread reads what a thread of another
// warp copied.
template <int BUG>
__device__ __forceinline__ void pipeline(float* out, const float* in, int stages) {
    SHARED(float, buffers, [2][64 * 4]);
    int mine = threadIdx.x * 4, other = (threadIdx.x + 32) % 64 * 4;
    uint32_t base = shared_address(buffers) + (BUG == 4 ? 1024 : 0);
    auto issue = [&](int stage) {
        cp_async16(base + (stage % 2 * 256 + mine) * 4, in + stage * 256 + mine + (BUG == 5 ? 4 : 0));
        cp_async_commit();
    };
    issue(0);
    for (int stage = 0; stage < stages; stage++) {
        if (stage + 1 < stages) {
            issue(stage + 1);
            cp_async_wait<BUG == 1 ? 2 : 1>();
        } else if (BUG != 6) {
            cp_async_wait<0>();
        } else {
            return;
        }
        if (BUG != 2) __syncthreads();
        for (int i = 0; i < 4; i++) out[stage * 256 + other + i] = 2.0f * buffers[stage % 2][other + i];
        if (BUG != 3) __syncthreads();
    }
}
extern "C" __global__ void __launch_bounds__(1024) pipeline_0(float* out, const float* in, int stages) { pipeline<0>(out, in, stages); }
extern "C" __global__ void __launch_bounds__(1024) pipeline_1(float* out, const float* in, int stages) { pipeline<1>(out, in, stages); }
extern "C" __global__ void __launch_bounds__(1024) pipeline_2(float* out, const float* in, int stages) { pipeline<2>(out, in, stages); }
extern "C" __global__ void __launch_bounds__(1024) pipeline_3(float* out, const float* in, int stages) { pipeline<3>(out, in, stages); }
extern "C" __global__ void __launch_bounds__(1024) pipeline_4(float* out, const float* in, int stages) { pipeline<4>(out, in, stages); }
extern "C" __global__ void __launch_bounds__(1024) pipeline_5(float* out, const float* in, int stages) { pipeline<5>(out, in, stages); }
extern "C" __global__ void __launch_bounds__(1024) pipeline_6(float* out, const float* in, int stages) { pipeline<6>(out, in, stages); }

// out[block] = the sum of a block's numbers, of n in all.
template <int BUG>
__device__ __forceinline__ void total(float* out, const float* in, int n) {
    SHARED(float, partial, [32]);
    int i = blockIdx.x * blockDim.x + threadIdx.x, warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    int warps = blockDim.x / WARP_SIZE;
    if (BUG == 1 && i >= n) return;
    bool inside = BUG == 2 ? i <= n : i < n;
    float sum = inside ? in[i] : 0.0f;
    if (BUG == 3) {
        if (lane < 16) sum += __shfl_xor_sync(FULL_MASK, sum, 1);
    } else if (BUG == 4) {
        if (lane < 16) sum += __shfl_down_sync(0xffff, sum, 16);
    } else if (BUG == 5) {
        sum += lane < 16 ? __shfl_xor_sync(FULL_MASK, sum, 1) :
                           __shfl_xor_sync(FULL_MASK, sum, 2);
    } else {
        sum = warp_sum(sum);
    }
    if (lane == 0 && (BUG != 6 || warp > 0)) partial[warp] = sum;
    if (BUG == 7) {
        if (warp == 0) __syncthreads();
    } else if (BUG == 8) {
        if (warp == 0)
            __syncthreads();
        else
            __syncthreads();
    } else if (BUG != 9) {
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        float all = 0.0f;
        for (int w = 0; w < warps; w++) all += partial[w];
        out[BUG == 10 ? 0 : blockIdx.x + (BUG == 11 ? 2 : 0)] = all;
    }
}
extern "C" __global__ void __launch_bounds__(1024) total_0(float* out, const float* in, int n) { total<0>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_1(float* out, const float* in, int n) { total<1>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_2(float* out, const float* in, int n) { total<2>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_3(float* out, const float* in, int n) { total<3>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_4(float* out, const float* in, int n) { total<4>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_5(float* out, const float* in, int n) { total<5>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_6(float* out, const float* in, int n) { total<6>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_7(float* out, const float* in, int n) { total<7>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_8(float* out, const float* in, int n) { total<8>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_9(float* out, const float* in, int n) { total<9>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_10(float* out, const float* in, int n) { total<10>(out, in, n); }
extern "C" __global__ void __launch_bounds__(1024) total_11(float* out, const float* in, int n) { total<11>(out, in, n); }

// Reverses the numbers of a block's threads in place, through shared memory (within warps) and
// back.
template <int BUG>
__device__ __forceinline__ void reverse(float* row) {
    SHARED(float, lanes, [64]);
    float* mine = row + blockIdx.x * 64;
    float v = mine[63 - threadIdx.x];
    if (BUG != 1) __syncthreads();
    mine[threadIdx.x] = v;
    // Twice again within each warp.
    for (int i = 0; i < 2; i++) {
        lanes[threadIdx.x] = v;
        if (BUG != 2) __syncwarp();
        v = lanes[threadIdx.x ^ 31];
        if (BUG != 3) __syncwarp();
    }
    mine[threadIdx.x] = v;
}
extern "C" __global__ void __launch_bounds__(1024) reverse_0(float* row) { reverse<0>(row); }
extern "C" __global__ void __launch_bounds__(1024) reverse_1(float* row) { reverse<1>(row); }
extern "C" __global__ void __launch_bounds__(1024) reverse_2(float* row) { reverse<2>(row); }
extern "C" __global__ void __launch_bounds__(1024) reverse_3(float* row) { reverse<3>(row); }

// The last block sums the results of all blocks: `out` has one number per block, the sum, and the
// count.
template <int BUG>
__device__ __forceinline__ void last_block(float* out, unsigned* count) {
    SHARED(bool, is_last, [1]);
    if (threadIdx.x == 1) out[blockIdx.x] = blockIdx.x + 1.0f;
    __syncthreads();
    if (threadIdx.x == 0) {
        if (BUG != 1) __threadfence();
        is_last[0] = BUG == 2 ? true : atomicAdd(count, 1u) == gridDim.x - 1;
        if (BUG == 3) *count = 0;
    }
    __syncthreads();
    if (is_last[0] && threadIdx.x == 0) {
        float sum = 0.0f;
        for (int b = 0; b < gridDim.x; b++) sum += out[b];
        out[gridDim.x] = sum;
        *count = 0;
    }
}
extern "C" __global__ void __launch_bounds__(1024) last_block_0(float* out, unsigned* count) { last_block<0>(out, count); }
extern "C" __global__ void __launch_bounds__(1024) last_block_1(float* out, unsigned* count) { last_block<1>(out, count); }
extern "C" __global__ void __launch_bounds__(1024) last_block_2(float* out, unsigned* count) { last_block<2>(out, count); }
extern "C" __global__ void __launch_bounds__(1024) last_block_3(float* out, unsigned* count) { last_block<3>(out, count); }

// Every block adds to the sums of all other blocks, eight numbers each. The last one doubles the
// sums into `out` and clears them.
template <int BUG>
__device__ __forceinline__ void added(float* out, float* sums, unsigned* count) {
    const int t = threadIdx.x;
    if (t / 8 != blockIdx.x) {
        if (BUG == 3) sums[t] += t + 1.0f;
        else red_add(sums + t, t + 1.0f);
    }
    if (BUG != 2) __syncthreads();
    bool is_last = false;
    if (t == 0) {
        if (BUG != 1) __threadfence();
        is_last = atomicInc(count, gridDim.x - 1) == gridDim.x - 1;
    }
    if (!__syncthreads_or(is_last)) return;
    out[t] = 2.0f * sums[t];
    sums[t] = 0.0f;
}
extern "C" __global__ void __launch_bounds__(1024) added_0(float* out, float* sums, unsigned* count) { added<0>(out, sums, count); }
extern "C" __global__ void __launch_bounds__(1024) added_1(float* out, float* sums, unsigned* count) { added<1>(out, sums, count); }
extern "C" __global__ void __launch_bounds__(1024) added_2(float* out, float* sums, unsigned* count) { added<2>(out, sums, count); }
extern "C" __global__ void __launch_bounds__(1024) added_3(float* out, float* sums, unsigned* count) { added<3>(out, sums, count); }

// 128-bit accesses; tensor core operands.
template <int BUG>
__device__ __forceinline__ void vectors(float* out, const float* in) {
    DYNAMIC_SHARED(memory);
    float* tile = (float*)memory;
    const float* from = in + threadIdx.x * 4 + (BUG == 1 ? 2 : 0);
    auto pack = load128(from);
    store128(tile + threadIdx.x * 4, pack);
    if (BUG != 2) __syncwarp();
    uint32_t r[4];
    uint32_t row = shared_address(tile) + (threadIdx.x ^ 1) * 16 + (BUG == 3 ? 8 : BUG == 4 ? 16 : 0);
    ldmatrix_x4(r, row);
    for (int i = 0; i < 4; i++) out[(i * 8 + threadIdx.x / 4) * 4 + threadIdx.x % 4] = __uint_as_float(r[i]);
    if (BUG == 5) assert(out[0] != in[0]);
    if (BUG == 6) store128(out + threadIdx.x * 4 + 1, pack);
}
extern "C" __global__ void __launch_bounds__(1024) vectors_0(float* out, const float* in) { vectors<0>(out, in); }
extern "C" __global__ void __launch_bounds__(1024) vectors_1(float* out, const float* in) { vectors<1>(out, in); }
extern "C" __global__ void __launch_bounds__(1024) vectors_2(float* out, const float* in) { vectors<2>(out, in); }
extern "C" __global__ void __launch_bounds__(1024) vectors_3(float* out, const float* in) { vectors<3>(out, in); }
extern "C" __global__ void __launch_bounds__(1024) vectors_4(float* out, const float* in) { vectors<4>(out, in); }
extern "C" __global__ void __launch_bounds__(1024) vectors_5(float* out, const float* in) { vectors<5>(out, in); }
extern "C" __global__ void __launch_bounds__(1024) vectors_6(float* out, const float* in) { vectors<6>(out, in); }
