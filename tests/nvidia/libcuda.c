// A stand-in for NVIDIA's libcuda, so that the driver for GPUs can be run without a GPU. "Device"
// memory is memory of the process. Copies happen as late as in the real library: when something
// waits for them. Kernels print how they were launched; those of kernels.h compute instead, as late
// as copies.
//
// STUB_TELL=1 prints each context and module that is made. STUB_VERSION, STUB_DEVICES,
// STUB_CAPABILITY, STUB_INIT (the result of cuInit), STUB_BINARY=0 (no code for this GPU) and
// STUB_PARAMS describe the machine. STUB_FAULT="KERNEL FAULT" breaks a kernel: "early" (it returns
// early), "tile" (its last numbers are wrong), "refused" (at its launch), "trap" (it fails, and so
// does everything after it).
#include "kernels.h"
#include <stdio.h>
#include <stdlib.h>

enum {
    OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201, NO_BINARY = 209,
    NOT_FOUND = 500, OUT_OF_RESOURCES = 701, LAUNCH_FAILED = 719,
};
typedef int result;

// The context that is current in a thread. Without one, calls that need a GPU fail.
static __thread void* current;

static int setting(const char* name, int otherwise) {
    const char* value = getenv(name);
    return value ? atoi(value) : otherwise;
}

// --- the one queue of work

struct work {
    void* dst;
    const void* src; // NULL: set to the value
    size_t bytes;
    int value;
    const char* kernel; // NULL: a copy
    unsigned blocks;
    uint64_t args[11];
};
enum { MOST = 1 << 16 };
static struct work queue[MOST];
static size_t queued, done;
static result broken = OK;

// The work in all graphs. While `capturing`, work goes there, and waiting fails.
static struct work captured[MOST];
static size_t captured_count;
static int capturing;
struct graph {
    size_t begin, end;
};
static struct graph graph_now;
enum { UNSUPPORTED_IN_CAPTURE = 900 };

static result enqueue(struct work work) {
    if (!current) return INVALID_CONTEXT;
    if (queued == MOST || captured_count == MOST) return INVALID;
    if (capturing) captured[captured_count++] = work;
    else queue[queued++] = work;
    return broken;
}
static result copy(void* dst, const void* src, size_t bytes) {
    return enqueue((struct work){.dst = dst, .src = src, .bytes = bytes});
}
static int has_fault(const char* kernel, const char* fault) {
    const char* set = getenv("STUB_FAULT");
    size_t length = strlen(kernel);
    return set && strncmp(set, kernel, length) == 0 && set[length] == ' ' && strcmp(set + length + 1, fault) == 0;
}
static void run(const struct work* w) {
    if (w->kernel && has_fault(w->kernel, "early")) return;
    if (w->kernel) compute(w->kernel, w->args, w->blocks);
    if (w->kernel && has_fault(w->kernel, "tile")) {
        // N * OC of a forward pass
        float* last = (float*)w->args[0] + w->args[8] * w->args[10];
        for (int i = 1; i <= 40; i++) last[-i] = -last[-i];
    }
    if (w->kernel && has_fault(w->kernel, "trap")) broken = LAUNCH_FAILED;
    if (!w->kernel && w->src) memcpy(w->dst, w->src, w->bytes);
    if (!w->kernel && !w->src) memset(w->dst, w->value, w->bytes);
}
static result run_until(size_t end) {
    for (; done < end; done++) run(&queue[done]);
    return broken;
}

struct event {
    size_t position;
};

result cuStreamCreate(void** stream, unsigned flags) {
    if (!current) return INVALID_CONTEXT;
    *stream = malloc(1);
    return flags == 1 ? OK : INVALID;
}
result cuStreamDestroy_v2(void* stream) {
    free(stream);
    return OK;
}
result cuStreamSynchronize(void* stream) {
    (void)stream;
    return capturing ? UNSUPPORTED_IN_CAPTURE : run_until(queued);
}
result cuStreamBeginCapture_v2(void* stream, int mode) {
    if (!current) return INVALID_CONTEXT;
    if (!stream || capturing || mode != 1) return INVALID; // of this thread
    capturing = 1;
    graph_now.begin = captured_count;
    return OK;
}
result cuStreamEndCapture(void* stream, struct graph** graph) {
    if (!stream || !capturing) return INVALID;
    capturing = 0;
    graph_now.end = captured_count;
    *graph = malloc(sizeof **graph);
    **graph = graph_now;
    return OK;
}
result cuGraphInstantiateWithFlags(struct graph** exec, struct graph* graph, unsigned long long flags) {
    if (flags) return INVALID;
    *exec = malloc(sizeof **exec);
    **exec = *graph;
    return OK;
}
result cuGraphLaunch(struct graph* exec, void* stream) {
    if (!stream || capturing) return INVALID;
    for (size_t i = exec->begin; i < exec->end; i++) enqueue(captured[i]);
    return broken;
}
result cuGraphDestroy(struct graph* graph) {
    free(graph);
    return current ? OK : INVALID_CONTEXT;
}
result cuGraphExecDestroy(struct graph* exec) {
    free(exec);
    return current ? OK : INVALID_CONTEXT;
}
result cuEventCreate(void** event, unsigned flags) {
    (void)flags;
    if (!current) return INVALID_CONTEXT;
    *event = calloc(1, sizeof(struct event));
    return OK;
}
result cuEventDestroy_v2(void* event) {
    free(event);
    return OK;
}
result cuEventRecord(struct event* event, void* stream) {
    (void)stream;
    event->position = queued;
    return OK;
}
result cuEventSynchronize(struct event* event) {
    return capturing ? UNSUPPORTED_IN_CAPTURE : run_until(event->position);
}
result cuEventElapsedTime_v2(float* ms, struct event* start, struct event* end) {
    if (done < end->position) return INVALID;
    *ms = 0;
    for (size_t i = start->position; i < end->position; i++) *ms += queue[i].kernel ? kernel_ms(queue[i].kernel) : 1;
    return OK;
}

// --- the machine

result cuInit(unsigned flags) {
    result set = setting("STUB_INIT", OK);
    return set ? set : flags == 0 && setting("STUB_DEVICES", 1) > 0 ? OK : NO_DEVICE;
}
result cuDriverGetVersion(int* version) {
    *version = setting("STUB_VERSION", 13000);
    return OK;
}
result cuDeviceGetCount(int* count) {
    *count = setting("STUB_DEVICES", 1);
    return OK;
}
result cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return OK;
}
result cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = queue;
    if (setting("STUB_TELL", 0)) printf("context of GPU %d\n", device);
    return OK;
}
result cuDevicePrimaryCtxRelease_v2(int device) { return device == 0 ? OK : INVALID; }
result cuCtxSetCurrent(void* context) {
    current = context;
    return context == queue ? OK : INVALID;
}
result cuCtxGetCurrent(void** context) {
    *context = current;
    return OK;
}
result cuDeviceTotalMem_v2(size_t* bytes, int device) {
    (void)device;
    *bytes = (size_t)1 << 30;
    return OK;
}
result cuDeviceGetAttribute(int* value, int attribute, int device) {
    (void)device;
    switch (attribute) {
        case 16: *value = 132; return OK; // multiprocessors
        case 75: *value = setting("STUB_CAPABILITY", 9); return OK;
        case 76: *value = 0; return OK;
        case 97: *value = 232448; return OK; // shared memory of a block
        case 115: *value = 1; return OK; // memory pools
        default: return INVALID;
    }
}
result cuDeviceGetName(char* name, int bytes, int device) {
    (void)device;
    snprintf(name, bytes, "Stand-in");
    return OK;
}
result cuDeviceGetPCIBusId(char* id, int bytes, int device) {
    (void)device;
    snprintf(id, bytes, "0000:65:00.0");
    return OK;
}
result cuGetErrorName(int error, const char** name) {
    (void)error;
    *name = "an error";
    return OK;
}
result cuGetErrorString(int error, const char** text) {
    *text = error == NOT_FOUND ? "named symbol not found" : "an error";
    return OK;
}

// --- memory

result cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    if (!current) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID;
    if (bytes > (size_t)1 << 30) return OUT_OF_MEMORY;
    *address = (uint64_t)malloc(bytes);
    memset((void*)*address, 0xff, bytes);
    return OK;
}
result cuMemFree_v2(uint64_t address) {
    if (!current) return INVALID_CONTEXT;
    free((void*)address);
    return OK;
}
result cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    *free_bytes = (size_t)1 << 29;
    *total = (size_t)1 << 30;
    return OK;
}
result cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    (void)flags;
    if (!current) return INVALID_CONTEXT;
    *address = malloc(bytes);
    return OK;
}
result cuMemFreeHost(void* address) {
    free(address);
    return OK;
}
result cuMemsetD8Async(uint64_t dst, unsigned char value, size_t bytes, void* stream) {
    (void)stream;
    return enqueue((struct work){.dst = (void*)dst, .bytes = bytes, .value = value});
}
result cuMemcpyHtoDAsync_v2(uint64_t dst, const void* src, size_t bytes, void* stream) {
    (void)stream;
    return copy((void*)dst, src, bytes);
}
result cuMemcpyDtoDAsync_v2(uint64_t dst, uint64_t src, size_t bytes, void* stream) {
    (void)stream;
    return bytes ? copy((void*)dst, (const void*)src, bytes) : INVALID;
}
result cuMemcpyDtoHAsync_v2(void* dst, uint64_t src, size_t bytes, void* stream) {
    (void)stream;
    return copy(dst, (const void*)src, bytes);
}

// --- a profiler's switch

result cuProfilerStart(void) {
    if (!current) return INVALID_CONTEXT;
    printf("profiler started\n");
    fflush(stdout);
    return OK;
}
result cuProfilerStop(void) {
    if (!current) return INVALID_CONTEXT;
    printf("profiler stopped\n");
    fflush(stdout);
    return OK;
}

// --- kernels

result cuModuleLoadData(void** module, const void* image) {
    if (!current) return INVALID_CONTEXT;
    if (!setting("STUB_BINARY", 1) || (uintptr_t)image % 64 || *(const uint32_t*)image != 0xba55ed50) return NO_BINARY; // how a fatbin begins
    *module = (void*)image;
    if (setting("STUB_TELL", 0)) printf("module loaded\n");
    return OK;
}
result cuModuleUnload(void* module) { return module ? OK : INVALID; }
result cuModuleGetFunction(void** function, void* module, const char* name) {
    (void)module;
    if (strcmp(name, "absent") == 0) return NOT_FOUND;
    *function = strdup(name);
    return OK;
}
result cuFuncSetAttribute(void* function, int attribute, int value) {
    if (getenv("STUB_PARAMS")) printf("%s attribute %d = %d\n", (char*)function, attribute, value);
    return OK;
}
// STUB_PARAMS: sizes, a digit each
static size_t param_bytes(const char* kernel, size_t i) {
    const char* set = getenv("STUB_PARAMS");
    const char* sizes = set ? set : kernel_params(kernel);
    return sizes && i < strlen(sizes) ? (size_t)(sizes[i] - '0') : 0;
}
result cuFuncGetParamInfo(void* function, size_t i, size_t* offset, size_t* bytes) {
    *offset = 8 * i;
    *bytes = param_bytes(function, i);
    return *bytes ? OK : INVALID;
}
struct attribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int allowed;
    } value;
};
struct config {
    unsigned gx, gy, gz, bx, by, bz, shared_bytes;
    void* stream;
    struct attribute* attributes;
    unsigned count;
};
result cuLaunchKernelEx(const struct config* config, void* function, void** params, void** extra) {
    struct work work = {.kernel = function, .blocks = config->gx};
    if (!current) return INVALID_CONTEXT;
    if (!config->stream || extra) return INVALID;
    // From Hopper on, and only there, kernels may start while the one before ends.
    if (config->count > (unsigned)(setting("STUB_CAPABILITY", 9) >= 9)) return INVALID;
    for (unsigned i = 0; i < config->count; i++)
        if (config->attributes[i].id != 6 || config->attributes[i].value.allowed != 1) return INVALID;
    if (has_fault(function, "refused")) return OUT_OF_RESOURCES;
    int computes = !getenv("STUB_PARAMS") && kernel_params(function);
    if (!computes) printf("%s <<<%u %u %u, %u %u %u, %u>>>%s", (char*)function, config->gx, config->gy, config->gz,
                          config->bx, config->by, config->bz, config->shared_bytes, config->count ? " early" : "");
    for (size_t i = 0; param_bytes(function, i); i++) {
        uint64_t value = 0;
        memcpy(&value, params[i], param_bytes(function, i));
        if (computes)
            work.args[i] = value;
        else
            printf(" %llu", (unsigned long long)value);
    }
    if (computes) return enqueue(work);
    printf("\n");
    fflush(stdout);
    return OK;
}
