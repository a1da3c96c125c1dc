// What the kernels and the emulated device's runtime (src/device/cuda/emulator/, in Rust) know of each other.
//
// A block of threads runs inside one region of memory, aligned to its size: the block's state, the stacks of its threads,
// its shared memory. So the stack pointer alone says which block and which thread is running; the constants and structs
// here are those of region.rs, block.rs and library.rs.
#pragma once
#include <stdint.h>
#include <string.h>

#define EMULATED_INLINE static inline __attribute__((always_inline))
// Last parameters of a function that wants to know where it was called.
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
// CUDA keeps the first KiB of shared memory for itself.
constexpr uintptr_t DYNAMIC_SHARED_OFFSET = 1 << 10;

struct Block {
    uint3 block_index;
    dim3 block_dim, grid_dim;
    const uint3* thread_index;
};

// An operation that the lanes of a warp do together; in the order of `Op` in collective.rs.
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
    MMA_BF16,
    MMA_F16,
    MMA_TF32,
    WGMMA_FENCE,
    WGMMA_COMMIT,
    WGMMA_WAIT,
    WGMMA_BF16,
    WGMMA_F16,
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
struct Mma {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};
}  // namespace emulated

extern "C" {
void warpsmith_emulated_collective(uint32_t op, uint32_t mask, void* lane, const char* file, int line);
// `threads` = 0: all of the block. The number of threads that came with a predicate that holds.
uint32_t warpsmith_emulated_barrier(uint32_t id, uint32_t threads, uint32_t predicate, const char* file, int line);
// The block's variable that `key` stands for.
void* warpsmith_emulated_shared(const void* key, uint64_t bytes, const char* name, const char* file, int line);
void warpsmith_emulated_cp_async(uint32_t dst, const void* src, uint32_t bytes, uint32_t src_bytes, const char* file,
                                 int line);
void warpsmith_emulated_fence();
void warpsmith_emulated_cp_async_commit();
void warpsmith_emulated_cp_async_wait(uint32_t groups_left);
[[noreturn]] void warpsmith_emulated_fail(const char* message, const void* address, const char* file, int line);
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
// Number of the running thread in its block.
EMULATED_INLINE unsigned thread() {
    return (unsigned)(((stack_pointer() & (REGION_BYTES - 1)) - STACKS_OFFSET) / STACK_BYTES);
}
EMULATED_INLINE unsigned lane() { return thread() % 32; }
EMULATED_INLINE unsigned block_threads() {
    const dim3& dim = block().block_dim;
    return dim.x * dim.y * dim.z;
}
}  // namespace emulated
