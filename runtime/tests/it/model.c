/* A compiled model as the back end would make it: y[i] = (a[i] + b[i]) * w[i], in two launches.
   MODEL_DATA: a file that defines `plan` and `weights`; without it this is the kernels section of a .tsc. */
#include <stdint.h>

typedef int32_t kernel(void *const *bufs, const int64_t *syms, void *scratch, int64_t lo, int64_t hi);

struct descriptor {
    uint64_t magic;
    uint32_t abi_version, n_kernels;
    kernel *const *kernels;
    const uint8_t *plan;
    uint64_t plan_len;
    const uint8_t *weights;
    uint64_t weights_len;
};

static int32_t add(void *const *bufs, const int64_t *syms, void *scratch, int64_t lo, int64_t hi) {
    const float *a = bufs[0], *b = bufs[1];
    float *y = bufs[2];
    (void)syms, (void)scratch;
    for (int64_t i = lo; i < hi; i++) y[i] = a[i] + b[i];
    return 0;
}

static int32_t scale(void *const *bufs, const int64_t *syms, void *scratch, int64_t lo, int64_t hi) {
    const float *x = bufs[0], *w = bufs[1];
    float *y = bufs[2];
    (void)syms, (void)scratch;
    for (int64_t i = lo; i < hi; i++) y[i] = (x[i] + BIAS) * w[i];
    return 0;
}

static kernel *const kernels[] = {add, scale};

#ifdef MODEL_DATA
#include MODEL_DATA
#define DATA plan, sizeof plan, weights, sizeof weights
#else
#define DATA 0, 0, 0, 0
#endif

const struct descriptor transc_model_descriptor = {MAGIC, ABI, 2, kernels, DATA};
