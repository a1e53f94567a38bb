/* Do the tiles of gemm.inc stay in registers? One compiler may unroll what another leaves in memory, and the products
 * are then five times slower with the same bits. Compiled with VEC, the header of one instruction set; prints what share
 * of the multipliers' rate the products reach, and exits with 1 if that is under half.
 */
#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include VEC

#include "compiler.h"
#include "gemm.inc"

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* So many rounds of 12 multiply-adds that wait for nothing, each with a variable of its own: nothing to unroll. */
static double multiply_adds(int rounds, const real *start, real *sum)
{
    const vec f = v_load(start);
    vec a = v_load(start + 1), b = v_load(start + 2), c = v_load(start + 3), d = v_load(start + 4);
    vec e = v_load(start + 5), g = v_load(start + 6), h = v_load(start + 7), i = v_load(start + 8);
    vec j = v_load(start + 9), k = v_load(start + 10), l = v_load(start + 11), m = v_load(start + 12);
    for (int round = 0; round < rounds; round++) {
        a = v_fma(f, f, a), b = v_fma(f, f, b), c = v_fma(f, f, c), d = v_fma(f, f, d);
        e = v_fma(f, f, e), g = v_fma(f, f, g), h = v_fma(f, f, h), i = v_fma(f, f, i);
        j = v_fma(f, f, j), k = v_fma(f, f, k), l = v_fma(f, f, l), m = v_fma(f, f, m);
    }
    v_store(sum, v_add(v_add(v_add(a, b), v_add(c, d)), v_add(v_add(e, g), v_add(h, i))));
    v_store(sum + LANES, v_add(v_add(j, k), v_add(l, m)));
    return 12.0 * LANES * rounds;
}

int main(int argc, char **argv)
{
    enum { M = 33, N = 4 * PANEL, K = 128, TURNS = 200, ROUNDS = 20000 };
    real *a = calloc(M * K, sizeof *a), *w = calloc(N * K, sizeof *w), *panels = calloc(N * K, sizeof *w);
    real *bias = calloc(N, sizeof *bias), *c = calloc(M * N, sizeof *c), sum[2 * LANES], start[12 + LANES];
    double rate = 0, of_tiles = 0; /* multiplications a second, the best of all turns */
    for (int i = 0; i < M * K; i++) a[i] = (real)(i % 7);
    for (int i = 0; i < N * K; i++) w[i] = (real)(i % 5);
    for (int i = 0; i < 12 + LANES; i++) start[i] = (real)(argc + i) / 32;
    pack(1, N, K, 0, w, panels);
    for (int turn = 0; turn < TURNS; turn++) {
        const double before = seconds(), done = multiply_adds(ROUNDS, start, sum), middle = seconds();
        gemm(M, N, K, a, K, panels, bias, 0, c, N);
        rate = MAX(rate, done / (middle - before));
        of_tiles = MAX(of_tiles, (double)M * N * K / (seconds() - middle));
    }
    int wrong = sum[0] + sum[LANES] == 0;
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            double exact = 0;
            for (int k = 0; k < K; k++) exact += (double)a[m * K + k] * (double)w[n * K + k];
            wrong += exact != (double)c[m * N + n];
        }
    }
    const int good = wrong == 0 && of_tiles > 0.5 * rate;
    const char *name = strrchr(argv[0], '/');
    printf("%-4s %s: products reach %.2f of the multipliers' rate\n", good ? "ok" : "FAIL", name ? name + 1 : argv[0],
           of_tiles / rate);
    return !good;
}
