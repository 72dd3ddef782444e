/* Two compiled models in one process, even with their symbols made global: each runs its own model. */
#include <dlfcn.h>
#include <stdio.h>
#include "sum.h"

typedef int32_t open_fn(int32_t, transc_session **);
typedef int32_t run_fn(const transc_session *, const transc_tensor *, size_t, transc_tensor *, size_t);
typedef void close_fn(transc_session *);

/* Functions from dlsym, without a cast that ISO C lacks. */
static void find(void *library, const char *name, void *function) { *(void **)function = dlsym(library, name); }

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        void *library = dlopen(argv[i], RTLD_NOW | RTLD_GLOBAL);
        if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
        open_fn *open = NULL;
        run_fn *run = NULL;
        close_fn *close = NULL;
        find(library, "transc_open", &open);
        find(library, "transc_run", &run);
        find(library, "transc_close", &close);
        transc_session *s = NULL;
        float a[1] = {10}, y[1] = {0};
        int64_t dims[] = {1};
        transc_tensor in[] = {{"a", TRANSC_F32, 1, dims, a, sizeof a}, {"b", TRANSC_F32, 1, dims, a, sizeof a}};
        transc_tensor out = {"y", TRANSC_F32, 1, dims, y, sizeof y};
        if (open(1, &s) != 0 || run(s, in, 2, &out, 1) != 0) return 2;
        close(s);
        if (y[0] != 20.0f + (float)i) return fprintf(stderr, "library %d gave %f\n", i, (double)y[0]), 3;
    }
    return 0;
}
