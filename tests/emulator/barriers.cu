// Kernels with named barriers, with one bug each, by number; number 0 has none. barriers.rs tests
// that each is caught.
#include "hopper.cuh"

// out (tiles x 64) = the rows of in, each in reverse, by 64 threads that produce and 64 that
// consume. They hand each row over in one buffer.
template <int BUG>
__device__ __forceinline__ void relay(int* out, const int* in, int tiles) {
    constexpr uint32_t FULL = 1, EMPTY = 2, PRODUCERS = 3;
    SHARED(int, scratch, [64]);
    SHARED(int, buffer, [64]);
    const int warp = threadIdx.x / WARP_SIZE, t = threadIdx.x % 64;
    for (int tile = 0; tile < tiles; tile++) {
        if (warp < 2) {
            if (tile > 0 && BUG != 1) barrier_sync(EMPTY, 128);
            scratch[t] = in[tile * 64 + t];
            if (BUG == 8) barrier_sync(FULL, 64);
            else if (BUG == 12) barrier_arrive(PRODUCERS, 64);
            else if (BUG == 13) barrier_sync(PRODUCERS + t % 2, 64);
            else if (BUG != 11) barrier_sync(PRODUCERS, 64);
            buffer[t] = scratch[63 - t];
            if (BUG == 9 && t % 32 >= 16) continue;
            if (BUG != 2 || warp != 1) barrier_arrive(FULL, BUG == 15 ? 96 : 128);
            // A late write.
            if (BUG == 14) buffer[t] = scratch[63 - t];
        } else {
            if (BUG == 3) barrier_sync(FULL, 96);
            else if (BUG == 4) barrier_sync(16, 128);
            else if (BUG == 5) barrier_sync(FULL, 100);
            else if (BUG == 6) barrier_sync(FULL, 256);
            else if (BUG == 7) barrier_arrive(FULL, 128);
            else if (BUG == 16) barrier_sync(0, 128);
            else if (BUG != 15) barrier_sync(FULL, 128);
            // The last warp does not wait.
            else if (warp == 2) barrier_sync(FULL, 96);
            out[tile * 64 + t] = buffer[t];
            if (tile + 1 < tiles || BUG == 10) barrier_arrive(EMPTY, 128);
        }
    }
}
#define RELAY(BUG) \
    extern "C" __global__ void __launch_bounds__(128) relay_##BUG(int* out, const int* in, int tiles) { relay<BUG>(out, in, tiles); }
RELAY(0)
RELAY(1)
RELAY(2)
RELAY(3)
RELAY(4)
RELAY(5)
RELAY(6)
RELAY(7)
RELAY(8)
RELAY(9)
RELAY(10)
RELAY(11)
RELAY(12)
RELAY(13)
RELAY(14)
RELAY(15)
RELAY(16)
