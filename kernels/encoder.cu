// Token and position embeddings, and their gradients.
//
// Forward: one thread, one pack. Bytes per 16-bit element: 4, and the part of wte that misses the
// cache.
//
// Backward, wte: rows of the batch come grouped by token, the largest group first. A slice of 32
// packs of a group is summed in registers, in a fixed order, with one read-modify-write of the
// embedding's gradient at the end. Texts have a few groups of thousands of rows and thousands of
// groups of one: a block of 16 warps takes a large one and merges its sums in shared memory; a warp
// takes a small one. Backward, wpe: a thread owns a pack of a position and walks down the batch.
// Bytes per element: 2 read by each, and 4 per embedding touched.
//
// Gradients are rounded to nearest. Each row of an embedding is rounded once per micro-step, after
// all its terms are summed in f32, so stochastic rounding would gain little, and the same batch
// would no longer give the same bits.
//
// Expected: 90 % of bandwidth; 4 packs per thread are in flight in the backward pass, 2 in the
// forward.
#include "common.cuh"

constexpr int ENCODER_WARPS = 16;
// Largest number of rows in a group that one warp handles.
constexpr int ENCODER_SMALL = 64;

// encoded (N, C) = wte[tokens] + wpe[t]
extern "C" __global__ void __launch_bounds__(256)
    encoder_forward(floatX* encoded, const int* tokens, const floatX* wte, const floatX* wpe, int N, int T, int C) {
    start_in_order();
    unsigned packs = C / PackX::size;
    unsigned long long i = blockIdx.x * 256ull + threadIdx.x;
    if (i >= (unsigned long long)N * packs) return;
    // The row fits in 32 bits, and 64-bit division is slow.
    unsigned row = (unsigned)i / packs, c = ((unsigned)i - row * packs) * PackX::size;
    PackX token = load128(wte + (long long)tokens[row] * C + c);
    PackX position = load128(wpe + (long long)(row % T) * C + c);
#pragma unroll
    for (int k = 0; k < PackX::size; k++)
        token.v[k] = from_f32<floatX>(to_f32(token.v[k]) + to_f32(position.v[k]));
    store128(encoded + (long long)row * C + c, token);
}

__device__ __forceinline__ void add_pack(float (&sums)[PackX::size], const PackX& pack) {
#pragma unroll
    for (int k = 0; k < PackX::size; k++) sums[k] += to_f32(pack.v[k]);
}

// The existing gradient is loaded before it is needed.
__device__ __forceinline__ void store_sum(floatX* gradient, PackX before, const float (&sums)[PackX::size]) {
#pragma unroll
    for (int k = 0; k < PackX::size; k++) before.v[k] = from_f32<floatX>(to_f32(before.v[k]) + sums[k]);
    store128(gradient, before);
}

// Adds up one pack, at `column`, of the rows begin, begin + stride, ... of a group, if the lane
// `has_pack`; four loads are in flight at a time. The indices of 32 rows are loaded together, one
// per lane.
__device__ __forceinline__ void sum_rows(float (&sums)[PackX::size], const floatX* column, bool has_pack, const int* rows,
                                         int begin, int end, int stride, int C) {
    constexpr int BATCH = 4;
    for (int i = begin; i < end; i += WARP_SIZE * stride) {
        int mine = i + (int)threadIdx.x % WARP_SIZE * stride;
        int row_of_lane = mine < end ? rows[mine] : 0;
        int count = ceil_div(end - i, stride);
        if (count > WARP_SIZE) count = WARP_SIZE;
        for (int j = 0; j < count; j += BATCH) {
            PackX packs[BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                long long row = __shfl_sync(FULL_MASK, row_of_lane, j + b);
                if (has_pack && j + b < count) packs[b] = load128(column + row * C);
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                if (has_pack && j + b < count) add_pack(sums, packs[b]);
        }
    }
}

// dwte[token] += the rows of dout in its group. Group g of `rows` is starts[g] .. starts[g + 1],
// largest first; at most `large` of them have more than ENCODER_SMALL rows. The first `large` x
// `slices` blocks take one slice of those each; in the others, every warp takes a slice of a group.
extern "C" __global__ void __launch_bounds__(512)
    encoder_backward_wte(floatX* dwte, const floatX* dout, const int* tokens, const int* rows, const int* starts, int groups,
                         int large, int C) {
    start_in_order();
    SHARED(float, merged, [ENCODER_WARPS][PackX::size][WARP_SIZE]);
    int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    unsigned slices = ceil_div(C / PackX::size, WARP_SIZE);
    bool by_block = blockIdx.x < large * slices;
    unsigned long long task = by_block ? blockIdx.x : (blockIdx.x - large * slices) * (unsigned long long)ENCODER_WARPS + warp;
    unsigned long long group = task / slices;
    int c = ((unsigned)(task % slices) * WARP_SIZE + lane) * PackX::size;
    int begin = group < groups ? starts[group] : 0, end = group < groups ? starts[group + 1] : 0;
    bool is_large = end - begin > ENCODER_SMALL;
    // If by_block, this is the same for the whole block.
    if (begin == end || is_large != by_block) return;

    floatX* gradient = dwte + (long long)tokens[rows[begin]] * C + c;
    PackX before;
    float sums[PackX::size] = {};
    if (c < C) before = load128(gradient);
    int first = by_block ? begin + warp : begin, stride = by_block ? ENCODER_WARPS : 1;
    sum_rows(sums, dout + c, c < C, rows, first, end, stride, C);
    if (by_block) {
#pragma unroll
        for (int k = 0; k < PackX::size; k++) merged[warp][k][lane] = sums[k];
        __syncthreads();
        if (warp != 0) return;
#pragma unroll
        for (int k = 0; k < PackX::size; k++) {
            sums[k] = 0.0f;
            for (int other = 0; other < ENCODER_WARPS; other++) sums[k] += merged[other][k][lane];
        }
    }
    if (c < C) store_sum(gradient, before, sums);
}

// dwpe[t] (T, C) += dout (B, T, C) summed over B
extern "C" __global__ void __launch_bounds__(256) encoder_backward_wpe(floatX* dwpe, const floatX* dout, int B, int T, int C) {
    start_in_order();
    long long i = (blockIdx.x * 256ll + threadIdx.x) * PackX::size;
    long long TC = (long long)T * C;
    if (i >= TC) return;
    PackX before = load128(dwpe + i);
    float sums[PackX::size] = {};
#pragma unroll 4
    for (int b = 0; b < B; b++) add_pack(sums, load128(dout + b * TC + i));
    store_sum(dwpe + i, before, sums);
}
