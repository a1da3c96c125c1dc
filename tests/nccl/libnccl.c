// A stand-in for NVIDIA's libnccl that logs its calls and checks that they are allowed. STUB_NCCL
// selects a failure: "init", "init-hangs", "queue", "async", "stuck" (queued work never ends),
// "second-stuck" (only the first group's work ends), "group-hangs" (until aborted), "abort-hangs"
// (queued work and the abort never end).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, CUDA_ERROR = 1, INVALID_USAGE = 5, REMOTE_ERROR = 6 };
typedef int status;
struct comm {
    int rank, world_size, gone;
};
struct id {
    char bytes[128];
};

void stub_note(const char* format, ...);
void* stub_context(void);
struct stream;
int stub_stream(const struct stream* stream);
extern int stub_stuck;

static const char* last_error = "";
static _Thread_local int depth;
static volatile int aborted;

static int is(const char* name) {
    const char* set = getenv("STUB_NCCL");
    return set && strcmp(set, name) == 0;
}

status ncclGetVersion(int* version) {
    const char* set = getenv("STUB_NCCL_VERSION");
    *version = set ? atoi(set) : 22707;
    return OK;
}
status ncclGetUniqueId(struct id* id) {
    for (int i = 0; i < 128; i++) id->bytes[i] = (char)(i * 3 + 1);
    stub_note("id");
    return OK;
}
status ncclCommInitRank(struct comm** comm, int world_size, struct id id, int rank) {
    for (int i = 0; i < 128; i++)
        if (id.bytes[i] != (char)(i * 3 + 1)) return INVALID_USAGE;
    if (is("init-hangs")) {
        stub_note("rank %d hangs", rank);
        pause();
    }
    if (is("init") || !stub_context()) {
        last_error = "Cuda failure 2\n'out of memory'";
        return CUDA_ERROR;
    }
    if (is("stuck") || is("async") || is("abort-hangs")) stub_stuck = 1;
    *comm = malloc(sizeof **comm);
    **comm = (struct comm){rank, world_size, 0};
    stub_note("%d: joins %d", rank, world_size);
    return OK;
}
// Handles are never freed, so that a use after the end is detected.
static status use(struct comm* comm) {
    if (comm->gone) stub_note("%d: used after its end", comm->rank);
    return comm->gone ? INVALID_USAGE : OK;
}
static status end(struct comm* comm, const char* how) {
    stub_note("%d: %s", comm->rank, how);
    status ok = use(comm);
    comm->gone = 1;
    return ok;
}
status ncclCommFinalize(struct comm* comm) {
    stub_note("%d: finalize", comm->rank);
    return use(comm);
}
status ncclCommDestroy(struct comm* comm) { return end(comm, "destroy"); }
status ncclCommAbort(struct comm* comm) {
    if (is("abort-hangs")) pause();
    aborted = 1;
    return end(comm, "abort");
}
status ncclCommGetAsyncError(struct comm* comm, status* error) {
    static int asked;
    *error = OK;
    if (is("async") && ++asked > 10) {
        last_error = "NET/IB : Got completion with error 12";
        *error = REMOTE_ERROR;
    }
    return use(comm);
}

// --- collectives, all of which must be in a group

static status queue(struct comm* comm, const char* name, const void* send, void* receive, size_t count, int type, int extra,
                    const struct stream* stream) {
    stub_note("%d: %s %zx -> %zx, %zu of type %d, %d, in stream %d", comm->rank, name, (size_t)send, (size_t)receive, count,
              type, extra, stub_stream(stream));
    if (is("queue")) {
        last_error = "Broadcast : invalid count";
        return INVALID_USAGE;
    }
    return depth == 1 ? use(comm) : INVALID_USAGE;
}
status ncclAllReduce(const void* send, void* receive, size_t count, int type, int op, struct comm* comm,
                     struct stream* stream) {
    return queue(comm, "all_reduce", send, receive, count, type, op, stream);
}
status ncclReduceScatter(const void* send, void* receive, size_t count, int type, int op, struct comm* comm,
                         struct stream* stream) {
    return queue(comm, "reduce_scatter", send, receive, count, type, op, stream);
}
status ncclAllGather(const void* send, void* receive, size_t count, int type, struct comm* comm, struct stream* stream) {
    return queue(comm, "all_gather", send, receive, count, type, 0, stream);
}
status ncclReduce(const void* send, void* receive, size_t count, int type, int op, int root, struct comm* comm,
                  struct stream* stream) {
    return op ? INVALID_USAGE : queue(comm, "reduce", send, receive, count, type, root, stream);
}
status ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, struct comm* comm,
                     struct stream* stream) {
    return queue(comm, "broadcast", send, receive, count, type, root, stream);
}
status ncclGroupStart(void) {
    static int groups;
    stub_note("group (%d)", depth);
    if (++groups == 2 && is("second-stuck")) stub_stuck = 1;
    depth++;
    return OK;
}
status ncclGroupEnd(void) {
    depth--;
    stub_note("end of group (%d)", depth);
    while (is("group-hangs") && !aborted) usleep(1000);
    return OK;
}

const char* ncclGetErrorString(status error) {
    switch (error) {
        case OK: return "no error";
        case CUDA_ERROR: return "unhandled cuda error";
        case INVALID_USAGE: return "invalid usage";
        case REMOTE_ERROR: return "remote process exited or there was a network error";
        default: return "unknown result code";
    }
}
const char* ncclGetLastError(struct comm* comm) {
    (void)comm;
    return last_error;
}
