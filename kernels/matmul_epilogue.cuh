// Epilogues: the operations on the sums of a matmul before they are stored. Each is written once,
// for a piece of a row: 128 bits of elements, in whatever order the kernel holds them. The matmul
// kernels and those that add up the splits of K share them.
//
// A sink is the epilogue that a kernel's arguments request, by pointers that may be null. It names
// what must be loaded for a piece (`bias`, `extra`), so that kernels can load it ahead of time, and
// `visit` picks the code for it once per tile: a branch in each piece would make every load wait
// for the previous one.
#pragma once
#include "gelu.cuh"
#include "matmul.cuh"

namespace matmul {

enum class Finish { Round, AddExtra, TimesExtra, GeluKeepingInput, GeluKeepingGradient };

// out = product (+ bias), (+ extra) or (* extra); or out = gelu(h), kept = h or gelu'(h), where h
// is product + bias, rounded.
template <class T, bool BIAS_, Finish FINISH>
struct Epilogue {
    static constexpr int WIDTH = Pack<T>::size;
    static constexpr bool BIAS = BIAS_;
    static constexpr bool EXTRA = FINISH == Finish::AddExtra || FINISH == Finish::TimesExtra;
    static constexpr bool KEEPS = FINISH == Finish::GeluKeepingInput || FINISH == Finish::GeluKeepingGradient;

    T* out;
    T* kept;

    // The same for indices that count from `start`.
    __device__ __forceinline__ Epilogue from(size_t start) const { return {out + start, KEEPS ? kept + start : nullptr}; }

    // `kept` is written only if it is one of the outputs.
    static __device__ __forceinline__ Pack<T> finish(const float (&sums)[WIDTH], const Pack<T>& bias, const Pack<T>& extra,
                                                     Pack<T>& kept) {
        float v[WIDTH], b[WIDTH] = {}, x[WIDTH] = {};
        if constexpr (BIAS) widen(b, bias);
        if constexpr (EXTRA) widen(x, extra);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            v[i] = sums[i];
            if constexpr (BIAS) v[i] += b[i];
            if constexpr (FINISH == Finish::AddExtra) v[i] += x[i];
            if constexpr (FINISH == Finish::TimesExtra) v[i] *= x[i];
        }
        if constexpr (KEEPS) {
            // Applies GELU to the rounded number, so that recomputing it gives the same bits.
            kept = round_pack<T>(v);
            widen(v, kept);
            gelu_in_place(v, kept);
        }
        return round_pack<T>(v);
    }

    // v = gelu(v); kept = gelu'(v) where that is kept.
    static __device__ __forceinline__ void gelu_in_place(float (&v)[WIDTH], Pack<T>& kept) {
        float gradient[WIDTH];
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            if constexpr (FINISH == Finish::GeluKeepingGradient) {
                GeluAndGradient both = gelu_and_gradient(v[i]);
                v[i] = both.value;
                gradient[i] = both.gradient;
            } else {
                v[i] = gelu(v[i]);
            }
        }
        if constexpr (FINISH == Finish::GeluKeepingGradient) kept = round_pack<T>(gradient);
    }

    __device__ __forceinline__ void store(size_t index, const Pack<T>& finished, const Pack<T>& kept_piece) const {
        if constexpr (KEEPS) store128(kept + index, kept_piece);
        store128(out + index, finished);
    }
};

template <class T>
struct SinkOf {
    using Element = T;
    static constexpr int WIDTH = Pack<T>::size;

    const T* bias = nullptr;   // (N), one for each column
    const T* extra = nullptr;  // (M, N)

    __device__ bool wants_row_sums() const { return false; }
    __device__ void finish_row_sum(int, float) const {}
};

// out = product (+ bias), (+ residual); or out = gelu(h), and pre_gelu = h or gelu_gradient =
// gelu'(h), with h = product + bias. Null operands are omitted; a residual or a GELU requires a
// bias, and they exclude each other.
template <class T>
struct ForwardSink : SinkOf<T> {
    T* out;
    T* pre_gelu;
    T* gelu_gradient;

    __device__ __forceinline__ ForwardSink(T* out, T* pre_gelu, T* gelu_gradient, const T* bias, const T* residual)
        : SinkOf<T>{bias, residual}, out(out), pre_gelu(pre_gelu), gelu_gradient(gelu_gradient) {}

    template <class Visit>
    __device__ __forceinline__ void visit(Visit visit) const {
        if (pre_gelu != nullptr) visit(Epilogue<T, true, Finish::GeluKeepingInput>{out, pre_gelu});
        else if (gelu_gradient != nullptr) visit(Epilogue<T, true, Finish::GeluKeepingGradient>{out, gelu_gradient});
        else if (this->extra != nullptr) visit(Epilogue<T, true, Finish::AddExtra>{out, nullptr});
        else if (this->bias != nullptr) visit(Epilogue<T, true, Finish::Round>{out, nullptr});
        else visit(Epilogue<T, false, Finish::Round>{out, nullptr});
    }
};

// dinp = product (* gelu_gradient, if not null)
template <class T>
struct DgradSink : SinkOf<T> {
    T* dinp;

    __device__ __forceinline__ DgradSink(T* dinp, const T* gelu_gradient) : SinkOf<T>{nullptr, gelu_gradient}, dinp(dinp) {}

    template <class Visit>
    __device__ __forceinline__ void visit(Visit visit) const {
        if (this->extra != nullptr) visit(Epilogue<T, false, Finish::TimesExtra>{dinp, nullptr});
        else visit(Epilogue<T, false, Finish::Round>{dinp, nullptr});
    }
};

// dweight = product or dweight += product; dbias += row sums of dout^T, if not null.
template <class T>
struct WgradSink : SinkOf<T> {
    T* dweight;
    T* dbias;

    __device__ __forceinline__ WgradSink(T* dweight, T* dbias, bool accumulate)
        : SinkOf<T>{nullptr, accumulate ? dweight : nullptr}, dweight(dweight), dbias(dbias) {}

    template <class Visit>
    __device__ __forceinline__ void visit(Visit visit) const {
        if (this->extra != nullptr) visit(Epilogue<T, false, Finish::AddExtra>{dweight, nullptr});
        else visit(Epilogue<T, false, Finish::Round>{dweight, nullptr});
    }
    __device__ bool wants_row_sums() const { return dbias != nullptr; }
    __device__ __forceinline__ void finish_row_sum(int row, float sum) const {
        dbias[row] = from_f32<T>(to_f32(dbias[row]) + sum);
    }
};

// The three passes for a tile.
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
