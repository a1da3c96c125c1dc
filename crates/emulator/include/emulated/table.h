// The table of a translation unit's kernels, which library.rs reads. The unit is a generated file
// that includes this header, then the kernels.
#pragma once
#include "hopper.h"
#include "ptx.h"

namespace emulated {
struct Parameter {
    const char* type;
    uint64_t bytes;
};
struct Kernel {
    const char* name;
    void (*run)(void* const* arguments);
    const Parameter* parameters;
    uint32_t parameter_count;
    // 0 without __launch_bounds__
    uint32_t max_threads;
    // Blocks per cluster, 1 without CLUSTER.
    uint32_t cluster;
};

// The name of a parameter's type, without the const of its target; the compiler's name for structs.
template <class T>
struct TypeName {
    static constexpr const char* text() { return __PRETTY_FUNCTION__; }
};
#define EMULATED_TYPE(T)                                     \
    template <>                                              \
    struct TypeName<T> {                                     \
        static constexpr const char* text() { return #T; }   \
    };                                                       \
    template <>                                              \
    struct TypeName<T*> {                                    \
        static constexpr const char* text() { return #T "*"; } \
    };                                                       \
    template <>                                              \
    struct TypeName<const T*> : TypeName<T*> {};
EMULATED_TYPE(bf16)
EMULATED_TYPE(f16)
EMULATED_TYPE(float)
EMULATED_TYPE(int)
EMULATED_TYPE(unsigned)
EMULATED_TYPE(unsigned long long)
EMULATED_TYPE(unsigned char)
EMULATED_TYPE(TensorMap)

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
    using type = Indices<I...>;
};

namespace {
template <auto F>
struct Entry;
template <class... A, void (*F)(A...)>
struct Entry<F> {
    static constexpr Parameter parameters[sizeof...(A) + 1] = {{TypeName<A>::text(), sizeof(A)}..., {nullptr, 0}};
    template <int... I>
    static void call(void* const* arguments, Indices<I...>) {
        F(*(A*)arguments[I]...);
    }
    static void run(void* const* arguments) { call(arguments, typename MakeIndices<sizeof...(A)>::type{}); }
    static constexpr Kernel kernel(const char* name, uint32_t max_threads, uint32_t cluster) {
        return {name, run, parameters, sizeof...(A), max_threads, cluster};
    }
};
}  // namespace
}  // namespace emulated
