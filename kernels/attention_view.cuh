// Documents that are packed into a sequence, whose queries see no keys of earlier ones, and dropout
// of the attention weights.
#pragma once
#include "attention.cuh"
#include "dropout.cuh"

namespace attention {

// The documents and the dropout of a call, as kernels get them. Kernels with dropout are compiled
// separately, as it takes registers that others need: so are all templates with DROPOUT.
struct View {
    const int* positions;  // (B, T): places of tokens in their documents; null: one per sequence
    const Dropout& dropout;
};

// Scores of keys of earlier documents. Other than -inf, this may be the largest score of a row so
// far: its weights are 1 then, and vanish when a key of the row's own document comes. As it is a
// power of two, multiplying it by a scale does not round.
constexpr float HIDDEN = -0x1p100f;

// --- documents

// The documents of a sequence. Their places never decrease from token to token.
struct Documents {
    const int* positions;  // (T), or null
    int T;

    __device__ __forceinline__ Documents(const int* positions, int head, int T, int NH)
        : positions(positions == nullptr ? nullptr : positions + (size_t)(head / NH) * T), T(T) {}

    // The first key that a query sees. Past the end, that of the last query.
    __device__ __forceinline__ int first_key(int query) const {
        if (positions == nullptr) return 0;
        query = min(query, T - 1);
        return max(query - positions[query], 0);
    }
    // The end of the tiles of ROWS queries that see the key or earlier ones; they are adjacent,
    // from `start` on. All lanes of a warp must take part.
    template <int ROWS>
    __device__ __forceinline__ int end_of_tiles(int key, int start) const {
        const int end = ceil_div(T, ROWS);
        if (positions == nullptr) return end;
        for (int first = start;; first += WARP_SIZE) {
            const int tile = first + (int)threadIdx.x % WARP_SIZE;
            const int count = __popc(__ballot_sync(FULL_MASK, tile < end && first_key(tile * ROWS) <= key));
            if (count < WARP_SIZE) return first + count;
        }
    }
};

// The work of a block with ROWS rows, found again where it is needed: kept in registers through a
// loop, it would displace other values.
template <int ROWS>
__device__ __forceinline__ Work find_work(int T) {
    return work_of_block(ceil_div(opaque(T), ROWS));
}

// Hides the keys of earlier documents. Queries are the rows or the columns; `query` and `key` are
// the first ones.
template <bool ROWS_ARE_QUERIES, int M, int N>
__device__ __forceinline__ void hide_earlier_documents(Sums<M, N>& scores, const Documents& documents, int query, int key) {
    int lane = threadIdx.x % WARP_SIZE;
    if (documents.first_key(query + (ROWS_ARE_QUERIES ? 16 * M : N) - 1) <= key) return;
    if constexpr (ROWS_ARE_QUERIES) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int first = documents.first_key(query + 16 * m + 8 * half + lane / 4) - key;
#pragma unroll
                for (int n = 0; n < N / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (8 * n + lane % 4 * 2 + i < first) scores.v[m][n][2 * half + i] = HIDDEN;
            }
    } else {
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int first = documents.first_key(query + 8 * n + lane % 4 * 2 + i) - key;
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        if (16 * m + 8 * half + lane / 4 < first) scores.v[m][n][2 * half + i] = HIDDEN;
            }
    }
}

// --- dropout of the weights

// The masks of a head: Mask::of_weights of src/ops/dropout.rs.
struct WeightMask {
    const Dropout& dropout;
    DropoutState state;
    unsigned row;  // of the sequence's first token, in the step
    unsigned head;

    __device__ __forceinline__ WeightMask(const Dropout& dropout, int head, int T, int NH)
        : dropout(dropout), state(*dropout.state), row(state.first_row + head / NH * T), head(head % NH) {}

    // The factors of the weights (q, k), (q, k + 8), (q + 8, k) and (q + 8, k + 8). Bit 3 of both
    // is 0.
    __device__ __forceinline__ void draw(float (&factors)[4], int q, int k) const {
        uint4 bits = philox(make_uint4(k, row + q, dropout.stream, head), state.key[0], state.key[1]);
        factors[0] = bits.x < dropout.threshold ? 0.0f : dropout.scale;
        factors[1] = bits.y < dropout.threshold ? 0.0f : dropout.scale;
        factors[2] = bits.z < dropout.threshold ? 0.0f : dropout.scale;
        factors[3] = bits.w < dropout.threshold ? 0.0f : dropout.scale;
    }
    __device__ __forceinline__ float draw_one(int q, int k) const {
        float factors[4];
        draw(factors, q & ~8, k & ~8);
        float of_key[2] = {k & 8 ? factors[1] : factors[0], k & 8 ? factors[3] : factors[2]};
        return q & 8 ? of_key[1] : of_key[0];
    }
};

// Calls use(m, n, i, factor) for all weights v[m][n][i] of 16 M rows and N columns, whose first
// ones are `query` and `key`, multiples of 16.
template <bool ROWS_ARE_QUERIES, int M, int N, class Use>
__device__ __forceinline__ void for_each_factor(const WeightMask& mask, int query, int key, Use use) {
    int row = (int)threadIdx.x % WARP_SIZE / 4, column = (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n += 2)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int in_rows = 16 * m + row, in_columns = 8 * n + column + i;
                float factors[4];
                mask.draw(factors, query + (ROWS_ARE_QUERIES ? in_rows : in_columns),
                          key + (ROWS_ARE_QUERIES ? in_columns : in_rows));
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    use(m, n, 2 * half + i, factors[ROWS_ARE_QUERIES ? 2 * half : half]);
                    use(m, n + 1, 2 * half + i, factors[ROWS_ARE_QUERIES ? 2 * half + 1 : 2 + half]);
                }
            }
}

// weights *= factors, forward.
template <int M, int N>
__device__ __forceinline__ void drop(Sums<M, N>& weights, const WeightMask& mask, int query, int key) {
    for_each_factor<true, M, N>(mask, query, key, [&](int m, int n, int i, float factor) { weights.v[m][n][i] *= factor; });
}

// From a scaled score and dP to P and dS, backward; P becomes what values are multiplied by.
__device__ __forceinline__ void differentiate(float& p, float& ds, float scale_log2, float lse2, float delta) {
    p = exp2_approx(fmaf(p, scale_log2, -lse2));
    ds = p * (ds - delta);
}
__device__ __forceinline__ void differentiate(float& p, float& ds, float scale_log2, float lse2, float delta, float factor) {
    p = exp2_approx(fmaf(p, scale_log2, -lse2));
    ds = p * fmaf(factor, ds, -delta);
    p *= factor;
}

// The same for a tile whose columns are queries. `stats` has lse2 and delta of each in shared
// memory; `query` and `key` are the first ones.
template <int M, int N>
__device__ __forceinline__ void differentiate_columns(Sums<M, N>& p, Sums<M, N>& ds, float scale_log2,
                                                      const unsigned char* stats) {
    const int column = (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        Pack<float> two = unpack_bits<float>(load_u128(stats + (8 * n + column) * 8));
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                differentiate(p.v[m][n][i], ds.v[m][n][i], scale_log2, two.v[i % 2 * 2], two.v[i % 2 * 2 + 1]);
    }
}
template <int M, int N>
__device__ __forceinline__ void differentiate_columns(Sums<M, N>& p, Sums<M, N>& ds, float scale_log2,
                                                      const unsigned char* stats, const WeightMask& mask, int query, int key) {
    const int column = (int)threadIdx.x % 4 * 2;
    for_each_factor<false, M, N>(mask, query, key, [&](int m, int n, int i, float factor) {
        const float2 of_query = *reinterpret_cast<const float2*>(stats + (8 * n + column + i % 2) * 8);
        differentiate(p.v[m][n][i], ds.v[m][n][i], scale_log2, of_query.x, of_query.y, factor);
    });
}

}  // namespace attention
