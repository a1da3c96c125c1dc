// The interface between kernels and the runtime (src/runtime/, in Rust).
//
// A block of threads runs inside one region of memory, aligned to its size, which holds the block's
// state, the stacks of its threads and its shared memory. So the stack pointer alone tells which
// block and which thread is running. region.rs, block.rs, collective.rs and tensor_core.rs have the
// same constants and structs.
#pragma once
#include <stdint.h>
#include <string.h>

#define EMULATED_INLINE static inline __attribute__((always_inline))
// The last parameters of a function that needs to know its call site.
#define EMULATED_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};

namespace emulated {
constexpr uintptr_t REGION_BYTES = 1 << 27;
constexpr uintptr_t STACKS_OFFSET = 1 << 20;
constexpr uintptr_t STACK_BYTES = 1 << 16;
constexpr uintptr_t ARENA_OFFSET = 96 << 20;
constexpr uintptr_t ARENA_BYTES = 256 << 10;
// CUDA reserves the first KiB of shared memory.
constexpr uintptr_t DYNAMIC_SHARED_OFFSET = 1 << 10;

struct Block {
    uint3 block_index;
    dim3 block_dim, grid_dim;
    const uint3* thread_index;
};

// An operation that the lanes of a warp carry out together; in the order of `Op` in collective.rs.
enum Op : uint32_t {
    SYNCWARP,
    SHFL,
    SHFL_UP,
    SHFL_DOWN,
    SHFL_XOR,
    BALLOT,
    REDUCE_ADD,
    REDUCE_MIN,
    REDUCE_MAX,
    REDUCE_MIN_SIGNED,
    REDUCE_MAX_SIGNED,
    REDUCE_AND,
    REDUCE_OR,
    REDUCE_XOR,
    LDMATRIX,
    LDMATRIX_TRANS,
    STMATRIX,
    MMA_BF16,
    MMA_F16,
    MMA_TF32,
    WGMMA_FENCE,
    WGMMA_COMMIT,
    WGMMA_WAIT,
    WGMMA_BF16,
    WGMMA_F16,
    BARRIER_SYNC,
    BARRIER_ARRIVE,
};
struct Shuffle {
    uint64_t value, result;
    uint32_t source;
};
struct Vote {
    uint32_t value, result;
};
struct Ldmatrix {
    uint32_t* result;
    uint32_t row;
};
struct Stmatrix {
    const uint32_t* registers;
    uint32_t row;
};
struct Mma {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};
struct BarrierArrival {
    uint32_t id, threads;
    // The result: how often the barrier had completed before.
    uint32_t used;
};
}  // namespace emulated

extern "C" {
void cuda_emulator_collective(uint32_t op, uint32_t mask, void* lane, const char* file, int line);
// Waits for all threads of the block. Returns how many predicates were true.
uint32_t cuda_emulator_barrier(uint32_t predicate, const char* file, int line);
// Waits for the end of a use of a named barrier, at which the warp has arrived.
void cuda_emulator_barrier_wait(uint32_t id, uint32_t used);
// The block's shared variable that `key` identifies.
void* cuda_emulator_shared(const void* key, uint64_t bytes, const char* name, const char* file, int line);
void cuda_emulator_cp_async(uint32_t dst, const void* src, uint32_t bytes, uint32_t src_bytes, const char* file,
                                 int line);
void cuda_emulator_fence();
void cuda_emulator_wait_for_dependencies();
void cuda_emulator_flag_raise(unsigned* flag, const char* file, int line);
void cuda_emulator_flag_wait(unsigned* flag, const char* file, int line);
void cuda_emulator_turn_pass(unsigned* turn, unsigned number, const char* file, int line);
void cuda_emulator_turn_wait(const unsigned* turn, unsigned number, const char* file, int line);
void cuda_emulator_cp_async_commit();
void cuda_emulator_cp_async_wait(uint32_t groups_left);
[[noreturn]] void cuda_emulator_fail(const char* message, const void* address, const char* file, int line);
}

namespace emulated {
EMULATED_INLINE uintptr_t stack_pointer() {
    uintptr_t sp;
#if defined(__x86_64__)
    asm("mov %%rsp, %0" : "=r"(sp));
#else
    asm("mov %0, sp" : "=r"(sp));
#endif
    return sp;
}
EMULATED_INLINE uintptr_t region() { return stack_pointer() & ~(REGION_BYTES - 1); }
EMULATED_INLINE const Block& block() { return *(const Block*)region(); }
// The number of the running thread in its block.
EMULATED_INLINE unsigned thread() {
    return (unsigned)(((stack_pointer() & (REGION_BYTES - 1)) - STACKS_OFFSET) / STACK_BYTES);
}
EMULATED_INLINE unsigned lane() { return thread() % 32; }
EMULATED_INLINE unsigned block_threads() {
    const dim3& dim = block().block_dim;
    return dim.x * dim.y * dim.z;
}
}  // namespace emulated
