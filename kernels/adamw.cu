// AdamW (Loshchilov & Hutter 2019) over a range of parameters that spans any number of tensors of
// any shape.
//
// Where parameters are narrower than f32, the step is applied to the master weights, or to the
// parameter itself if there are none, and the result is rounded stochastically: rounding to nearest
// would lose every step below half a last place. So are m and v where they have 16 bits: v moves by
// less than half a last place in most steps, as 1 - beta2 is small.
//
// Bytes per 16-bit parameter: 28 (read gradient; read and write m, v, master; write), 22 without
// master; 8 fewer with m and v in 16 bits. Nothing is used twice, and each thread has 112 bytes of
// loads in flight at once: 90 % of bandwidth expected. Square root and quotient are approximate to
// about an ulp each: exact ones take some forty instructions per parameter.
#include "quads.cuh"

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
template <bool MASTER, class S>
__device__ __forceinline__ void update_block(floatX* params, float* master, S* m, S* v, const floatX* grads,
                                             const AdamWStep& step, unsigned length, unsigned seed,
                                             unsigned long long index) {
    const unsigned start = first_quad();
    params += start, m += start, v += start, grads += start;
    if constexpr (MASTER) master += start;
    Quad<floatX> g_bits[QUADS], p_bits[QUADS];
    Quad<S> m_bits[QUADS], v_bits[QUADS];
    Pack<float> master_bits[QUADS];
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
        widen_quad<S>(m_quad, m_bits[q]);
        widen_quad<S>(v_quad, v_bits[q]);
        if constexpr (MASTER) widen(p, master_bits[q]);
        else widen_quad<floatX>(p, p_bits[q]);
#pragma unroll
        for (int k = 0; k < 4; k++) step(p[k], m_quad[k], v_quad[k], g[k]);
        store_state(m + at, m_quad, seed ^ SEED_OF_M, index + start + at);
        store_state(v + at, v_quad, seed ^ SEED_OF_V, index + start + at);
        if constexpr (MASTER) store_quad(master + at, p);
        store_at_random(params + at, p, seed, index + start + at);
    }
}

// Takes the step of a block. master may be null.
template <class S>
__device__ __forceinline__ void update(floatX* params, float* master, S* m, S* v, const floatX* grads, const AdamWStep& step,
                                       unsigned seed, unsigned long long first, unsigned long long n) {
    // Within a block, indices have 32 bits.
    const unsigned long long start = (unsigned long long)blockIdx.x * QUAD_BLOCK;
    const unsigned length = (unsigned)min(n - start, (unsigned long long)QUAD_BLOCK);
    params += start, m += start, v += start, grads += start;
    if (master) update_block<true>(params, master + start, m, v, grads, step, length, seed, first + start);
    else update_block<false>(params, nullptr, m, v, grads, step, length, seed, first + start);
}

// `first`, a multiple of 4, is the index of element 0 among all parameters: rounding does not
// depend on where a range starts.
extern "C" __global__ void __launch_bounds__(256)
    adamw(floatX* params, float* master, float* m, float* v, const floatX* grads, float weight_decay, float lr, float beta1,
          float beta2, float correction1, float correction2, float eps, float grad_scale, unsigned seed,
          unsigned long long first, unsigned long long n) {
    start_in_order();
    const AdamWStep step = {weight_decay, lr, beta1, beta2, correction1, correction2, eps, grad_scale};
    update(params, master, m, v, grads, step, seed, first, n);
}

// The same with m and v in bf16, rounded at random.
extern "C" __global__ void __launch_bounds__(256)
    adamw_bf16_state(floatX* params, float* master, bf16* m, bf16* v, const floatX* grads, float weight_decay, float lr,
                     float beta1, float beta2, float correction1, float correction2, float eps, float grad_scale,
                     unsigned seed, unsigned long long first, unsigned long long n) {
    start_in_order();
    const AdamWStep step = {weight_decay, lr, beta1, beta2, correction1, correction2, eps, grad_scale};
    update(params, master, m, v, grads, step, seed, first, n);
}
