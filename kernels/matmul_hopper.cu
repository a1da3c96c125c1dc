// Matmuls of 16-bit numbers by wgmma and TMA, on Hopper (sm_90a). See matmul_hopper.cuh for the
// design. For other architectures and for f32 the kernels are empty and never launched.
#include "common.cuh"
#include "matmul_hopper_consumer.cuh"

using matmul::Contiguous, matmul::Finish;
using matmul_hopper::Arrays, matmul_hopper::Problem;

#if defined(HAS_HOPPER_INSTRUCTIONS) && !defined(FLOATX_F32)
#define RUN(BM, SLABS, EXTRA, A_ORDER, B_ORDER, ARRAYS, VISIT)                                      \
    DYNAMIC_SHARED(shared);                                                                         \
    matmul_hopper::run<BM, SLABS, EXTRA, Contiguous::A_ORDER, Contiguous::B_ORDER>(                 \
        shared, &a, &b, problem, ARRAYS, [&](auto visit) { VISIT; })
#else
#define RUN(...)
#endif

template <bool BIAS, Finish FINISH>
using Epilogue = matmul::Epilogue<floatX, BIAS, FINISH>;

// Parameters of all kernels; `a` and `b` are the operands.
#define OPERANDS GRID_CONSTANT TensorMap a, GRID_CONSTANT TensorMap b
#define MAP GRID_CONSTANT TensorMap

// forward: out (N, OC) = inp (N, C) @ weight (OC, C)^T (+ bias, + residual, GELU)
// dgrad:   dinp (N, C) = dout (N, OC) @ weight (OC, C) (* gradient of GELU)
// Slabs: as many as an extra operand or a second output needs, or FEW.
#define FORWARD_AND_DGRAD(BM, BLOCKS, FEW)                                                                          \
    extern "C" __global__ void __launch_bounds__(384, 1) CLUSTER(BLOCKS) matmul_hopper_forward_##BM##x256(          \
        MAP out, OPERANDS, const floatX* bias, Problem problem) {                                                   \
        RUN(BM, FEW, false, InK, InK, (Arrays{&out, nullptr, nullptr, bias, nullptr}),                              \
            if (bias != nullptr) visit(Epilogue<true, Finish::Round>{});                                            \
            else visit(Epilogue<false, Finish::Round>{}));                                                          \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(384, 1) CLUSTER(BLOCKS) matmul_hopper_forward_gelu_##BM##x256(     \
        MAP out, MAP kept, int keeps_gradient, OPERANDS, const floatX* bias, Problem problem) {                     \
        RUN(BM, 4, false, InK, InK, (Arrays{&out, &kept, nullptr, bias, nullptr}),                                  \
            if (keeps_gradient) visit(Epilogue<true, Finish::GeluKeepingGradient>{});                               \
            else visit(Epilogue<true, Finish::GeluKeepingInput>{}));                                                \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(384, 1) CLUSTER(BLOCKS) matmul_hopper_forward_residual_##BM##x256( \
        MAP out, MAP residual, OPERANDS, const floatX* bias, Problem problem) {                                     \
        RUN(BM, 4, true, InK, InK, (Arrays{&out, nullptr, &residual, bias, nullptr}),                               \
            visit(Epilogue<true, Finish::AddExtra>{}));                                                             \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(384, 1) CLUSTER(BLOCKS) matmul_hopper_dgrad_##BM##x256(            \
        MAP dinp, OPERANDS, Problem problem) {                                                                      \
        RUN(BM, FEW, false, InK, InMN, (Arrays{&dinp, nullptr, nullptr, nullptr, nullptr}),                         \
            visit(Epilogue<false, Finish::Round>{}));                                                               \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(384, 1) CLUSTER(BLOCKS) matmul_hopper_dgrad_gelu_##BM##x256(       \
        MAP dinp, MAP gelu_gradient, OPERANDS, Problem problem) {                                                   \
        RUN(BM, 4, true, InK, InMN, (Arrays{&dinp, nullptr, &gelu_gradient, nullptr, nullptr}),                     \
            visit(Epilogue<false, Finish::TimesExtra>{}));                                                          \
    }

FORWARD_AND_DGRAD(128, 2, 2)
FORWARD_AND_DGRAD(64, 4, 4)

// dweight (OC, C) = or += dout (N, OC)^T @ inp (N, C); dbias (OC) += column sums of dout
extern "C" __global__ void __launch_bounds__(384, 1) CLUSTER(2) matmul_hopper_wgrad_128x256(
    MAP dweight, floatX* dbias, int accumulate, OPERANDS, Problem problem) {
    RUN(128, 2, true, InMN, InMN, (Arrays{&dweight, nullptr, accumulate ? &dweight : nullptr, nullptr, dbias}),
        if (accumulate) visit(Epilogue<false, Finish::AddExtra>{});
        else visit(Epilogue<false, Finish::Round>{}));
}
