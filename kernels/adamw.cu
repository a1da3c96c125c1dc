// AdamW (Loshchilov & Hutter 2019) over a run of parameters, tensors of any number and shape: which of them a parameter belongs
// to matters only for its decay, and those that decay come first.
//
// A thread takes four parameters, and four more 128 further on where they are of 16 bits: so a warp reads 512 bytes of f32 side by
// side, and every sector of memory once. Eight in a row would touch each twice. Where parameters are narrower than f32, the
// f32 copy takes the step, or the parameter itself if there is none, and the result is rounded at random: to nearest, a step
// below half a last place would never be taken.
//
// Bytes for a parameter of 16 bits: 28 (read gradient; read and write m, v, master; write), 22 without master. Nothing is
// used twice, and each thread has 112 bytes of loads under way at once: 90 % of bandwidth expected. Root and quotient are
// approximate to about an ulp each: exact ones take some forty instructions a parameter.
#include "common.cuh"

constexpr int QUADS = PackX::size / 4;
// From a thread's first four parameters to the next: the warp's.
constexpr int QUAD_STRIDE = 4 * WARP_SIZE;

// Four elements, of f32 or of 16 bits.
__device__ __forceinline__ void load_quad(float (&values)[4], const float* address) {
    widen(values, load128_streaming(address));
}
template <class T>
__device__ __forceinline__ void load_quad(float (&values)[4], const T* address) {
    const uint2 bits = __ldcs(reinterpret_cast<const uint2*>(address));
    widen2<T>(values[0], values[1], bits.x);
    widen2<T>(values[2], values[3], bits.y);
}
__device__ __forceinline__ void store_quad(float* address, const float (&values)[4]) {
    store128_streaming(address, round_pack<float>(values));
}
template <class T>
__device__ __forceinline__ void store_quad(T* address, const float (&values)[4]) {
    *reinterpret_cast<uint2*>(address) = make_uint2(pack2<T>(values[0], values[1]), pack2<T>(values[2], values[3]));
}

// m = lerp(g, m, beta1); v = lerp(g^2, v, beta2); p -= lr (correction1 m / (sqrt(correction2 v) + eps) + decay p), with
// g = grad_scale * grads. The corrections are 1 / (1 - beta^t). Elements from `decayed` on have no decay. master may be null.
// `first`, an even number, is that of element 0 among all parameters: rounding does not depend on where a run begins.
extern "C" __global__ void __launch_bounds__(256)
    adamw(floatX* params, float* master, float* m, float* v, const floatX* grads, unsigned long long decayed, float weight_decay,
          float lr, float beta1, float beta2, float correction1, float correction2, float eps, float grad_scale, unsigned seed,
          unsigned long long first, unsigned long long n) {
    const unsigned warp = blockIdx.x * (256 / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    const unsigned long long start = (unsigned long long)warp * (QUADS * QUAD_STRIDE) + threadIdx.x % WARP_SIZE * 4;
    float g[QUADS][4], m_quad[QUADS][4], v_quad[QUADS][4], old[QUADS][4];
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const unsigned long long i = start + q * QUAD_STRIDE;
        if (i >= n) continue;
        load_quad(g[q], grads + i);
        load_quad(m_quad[q], m + i);
        load_quad(v_quad[q], v + i);
        if (master) load_quad(old[q], master + i);
        else load_quad(old[q], params + i);
    }
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const unsigned long long i = start + q * QUAD_STRIDE;
        if (i >= n) continue;
        const int decay_left = (int)min(decayed - min(decayed, i), 4ull);
        float p[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float gradient = grad_scale * g[q][k];
            m_quad[q][k] = beta1 * m_quad[q][k] + (1.0f - beta1) * gradient;
            v_quad[q][k] = beta2 * v_quad[q][k] + (1.0f - beta2) * (gradient * gradient);
            float decay = k < decay_left ? weight_decay : 0.0f;
            float root = sqrt_approx(correction2 * v_quad[q][k]) + eps;
            float direction = correction1 * m_quad[q][k] * reciprocal_approx(root) + decay * old[q][k];
            old[q][k] -= lr * direction;
            // Half of the 32 random bits are enough for a parameter, so two share them.
            unsigned bits = random_bits(seed, (first + i + k) / 2) >> k % 2 * 16;
            p[k] = round_at_random<floatX>(old[q][k], bits);
        }
        store_quad(m + i, m_quad[q]);
        store_quad(v + i, v_quad[q]);
        if (master) store_quad(master + i, old[q]);
        store_quad(params + i, p);
    }
}
