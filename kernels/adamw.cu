// AdamW (Loshchilov & Hutter 2019) over a range of parameters that spans any number of tensors of
// any shape.
//
// A thread takes four parameters, and four more 128 elements later if they have 16 bits: so a warp
// reads 512 contiguous bytes of f32, and every sector of memory once. Eight in a row would touch
// each sector twice. Where parameters are narrower than f32, the step is applied to the master
// weights, or to the parameter itself if there are none, and the result is rounded stochastically:
// rounding to nearest would lose every step below half a last place.
//
// Bytes per 16-bit parameter: 28 (read gradient; read and write m, v, master; write), 22 without
// master. Nothing is used twice, and each thread has 112 bytes of loads in flight at once: 90 % of
// bandwidth expected. Square root and quotient are approximate to about an ulp each: exact ones
// take some forty instructions per parameter.
#include "common.cuh"

constexpr int QUADS = PackX::size / 4;
// Distance from a thread's first four parameters to the next: those of the warp.
constexpr int QUAD_STRIDE = 4 * WARP_SIZE;

// Four elements as they are in memory, f32 or 16-bit. They are widened after all loads are issued:
// an instruction on the first would stall the loads of the next.
__device__ __forceinline__ Pack<float> load_quad(const float* address) { return load128_streaming(address); }
template <class T>
__device__ __forceinline__ uint2 load_quad(const T* address) {
    return __ldcs(reinterpret_cast<const uint2*>(address));
}
template <class T>
__device__ __forceinline__ void widen_quad(float (&values)[4], const Pack<float>& quad) {
    widen(values, quad);
}
template <class T>
__device__ __forceinline__ void widen_quad(float (&values)[4], uint2 quad) {
    widen2<T>(values[0], values[1], quad.x);
    widen2<T>(values[2], values[3], quad.y);
}
__device__ __forceinline__ void store_quad(float* address, const float (&values)[4]) {
    store128_streaming(address, round_pack<float>(values));
}
// Rounded at random; `index` is that of the first of the four among all parameters.
__device__ __forceinline__ void store_params(float* address, const float (&values)[4], unsigned, unsigned long long) {
    store128(address, round_pack<float>(values));
}
template <class T>
__device__ __forceinline__ void store_params(T* address, const float (&values)[4], unsigned seed, unsigned long long index) {
    // 16 random bits are enough for a parameter, so two share 32.
    const RandomBits random(seed, index / 2);
    *reinterpret_cast<uint2*>(address) = make_uint2(pack2_at_random<T>(values[0], values[1], random(index / 2)),
                                                    pack2_at_random<T>(values[2], values[3], random(index / 2 + 1)));
}

// m = lerp(g, m, beta1); v = lerp(g^2, v, beta2); p -= lr (correction1 m / (sqrt(correction2 v) +
// eps) + decay p), with g = grad_scale * grads. The corrections are 1 / (1 - beta^t).
struct AdamWStep {
    float weight_decay, lr, beta1, beta2, correction1, correction2, eps, grad_scale;

    __device__ __forceinline__ void operator()(float& p, float& m, float& v, float g) const {
        const float gradient = grad_scale * g;
        m = beta1 * m + (1.0f - beta1) * gradient;
        v = beta2 * v + (1.0f - beta2) * (gradient * gradient);
        const float root = sqrt_approx(correction2 * v) + eps;
        p -= lr * (correction1 * m * reciprocal_approx(root) + weight_decay * p);
    }
};

// A block's elements of each tensor: `length` of them. `index` is that of the first among all
// parameters.
template <bool MASTER>
__device__ __forceinline__ void update_block(floatX* params, float* master, float* m, float* v, const floatX* grads,
                                             const AdamWStep& step, unsigned length, unsigned seed,
                                             unsigned long long index) {
    const unsigned start = threadIdx.x / WARP_SIZE * (QUADS * QUAD_STRIDE) + threadIdx.x % WARP_SIZE * 4;
    params += start, m += start, v += start, grads += start;
    if constexpr (MASTER) master += start;
    decltype(load_quad(grads)) g_bits[QUADS], p_bits[QUADS];
    Pack<float> m_bits[QUADS], v_bits[QUADS], master_bits[QUADS];
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int at = q * QUAD_STRIDE;
        if (start + at >= length) continue;
        g_bits[q] = load_quad(grads + at);
        m_bits[q] = load_quad(m + at);
        v_bits[q] = load_quad(v + at);
        if constexpr (MASTER) master_bits[q] = load_quad(master + at);
        else p_bits[q] = load_quad(params + at);
    }
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int at = q * QUAD_STRIDE;
        if (start + at >= length) continue;
        float g[4], m_quad[4], v_quad[4], p[4];
        widen_quad<floatX>(g, g_bits[q]);
        widen(m_quad, m_bits[q]);
        widen(v_quad, v_bits[q]);
        if constexpr (MASTER) widen(p, master_bits[q]);
        else widen_quad<floatX>(p, p_bits[q]);
#pragma unroll
        for (int k = 0; k < 4; k++) step(p[k], m_quad[k], v_quad[k], g[k]);
        store_quad(m + at, m_quad);
        store_quad(v + at, v_quad);
        if constexpr (MASTER) store_quad(master + at, p);
        store_params(params + at, p, seed, index + start + at);
    }
}

// Takes the step. master may be null. `first`, a multiple of 4, is the index of element 0 among all
// parameters: rounding does not depend on where a range starts.
extern "C" __global__ void __launch_bounds__(256)
    adamw(floatX* params, float* master, float* m, float* v, const floatX* grads, float weight_decay, float lr, float beta1, float beta2, float correction1, float correction2, float eps, float grad_scale, unsigned seed,
          unsigned long long first, unsigned long long n) {
    start_in_order();
    const AdamWStep step = {weight_decay, lr, beta1, beta2, correction1, correction2, eps, grad_scale};
    // Within a block, indices have 32 bits.
    constexpr unsigned BLOCK = 256 * 4 * QUADS;
    const unsigned long long start = (unsigned long long)blockIdx.x * BLOCK;
    const unsigned length = (unsigned)min(n - start, (unsigned long long)BLOCK);
    params += start, m += start, v += start, grads += start;
    if (master) update_block<true>(params, master + start, m, v, grads, step, length, seed, first + start);
    else update_block<false>(params, nullptr, m, v, grads, step, length, seed, first + start);
}
