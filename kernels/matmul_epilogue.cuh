// Sinks: what becomes of the sums of a matrix product. Each takes WIDTH consecutive sums of a row, 128 bits of the type it
// stores, from the product's own kernel or from the one that adds up the splits of K; so every epilogue is written once.
#pragma once
#include "gelu.cuh"
#include "matmul.cuh"

namespace matmul {

template <class T>
struct SinkOf {
    static constexpr int WIDTH = 16 / sizeof(T);
    using Sums = Row<WIDTH>;

    __device__ bool wants_row_sums() const { return false; }
    __device__ void finish_row_sum(int, float) const {}

    static __device__ __forceinline__ Sums load(const T* from) {
        const Pack<T> pack = load128(from);
        Sums sums;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) sums.v[i] = to_f32(pack.v[i]);
        return sums;
    }
    static __device__ __forceinline__ Pack<T> round(const Sums& sums) {
        Pack<T> pack;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) pack.v[i] = from_f32<T>(sums.v[i]);
        return pack;
    }
};

// out = product (+ bias) (+ residual); or pre_gelu = product + bias, out = gelu(pre_gelu). What is null is left out.
template <class T>
struct ForwardSink : SinkOf<T> {
    T* out;
    T* pre_gelu;
    const T* bias;
    const T* residual;

    __device__ __forceinline__ ForwardSink(T* out, T* pre_gelu, const T* bias, const T* residual)
        : out(out), pre_gelu(pre_gelu), bias(bias), residual(residual) {}

    __device__ __forceinline__ void finish(typename SinkOf<T>::Sums sums, size_t index, int column) const {
        if (bias != nullptr) sums.add(this->load(bias + column));
        if (residual != nullptr) sums.add(this->load(residual + index));
        if (pre_gelu != nullptr) {
            // GELU of the number that is kept, so that recomputing it from there gives the same bits.
            const Pack<T> kept = this->round(sums);
            store128(pre_gelu + index, kept);
#pragma unroll
            for (int i = 0; i < this->WIDTH; i++) sums.v[i] = gelu(to_f32(kept.v[i]));
        }
        store128(out + index, this->round(sums));
    }
};

// dinp = product, or product * gelu'(through_gelu)
template <class T>
struct DgradSink : SinkOf<T> {
    T* dinp;
    const T* through_gelu;

    __device__ __forceinline__ DgradSink(T* dinp, const T* through_gelu) : dinp(dinp), through_gelu(through_gelu) {}

    __device__ __forceinline__ void finish(typename SinkOf<T>::Sums sums, size_t index, int) const {
        if (through_gelu != nullptr) {
            const auto x = this->load(through_gelu + index);
#pragma unroll
            for (int i = 0; i < this->WIDTH; i++) sums.v[i] *= gelu_grad(x.v[i]);
        }
        store128(dinp + index, this->round(sums));
    }
};

// dweight = product or dweight += product; dbias += row sums of dout^T, if not null.
template <class T>
struct WgradSink : SinkOf<T> {
    T* dweight;
    T* dbias;
    bool accumulate;

    __device__ __forceinline__ WgradSink(T* dweight, T* dbias, bool accumulate)
        : dweight(dweight), dbias(dbias), accumulate(accumulate) {}

    __device__ __forceinline__ void finish(typename SinkOf<T>::Sums sums, size_t index, int) const {
        if (accumulate) sums.add(this->load(dweight + index));
        store128(dweight + index, this->round(sums));
    }
    __device__ bool wants_row_sums() const { return dbias != nullptr; }
    __device__ __forceinline__ void finish_row_sum(int row, float sum) const {
        dbias[row] = from_f32<T>(to_f32(dbias[row]) + sum);
    }
};

// The three passes, for a tile.
template <class Tile, class T>
__device__ __forceinline__ void forward(unsigned char* shared, float* partials, const T* inp, const T* weight, int N, int C,
                                        int OC, const ForwardSink<T>& sink) {
    if constexpr (!Tile::EMPTY)
        multiply<Tile, Contiguous::InK, Contiguous::InK>(shared, inp, C, weight, C, C, Partials{partials, N, OC}, sink);
}
template <class Tile, class T>
__device__ __forceinline__ void dgrad(unsigned char* shared, float* partials, const T* dout, const T* weight, int N, int C,
                                      int OC, const DgradSink<T>& sink) {
    if constexpr (!Tile::EMPTY)
        multiply<Tile, Contiguous::InK, Contiguous::InMN>(shared, dout, OC, weight, C, OC, Partials{partials, N, C}, sink);
}
template <class Tile, class T>
__device__ __forceinline__ void wgrad(unsigned char* shared, float* partials, const T* dout, const T* inp, int N, int C, int OC,
                                      const WgradSink<T>& sink) {
    if constexpr (!Tile::EMPTY)
        multiply<Tile, Contiguous::InMN, Contiguous::InMN>(shared, dout, OC, inp, C, N, Partials{partials, OC, C}, sink);
}
}  // namespace matmul
