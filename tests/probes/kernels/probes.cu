// A kernel for each function of ptx.cuh (probes_hopper.cu has those for hopper.cuh): chosen inputs
// in, 32-bit words out. tests/probes/ knows what the words must be, and what they were on a GPU.
// Nothing here depends on floatX.
#include "common.cuh"

__device__ __forceinline__ int element() { return blockIdx.x * blockDim.x + threadIdx.x; }

// --- 16-bit floating point, one element per thread

extern "C" __global__ void __launch_bounds__(256) float_to_f32(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = __float_as_uint(to_f32(float{__uint_as_float(in[i])}));
}
extern "C" __global__ void __launch_bounds__(256) bf16_to_f32(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = __float_as_uint(to_f32(bf16{(uint16_t)in[i]}));
}
extern "C" __global__ void __launch_bounds__(256) f16_to_f32(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = __float_as_uint(to_f32(f16{(uint16_t)in[i]}));
}
extern "C" __global__ void __launch_bounds__(256) float_from_f32(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = __float_as_uint(from_f32<float>(__uint_as_float(in[i])));
}
extern "C" __global__ void __launch_bounds__(256) bf16_from_f32(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = from_f32<bf16>(__uint_as_float(in[i])).x;
}
extern "C" __global__ void __launch_bounds__(256) f16_from_f32(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = from_f32<f16>(__uint_as_float(in[i])).x;
}
// The high half comes from the other end of the input.
extern "C" __global__ void __launch_bounds__(256) bf16_pack2(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = pack2<bf16>(__uint_as_float(in[i]), __uint_as_float(in[n - 1 - i]));
}
extern "C" __global__ void __launch_bounds__(256) f16_pack2(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = pack2<f16>(__uint_as_float(in[i]), __uint_as_float(in[n - 1 - i]));
}

// --- 128-bit accesses: n words, four per thread

extern "C" __global__ void __launch_bounds__(256) copy_u128(unsigned* out, const unsigned* in, int n) {
    const int i = 4 * element();
    if (i < n) store_u128(out + i, load_u128(in + i));
}
extern "C" __global__ void __launch_bounds__(256) copy_u128_streaming(unsigned* out, const unsigned* in, int n) {
    const int i = 4 * element();
    if (i < n) store_u128_streaming(out + i, load_u128_streaming(in + i));
}

// --- additions to global memory: every thread adds its number to one of eight

extern "C" __global__ void __launch_bounds__(256) red_adds(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) red_add(reinterpret_cast<float*>(out) + i % 8, __uint_as_float(in[i]));
}

// --- arithmetic, one element per thread

extern "C" __global__ void __launch_bounds__(256) opaque_int(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = (unsigned)opaque((int)in[i]);
}
// The other operand comes from the other end of the input.
extern "C" __global__ void __launch_bounds__(256) bf16_max2(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = max2<bf16>(in[i], in[n - 1 - i]);
}
extern "C" __global__ void __launch_bounds__(256) f16_max2(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = max2<f16>(in[i], in[n - 1 - i]);
}
extern "C" __global__ void __launch_bounds__(256) exp2_of(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = __float_as_uint(exp2_approx(__uint_as_float(in[i])));
}
extern "C" __global__ void __launch_bounds__(256) tanh_of(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = __float_as_uint(tanh_approx(__uint_as_float(in[i])));
}
extern "C" __global__ void __launch_bounds__(256) sqrt_of(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = __float_as_uint(sqrt_approx(__uint_as_float(in[i])));
}
extern "C" __global__ void __launch_bounds__(256) reciprocal_of(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = __float_as_uint(reciprocal_approx(__uint_as_float(in[i])));
}
extern "C" __global__ void __launch_bounds__(256) tf32_of(unsigned* out, const unsigned* in, int n) {
    const int i = element();
    if (i < n) out[i] = to_tf32(__uint_as_float(in[i]));
}

// --- shared memory and tensor cores, one warp

// The distance of each row from the first, and of the buffer from a multiple of 1024.
extern "C" __global__ void __launch_bounds__(32) addresses(unsigned* out) {
    DYNAMIC_SHARED(buffer);
    out[threadIdx.x] = shared_address(buffer + 16 * threadIdx.x) - shared_address(buffer);
    if (threadIdx.x == 0) out[32] = shared_address(buffer) % 1024;
}

// Lane l puts 16 bytes into row l, and names row row_of[l].
extern "C" __global__ void __launch_bounds__(32) ldmatrix(unsigned* out, const unsigned* rows, const unsigned* row_of) {
    SHARED(uint4, tile, [32]);
    const int lane = threadIdx.x;
    tile[lane] = load_u128(rows + 4 * lane);
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, shared_address(&tile[row_of[lane]]));
    store_u128(out + 4 * lane, uint4{r[0], r[1], r[2], r[3]});
}
extern "C" __global__ void __launch_bounds__(32) ldmatrix_trans(unsigned* out, const unsigned* rows, const unsigned* row_of) {
    SHARED(uint4, tile, [32]);
    const int lane = threadIdx.x;
    tile[lane] = load_u128(rows + 4 * lane);
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4_trans(r, shared_address(&tile[row_of[lane]]));
    store_u128(out + 4 * lane, uint4{r[0], r[1], r[2], r[3]});
}

// The registers of a lane: four of d, four of a, two of b.
struct Operands {
    float d[4];
    uint32_t a[4], b[2];

    __device__ __forceinline__ Operands(const unsigned* sums, const unsigned* left, const unsigned* right) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            d[i] = __uint_as_float(sums[4 * element() + i]);
            a[i] = left[4 * element() + i];
        }
        b[0] = right[2 * element()];
        b[1] = right[2 * element() + 1];
    }
    __device__ __forceinline__ void store(unsigned* sums) const {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[4 * element() + i] = __float_as_uint(d[i]);
    }
};
extern "C" __global__ void __launch_bounds__(32) mma_bf16(unsigned* d, const unsigned* a, const unsigned* b) {
    Operands lane(d, a, b);
    mma_m16n8k16<bf16>(lane.d, lane.a, lane.b[0], lane.b[1]);
    lane.store(d);
}
extern "C" __global__ void __launch_bounds__(32) mma_f16(unsigned* d, const unsigned* a, const unsigned* b) {
    Operands lane(d, a, b);
    mma_m16n8k16<f16>(lane.d, lane.a, lane.b[0], lane.b[1]);
    lane.store(d);
}
extern "C" __global__ void __launch_bounds__(32) mma_tf32(unsigned* d, const unsigned* a, const unsigned* b) {
    Operands lane(d, a, b);
    mma_m16n8k8_tf32(lane.d, lane.a, lane.b[0], lane.b[1]);
    lane.store(d);
}

// --- asynchronous copies, one warp

// Lane l copies l bytes, from lane 17 on the default of 16, over a pattern.
extern "C" __global__ void __launch_bounds__(32) cp_async_bytes(unsigned* out, const unsigned* in) {
    SHARED(uint4, to, [32]);
    const int lane = threadIdx.x;
    to[lane] = uint4{0x55555555, 0x55555555, 0x55555555, 0x55555555};
    __syncthreads();
    if (lane <= 16) cp_async16(shared_address(&to[lane]), in + 4 * lane, lane);
    else cp_async16(shared_address(&to[lane]), in + 4 * lane);
    cp_async_commit();
    cp_async_wait<0>();
    store_u128(out + 4 * lane, to[lane]);
}
// Three groups in flight; each is read as soon as the wait for it returns.
extern "C" __global__ void __launch_bounds__(32) cp_async_groups(unsigned* out, const unsigned* in) {
    SHARED(uint4, to, [3 * 32]);
    const int lane = threadIdx.x;
#pragma unroll
    for (int group = 0; group < 3; group++) {
        cp_async16(shared_address(&to[group * 32 + lane]), in + 4 * (group * 32 + lane));
        cp_async_commit();
    }
    cp_async_wait<2>();
    store_u128(out + 4 * lane, to[lane]);
    cp_async_wait<1>();
    store_u128(out + 4 * (32 + lane), to[32 + lane]);
    cp_async_wait<0>();
    store_u128(out + 4 * (64 + lane), to[64 + lane]);
}

// In each phase warps 0 and 1 leave numbers in one buffer, which warps 2 and 3 output in reverse.
extern "C" __global__ void __launch_bounds__(128) named_barriers(unsigned* out, const unsigned* in, int phases) {
    SHARED(unsigned, left, [64]);
    const int t = threadIdx.x % 64;
    for (int phase = 0; phase < phases; phase++) {
        if (threadIdx.x < 64) {
            if (phase > 0) barrier_sync(2, 128);
            left[t] = in[phase * 64 + t];
            barrier_arrive(15, 128);
        } else {
            barrier_sync(15, 128);
            out[phase * 64 + t] = left[63 - t];
            if (phase + 1 < phases) barrier_arrive(2, 128);
        }
    }
}

// Adds one to what an earlier launch wrote.
extern "C" __global__ void __launch_bounds__(256) dependent(unsigned* out, const unsigned* in) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    launch_dependents();
    wait_for_dependencies();
    out[i] = in[i] + 1;
}
