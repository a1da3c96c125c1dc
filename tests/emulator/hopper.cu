// Kernels that test Hopper's part of the emulated device: copies alone, MMAs alone, and a pipeline
// of both with every mistake that is possible in it.
#include "hopper.cuh"

// out = the box of the map with its corner at (x, y): 64 columns, `rows` rows, read by plain loads.
extern "C" __global__ void __launch_bounds__(128)
    copy_box(bf16* out, GRID_CONSTANT TensorMap map, int x, int y, int rows) {
    DYNAMIC_SHARED(shared);
    const uint32_t box = shared_address(shared), barrier = box + rows * 128;
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, rows * 128);
        tma_load(box, &map, x, y, barrier);
    }
    mbarrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < rows * 64; i += 128) {
        const int row = i / 64, column = i % 64;
        // "Swizzle Modes" of the CUDA programming guide: 16-byte columns are permuted by the row
        // modulo 8.
        const int place = row * 64 + (column / 8 ^ row % 8) * 8 + column % 8;
        out[i] = reinterpret_cast<const bf16*>(shared)[place];
    }
}

// Writes a matrix of `rows` rows of 64 numbers to shared memory in the layout of wgmma.
template <class T>
__device__ __forceinline__ void write_rows(unsigned char* to, const T* from, int rows) {
    for (int i = threadIdx.x; i < rows * 64; i += 128) {
        const int row = i / 64, column = i % 64, chunk = row * 8 + (column / 8 ^ row % 8);
        memcpy(to + chunk * 16 + column % 8 * 2, from + i, 2);
    }
}

// registers[t][i] = the sums of thread t of a (64 x 64) * b (64 x 2 SUMS). In memory: a (64 rows of
// K) or, across, (K, 64); b (2 SUMS rows of K) or, across, panels of (K, 64). Plain stores fill
// shared memory.
template <class T, bool ACROSS_A, bool ACROSS_B, int SUMS>
__device__ __forceinline__ void product(unsigned char* shared, float* registers, const T* a, const T* b) {
    constexpr int A_BYTES = 64 * 128;
    const int panels = ceil_div(2 * SUMS, 64);
    write_rows(shared, a, 64);
    write_rows(shared + A_BYTES, b, ACROSS_B ? panels * 64 : 2 * SUMS);
    proxy_fence();
    __syncthreads();
    float sums[SUMS];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) {
        const uint32_t a_start = shared_address(shared) + step * (ACROSS_A ? 16 * 128 : 32);
        const uint32_t b_start = shared_address(shared) + A_BYTES + step * (ACROSS_B ? 16 * 128 : 32);
        wgmma<T, ACROSS_A, ACROSS_B>(sums, matrix_descriptor(a_start, A_BYTES), matrix_descriptor(b_start, 64 * 128), step > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < SUMS; i++) registers[threadIdx.x * SUMS + i] = sums[i];
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_bf16_128(float* registers, const bf16* a, const bf16* b, int across_a, int across_b) {
    DYNAMIC_SHARED(shared);
    if (across_a && across_b) product<bf16, true, true, 64>(shared, registers, a, b);
    else if (across_a) product<bf16, true, false, 64>(shared, registers, a, b);
    else if (across_b) product<bf16, false, true, 64>(shared, registers, a, b);
    else product<bf16, false, false, 64>(shared, registers, a, b);
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_bf16_256(float* registers, const bf16* a, const bf16* b, int across_a, int across_b) {
    DYNAMIC_SHARED(shared);
    if (across_a && across_b) product<bf16, true, true, 128>(shared, registers, a, b);
    else if (across_a) product<bf16, true, false, 128>(shared, registers, a, b);
    else if (across_b) product<bf16, false, true, 128>(shared, registers, a, b);
    else product<bf16, false, false, 128>(shared, registers, a, b);
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_f16_8(float* registers, const f16* a, const f16* b, int across_a, int) {
    DYNAMIC_SHARED(shared);
    if (across_a) product<f16, true, false, 4>(shared, registers, a, b);
    else product<f16, false, false, 4>(shared, registers, a, b);
}

// The bug in a pipeline.
enum Mistake {
    NONE,
    NO_WAIT_FOR_FULL,
    RELEASED_WHILE_READ,
    NO_WGMMA_WAIT,
    EXPECTS_HALF,
    NO_WGMMA_FENCE,
    NO_PROXY_FENCE,
    CONSUMER_PARITY_STAYS,
    PRODUCER_PARITY,
    NO_BARRIER_AFTER_INIT,
    EXPECTS_MORE,
    ONE_ARRIVAL_FOR_ALL_WARPS,
    OVERWRITTEN_BARRIER,
    NO_INIT_FENCE,
    COPY_NOT_WAITED_FOR,
    ONE_WARP_LEFT_OUT,
};

// d (128 x 128, f32) = a (128 x K) * b (128 x K)^T: a producing thread, two consumer warpgroups,
// three stages.
template <Mistake MISTAKE>
__device__ __forceinline__ void run_pipeline(unsigned char* shared, float* d, const TensorMap* a, const TensorMap* b, int K) {
    constexpr int STAGES = 3, TILE_BYTES = 128 * 128, STAGE_BYTES = 2 * TILE_BYTES;
    const uint32_t stages = shared_address(shared), full = stages + STAGES * STAGE_BYTES, empty = full + STAGES * 8;
    const int count = K / 64, warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(full + s * 8, 1);
            mbarrier_init(empty + s * 8, MISTAKE == ONE_ARRIVAL_FOR_ALL_WARPS ? 2 : 8);
        }
        if (MISTAKE != NO_INIT_FENCE) mbarrier_init_fence();
    }
    if (MISTAKE != NO_BARRIER_AFTER_INIT) __syncthreads();
    if (MISTAKE == OVERWRITTEN_BARRIER && threadIdx.x == 0) shared[STAGES * STAGE_BYTES] = 1;
    if (warpgroup == 0) {
        if (threadIdx.x != 0) return;
        for (int i = 0; i < count + (MISTAKE == COPY_NOT_WAITED_FOR); i++) {
            const int s = i % STAGES, parity = i / STAGES & 1;
            const uint32_t stage = stages + s * STAGE_BYTES;
            mbarrier_wait(empty + s * 8, MISTAKE == PRODUCER_PARITY ? parity : parity ^ 1);
            mbarrier_arrive_expect(full + s * 8, MISTAKE == EXPECTS_HALF   ? TILE_BYTES
                                                 : MISTAKE == EXPECTS_MORE ? 3 * TILE_BYTES
                                                                           : STAGE_BYTES);
            tma_load(stage, a, i * 64, 0, full + s * 8);
            tma_load(stage + TILE_BYTES, b, i * 64, 0, full + s * 8);
        }
        return;
    }
    const int warp = threadIdx.x / WARP_SIZE % 4;
    const bool leader = threadIdx.x % WARP_SIZE == 0 && (MISTAKE != ONE_ARRIVAL_FOR_ALL_WARPS || warp == 0);
    float sums[64];
    for (int i = 0; i < count; i++) {
        const int s = i % STAGES, parity = MISTAKE == CONSUMER_PARITY_STAYS ? 0 : i / STAGES & 1;
        const uint32_t a_tile = stages + s * STAGE_BYTES + (warpgroup - 1) * 64 * 128;
        const uint32_t b_tile = stages + s * STAGE_BYTES + TILE_BYTES;
        if (MISTAKE != NO_WAIT_FOR_FULL) mbarrier_wait(full + s * 8, parity);
        if (MISTAKE == NO_PROXY_FENCE && i == 2 && threadIdx.x == 128) {
            // Rewrites what is there, without a fence that would let wgmma see it.
            volatile unsigned short* word = reinterpret_cast<unsigned short*>(shared + (a_tile - stages));
            *word = *word;
        }
        if (MISTAKE != NO_WGMMA_FENCE) wgmma_fence();
        if (MISTAKE != ONE_WARP_LEFT_OUT || warp != 3 || i < count - 1) {
#pragma unroll
            for (int step = 0; step < 4; step++)
                wgmma<bf16, false, false>(sums, matrix_descriptor(a_tile + step * 32, 16),
                                          matrix_descriptor(b_tile + step * 32, 16), i + step > 0);
        }
        wgmma_commit();
        if (MISTAKE == RELEASED_WHILE_READ) {
            if (leader) mbarrier_arrive(empty + s * 8);
            wgmma_wait<1>();
        } else {
            wgmma_wait<1>();
            if (i > 0 && leader) mbarrier_arrive(empty + (i - 1) % STAGES * 8);
        }
    }
    if (MISTAKE != NO_WGMMA_WAIT) wgmma_wait<0>();
    const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const int row = (warpgroup - 1) * 64 + warp * 16 + i / 2 % 2 * 8 + lane / 4;
        d[row * 128 + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
    }
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<NONE>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_no_wait_for_full(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<NO_WAIT_FOR_FULL>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_released_while_read(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<RELEASED_WHILE_READ>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_no_wgmma_wait(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<NO_WGMMA_WAIT>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_expects_half(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<EXPECTS_HALF>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_no_wgmma_fence(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<NO_WGMMA_FENCE>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_no_proxy_fence(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<NO_PROXY_FENCE>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_consumer_parity_stays(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<CONSUMER_PARITY_STAYS>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_producer_parity(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<PRODUCER_PARITY>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_no_barrier_after_init(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<NO_BARRIER_AFTER_INIT>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_expects_more(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<EXPECTS_MORE>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_one_arrival_for_all_warps(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<ONE_ARRIVAL_FOR_ALL_WARPS>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_overwritten_barrier(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<OVERWRITTEN_BARRIER>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_no_init_fence(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<NO_INIT_FENCE>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_copy_not_waited_for(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<COPY_NOT_WAITED_FOR>(shared, d, &a, &b, K);
}
extern "C" __global__ void __launch_bounds__(384)
    pipeline_one_warp_left_out(float* d, GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b, int K) {
    DYNAMIC_SHARED(shared);
    run_pipeline<ONE_WARP_LEFT_OUT>(shared, d, &a, &b, K);
}
