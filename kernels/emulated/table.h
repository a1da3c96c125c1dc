// The table of a translation unit's kernels, read by library.rs. Written for the file that build.rs makes, which includes
// the kernels after this.
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
    // 0: without __launch_bounds__
    uint32_t max_threads;
};

// What a type of parameter is called, without the const of what it points to; structs as the compiler writes them.
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
    static constexpr Kernel kernel(const char* name, uint32_t max_threads) {
        return {name, run, parameters, sizeof...(A), max_threads};
    }
};
}  // namespace
}  // namespace emulated
