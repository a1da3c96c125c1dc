// A kernel for each function of hopper.cuh, as in probes.cu. For other architectures than Hopper's,
// all but `descriptors` are empty and never launched.
#include "hopper.cuh"

__device__ __forceinline__ uint64_t describe(uint32_t address, uint32_t block_bytes, int row_bytes) {
    if (row_bytes == 32) return matrix_descriptor<32>(address, block_bytes);
    return row_bytes == 64 ? matrix_descriptor<64>(address, block_bytes) : matrix_descriptor(address, block_bytes);
}

// The low and the high word of each descriptor.
extern "C" __global__ void __launch_bounds__(256)
    descriptors(unsigned* out, const unsigned* addresses, const unsigned* block_bytes, int row_bytes, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const uint64_t descriptor = describe(addresses[i], block_bytes[i], row_bytes);
    out[2 * i] = (unsigned)descriptor;
    out[2 * i + 1] = (unsigned)(descriptor >> 32);
}

// In each of up to 8 phases every thread leaves a number and takes that of its opposite. One thread
// in 64 / arrivals arrives.
extern "C" __global__ void __launch_bounds__(64) mbarrier_phases(unsigned* out, const unsigned* in, int phases, int arrivals) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    SHARED(unsigned long long, barrier, [1]);
    SHARED(unsigned, left, [8 * 64]);
    const uint32_t address = shared_address(barrier);
    const int t = threadIdx.x;
    if (t == 0) {
        mbarrier_init(address, arrivals);
        mbarrier_init_fence();
    }
    __syncthreads();
    // Returns at once, as if a phase before the first had ended.
    mbarrier_wait(address, 1);
    for (int phase = 0; phase < phases; phase++) {
        left[phase * 64 + t] = in[phase * 64 + t];
        __syncwarp();
        if (t % (64 / arrivals) == 0) mbarrier_arrive(address);
        mbarrier_wait(address, phase % 2);
        out[phase * 64 + t] = left[phase * 64 + 63 - t];
    }
#endif
}

// Three boxes as they lie in shared memory, over a pattern: the one at (x, y) in the first phase,
// its neighbors to the right and below in the second.
extern "C" __global__ void __launch_bounds__(128)
    tma_boxes(unsigned* out, GRID_CONSTANT TensorMap map, int x, int y, int rows, int columns) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    DYNAMIC_SHARED(shared);
    const int bytes = rows * columns * 2, words = 3 * bytes / 4;
    const uint32_t boxes = shared_address(shared), barrier = boxes + 3 * bytes;
    unsigned* const content = reinterpret_cast<unsigned*>(shared);
    for (int i = threadIdx.x; i < words; i += 128) content[i] = 0x55555555;
    if (threadIdx.x == 0) {
        tma_prefetch(&map);
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
    }
    proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, bytes);
        tma_load(boxes, &map, x, y, barrier);
    }
    mbarrier_wait(barrier, 0);
    // A thread that has not seen the end of the first phase when the second ends would wait
    // forever.
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 2 * bytes);
        tma_load(boxes + bytes, &map, x + columns, y, barrier);
        tma_load(boxes + 2 * bytes, &map, x, y + rows, barrier);
    }
    mbarrier_wait(barrier, 1);
    for (int i = threadIdx.x; i < words; i += 128) out[i] = content[i];
#endif
}

// In each phase block r of a cluster takes word r that each of the four blocks left in global
// memory. The blocks arrive at each other's barriers.
extern "C" __global__ void __launch_bounds__(32) CLUSTER(4)
    cluster_barriers(unsigned* out, unsigned* left, const unsigned* in, int phases) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    constexpr int BLOCKS = 4;
    SHARED(unsigned long long, barrier, [1]);
    const uint32_t address = shared_address(barrier), rank = cluster_rank();
    const int cluster = blockIdx.x / BLOCKS, t = threadIdx.x;
    if (t == 0) {
        mbarrier_init(address, BLOCKS);
        mbarrier_init_fence();
    }
    cluster_sync();
    for (int phase = 0; phase < phases; phase++) {
        const int words = (phase * gridDim.x / BLOCKS + cluster) * BLOCKS * BLOCKS;
        if (t < BLOCKS) {
            left[words + t * BLOCKS + rank] = in[words + rank * BLOCKS + t];
            __threadfence();
            mbarrier_arrive_cluster(cluster_address(address, t));
        }
        mbarrier_wait_cluster(address, phase % 2);
        if (t < BLOCKS) out[words + rank * BLOCKS + t] = left[words + rank * BLOCKS + t];
        // A block that went ahead would arrive in place of one that has not arrived yet.
        cluster_sync();
    }
#endif
}

// Each block stores 16 bytes per thread to the other block of its cluster, which outputs them.
extern "C" __global__ void __launch_bounds__(64) CLUSTER(2) store_async_words(unsigned* out, const unsigned* in) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    SHARED(int4, got, [64]);
    SHARED(unsigned long long, barrier, [1]);
    const uint32_t place = shared_address(&got[threadIdx.x]), address = shared_address(barrier), other = cluster_rank() ^ 1;
    if (threadIdx.x == 0) {
        mbarrier_init(address, 1);
        mbarrier_init_fence();
    }
    cluster_sync();
    if (threadIdx.x == 0) mbarrier_arrive_expect(address, 64 * 16);
    const unsigned* words = in + (blockIdx.x * 64 + threadIdx.x) * 4;
    store_async(cluster_address(place, other), make_int4((int)words[0], (int)words[1], (int)words[2], (int)words[3]),
                cluster_address(address, other));
    mbarrier_wait_cluster(address, 0);
    const int4 v = got[threadIdx.x];
    unsigned* to = out + (blockIdx.x * 64 + threadIdx.x) * 4;
    to[0] = (unsigned)v.x, to[1] = (unsigned)v.y, to[2] = (unsigned)v.z, to[3] = (unsigned)v.w;
    cluster_sync();
#endif
}

// The shared memory of both blocks of a cluster, over a pattern: the first block copies the box at
// (x, y) to both, then the second block the one to its right to the first, and the one below to
// itself.
extern "C" __global__ void __launch_bounds__(128) CLUSTER(2)
    tma_multicast(unsigned* out, GRID_CONSTANT TensorMap map, int x, int y, int rows) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    DYNAMIC_SHARED(shared);
    const int bytes = rows * 128, words = 3 * rows * 32;
    const uint32_t boxes = shared_address(shared), barrier = boxes + 3 * bytes, rank = cluster_rank();
    unsigned* const content = reinterpret_cast<unsigned*>(shared);
    for (int i = threadIdx.x; i < words; i += 128) content[i] = 0x55555555;
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
    }
    proxy_fence();
    cluster_sync();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 2 * bytes);
        if (rank == 0) {
            tma_load_multicast(boxes, &map, x, y, barrier, 3);
        } else {
            tma_load_multicast(boxes + bytes, &map, x + 64, y, barrier, 1);
            tma_load_multicast(boxes + 2 * bytes, &map, x, y + rows, barrier, 2);
        }
    }
    mbarrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < words; i += 128) out[blockIdx.x * words + i] = content[i];
    cluster_sync();
#endif
}

// Copies an image to shared memory, for wgmma to read.
__device__ __forceinline__ void copy_image(unsigned char* shared, const unsigned* image, int bytes) {
    for (int i = threadIdx.x; i < bytes / 4; i += 128) reinterpret_cast<unsigned*>(shared)[i] = image[i];
#if defined(HAS_HOPPER_INSTRUCTIONS)
    proxy_fence();
#endif
    __syncthreads();
}

// The operands in the image: A starts at `a`, B at `b`, in rows of `row_bytes`; `block` bytes
// separate a row's elements across from the next.
struct Places {
    int a, a_block, b, b_block, row_bytes;
};

// registers[t][i] = the sums of thread t after one MMA.
template <class T, bool ACROSS_A, bool ACROSS_B, int SUMS>
__device__ __forceinline__ void multiply(unsigned* registers, uint32_t image, const Places& at, bool accumulate) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    float sums[SUMS];
#pragma unroll
    for (int i = 0; i < SUMS; i++) sums[i] = __uint_as_float(registers[threadIdx.x * SUMS + i]);
    wgmma_fence();
    wgmma<T, ACROSS_A, ACROSS_B>(sums, describe(image + at.a, at.a_block, at.row_bytes),
                                 describe(image + at.b, at.b_block, at.row_bytes), accumulate);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < SUMS; i++) registers[threadIdx.x * SUMS + i] = __float_as_uint(sums[i]);
#endif
}
template <class T, int SUMS>
__device__ __forceinline__ void one_product(unsigned* registers, uint32_t image, const Places& at, int across, bool accumulate) {
    if (across == 0) multiply<T, false, false, SUMS>(registers, image, at, accumulate);
    if (across == 1) multiply<T, true, false, SUMS>(registers, image, at, accumulate);
    if (across == 2) multiply<T, false, true, SUMS>(registers, image, at, accumulate);
    if (across == 3) multiply<T, true, true, SUMS>(registers, image, at, accumulate);
}
template <class T>
__device__ __forceinline__ void products(unsigned char* shared, unsigned* registers, const unsigned* image, int bytes, int n,
                                         const Places& at, int across, bool accumulate) {
    copy_image(shared, image, bytes);
    const uint32_t start = shared_address(shared);
    if (n == 8) one_product<T, 4>(registers, start, at, across, accumulate);
    if (n == 16) one_product<T, 8>(registers, start, at, across, accumulate);
    if (n == 32) one_product<T, 16>(registers, start, at, across, accumulate);
    if (n == 64) one_product<T, 32>(registers, start, at, across, accumulate);
    if (n == 80) one_product<T, 40>(registers, start, at, across, accumulate);
    if (n == 96) one_product<T, 48>(registers, start, at, across, accumulate);
    if (n == 128) one_product<T, 64>(registers, start, at, across, accumulate);
    if (n == 256) one_product<T, 128>(registers, start, at, across, accumulate);
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_bf16(unsigned* registers, const unsigned* image, int bytes, int n, int a, int a_block, int b, int b_block,
               int row_bytes, int across, int accumulate) {
    DYNAMIC_SHARED(shared);
    products<bf16>(shared, registers, image, bytes, n, Places{a, a_block, b, b_block, row_bytes}, across, accumulate != 0);
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_f16(unsigned* registers, const unsigned* image, int bytes, int n, int a, int a_block, int b, int b_block,
              int row_bytes, int across, int accumulate) {
    DYNAMIC_SHARED(shared);
    products<f16>(shared, registers, image, bytes, n, Places{a, a_block, b, b_block, row_bytes}, across, accumulate != 0);
}

// The same with A in registers: a[t][i] = register i of thread t.
template <class T, bool ACROSS_B, int SUMS>
__device__ __forceinline__ void multiply_rs(unsigned* registers, const unsigned* a, uint64_t b, bool accumulate) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    float sums[SUMS];
    uint32_t rows[4];
#pragma unroll
    for (int i = 0; i < SUMS; i++) sums[i] = __uint_as_float(registers[threadIdx.x * SUMS + i]);
#pragma unroll
    for (int i = 0; i < 4; i++) rows[i] = a[threadIdx.x * 4 + i];
    wgmma_fence();
    wgmma_rs<T, ACROSS_B>(sums, rows, b, accumulate);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < SUMS; i++) registers[threadIdx.x * SUMS + i] = __float_as_uint(sums[i]);
#endif
}
template <class T, int SUMS>
__device__ __forceinline__ void rs_product(unsigned* registers, const unsigned* a, uint64_t b, int across, bool accumulate) {
    if (across == 0) multiply_rs<T, false, SUMS>(registers, a, b, accumulate);
    if (across == 1) multiply_rs<T, true, SUMS>(registers, a, b, accumulate);
}
template <class T>
__device__ __forceinline__ void rs_products(unsigned char* shared, unsigned* registers, const unsigned* a, const unsigned* image,
                                            int bytes, int n, int b_block, int row_bytes, int across, bool accumulate) {
    copy_image(shared, image, bytes);
    const uint64_t b = describe(shared_address(shared), b_block, row_bytes);
    if (n == 8) rs_product<T, 4>(registers, a, b, across, accumulate);
    if (n == 16) rs_product<T, 8>(registers, a, b, across, accumulate);
    if (n == 32) rs_product<T, 16>(registers, a, b, across, accumulate);
    if (n == 64) rs_product<T, 32>(registers, a, b, across, accumulate);
    if (n == 80) rs_product<T, 40>(registers, a, b, across, accumulate);
    if (n == 96) rs_product<T, 48>(registers, a, b, across, accumulate);
    if (n == 128) rs_product<T, 64>(registers, a, b, across, accumulate);
    if (n == 256) rs_product<T, 128>(registers, a, b, across, accumulate);
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_rs_bf16(unsigned* registers, const unsigned* a, const unsigned* image, int bytes, int n, int b_block, int row_bytes,
                  int across, int accumulate) {
    DYNAMIC_SHARED(shared);
    rs_products<bf16>(shared, registers, a, image, bytes, n, b_block, row_bytes, across, accumulate != 0);
}
extern "C" __global__ void __launch_bounds__(128)
    wgmma_rs_f16(unsigned* registers, const unsigned* a, const unsigned* image, int bytes, int n, int b_block, int row_bytes,
                 int across, int accumulate) {
    DYNAMIC_SHARED(shared);
    rs_products<f16>(shared, registers, a, image, bytes, n, b_block, row_bytes, across, accumulate != 0);
}

// Two MMAs of K = 16, consecutive in K, each with a group and sums of its own (N = 8): the first is
// read as soon as the wait for it returns.
extern "C" __global__ void __launch_bounds__(128) wgmma_groups(unsigned* registers, const unsigned* image, int bytes, int b) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    DYNAMIC_SHARED(shared);
    copy_image(shared, image, bytes);
    const uint32_t start = shared_address(shared);
    float first[4] = {}, second[4] = {};
    wgmma_fence();
    wgmma<bf16, false, false>(first, matrix_descriptor(start, 16), matrix_descriptor(start + b, 16), false);
    wgmma_commit();
    wgmma<bf16, false, false>(second, matrix_descriptor(start + 32, 16), matrix_descriptor(start + b + 32, 16), false);
    wgmma_commit();
    wgmma_wait<1>();
#pragma unroll
    for (int i = 0; i < 4; i++) registers[threadIdx.x * 4 + i] = __float_as_uint(first[i]);
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 4; i++) registers[(128 + threadIdx.x) * 4 + i] = __float_as_uint(second[i]);
#endif
}

// One warpgroup gives registers back; two take them and hold 192 numbers at once, more than a
// thread had before (168).
extern "C" __global__ void __launch_bounds__(384, 1) registers_moved(unsigned* out, const unsigned* in) {
#if defined(HAS_HOPPER_INSTRUCTIONS)
    constexpr int HELD = 192;
    const int t = threadIdx.x;
    if (t < 128) {
        const int before = opaque((int)in[t]);
        registers_decrease<40>();
        out[t] = (unsigned)opaque(before);
        return;
    }
    registers_increase<232>();
    int held[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) held[i] = opaque((int)in[t + i]);
    unsigned sum = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++) sum = 31 * sum + (unsigned)opaque(held[HELD - 1 - i]);
    out[t] = sum;
#endif
}
