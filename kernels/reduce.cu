// Sums in an order that the shape alone determines, and filling.
//
// A sum has two stages. First, as many blocks as the device holds each add up a strided set of
// packs, four per thread in flight, into one f32; then one block adds those. No atomics: the same
// bits every time.
//
// Bytes per 16-bit element: 2 (read), fill 2 (write). Expected: 93 % of bandwidth at the number of
// gradients.
#include "common.cuh"

constexpr int REDUCE_THREADS = 512;

__device__ __forceinline__ float block_total(float value) {
    SHARED(float, partials, [WARP_SIZE][1]);
    float values[1] = {value};
    block_sum(values, partials);
    return values[0];
}

// Sums this block's share of src (n), its elements or, if SQUARED, their squares. The last thread
// adds the remainder beyond whole packs.
template <bool SQUARED, class T>
__device__ __forceinline__ float share_sum(const T* src, unsigned long long n) {
    constexpr int BATCH = 4;
    auto term = [](float v) { return SQUARED ? v * v : v; };
    unsigned long long packs = n / Pack<T>::size, stride = (unsigned long long)gridDim.x * REDUCE_THREADS;
    float sum = 0.0f;
    for (unsigned long long first = blockIdx.x * (unsigned long long)REDUCE_THREADS + threadIdx.x; first < packs;
         first += BATCH * stride) {
        Pack<T> batch[BATCH] = {};
#pragma unroll
        for (int b = 0; b < BATCH; b++)
            if (first + b * stride < packs) batch[b] = load128_streaming(src + (first + b * stride) * Pack<T>::size);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            float x[Pack<T>::size];
            widen(x, batch[b]);
#pragma unroll
            for (int k = 0; k < Pack<T>::size; k++) sum += term(x[k]);
        }
    }
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x == REDUCE_THREADS - 1)
#pragma unroll 1
        for (unsigned long long i = packs * Pack<T>::size; i < n; i++) sum += term(to_f32(src[i]));
    return block_total(sum);
}

// partials (gridDim.x)
extern "C" __global__ void __launch_bounds__(512)
    norm_squared_partials(float* partials, const floatX* src, unsigned long long n) {
    start_in_order();
    float sum = share_sum<true>(src, n);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(512) sum_partials(float* partials, const float* src, unsigned long long n) {
    start_in_order();
    float sum = share_sum<false>(src, n);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// out (1) = the sum of partials (n); one block.
extern "C" __global__ void __launch_bounds__(512) sum_of_partials(float* out, const float* partials, int n) {
    start_in_order();
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += REDUCE_THREADS) sum += partials[i];
    sum = block_total(sum);
    if (threadIdx.x == 0) *out = sum;
}

// A thread fills an aligned 16 bytes, or as many of them as belong to dst (n).
template <class T>
__device__ __forceinline__ void fill_elements(T* dst, T value, unsigned long long n) {
    constexpr int size = Pack<T>::size;
    int before = (int)((unsigned long long)dst % 16 / sizeof(T));
    long long first = (blockIdx.x * 256ll + threadIdx.x) * size - before, end = (long long)n;
    if (first >= 0 && first + size <= end) {
        Pack<T> pack;
#pragma unroll
        for (int k = 0; k < size; k++) pack.v[k] = value;
        store128(dst + first, pack);
        return;
    }
    for (int k = 0; k < size; k++)
        if (first + k >= 0 && first + k < end) dst[first + k] = value;
}

// dst (n) = value; dst may start at any multiple of its element size.
extern "C" __global__ void __launch_bounds__(256) fill_x(floatX* dst, float value, unsigned long long n) {
    start_in_order();
    fill_elements(dst, from_f32<floatX>(value), n);
}

extern "C" __global__ void __launch_bounds__(256) fill_f32(float* dst, float value, unsigned long long n) {
    start_in_order();
    fill_elements(dst, value, n);
}
