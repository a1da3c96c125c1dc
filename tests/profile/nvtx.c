// A tool that NVTX loads, as Nsight Systems has one: it subscribes to ranges, and writes what it is
// told to the file that NVTX_LOG names. The layouts are those of NVTX 3
// (github.com/NVIDIA/NVTX, nvtxTypes.h). NVTX_FAULT=refuse lets it fail to start.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef void (*function)(void);
typedef function** function_table;
struct callbacks {
    size_t struct_size;
    int (*get_module_function_table)(int module, function_table* table, unsigned* size);
};
struct version_info {
    size_t struct_size;
    uint32_t version, reserved;
    void (*set_injection_version)(uint32_t version);
};
enum { CALLBACKS = 1, VERSION_INFO = 3 };
enum { CORE = 1, CUDA, OPENCL, CUDART, CORE2, SYNC, MODULES };
enum { RANGE_PUSH_A = 9, RANGE_POP = 11, NAME_OS_THREAD_A = 14 };

static FILE* out;
static int depth;

static int push(const char* name) {
    fprintf(out, "push %s\n", name);
    return depth++;
}
static int pop(void) {
    fprintf(out, "pop\n");
    return --depth;
}
static void name_thread(uint32_t id, const char* name) { fprintf(out, "thread %u %s\n", id, name); }
static void never(void) { abort(); }

int InitializeInjectionNvtx2(const void* (*get_export_table)(uint32_t id)) {
    static const unsigned sizes[MODULES] = {0, 16, 9, 15, 7, 16, 7};
    const char* log = getenv("NVTX_LOG");
    const struct callbacks* callbacks = get_export_table(CALLBACKS);
    const struct version_info* info = get_export_table(VERSION_INFO);
    function_table table;
    unsigned size;
    if (getenv("NVTX_FAULT") || !log || !(out = fopen(log, "w"))) return 0;
    if (get_export_table(2) || !callbacks || callbacks->struct_size < sizeof *callbacks) return 0;
    if (!info || info->struct_size < sizeof *info || info->version != 3) return 0;
    info->set_injection_version(3);
    if (callbacks->get_module_function_table(0, &table, &size)) return 0;
    if (callbacks->get_module_function_table(MODULES, &table, &size)) return 0;
    // As a tool that subscribes to everything; of these, only ranges and threads may be called.
    for (int module = CORE; module < MODULES; module++) {
        if (!callbacks->get_module_function_table(module, &table, &size) || size != sizes[module]) return 0;
        for (unsigned i = 1; i < size; i++) *table[i] = never;
    }
    callbacks->get_module_function_table(CORE, &table, &size);
    *table[RANGE_PUSH_A] = (function)push;
    *table[RANGE_POP] = (function)pop;
    *table[NAME_OS_THREAD_A] = (function)name_thread;
    return 1;
}
