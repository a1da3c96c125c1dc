// A stand-in for NVIDIA's libcublasLt: f32 GEMMs by definition over column-major matrices, with the
// epilogues that we use. Attributes have their numbers of cublasLt.h. STUB_CUBLASLT_VERSION is the
// version, STUB_CUBLASLT_WRONG the number of an algorithm that computes something else.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 7, NOT_SUPPORTED = 15 };
typedef int status;

struct layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
};
struct operation {
    int compute, scale, transposed[2], epilogue;
    const float* bias;
};
struct preference {
    uint64_t workspace;
    uint32_t reductions, alignment[4];
};
struct algorithm {
    uint64_t data[8];
};
struct found {
    struct algorithm algorithm;
    size_t workspace;
    status state;
    float waves;
    int reserved[4];
};

int cuStreamSynchronize(void* stream);

static long setting(const char* name, long otherwise) {
    const char* value = getenv(name);
    return value ? atol(value) : otherwise;
}

size_t cublasLtGetVersion(void) { return setting("STUB_CUBLASLT_VERSION", 130002); }
status cublasLtCreate(void** handle) {
    *handle = malloc(1);
    return OK;
}
status cublasLtDestroy(void* handle) {
    free(handle);
    return OK;
}
status cublasLtMatrixLayoutCreate(struct layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    *layout = malloc(sizeof **layout);
    **layout = (struct layout){type, rows, cols, ld};
    return OK;
}
status cublasLtMatrixLayoutDestroy(struct layout* layout) {
    free(layout);
    return OK;
}
status cublasLtMatmulDescCreate(struct operation** operation, int compute, int scale) {
    *operation = calloc(1, sizeof **operation);
    (*operation)->compute = compute;
    (*operation)->scale = scale;
    (*operation)->epilogue = 1;
    return OK;
}
status cublasLtMatmulDescDestroy(struct operation* operation) {
    free(operation);
    return OK;
}
static status put(void* field, size_t expected, const void* value, size_t bytes) {
    if (bytes != expected) return INVALID;
    memcpy(field, value, bytes);
    return OK;
}
status cublasLtMatmulDescSetAttribute(struct operation* o, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 3: return put(&o->transposed[0], 4, value, bytes);
        case 4: return put(&o->transposed[1], 4, value, bytes);
        case 7: return put(&o->epilogue, 4, value, bytes);
        case 8: return put(&o->bias, 8, value, bytes);
        default: return INVALID;
    }
}
status cublasLtMatmulPreferenceCreate(struct preference** preference) {
    *preference = calloc(1, sizeof **preference);
    return OK;
}
status cublasLtMatmulPreferenceDestroy(struct preference* preference) {
    free(preference);
    return OK;
}
status cublasLtMatmulPreferenceSetAttribute(struct preference* p, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 1: return put(&p->workspace, 8, value, bytes);
        case 3: return put(&p->reductions, 4, value, bytes);
        case 5: case 6: case 7: case 8: return put(&p->alignment[attribute - 5], 4, value, bytes);
        default: return INVALID;
    }
}

// Returns four algorithms. The first two cannot be run, and the second is marked as unsupported.
status cublasLtMatmulAlgoGetHeuristic(void* handle, struct operation* o, struct layout* a, struct layout* b, struct layout* c,
                                      struct layout* d, struct preference* p, int most, struct found* found, int* count) {
    if (!handle || !o || !a || !b || !c || !d || p->workspace < 1 << 20 || p->reductions != 2) return INVALID;
    if (p->alignment[0] < 4 || p->alignment[0] > 256) return INVALID;
    if (a->type == 2) return NOT_SUPPORTED; // f16, to see an error
    *count = most < 4 ? most : 4;
    for (int i = 0; i < *count; i++) {
        memset(&found[i], 0, sizeof found[i]);
        found[i].algorithm.data[0] = most == 1 ? 2 : i;
        found[i].state = i == 1 ? NOT_SUPPORTED : OK;
    }
    return OK;
}

static float at(const float* x, const struct layout* l, int transposed, uint64_t row, uint64_t col) {
    return transposed ? x[col + row * l->ld] : x[row + col * l->ld];
}

status cublasLtMatmul(void* handle, struct operation* o, const float* alpha, const float* a, struct layout* al, const float* b,
                      struct layout* bl, const float* beta, const float* c, struct layout* cl, float* d, struct layout* dl,
                      const struct algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
    if (!handle || !workspace || workspace_bytes < 1 << 20 || !stream || algorithm->data[0] < 2) return INVALID;
    // Supports f32 and TF32, with scalars in f32.
    if ((o->compute != 68 && o->compute != 77) || o->scale != 0 || al->type != 0) return NOT_SUPPORTED;
    // This library computes at once, so earlier work must be done first.
    if (cuStreamSynchronize(stream) != OK) return INVALID;
    int wrong = (long)algorithm->data[0] == setting("STUB_CUBLASLT_WRONG", -1);
    uint64_t inner = o->transposed[0] ? al->rows : al->cols;
    for (uint64_t col = 0; col < dl->cols; col++) {
        for (uint64_t row = 0; row < dl->rows; row++) {
            float sum = 0;
            for (uint64_t k = 0; k < inner; k++)
                sum += at(a, al, o->transposed[0], row, k) * at(b, bl, o->transposed[1], k, col);
            sum = *alpha * sum + (*beta ? *beta * c[row + col * cl->ld] : 0);
            if (o->epilogue == 4) sum += o->bias[row];
            d[row + col * dl->ld] = wrong && row < 8 ? -sum : sum;
        }
    }
    return OK;
}
