// AdamW (Loshchilov & Hutter 2019) over a run of parameters, tensors of any number and shape: which of them a parameter belongs
// to matters only for its decay, and those that decay come first.
//
// One thread, one pack of parameters. Where they are narrower than f32, the f32 copy takes the step, or the parameter itself if
// there is none, and the result is rounded at random: to nearest, a step below half a last place would never be taken.
//
// Bytes for a parameter of 16 bits: 28 (read gradient; read and write m, v, master; write), 22 without master. Nothing is
// used twice, and each thread has 112 bytes of loads under way at once: 90 % of bandwidth expected.
#include "common.cuh"

// A pack's worth of f32.
constexpr int QUADS = PackX::size / 4;
struct Floats {
    Pack<float> quads[QUADS];
    __device__ __forceinline__ float& operator[](int i) { return quads[i / 4].v[i % 4]; }
};
__device__ __forceinline__ Floats load_floats(const float* address) {
    Floats floats;
#pragma unroll
    for (int q = 0; q < QUADS; q++) floats.quads[q] = load128_streaming(address + 4 * q);
    return floats;
}
__device__ __forceinline__ void store_floats(float* address, const Floats& floats) {
#pragma unroll
    for (int q = 0; q < QUADS; q++) store128_streaming(address + 4 * q, floats.quads[q]);
}

// m = lerp(g, m, beta1); v = lerp(g^2, v, beta2); p -= lr (correction1 m / (sqrt(correction2 v) + eps) + decay p), with
// g = grad_scale * grads. The corrections are 1 / (1 - beta^t). Elements from `decayed` on have no decay. master may be null.
// `first` is the number of element 0 among all parameters: rounding does not depend on where a run begins.
extern "C" __global__ void __launch_bounds__(256)
    adamw(floatX* params, float* master, float* m, float* v, const floatX* grads, unsigned long long decayed, float weight_decay,
          float lr, float beta1, float beta2, float correction1, float correction2, float eps, float grad_scale, unsigned seed,
          unsigned long long first, unsigned long long n) {
    unsigned long long i = (blockIdx.x * 256ull + threadIdx.x) * PackX::size;
    if (i >= n) return;
    PackX g = load128_streaming(grads + i), p;
    Floats m_pack = load_floats(m + i), v_pack = load_floats(v + i), master_pack;
    if (master)
        master_pack = load_floats(master + i);
    else
        p = load128(params + i);

#pragma unroll
    for (int k = 0; k < PackX::size; k++) {
        float gradient = grad_scale * to_f32(g.v[k]);
        float m_k = beta1 * m_pack[k] + (1.0f - beta1) * gradient;
        float v_k = beta2 * v_pack[k] + (1.0f - beta2) * (gradient * gradient);
        float old = master ? master_pack[k] : to_f32(p.v[k]);
        float decay = i + k < decayed ? weight_decay : 0.0f;
        float direction = correction1 * m_k / (sqrtf(correction2 * v_k) + eps) + decay * old;
        m_pack[k] = m_k;
        v_pack[k] = v_k;
        master_pack[k] = old - lr * direction;
        p.v[k] = round_at_random<floatX>(master_pack[k], random_bits(seed, first + i + k));
    }
    store_floats(m + i, m_pack);
    store_floats(v + i, v_pack);
    if (master) store_floats(master + i, master_pack);
    store128(params + i, p);
}
