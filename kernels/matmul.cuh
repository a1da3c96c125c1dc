// Shared parts of all matmul kernels.
//
//     D (M x N) = A (M x K) * B (K x N), summed in f32; a sink applies the epilogue and stores
//
// Training needs three layouts, which differ only in the contiguous index: the summation index, or
// the row of A and the column of B. One implementation covers them:
//   forward  out (N, OC)     = inp (N, C) * weight (OC, C)^T     A and B contiguous in K
//   dgrad    dinp (N, C)     = dout (N, OC) * weight (OC, C)     A contiguous in K, B in N
//   wgrad    dweight (OC, C) = dout (N, OC)^T * inp (N, C)       A contiguous in M, B in N
//
// A block computes a tile of BM x BN. It iterates over K in stages of 64 bytes (32 numbers of 16
// bits, 16 of f32). cp.async copies each stage to shared memory in the layout of global memory, two
// stages ahead of the arithmetic, with one barrier per stage. The 16-byte chunks of a row are
// permuted (`Operand::offset`) so that neither copies nor fragment loads have bank conflicts.
// ldmatrix.trans transposes fragments that run across memory, so no layout needs a transpose.
//
// Why a warp has 64 x 64 of the tile: shared memory delivers 128 bytes per clock, and with mma.sync
// fragments of 64 x 32 would need all of that on Hopper; 64 x 64 needs two thirds. It costs 128
// registers of sums; with fragments and addresses a thread needs up to 255, so an SM holds 8 warps:
// two blocks of 128 x 128 (one stores while the other multiplies), or one of 128 x 256, which reads
// a quarter less from L2. Three stages of 16 KiB fit in the 48 KiB that every GPU grants; the two
// in flight last about 1,500 clocks, twice the memory latency.
//
// With fewer tiles than SMs, K is split over blockIdx.y: each split writes its sums as f32, and a
// second kernel (`reduce`) adds them in order and finishes them. No atomics: the same result every
// time.
#pragma once
#include "matmul_slabs.cuh"

namespace matmul {

enum class Contiguous { InK, InMN };

constexpr int STAGES = 3;
constexpr int STAGE_CHUNKS = 4;  // along K

// One operand: the source of a tile of MN of its rows (columns, for B), and the tile's layout in
// shared memory.
template <class T, Contiguous ORDER, int MN, int THREADS>
struct Operand {
    static constexpr Contiguous order = ORDER;
    static constexpr int CHUNK = 16 / sizeof(T);
    static constexpr int BK = STAGE_CHUNKS * CHUNK;
    static constexpr int STAGE_BYTES = MN * BK * sizeof(T);
    // As in memory: rows of MN, or rows of K.
    static constexpr int ROWS = ORDER == Contiguous::InK ? MN : BK;
    static constexpr int ROW_CHUNKS = (ORDER == Contiguous::InK ? BK : MN) / CHUNK;
    // Each thread copies one column of chunks.
    static constexpr int ROW_STEP = THREADS / ROW_CHUNKS;
    static_assert(THREADS % ROW_CHUNKS == 0 && ROWS % ROW_STEP == 0, "threads share the copies evenly");

    // The thread's first chunk in the next stage, and the rows and elements of K left from there.
    const T* source;
    const int stride;
    int mn_left, k_left;

    static __device__ __forceinline__ int thread_row() { return threadIdx.x / ROW_CHUNKS; }
    static __device__ __forceinline__ int thread_chunk() { return threadIdx.x % ROW_CHUNKS; }

    // The tile from row `first` and `first_k` on of a matrix with `mn` rows, which are `stride`
    // apart in memory.
    __device__ __forceinline__ Operand(const T* matrix, int stride, int first, int mn, int first_k, int K) : stride(stride) {
        const int mn_start = first + (ORDER == Contiguous::InK ? thread_row() : thread_chunk() * CHUNK);
        const int k_start = first_k + (ORDER == Contiguous::InK ? thread_chunk() * CHUNK : thread_row());
        source = matrix + (ORDER == Contiguous::InK ? (size_t)mn_start * stride + k_start : (size_t)k_start * stride + mn_start);
        mn_left = mn - mn_start;
        k_left = K - k_start;
    }

    // Offset in bytes. Eight lanes that read the same chunk of eight adjacent rows, or two chunks
    // of four rows (32-bit fragments across memory), access eight different 16-byte columns of the
    // banks.
    static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
        const int turn = ROW_CHUNKS == 4 ? row / 2 % 4 : sizeof(T) == 4 ? row % 4 * 2 : row % 8;
        return (row * ROW_CHUNKS + (chunk ^ turn)) * 16;
    }

    // Starts to copy the next stage; elements past the end of the operand become zeros.
    __device__ __forceinline__ void copy_stage(uint32_t stage) {
#pragma unroll
        for (int i = 0; i < ROWS / ROW_STEP; i++) {
            const bool inside = ORDER == Contiguous::InK ? i * ROW_STEP < mn_left && k_left > 0 : i * ROW_STEP < k_left && mn_left > 0;
            const uint32_t to = stage + offset(thread_row() + i * ROW_STEP, thread_chunk());
            cp_async16(to, source + (size_t)(i * ROW_STEP) * stride, inside ? 16 : 0);
        }
        source += ORDER == Contiguous::InK ? BK : (size_t)BK * stride;
        k_left -= BK;
    }

    // Loads the fragment of 16 rows from mn on and of the step's 2 chunks of K, in the layout of
    // mma. For A: r[0] has rows 0-7 of the first chunk, r[1] rows 8-15 of it, r[2] and r[3] the
    // same of the second. For B the registers of one mma, columns 0-7 of both chunks, come first:
    // they must be adjacent, or the compiler moves each of them there.
    template <bool FOR_B>
    static __device__ __forceinline__ void load_fragment(uint32_t (&r)[4], const unsigned char* stage, int mn, int step) {
        const auto row_half = [](int i) { return FOR_B ? i / 2 : i % 2; };
        const auto k_half = [](int i) { return FOR_B ? i % 2 : i / 2; };
        const int lane = threadIdx.x % WARP_SIZE, matrix = lane / 8;
        if constexpr (ORDER == Contiguous::InK) {
            const int row = mn + row_half(matrix) * 8 + lane % 8;
            ldmatrix_x4(r, shared_address(stage) + offset(row, step * 2 + k_half(matrix)));
        } else if constexpr (sizeof(T) == 2) {
            const int row = step * 16 + k_half(matrix) * 8 + lane % 8;
            ldmatrix_x4_trans(r, shared_address(stage) + offset(row, mn / 8 + row_half(matrix)));
        } else {
            // ldmatrix cannot transpose 32-bit elements.
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = mn + row_half(i) * 8 + lane / 4;
                const unsigned char* chunk = stage + offset(step * 8 + k_half(i) * 4 + lane % 4, column / 4);
                r[i] = __float_as_uint(reinterpret_cast<const float*>(chunk)[column % 4]);
            }
        }
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < 4; i++) r[i] = to_tf32(__uint_as_float(r[i]));
        }
    }

    // Loads four elements of K, from chunk `chunk` on, of each of eight rows; row i is mn +
    // position(i) with `lanes` adjacent lanes. For f32 without tensor cores.
    static __device__ __forceinline__ void load_columns(float (&x)[8][4], const unsigned char* stage, int mn, int lane,
                                                        int lanes, int chunk) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            // In K: chunk of row i. Across: rows 4 (i / 4) to + 3, at element i % 4 of K.
            const int row = ORDER == Contiguous::InK ? mn + position(i, lane, lanes) : chunk * 4 + i % 4;
            const int column = ORDER == Contiguous::InK ? chunk : (mn + position(i / 4 * 4, lane, lanes)) / 4;
            const Pack<float> pack = load128(reinterpret_cast<const float*>(stage + offset(row, column)));
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if constexpr (ORDER == Contiguous::InK) x[i][e] = pack.v[e];
                else x[i / 4 * 4 + e][i % 4] = pack.v[e];
            }
        }
    }
    // Maps a lane's row i to a row of the warp, such that a quarter of a warp reads its rows
    // without bank conflicts.
    static __device__ __forceinline__ int position(int i, int lane, int lanes) {
        return ORDER == Contiguous::InK ? i * lanes + lane : (i / 4 * lanes + lane) * 4 + i % 4;
    }
};

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (sizeof(T) == 4) mma_m16n8k8_tf32(d, a, b0, b1);
    else mma_m16n8k16<T>(d, a, b0, b1);
}
template <class T>
__device__ __forceinline__ uint32_t fragment_of_ones() {
    if constexpr (sizeof(T) == 4) return __float_as_uint(1.0f);
    else return pack2<T>(1.0f, 1.0f);
}

// A warp's WM x WN sums on tensor cores and, for dbias, the sums over K of A's rows: products with
// a column of ones.
template <class T, class A, class B, int WM, int WN>
struct TensorCoreSums {
    float sums[WM / 16][WN / 8][4] = {};
    float row_sums[WM / 16][4] = {};

    template <bool WITH_ROW_SUMS>
    __device__ __forceinline__ void add_stage(const unsigned char* a_stage, const unsigned char* b_stage, int m, int n) {
#pragma unroll
        for (int step = 0; step < STAGE_CHUNKS / 2; step++) {
            uint32_t a[WM / 16][4], b[WN / 16][4];
#pragma unroll
            for (int i = 0; i < WM / 16; i++) A::template load_fragment<false>(a[i], a_stage, m + i * 16, step);
#pragma unroll
            for (int j = 0; j < WN / 16; j++) B::template load_fragment<true>(b[j], b_stage, n + j * 16, step);
#pragma unroll
            for (int i = 0; i < WM / 16; i++) {
#pragma unroll
                for (int j = 0; j < WN / 8; j++) mma<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
            if constexpr (WITH_ROW_SUMS) {
#pragma unroll
                for (int i = 0; i < WM / 16; i++) mma<T>(row_sums[i], a[i], fragment_of_ones<T>(), fragment_of_ones<T>());
            }
        }
    }

    // The place of a sum in a slab, whose rows are SLAB_ROW apart. Half a warp stores pairs of four
    // rows: with 8 more floats in a row, they are in different banks. A quarter of a warp loads
    // every other 4 of 64 floats, so each pair of 4 is exchanged in the second 32.
    static constexpr int SLAB_ROW = WN + 8;
    static __device__ __forceinline__ int slab_place(int row, int column) {
        static_assert(WN == 64 || WN == 32, "so many columns for a quarter of a warp");
        const int second_half = WN == 64 ? column / 32 : row % 2;
        return row * SLAB_ROW + (column ^ second_half * 4);
    }
    // Writes rows 16 s to 16 s + 15.
    __device__ __forceinline__ void stage_slab(float* slab, int s) const {
        const int row = threadIdx.x % WARP_SIZE / 4, pair = threadIdx.x % 4 * 2;
        float* const halves[2] = {slab + slab_place(row, pair), slab + slab_place(row, pair + WN / 2)};
#pragma unroll
        for (int j = 0; j < WN / 8; j++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float* place = halves[j / (WN / 16)] + j % (WN / 16) * 8 + half * 8 * SLAB_ROW;
                *reinterpret_cast<float2*>(place) = make_float2(sums[s][j][half * 2], sums[s][j][half * 2 + 1]);
            }
        }
    }
    static __device__ __forceinline__ int slab_row(int s, int row) { return s * SLAB_ROWS + row; }

    // Calls visit(row, sum) for each row, once per warp.
    template <class Visit>
    __device__ __forceinline__ void visit_row_sums(Visit visit) const {
        const int lane = threadIdx.x % WARP_SIZE;
        if (lane % 4 != 0) return;
#pragma unroll
        for (int i = 0; i < WM / 16; i++) {
            visit(i * 16 + lane / 4, row_sums[i][0]);
            visit(i * 16 + 8 + lane / 4, row_sums[i][2]);
        }
    }
};

// The same in f32 without rounding the operands: 8 x 4 lanes of 8 x 8 sums, fused multiply-adds in
// the order of K.
template <class T, class A, class B, int WM, int WN>
struct ExactSums {
    static_assert(WM == 64 && WN == 32 && sizeof(T) == 4, "the lanes of a warp cover 64 x 32 of f32");
    static constexpr int LANES_M = 8, LANES_N = 4;
    float sums[8][8] = {};
    float row_sums[8] = {};

    static __device__ __forceinline__ int lane_m() { return threadIdx.x % LANES_M; }
    static __device__ __forceinline__ int lane_n() { return threadIdx.x % WARP_SIZE / LANES_M; }

    template <bool WITH_ROW_SUMS>
    __device__ __forceinline__ void add_stage(const unsigned char* a_stage, const unsigned char* b_stage, int m, int n) {
#pragma unroll 2
        for (int chunk = 0; chunk < STAGE_CHUNKS; chunk++) {
            float a[8][4], b[8][4];
            A::load_columns(a, a_stage, m, lane_m(), LANES_M, chunk);
            B::load_columns(b, b_stage, n, lane_n(), LANES_N, chunk);
#pragma unroll
            for (int k = 0; k < 4; k++) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
#pragma unroll
                    for (int j = 0; j < 8; j++) sums[i][j] = fmaf(a[i][k], b[j][k], sums[i][j]);
                }
            }
            if constexpr (WITH_ROW_SUMS) {
#pragma unroll
                for (int i = 0; i < 8; i++) row_sums[i] += (a[i][0] + a[i][1]) + (a[i][2] + a[i][3]);
            }
        }
    }

    // Eight lanes store to eight rows: with 4 more floats in a row, these are in different banks.
    static constexpr int SLAB_ROW = WN + 4;
    static __device__ __forceinline__ int slab_place(int row, int column) { return row * SLAB_ROW + column; }
    // Writes the rows that lanes hold as their rows 2 s and 2 s + 1.
    __device__ __forceinline__ void stage_slab(float* slab, int s) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float* row = slab + slab_place(i * LANES_M + lane_m(), 0);
            const auto& of_lane = sums[s * 2 + i];
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
                float* place = row + B::position(j, lane_n(), LANES_N);
                if constexpr (B::order == Contiguous::InMN) {
                    *reinterpret_cast<float4*>(place) = make_float4(of_lane[j], of_lane[j + 1], of_lane[j + 2], of_lane[j + 3]);
                } else {
#pragma unroll
                    for (int k = 0; k < 4; k++) place[k * LANES_N] = of_lane[j + k];
                }
            }
        }
    }
    static __device__ __forceinline__ int slab_row(int s, int row) {
        return A::position(s * 2 + row / LANES_M, row % LANES_M, LANES_M);
    }

    template <class Visit>
    __device__ __forceinline__ void visit_row_sums(Visit visit) const {
        if (lane_n() != 0) return;
#pragma unroll
        for (int i = 0; i < 8; i++) visit(A::position(i, lane_m(), LANES_M), row_sums[i]);
    }
};

// A tile's shape and its division among warps. The kernels of an EMPTY tile do nothing.
template <class T, template <class, class, class, int, int> class SumsOf, int BM_, int BN_, int WARPS_M, int WARPS_N,
          bool EMPTY_ = false>
struct Tile {
    static constexpr bool EMPTY = EMPTY_;
    static constexpr int BM = BM_, BN = BN_, WM = BM / WARPS_M, WN = BN / WARPS_N;
    static constexpr int THREADS = WARPS_M * WARPS_N * WARP_SIZE;
    // For __launch_bounds__; 0 is no bound. Without one, ptxas aims at six blocks of 64 threads per
    // SM and spills registers.
    static constexpr int MIN_BLOCKS = THREADS == 64 ? 1 : 0;
    template <Contiguous ORDER>
    using A = Operand<T, ORDER, BM, THREADS>;
    template <Contiguous ORDER>
    using B = Operand<T, ORDER, BN, THREADS>;
    template <Contiguous A_ORDER, Contiguous B_ORDER>
    using Sums = SumsOf<T, A<A_ORDER>, B<B_ORDER>, WM, WN>;

    static constexpr int SLAB_FLOATS = SLAB_ROWS * (WN + 8);

    static __device__ __forceinline__ int warp_m() { return threadIdx.x / WARP_SIZE % WARPS_M; }
    static __device__ __forceinline__ int warp_n() { return threadIdx.x / WARP_SIZE / WARPS_M; }
};

struct Position {
    int m, n;
};
// Tiles are computed in ascending order, some hundred at a time. Adjacent ones in a strip of 8
// tiles of M share the parts of both operands that they read, which then come from L2.
constexpr int STRIP = 8;
__device__ __forceinline__ Position tile_position(int number, int tiles_m, int tiles_n) {
    const int strip = number / (STRIP * tiles_n), within = number % (STRIP * tiles_n);
    const int height = min(STRIP, tiles_m - strip * STRIP);
    return {strip * STRIP + within % height, within / height};
}

// Adds up `stages` stages, copying two ahead.
template <bool WITH_ROW_SUMS, class Sums, class A, class B>
__device__ __forceinline__ void add_stages(Sums& sums, unsigned char* shared, A& a, B& b, int stages, int m, int n) {
    constexpr int STAGE_BYTES = A::STAGE_BYTES + B::STAGE_BYTES;
    const auto copy_stage = [&](int number) {
        if (number < stages) {
            const uint32_t to = shared_address(shared) + number % STAGES * STAGE_BYTES;
            a.copy_stage(to);
            b.copy_stage(to + A::STAGE_BYTES);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int number = 0; number < STAGES - 1; number++) copy_stage(number);
    for (int number = 0; number < stages; number++) {
        cp_async_wait<STAGES - 2>();
        // All warps have copied their part of this stage and are done with the previous one, which
        // the next copy overwrites.
        __syncthreads();
        copy_stage(number + STAGES - 1);
        const unsigned char* stage = shared + number % STAGES * STAGE_BYTES;
        sums.template add_stage<WITH_ROW_SUMS>(stage, stage + A::STAGE_BYTES, m, n);
    }
    cp_async_wait<0>();
    __syncthreads();
}

// All the work of a block. `shared` holds STAGES stages of both operands, and later a slab per
// warp.
template <class Tile, Contiguous A_ORDER, Contiguous B_ORDER, class T, class Sink>
__device__ __forceinline__ void multiply(unsigned char* shared, const T* a_matrix, int a_stride, const T* b_matrix, int b_stride,
                                         int K, const Partials& partials, const Sink& sink) {
    using A = typename Tile::template A<A_ORDER>;
    using B = typename Tile::template B<B_ORDER>;
    const int tiles_m = ceil_div(partials.M, Tile::BM), tiles_n = ceil_div(partials.N, Tile::BN);
    const Position position = tile_position(blockIdx.x, tiles_m, tiles_n);
    // The stages of K of this split.
    const int all_stages = ceil_div(K, A::BK), split_stages = ceil_div(all_stages, (int)gridDim.y);
    const int first_stage = (int)blockIdx.y * split_stages, stages = min(split_stages, all_stages - first_stage);
    A a(a_matrix, a_stride, position.m * Tile::BM, partials.M, first_stage * A::BK, K);
    B b(b_matrix, b_stride, position.n * Tile::BN, partials.N, first_stage * B::BK, K);

    typename Tile::template Sums<A_ORDER, B_ORDER> sums;
    const int m = Tile::warp_m() * Tile::WM, n = Tile::warp_n() * Tile::WN;
    // The first column of tiles also computes the row sums. All of its warps do, though one in
    // WARPS_N would be enough: they wait for each other at every stage. There are two loops,
    // because a condition inside would keep the compiler from interleaving copies and arithmetic.
    const bool with_row_sums = position.n == 0 && sink.wants_row_sums();
    if (with_row_sums) add_stages<true>(sums, shared, a, b, stages, m, n);
    else add_stages<false>(sums, shared, a, b, stages, m, n);

    const int first_m = position.m * Tile::BM + m, first_n = position.n * Tile::BN + n;
    float* slab = reinterpret_cast<float*>(shared) + threadIdx.x / WARP_SIZE * Tile::SLAB_FLOATS;
    store_sums<Tile>(sums, slab, first_m, first_n, partials, sink);
    if (with_row_sums && n == 0) {
        sums.visit_row_sums([&](int row, float sum) {
            if (first_m + row >= partials.M) return;
            if (partials.start == nullptr) sink.finish_row_sum(first_m + row, sum);
            else partials.row_sums(gridDim.y, blockIdx.y)[first_m + row] = sum;
        });
    }
}

// Adds up the splits of K and finishes the result: a thread handles Sink::WIDTH elements, or one
// row sum.
template <class Sink>
__device__ __forceinline__ void reduce(const Partials& partials, int splits, const Sink& sink) {
    const size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    const size_t index = thread * Sink::WIDTH, count = (size_t)partials.M * partials.N;
    if (index < count) {
        auto values = Row<Sink::WIDTH>::load(partials.sums(0) + index);
#pragma unroll 4
        for (int split = 1; split < splits; split++) values.add(Row<Sink::WIDTH>::load(partials.sums(split) + index));
        const int column = (int)(index % partials.N);
        sink.visit([&](auto epilogue) {
            Pack<typename Sink::Element> bias = {}, extra = {}, kept = {};
            if constexpr (epilogue.BIAS) bias = load128(sink.bias + column);
            if constexpr (epilogue.EXTRA) extra = load128(sink.extra + index);
            const auto finished = epilogue.finish(values.v, bias, extra, kept);
            epilogue.store(index, finished, kept);
        });
    } else if (sink.wants_row_sums() && thread - count / Sink::WIDTH < partials.M) {
        const int row = (int)(thread - count / Sink::WIDTH);
        float sum = 0.0f;
        for (int split = 0; split < splits; split++) sum += partials.row_sums(splits, split)[row];
        sink.finish_row_sum(row, sum);
    }
}
}  // namespace matmul
