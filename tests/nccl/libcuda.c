// A stand-in for the part of NVIDIA's libcuda that a communicator calls. It has no memory and does
// no work: like the stand-in for libnccl, it appends its calls to the file STUB_LOG. A thread has a
// context once it has set one, which must be the primary one of the only GPU.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { OK = 0, INVALID = 1, INVALID_CONTEXT = 201, NOT_READY = 600 };
typedef int result;

static _Thread_local void* current;
static int streams, events;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// Appends a line to the log, for both stand-ins.
void stub_note(const char* format, ...) {
    va_list values;
    va_start(values, format);
    pthread_mutex_lock(&lock);
    FILE* log = fopen(getenv("STUB_LOG"), "a");
    vfprintf(log, format, values);
    fputc('\n', log);
    fclose(log);
    pthread_mutex_unlock(&lock);
    va_end(values);
}
void* stub_context(void) { return current; }
// While this is set, queued work never ends.
int stub_stuck;

struct stream {
    int id;
};
// Never freed, so that a use after the end is detected.
struct event {
    int id, timed, recorded, stuck, queries, gone;
};
static result use(struct event* event) {
    if (event->gone) stub_note("event %d is used after its end", event->id);
    return event->gone ? INVALID : OK;
}

static char primary;

result cuInit(unsigned flags) { return flags == 0 ? OK : INVALID; }
result cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? OK : INVALID;
}
result cuDeviceGetAttribute(int* value, int attribute, int device) {
    (void)attribute, (void)device;
    *value = 1;
    return OK;
}
result cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = &primary;
    return device == 0 ? OK : INVALID;
}
result cuDevicePrimaryCtxRelease_v2(int device) { return device == 0 ? OK : INVALID; }
result cuCtxGetDevice(int* device) {
    *device = 0;
    return current ? OK : INVALID_CONTEXT;
}
result cuCtxSynchronize(void) { return current ? OK : INVALID_CONTEXT; }
result cuCtxGetCurrent(void** context) {
    *context = current;
    return OK;
}
result cuCtxSetCurrent(void* context) {
    current = context;
    return OK;
}
result cuStreamCreate(struct stream** stream, unsigned flags) {
    if (!current) return INVALID_CONTEXT;
    *stream = calloc(1, sizeof **stream);
    (*stream)->id = __atomic_add_fetch(&streams, 1, __ATOMIC_SEQ_CST);
    return flags == 1 ? OK : INVALID; // not ordered against the default stream
}
result cuStreamDestroy_v2(struct stream* stream) {
    stub_note("destroy stream %d", stream->id);
    free(stream);
    return OK;
}
int stub_stream(const struct stream* stream) { return stream->id; }
result cuStreamWaitEvent(struct stream* stream, struct event* event, unsigned flags) {
    stub_note("stream %d waits for event %d", stream->id, event->id);
    return current && flags == 0 && event->recorded ? use(event) : INVALID;
}
result cuEventCreate(struct event** event, unsigned flags) {
    *event = calloc(1, sizeof **event);
    (*event)->id = __atomic_add_fetch(&events, 1, __ATOMIC_SEQ_CST);
    (*event)->timed = flags == 0;
    return current && (flags == 0 || flags == 2) ? OK : INVALID; // with timing or without
}
result cuEventDestroy_v2(struct event* event) {
    stub_note("destroy event %d", event->id);
    result ok = use(event);
    event->gone = 1;
    return ok;
}
result cuEventRecord(struct event* event, struct stream* stream) {
    stub_note("event %d in stream %d", event->id, stream->id);
    event->recorded = 1;
    event->stuck = stub_stuck;
    return current ? use(event) : INVALID_CONTEXT;
}
// Work is done at the third query.
result cuEventQuery(struct event* event) {
    if (!event->recorded || use(event) != OK) return INVALID;
    if (event->stuck || ++event->queries < 3) return NOT_READY;
    if (event->queries == 3) stub_note("event %d has passed", event->id);
    return OK;
}
result cuEventSynchronize(struct event* event) { return event->recorded ? use(event) : INVALID; }
// A millisecond passes between any two events.
result cuEventElapsedTime_v2(float* ms, struct event* start, struct event* end) {
    *ms = end->id - start->id;
    return start->timed && end->timed && end->recorded && use(start) == OK ? use(end) : INVALID;
}
result cuGetErrorName(int error, const char** name) {
    (void)error;
    *name = "an error";
    return OK;
}
result cuGetErrorString(int error, const char** text) {
    *text = error == INVALID_CONTEXT ? "invalid device context" : "an error";
    return OK;
}
