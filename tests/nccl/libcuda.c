// A stand-in for as much of NVIDIA's libcuda as a communicator calls. It has no memory and does no work: it writes down what it
// is asked, into the file STUB_LOG, together with the stand-in for libnccl. A thread has a context once it has set one.
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

// What both stand-ins do with each call.
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
// While it is set, no work that is queued ends.
int stub_stuck;

struct stream {
    int id;
};
// Never freed, so that the use of one that is gone is seen.
struct event {
    int id, recorded, stuck, queries, gone;
};
static result use(struct event* event) {
    if (event->gone) stub_note("event %d is used after its end", event->id);
    return event->gone ? INVALID : OK;
}

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
    return current && flags == 2 ? OK : INVALID; // without timing
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
// Work takes three looks.
result cuEventQuery(struct event* event) {
    if (!event->recorded || use(event) != OK) return INVALID;
    if (event->stuck || ++event->queries < 3) return NOT_READY;
    if (event->queries == 3) stub_note("event %d has passed", event->id);
    return OK;
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
