// Stores a warp's sums: shared memory rearranges them from the layout of the arithmetic to whole
// rows, for the epilogue or for the sums of a split.
#pragma once
#include "common.cuh"

namespace matmul {

// Rows of a warp's sums in shared memory at a time on their way out: a slab.
constexpr int SLAB_ROWS = 16;

// Consecutive sums of a row, loaded and stored in 128-bit pieces.
template <int WIDTH>
struct Row {
    float v[WIDTH];

    static __device__ __forceinline__ Row load(const float* from) {
        return gather([&](int i) { return from + i; });
    }
    // `place` returns the place of each piece.
    template <class Place>
    static __device__ __forceinline__ Row gather(Place place) {
        Row row;
#pragma unroll
        for (int i = 0; i < WIDTH; i += 4) {
            const Pack<float> piece = load128(place(i));
#pragma unroll
            for (int e = 0; e < 4; e++) row.v[i + e] = piece.v[e];
        }
        return row;
    }
    __device__ __forceinline__ void store(float* to) const {
#pragma unroll
        for (int i = 0; i < WIDTH; i += 4) store128(to + i, Pack<float>{v[i], v[i + 1], v[i + 2], v[i + 3]});
    }
    __device__ __forceinline__ void add(const Row& other) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) v[i] += other.v[i];
    }
};

// Buffers for a split K: the sums of each split, (M, N), followed by each split's sums of A's rows,
// (M).
struct Partials {
    float* start;  // null: K is not split
    int M, N;

    __device__ __forceinline__ float* sums(int split) const { return start + (size_t)split * M * N; }
    __device__ __forceinline__ float* row_sums(int splits, int split) const {
        return start + (size_t)splits * M * N + (size_t)split * M;
    }
};

// A lane's pieces of a slab: in the same columns, and in rows ROW_STEP apart.
template <class Tile, class Sums, int WIDTH>
struct SlabPieces {
    static constexpr int ROW_PIECES = Tile::WN / WIDTH, ROW_STEP = WARP_SIZE / ROW_PIECES, COUNT = SLAB_ROWS / ROW_STEP;
    static_assert(WARP_SIZE % ROW_PIECES == 0 && SLAB_ROWS % ROW_STEP == 0, "lanes share a slab evenly");

    static __device__ __forceinline__ int first_row() { return threadIdx.x % WARP_SIZE / ROW_PIECES; }
    static __device__ __forceinline__ int column() { return threadIdx.x % WARP_SIZE % ROW_PIECES * WIDTH; }
    // Rows of the warp's sums from the lane's first piece to piece i of slab s: a constant.
    static __device__ __forceinline__ int rows_down(int s, int i) {
        return Sums::slab_row(s, i * ROW_STEP) - Sums::slab_row(0, 0);
    }
    static __device__ __forceinline__ Row<WIDTH> load(const float* slab, int i) {
        slab += i * ROW_STEP * Sums::SLAB_ROW;
        return Row<WIDTH>::gather([&](int e) { return slab + Sums::slab_place(first_row(), column() + e); });
    }
};

// Rearranges a warp's sums from the layout of mma to whole rows, through shared memory, in slabs of
// rows. `take` gets each piece, its number, and the number of rows down to it; `begin` is called
// for it before the slab ahead of its own is written. Numbers repeat after two slabs.
template <class Pieces, int SLABS, class Sums, class Begin, class Take>
__device__ __forceinline__ void visit_slabs(const Sums& sums, float* slab, Begin begin, Take take) {
    const auto begin_slab = [&](int s) {
#pragma unroll
        for (int i = 0; i < Pieces::COUNT; i++) begin(s % 2 * Pieces::COUNT + i, Pieces::rows_down(s, i));
    };
    begin_slab(0);
#pragma unroll
    for (int s = 0; s < SLABS; s++) {
        if (s + 1 < SLABS) begin_slab(s + 1);
        sums.stage_slab(slab, s);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < Pieces::COUNT; i++) take(s % 2 * Pieces::COUNT + i, Pieces::rows_down(s, i), Pieces::load(slab, i));
        __syncwarp();
    }
}

// Passes a warp's sums to the sink, or to the sums of this split. The pieces of the extra operand
// are loaded a slab ahead.
template <class Tile, class Sums, class Sink>
__device__ __forceinline__ void store_sums(const Sums& sums, float* slab, int first_m, int first_n, const Partials& partials,
                                           const Sink& sink) {
    constexpr int SLABS = Tile::WM / SLAB_ROWS;
    using Pieces = SlabPieces<Tile, Sums, Sink::WIDTH>;
    using Piece = Pack<typename Sink::Element>;
    const int m = first_m + Sums::slab_row(0, Pieces::first_row()), n = first_n + Pieces::column();
    const int rows_left = n < partials.N ? partials.M - m : 0;
    const size_t start = (size_t)m * partials.N + n;
    const auto index = [&](int rows_down) { return (long long)rows_down * partials.N; };
    if (partials.start != nullptr) {
        float* const to = partials.sums(blockIdx.y) + start;
        visit_slabs<Pieces, SLABS>(sums, slab, [](int, int) {}, [&](int, int rows_down, const Row<Sink::WIDTH>& values) {
            if (rows_down < rows_left) values.store(to + index(rows_down));
        });
        return;
    }
    sink.visit([&](const auto& of_matrix) {
        const auto epilogue = of_matrix.from(start);
        const auto* const from = sink.extra + start;
        // Pieces outside of the matrix are not loaded, and not stored.
        Piece extra[2 * Pieces::COUNT], bias = {};
        if constexpr (epilogue.BIAS) {
            if (rows_left > 0) bias = load128(sink.bias + n);
        }
        const auto begin = [&](int i, int rows_down) {
            if constexpr (epilogue.EXTRA) {
                if (rows_down < rows_left) extra[i] = load128(from + index(rows_down));
            }
        };
        visit_slabs<Pieces, SLABS>(sums, slab, begin, [&](int i, int rows_down, const Row<Sink::WIDTH>& values) {
            Piece kept = {};
            const Piece finished = epilogue.finish(values.v, bias, extra[i], kept);
            if (rows_down < rows_left) epilogue.store(index(rows_down), finished, kept);
        });
    });
}
}  // namespace matmul
