/* Uses a compiled model through its header: results, queries, and what is refused. Exits with the line of the first check that fails. */
#include <stdio.h>
#include <string.h>
#include "sum.h"

#define CHECK(c) do { if (!(c)) { fprintf(stderr, "line %d: %s: %s\n", __LINE__, #c, transc_last_error()); return __LINE__ % 256; } } while (0)
enum { N = 16 };

int main(void) {
    transc_session *s = NULL;
    CHECK(transc_open(-1, &s) == 2 && transc_open(2, NULL) == 2 && strlen(transc_last_error()) > 0);
    CHECK(transc_open(2, &s) == 0 && s && *transc_last_error() == 0);
    CHECK(transc_input_count(s) == 2 && transc_output_count(s) == 1 && transc_input_count(NULL) == -1);
    CHECK(strcmp(transc_input_name(s, 1), SUM_INPUT_1) == 0 && transc_input_name(s, 2) == NULL && transc_input_name(s, -1) == NULL);
    CHECK(strcmp(transc_output_name(s, 0), SUM_OUTPUT_0) == 0);
    CHECK(transc_input_dtype(s, 0) == TRANSC_F32 && transc_output_rank(s, 0) == 1 && transc_output_rank(s, 1) == -1);

    float a[N], b[N], y[N];
    for (int i = 0; i < N; i++) a[i] = (float)i, b[i] = 0.5f, y[i] = -1;
    int64_t dims[] = {N}, wrong[] = {N - 1}, got[1] = {0};
    transc_tensor in[] = {{"b", TRANSC_F32, 1, dims, b, sizeof b}, {"a", TRANSC_F32, 1, dims, a, sizeof a}};
    transc_tensor out = {"y", TRANSC_F32, 1, dims, y, sizeof y};
    CHECK(transc_output_dims(s, in, 2, 0, got) == 0 && got[0] == N);
    CHECK(transc_output_dims(s, in, 2, 1, got) == 2);
    for (int round = 0; round < 100; round++) CHECK(transc_run(s, in, 2, &out, 1) == 0);
    for (int i = 0; i < N; i++) CHECK(y[i] == ((float)i + 0.5f + 1.0f) * (float)(i + 1));

    CHECK(transc_run(s, in, 1, &out, 1) == 4 && strstr(transc_last_error(), "input `a` is missing"));
    CHECK(transc_run(s, in, 2, &out, 0) == 2);
    CHECK(transc_run(s, NULL, 2, &out, 1) == 2);
    CHECK(transc_run(NULL, in, 2, &out, 1) == 2);
    out.dims = wrong, out.len_bytes -= sizeof *y;
    CHECK(transc_run(s, in, 2, &out, 1) == 4 && strstr(transc_last_error(), "f32[16]"));
    in[0].dims = wrong;
    CHECK(transc_run(s, in, 2, &out, 1) == 4);
    in[0].len_bytes -= sizeof *b;
    CHECK(transc_run(s, in, 2, &out, 1) == 4 && strstr(transc_last_error(), "dim `n`"));
    in[0].dtype = 99;
    CHECK(transc_run(s, in, 2, &out, 1) == 2);
    transc_close(s);
    transc_close(NULL);
    CHECK(*transc_version() != 0);
    return 0;
}
