// Muon (Jordan et al. 2024), but for its matrix products: momentum, what an iteration of
// Newton-Schulz does besides multiplying, and the step.
//
// All are passes over memory. Bytes per 16-bit parameter: momentum 12 (read and write gradient and
// f32 m), normalize 4, step 12 with master weights (read direction; read and write master; write).
// polynomial works on square matrices that stay in L2: 6. Expected: 90 % of bandwidth.
#include "quads.cuh"

// m = lerp(g, m, momentum), with g = grad_scale * grads; grads = lerp(g, m, momentum) / grad_scale,
// Nesterov's direction. Its length has no meaning, so it stays in the range of the gradient, which
// the loss scale keeps within f16.
template <class S>
__device__ __forceinline__ void momentum_block(floatX* grads, S* m, float momentum, float grad_scale, unsigned length,
                                               unsigned seed, unsigned long long index) {
    const unsigned start = first_quad();
    grads += start, m += start;
    Quad<floatX> g_bits[QUADS];
    Quad<S> m_bits[QUADS];
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int at = q * QUAD_STRIDE;
        if (start + at >= length) continue;
        g_bits[q] = load_quad(grads + at);
        m_bits[q] = load_quad(m + at);
    }
    const float unscale = 1.0f / grad_scale;
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int at = q * QUAD_STRIDE;
        if (start + at >= length) continue;
        float g[4], m_quad[4];
        widen_quad<floatX>(g, g_bits[q]);
        widen_quad<S>(m_quad, m_bits[q]);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            m_quad[k] = momentum * m_quad[k] + (1.0f - momentum) * (grad_scale * g[k]);
            g[k] = (1.0f - momentum) * g[k] + momentum * (m_quad[k] * unscale);
        }
        store_state(m + at, m_quad, seed ^ SEED_OF_M, index + start + at);
        store_quad(grads + at, g);
    }
}
template <class S>
__device__ __forceinline__ void momentum_step(floatX* grads, S* m, float momentum, float grad_scale, unsigned seed,
                                              unsigned long long first, unsigned long long n) {
    const unsigned long long start = (unsigned long long)blockIdx.x * QUAD_BLOCK;
    const unsigned length = (unsigned)min(n - start, (unsigned long long)QUAD_BLOCK);
    momentum_block(grads + start, m + start, momentum, grad_scale, length, seed, first + start);
}

// `first`, a multiple of 4, is the index of element 0 among all parameters.
extern "C" __global__ void __launch_bounds__(256)
    muon_momentum(floatX* grads, float* m, float momentum, float grad_scale, unsigned seed, unsigned long long first,
                  unsigned long long n) {
    start_in_order();
    momentum_step(grads, m, momentum, grad_scale, seed, first, n);
}

// The same with m in bf16, rounded at random.
extern "C" __global__ void __launch_bounds__(256)
    muon_momentum_bf16_state(floatX* grads, bf16* m, float momentum, float grad_scale, unsigned seed,
                             unsigned long long first, unsigned long long n) {
    start_in_order();
    momentum_step(grads, m, momentum, grad_scale, seed, first, n);
}

// out (n) = inp / max(|inp|, eps), given the squared norm (1) of inp.
extern "C" __global__ void __launch_bounds__(256)
    muon_normalize(floatX* out, const floatX* inp, const float* norm_squared, float eps, unsigned long long n) {
    start_in_order();
    const unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    const float factor = 1.0f / fmaxf(sqrtf(*norm_squared), eps);
    float values[PackX::size];
    widen(values, load128(inp + i));
#pragma unroll
    for (int k = 0; k < PackX::size; k++) values[k] *= factor;
    store128(out + i, round_pack<floatX>(values));
}

// squared = a I + b gram + c squared, all of them (size, size); a multiple of 8.
extern "C" __global__ void __launch_bounds__(256)
    muon_polynomial(floatX* squared, const floatX* gram, float a, float b, float c, int size) {
    start_in_order();
    const unsigned long long n = (unsigned long long)size * size;
    const unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    const int row = (int)(i / size), column = (int)(i % size);
    float values[PackX::size], first[PackX::size];
    widen(values, load128(squared + i));
    widen(first, load128(gram + i));
#pragma unroll
    for (int k = 0; k < PackX::size; k++)
        values[k] = (column + k == row ? a : 0.0f) + (b * first[k] + c * values[k]);
    store128(squared + i, round_pack<floatX>(values));
}

// p -= rate * direction + decay * p, of the master weights if there are any; params become these,
// rounded at random.
template <bool MASTER>
__device__ __forceinline__ void step_block(floatX* params, float* master, const floatX* direction, float rate, float decay,
                                           unsigned length, unsigned seed, unsigned long long index) {
    const unsigned start = first_quad();
    params += start, direction += start;
    if constexpr (MASTER) master += start;
    Quad<floatX> d_bits[QUADS], p_bits[QUADS];
    Pack<float> master_bits[QUADS];
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int at = q * QUAD_STRIDE;
        if (start + at >= length) continue;
        d_bits[q] = load_quad(direction + at);
        if constexpr (MASTER) master_bits[q] = load_quad(master + at);
        else p_bits[q] = load_quad(params + at);
    }
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const int at = q * QUAD_STRIDE;
        if (start + at >= length) continue;
        float d[4], p[4];
        widen_quad<floatX>(d, d_bits[q]);
        if constexpr (MASTER) widen(p, master_bits[q]);
        else widen_quad<floatX>(p, p_bits[q]);
#pragma unroll
        for (int k = 0; k < 4; k++) p[k] -= rate * d[k] + decay * p[k];
        if constexpr (MASTER) store_quad(master + at, p);
        store_at_random(params + at, p, seed, index + start + at);
    }
}

// master may be null. `first` as above.
extern "C" __global__ void __launch_bounds__(256)
    muon_step(floatX* params, float* master, const floatX* direction, float rate, float decay, unsigned seed,
              unsigned long long first, unsigned long long n) {
    start_in_order();
    const unsigned long long start = (unsigned long long)blockIdx.x * QUAD_BLOCK;
    const unsigned length = (unsigned)min(n - start, (unsigned long long)QUAD_BLOCK);
    params += start, direction += start;
    if (master) step_block<true>(params, master + start, direction, rate, decay, length, seed, first + start);
    else step_block<false>(params, nullptr, direction, rate, decay, length, seed, first + start);
}
