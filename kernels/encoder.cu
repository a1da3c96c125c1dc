// Token and position embeddings, and their gradients.
//
// Forward: one thread, one pack. Bytes per 16-bit element: 4, and the part of wte that misses the
// cache.
//
// Backward, wte: rows of the batch come sorted by token, the most frequent one first. A slice of 32
// packs of a token's rows is summed in registers, in a fixed order, with one read-modify-write of
// the embedding's gradient at the end. A block takes the tokens whose first row lies in its 64 of
// the sorted rows: where tokens have up to 64 rows, each has one of the 16 warps, and the indices
// of all their rows are read together. Texts also have a few tokens of thousands of rows. A token
// of more than 64 is the only one to begin in a block, whose warps share it and merge their sums in
// shared memory. Backward, wpe: a thread owns a pack of a position and walks down the batch; where
// documents are packed, wpe takes the kernel of wte, with positions for tokens. Bytes per element:
// 2 read by each, and 4 per embedding touched.
//
// Dropout has kernels of its own: its masks take registers that the others need for loads.
//
// Gradients are rounded to nearest. Each row of an embedding is rounded once per micro-step, after
// all its terms are summed in f32, so stochastic rounding would gain little, and the same batch
// would no longer give the same bits.
//
// Expected: 90 % of bandwidth; 4 or 8 packs per thread are in flight in the backward pass, 2 in the
// forward.
#include "dropout.cuh"

constexpr int ENCODER_WARPS = 16;
// Sorted rows per block, and the most rows of a token that one warp takes: so that a token of more
// fills the block that it begins in.
constexpr int ENCODER_ROWS = 2 * WARP_SIZE;

__device__ __forceinline__ void add_pack(float (&sums)[PackX::size], const PackX& pack) {
    float x[PackX::size];
    widen(x, pack);
#pragma unroll
    for (int k = 0; k < PackX::size; k++) sums[k] += x[k];
}

// The same, of what is kept of the pack at `column` of batch row `row`.
template <class Mask>
__device__ __forceinline__ void add_kept(float (&sums)[PackX::size], const PackX& pack, const Mask& mask, unsigned row,
                                         unsigned column) {
    float x[PackX::size];
    widen(x, pack);
    mask.drop(x, row, column);
#pragma unroll
    for (int k = 0; k < PackX::size; k++) sums[k] += x[k];
}

template <class Mask>
__device__ __forceinline__ void encode(floatX* encoded, const int* tokens, const int* positions, const floatX* wte,
                                       const floatX* wpe, const Mask& mask, int N, int T, int C) {
    unsigned packs = C / PackX::size;
    unsigned long long i = blockIdx.x * 256ull + threadIdx.x;
    if (i >= (unsigned long long)N * packs) return;
    // The row fits in 32 bits, and 64-bit division is slow.
    unsigned row = (unsigned)i / packs, c = ((unsigned)i - row * packs) * PackX::size;
    PackX token = load128(wte + (long long)tokens[row] * C + c);
    PackX position = load128(wpe + (long long)(positions ? positions[row] : row % T) * C + c);
    float sum[PackX::size];
    widen(sum, token);
    add_pack(sum, position);
    mask.drop(sum, row, c);
    store128(encoded + (long long)row * C + c, round_pack<floatX>(sum));
}

// encoded (N, C) = wte[tokens] + wpe[positions]; without positions, row t of each T has position t.
extern "C" __global__ void __launch_bounds__(256)
    encoder_forward(floatX* encoded, const int* tokens, const int* positions, const floatX* wte, const floatX* wpe, int N, int T,
                    int C) {
    start_in_order();
    encode(encoded, tokens, positions, wte, wpe, NoMask(), N, T, C);
}

// The same with dropout of the sum.
extern "C" __global__ void __launch_bounds__(256)
    encoder_dropout_forward(floatX* encoded, const int* tokens, const int* positions, const floatX* wte, const floatX* wpe,
                            Dropout dropout, int N, int T, int C) {
    start_in_order();
    encode(encoded, tokens, positions, wte, wpe, DropoutMask(dropout), N, T, C);
}

// The existing gradient is loaded before it is needed.
__device__ __forceinline__ void store_sum(floatX* gradient, const PackX& before, float (&sums)[PackX::size]) {
    add_pack(sums, before);
    store128(gradient, round_pack<floatX>(sums));
}

// Adds up one pack, at column c, of `count` rows, whose indices are in the lanes; four loads are in
// flight at a time, or two beside the masks of dropout.
template <class Mask>
__device__ __forceinline__ void sum_rows(float (&sums)[PackX::size], const floatX* dout, const Mask& mask, int row_of_lane,
                                         int count, int c, int C) {
    const bool has_pack = c < C;
    constexpr int BATCH = Mask::DROPS ? 2 : 4;
    for (int j = 0; j < count; j += BATCH) {
        PackX packs[BATCH];
        int rows[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            rows[b] = __shfl_sync(FULL_MASK, row_of_lane, j + b);
            if (has_pack && j + b < count) packs[b] = load128(dout + (long long)rows[b] * C + c);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++)
            if (has_pack && j + b < count) add_kept(sums, packs[b], mask, rows[b], c);
    }
}

// Block x handles slice x % slices of the tokens that begin in a run of ENCODER_ROWS sorted rows.
template <class Mask>
__device__ __forceinline__ void scatter(floatX* dwte, const floatX* dout, const int* tokens, const int* rows, const Mask& mask,
                                        int N, int C) {
    // The run, one row before it, as many after it as a warp takes, and a look at the next; tokens
    // of no row are negative.
    constexpr int NEAR = 1 + 2 * ENCODER_ROWS + WARP_SIZE;
    SHARED(int, near_rows, [NEAR]);
    SHARED(int, near_tokens, [NEAR]);
    SHARED(float, merged, [ENCODER_WARPS][PackX::size][WARP_SIZE]);
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const unsigned slices = ceil_div(C / PackX::size, WARP_SIZE), run = blockIdx.x / slices;
    const int c = ((blockIdx.x - run * slices) * WARP_SIZE + lane) * PackX::size, start = run * ENCODER_ROWS;
    const auto row_at = [&](int i) { return i >= 0 && i < N ? rows[i] : -1; };
    if (threadIdx.x < NEAR) {
        const int row = row_at(start - 1 + (int)threadIdx.x);
        near_rows[threadIdx.x] = row;
        near_tokens[threadIdx.x] = row < 0 ? -1 : tokens[row];
    }
    __syncthreads();
    const auto begins = [&](int i) {
        const int own = near_tokens[1 + i + lane];
        return __ballot_sync(FULL_MASK, own >= 0 && own != near_tokens[i + lane]);
    };
    const unsigned begins_low = begins(0), begins_high = begins(WARP_SIZE);
    if ((begins_low | begins_high) == 0) return;
    const bool has_pack = c < C;

    // The only one that begins here has more rows than a warp takes.
    const int only = begins_low ? __ffs(begins_low) - 1 : WARP_SIZE + __ffs(begins_high) - 1;
    if (near_tokens[1 + only + ENCODER_ROWS] == near_tokens[1 + only]) {
        const int token = near_tokens[1 + only];
        floatX* gradient = dwte + (long long)token * C + c;
        PackX before;
        if (has_pack && warp == 0) before = load128(gradient);
        float sums[PackX::size] = {};
        for (int i = start + only + warp * WARP_SIZE, count = WARP_SIZE; count == WARP_SIZE; i += ENCODER_WARPS * WARP_SIZE) {
            const int row = row_at(i + lane);
            count = __popc(__ballot_sync(FULL_MASK, row >= 0 && tokens[row] == token));
            sum_rows(sums, dout, mask, row, count, c, C);
        }
#pragma unroll
        for (int k = 0; k < PackX::size; k++) merged[warp][k][lane] = sums[k];
        __syncthreads();
        if (warp != 0) return;
#pragma unroll
        for (int k = 0; k < PackX::size; k++) {
            sums[k] = 0.0f;
            for (int other = 0; other < ENCODER_WARPS; other++) sums[k] += merged[other][k][lane];
        }
        if (has_pack) store_sum(gradient, before, sums);
        return;
    }

    // Half of the warps take the tokens that begin in one half of the run: every 8th of them each.
    constexpr int TAKERS = ENCODER_WARPS / 2;
    const int half = warp / TAKERS;
    unsigned first_rows = half == 0 ? begins_low : begins_high;
    for (int turn = 0; first_rows != 0; turn++, first_rows &= first_rows - 1) {
        if (turn % TAKERS != warp % TAKERS) continue;
        const int first = half * WARP_SIZE + __ffs(first_rows), token = near_tokens[first];
        floatX* gradient = dwte + (long long)token * C + c;
        PackX before;
        if (has_pack) before = load128(gradient);
        float sums[PackX::size] = {};
        for (int i = first, count = WARP_SIZE; count == WARP_SIZE; i += WARP_SIZE) {
            count = __popc(__ballot_sync(FULL_MASK, near_tokens[i + lane] == token));
            sum_rows(sums, dout, mask, near_rows[i + lane], count, c, C);
        }
        if (has_pack) store_sum(gradient, before, sums);
    }
}

// dwte[token] += the rows of dout that hold it. `rows` (N) are sorted by token, the most frequent
// one first.
extern "C" __global__ void __launch_bounds__(512)
    encoder_backward_wte(floatX* dwte, const floatX* dout, const int* tokens, const int* rows, int N, int C) {
    start_in_order();
    scatter(dwte, dout, tokens, rows, NoMask(), N, C);
}

// The same with dropout of what the rows are the gradient of. One block per SM leaves it enough
// registers.
extern "C" __global__ void __launch_bounds__(512, 1)
    encoder_dropout_backward_wte(floatX* dwte, const floatX* dout, const int* tokens, const int* rows, Dropout dropout, int N,
                                 int C) {
    start_in_order();
    scatter(dwte, dout, tokens, rows, DropoutMask(dropout), N, C);
}

template <class Mask>
__device__ __forceinline__ void sum_batch(floatX* dwpe, const floatX* dout, const Mask& mask, int B, int T, int C) {
    constexpr int BATCH = Mask::DROPS ? 4 : 8;
    long long i = (blockIdx.x * 256ll + threadIdx.x) * PackX::size;
    long long TC = (long long)T * C;
    if (i >= TC) return;
    PackX before = load128(dwpe + i);
    float sums[PackX::size] = {};
    const floatX* next = dout + i;
    const unsigned t = (unsigned)i / C, c = (unsigned)i - t * C;
    int b = 0;
    for (; b + BATCH <= B; b += BATCH) {
        PackX packs[BATCH];
#pragma unroll
        for (int of = 0; of < BATCH; of++, next += TC) packs[of] = load128(next);
#pragma unroll
        for (int of = 0; of < BATCH; of++) add_kept(sums, packs[of], mask, (b + of) * T + t, c);
    }
#pragma unroll 1
    for (; b < B; b++, next += TC) add_kept(sums, load128(next), mask, b * T + t, c);
    store_sum(dwpe + i, before, sums);
}

// dwpe[t] (T, C) += dout (B, T, C) summed over B
extern "C" __global__ void __launch_bounds__(256, 2) encoder_backward_wpe(floatX* dwpe, const floatX* dout, int B, int T, int C) {
    start_in_order();
    sum_batch(dwpe, dout, NoMask(), B, T, C);
}

// The same with dropout of what dout is the gradient of.
extern "C" __global__ void __launch_bounds__(256, 2)
    encoder_dropout_backward_wpe(floatX* dwpe, const floatX* dout, Dropout dropout, int B, int T, int C) {
    start_in_order();
    sum_batch(dwpe, dout, DropoutMask(dropout), B, T, C);
}
