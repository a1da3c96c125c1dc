// Kernels whose results leave through shared memory by tma_store, with one bug each, by number;
// number 0 has none. stores.rs tests that each is caught.
#include "hopper.cuh"

// out (rows x columns) = 2 in, by tiles of 64 rows and 128 columns. The halves of a tile leave
// through two slabs of 64 rows of 128 bytes, which the next tile uses again: four warps fill a slab
// by stmatrix, and thread 0 stores it.
template <int BUG>
__device__ __forceinline__ void store_tiles(unsigned char* shared, const TensorMap* map, bf16* out, const bf16* in, int rows,
                                            int columns) {
    const int warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    const int tiles_across = ceil_div(columns, 128), tiles = tiles_across * ceil_div(rows, 64);
    const uint32_t slabs = shared_address(shared) + (BUG == 11 ? 128 : 0);
    auto element = [&](int y, int x) { return y < rows && x < columns ? 2.0f * to_f32(in[y * columns + x]) : 0.0f; };
    for (int tile = BUG == 17 ? 0 : blockIdx.x; tile < tiles; tile += gridDim.x) {
        for (int half = 0; half < 2; half++) {
            const int y = tile / tiles_across * 64, x = tile % tiles_across * 128 + half * 64;
            const uint32_t slab = slabs + (BUG == 9 ? 0 : half) * 64 * 128;
            // The slab's last store was two groups ago.
            if (threadIdx.x == 0 && BUG != 2) tma_store_wait_read<BUG == 3 ? 2 : 1>();
            if (BUG != 8) __syncthreads();
            for (int column = 0; column < 64; column += 16) {
                // Matrices 0 and 1 have rows 0 to 15 of the warp, 2 and 3 the next 8 columns.
                uint32_t r[4];
                for (int i = 0; i < 4; i++) {
                    const int at_y = y + warp * 16 + i % 2 * 8 + lane / 4, at_x = x + column + i / 2 * 8 + lane % 4 * 2;
                    r[i] = pack2<bf16>(element(at_y, at_x), element(at_y, at_x + 1));
                }
                const int row = warp * 16 + lane % 16, chunk = column / 8 + lane / 16;
                if (BUG != 10 || warp != 1 || column != 48) stmatrix_x4(slab + row * 128 + (chunk ^ row % 8) * 16, r);
            }
            if (BUG != 1 && BUG != 18 && (BUG != 7 || lane == 0)) proxy_fence();
            if (BUG != 6) __syncthreads();
            // Later than the barrier, so that the store need not see what was written.
            if (BUG == 18) proxy_fence();
            if (threadIdx.x == 0) {
                tma_store(map, x + (BUG == 12 ? 4 : 0), y, slab);
                if (BUG != 5) tma_store_commit();
                volatile unsigned char* const source = shared + half * 64 * 128;
                if (BUG == 13) *source = *source;
                if (BUG == 14) *source = *source ^ 1;
            }
        }
    }
    if (threadIdx.x == 0 && BUG != 4) tma_store_wait_read<0>();
    // The first block has stored the first tile.
    if (blockIdx.x + threadIdx.x == 0 && BUG == 15) out[0] = bf16{1};
    if (blockIdx.x + threadIdx.x == 0 && BUG == 16 && out[0].x == 1) out[1] = bf16{0};
}
#define STORE_TILES(BUG)                                                                                     \
    extern "C" __global__ void __launch_bounds__(128)                                                        \
        store_tiles_##BUG(GRID_CONSTANT TensorMap map, bf16* out, const bf16* in, int rows, int columns) {   \
        DYNAMIC_SHARED(shared);                                                                              \
        store_tiles<BUG>(shared, &map, out, in, rows, columns);                                              \
    }
STORE_TILES(0)
STORE_TILES(1)
STORE_TILES(2)
STORE_TILES(3)
STORE_TILES(4)
STORE_TILES(5)
STORE_TILES(6)
STORE_TILES(7)
STORE_TILES(8)
STORE_TILES(9)
STORE_TILES(10)
STORE_TILES(11)
STORE_TILES(12)
STORE_TILES(13)
STORE_TILES(14)
STORE_TILES(15)
STORE_TILES(16)
STORE_TILES(17)
STORE_TILES(18)

// out = in (64 rows), box by box through one slab: thread 0 loads and stores.
template <int BUG>
__device__ __forceinline__ void move_boxes(unsigned char* shared, const TensorMap* out, const TensorMap* in, int columns) {
    const uint32_t slab = shared_address(shared), barrier = slab + 64 * 128;
    if (threadIdx.x != 0) return;
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    for (int i = 0; i < columns / 64; i++) {
        if (BUG != 1) tma_store_wait_read<0>();
        // Copied over; the copy might still land first.
        if (BUG == 4) *reinterpret_cast<volatile unsigned*>(shared) = 1;
        mbarrier_arrive_expect(barrier, 64 * 128);
        tma_load(slab, BUG == 3 && i > 0 ? out : in, BUG == 3 ? 0 : i * 64, 0, barrier);
        if (BUG != 2) mbarrier_wait(barrier, i & 1);
        tma_store(out, i * 64, 0, slab);
        tma_store_commit();
    }
    tma_store_wait_read<0>();
}
#define MOVE_BOXES(BUG)                                                                          \
    extern "C" __global__ void __launch_bounds__(32)                                             \
        move_boxes_##BUG(GRID_CONSTANT TensorMap out, GRID_CONSTANT TensorMap in, int columns) { \
        DYNAMIC_SHARED(shared);                                                                  \
        move_boxes<BUG>(shared, &out, &in, columns);                                             \
    }
MOVE_BOXES(0)
MOVE_BOXES(1)
MOVE_BOXES(2)
MOVE_BOXES(3)
MOVE_BOXES(4)
