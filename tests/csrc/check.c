/* The check program of the C core: everything through elman.h and the dispatcher, on every instruction set that this
 * machine can run. Values and gradients against reference.h, the promise about bits by equality of bytes, memory
 * through arrays.h. Prints a line for each group and "N passed, M failed"; exits with 1 if any failed.
 *
 * Every cell of ELMAN_CELLS is here without a word about it: bits, threads, pieces, recompute, stacks, padding, memory.
 * Its numbers are compared too where reference.h has its equations; "(no equations)" stands behind its name otherwise.
 *
 * usage: check [all | quick | raw | threads]
 *   quick    fewer and smaller shapes and no fork, for an emulator
 *   raw      as quick, and memory is not initialised, for valgrind
 *   threads  only what uses the pool, for ThreadSanitizer
 */
#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include <fenv.h>
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "arrays.h"
#include "elman.h"
#include "reference.h"

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif

static int quick; /* fewer and smaller shapes */

/* Under the sanitizers, which take long: not every problem on every instruction set and dtype. */
#ifdef WATCHED_END
enum { sparing = 1 };
#else
enum { sparing = 0 };
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* ---- groups: one line of output each ---- */

typedef struct {
    char name[80];
    long checks, failures;
    double worst_value, worst_gradient; /* largest differences seen */
} group;

static int groups_passed, groups_failed;
static uint64_t random_state;

static group new_group(const char *format, ...)
{
    group g = {"", 0, 0, 0, 0};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(g.name, sizeof g.name, format, arguments);
    va_end(arguments);
    random_state = hash_of((const unsigned char *)g.name, strlen(g.name)); /* the same numbers whatever comes before */
    return g;
}

static void expect(group *g, int good, const char *format, ...)
{
    g->checks++;
    if (good) return;
    if (g->failures++ >= 5) return; /* the first few tell enough */
    va_list arguments;
    va_start(arguments, format);
    printf("    %s: ", g->name);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

static void finish(const group *g)
{
    const int good = g->checks > 0 && g->failures == 0;
    printf("%-4s %-44s %7ld checks", good ? "ok" : "FAIL", g->name, g->checks);
    if (g->worst_value > 0) printf("  values within %.1e", g->worst_value);
    if (g->worst_gradient > 0) printf("  gradients within %.1e", g->worst_gradient);
    if (g->failures) printf("  %ld failed", g->failures);
    printf("\n");
    fflush(stdout);
    good ? groups_passed++ : groups_failed++;
}

/* ---- random problems ---- */

static uint64_t random_bits(void) /* splitmix64 */
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static ptrdiff_t random_below(ptrdiff_t n) { return (ptrdiff_t)(random_bits() % (uint64_t)n); }

/* From -scale to scale, and a float, so that both dtypes get the same problem. */
static double random_number(double scale) { return (float)(scale * ((double)(random_bits() >> 11) * 0x1p-52 - 1)); }

static double *random_array(ptrdiff_t n, double scale)
{
    double *a = new_array(n, sizeof *a);
    for (ptrdiff_t i = 0; i < n; i++) a[i] = random_number(scale);
    return a;
}

static const char *const cell_names[ELMAN_CELL_COUNT] = {
#define NAME(cell) #cell,
    ELMAN_CELLS(NAME)
#undef NAME
};

/* What a cell is, by the table of plain C; check_dispatcher() sees that all tables say the same. */
static const elman_cell *form_of(int cell) { return &elman_get_kernels(0, 0)->cells[cell]; }

static int carries_state(int cell) { return form_of(cell)->carries_h || form_of(cell)->states > 1; }

/* Of a cell that looks at them; every activation is compared in tests/test_options.py. */
static elman_options options_of(int cell, int is_projected)
{
    const elman_activation s = {ELMAN_SIGMOID, 0, 0}, t = {ELMAN_SCALEDTANH, 1.25, 0.75};
    const elman_activation g = {ELMAN_HARDSIGMOID, 0.25, 0.5}, n = {ELMAN_SOFTSIGN, 0, 0};
    elman_options options = {.activations = {s, t, n, t}, .clip = 1.5, .cell_clip = 0.9, .proj_clip = 1.2};
    if (cell == ELMAN_rnn_any || cell == ELMAN_indrnn) options.activations[0] = t;
    if (cell == ELMAN_gru_reset_after_any) options.activations[0] = g, options.activations[1] = n;
    options.is_projected = is_projected;
    options.peepholes = random_below(4) > 0;
    options.coupled = (int)random_below(3);
    if (cell == ELMAN_lstm_norm_joint) options.coupled = 0, options.by_deviation = (int)random_below(2);
    options.stay = !is_projected && random_below(2) ? 0.25 + 0.5 * fabs(random_number(1)) : 0;
    return options;
}

typedef struct {
    ptrdiff_t T, B, I, H;
    int in_quick;
    ptrdiff_t R; /* 0: H, or if the cell projects something else, as chance will have it */
} shape;

/* What a problem may have, beside what chance decides. NOISE: a mask and zoneout; SHARES: zoneout, but without bytes. */
enum { LENGTHS = 1, RESET = 2, NOISE = 4, SHARES = 8 };

static ptrdiff_t random_outputs(int cell, ptrdiff_t H)
{
    return form_of(cell)->projects && random_below(2) ? 1 + random_below(MIN(2 * H, H + 20)) : H;
}

/* Bytes 0 and 1 for each of `width` units of every row; POISON, and not to be looked at, past a length. */
static unsigned char *random_bytes(const problem *p, ptrdiff_t width)
{
    unsigned char *bytes = new_array(p->T * p->B * width, 1);
    memset(bytes, POISON, (size_t)(p->T * p->B * width));
    for (ptrdiff_t i = 0; i < p->T * p->B * width; i++) {
        if (i / width / p->B < length_of(p, i / width % p->B)) bytes[i] = random_below(2) > 0;
    }
    freeze(bytes);
    for (ptrdiff_t row = 0; row < p->T * p->B; row++) {
        if (row / p->B >= length_of(p, row % p->B)) ASAN_POISON_MEMORY_REGION(bytes + row * width, (size_t)width);
    }
    return bytes;
}

static problem new_problem(int cell, int D, shape size, int features)
{
    const elman_cell *form = form_of(cell);
    const ptrdiff_t T = size.T, B = size.B, I = size.I, H = size.H, R = size.R ? size.R : random_outputs(cell, H);
    const ptrdiff_t G = form->gates;
    problem p = {.cell = cell, .form = form, .D = D, .T = T, .B = B, .I = I, .H = H, .R = R};
    p.has[W_HR] = R != H || (form->projects && random_below(2));
    p.options = options_of(cell, p.has[W_HR]);
    p.has[X] = p.has[W_IH] = 1;
    p.has[OF_UNITS] = cell != ELMAN_lstm_any || p.options.peepholes; /* without them their gradient is there too */
    p.has[W_HH] = form->is_recurrent;
    for (int i = !form->carries_h; i < form->states; i++) p.has[H0 + i] = random_below(4) > 0;
    p.has[B_IH] = random_below(2) > 0;
    p.has[B_HH] = form->is_recurrent && (random_below(4) > 0 ? p.has[B_IH] : !p.has[B_IH]);
    p.has[B_HR] = p.has[W_HR] && random_below(2) > 0;
    p.has[ROW] = form->takes_row && random_below(4) > 0;
    p.has_dy = random_below(5) > 0;
    p.has_c = form->states > 1 && random_below(2) > 0;
    p.has_dc = form->states > 1 && random_below(2) > 0;
    p.has_dlast = !p.has_dy || random_below(3) > 0;
    p.wants_states = random_below(8) > 0;
    p.layout = (int)random_below(3);
    if (features & LENGTHS) {
        p.lengths = new_array(B, sizeof *p.lengths);
        for (ptrdiff_t b = 0; b < B; b++) p.lengths[b] = random_below(5) ? random_below(T + 1) : T;
        freeze(p.lengths);
    }
    if (features & RESET) {
        p.reset = new_array(T * B, 1);
        for (ptrdiff_t i = 0; i < T * B; i++) p.reset[i] = random_below(3) == 0;
        freeze(p.reset);
    }
    if ((features & NOISE) && form->is_recurrent && random_below(2)) {
        p.mask = random_array(D * B * R, 2);
        for (ptrdiff_t i = 0; i < D * B * R; i++) p.mask[i] = random_below(3) ? p.mask[i] : 0;
    }
    for (int i = !form->carries_h; i < MIN(form->states, 2) && (features & (NOISE | SHARES)); i++) {
        const ptrdiff_t kind = random_below(3);
        if (kind == 1 && (features & NOISE)) p.stays[i] = random_bytes(&p, D * state_width(&p, i));
        if (kind == 2) p.stay[i] = 0.25 + 0.5 * fabs(random_number(1));
    }
    const ptrdiff_t sizes[INPUTS] = {
        [X] = T * B * I, [W_IH] = D * G * H * I, [W_HH] = form->is_recurrent * D * G * H * R, [B_IH] = D * G * H,
        [B_HH] = form->is_recurrent * D * G * H, [OF_UNITS] = D * form->units * H, [W_HR] = p.has[W_HR] * D * R * H,
        [B_HR] = p.has[W_HR] * D * R, [ROW] = form->takes_row * T * B};
    const double scales[INPUTS] = {[W_IH] = 1.6 / sqrt((double)I), [W_HH] = 1.6 / sqrt((double)R),
                                   [W_HR] = 1.6 / sqrt((double)H)}; /* of the others 1 */
    for (int i = 0; i < INPUTS; i++) {
        const int state = i - H0, is_state = state >= !form->carries_h && state < form->states;
        p.size[i] = is_state ? D * B * state_width(&p, state) : sizes[i];
        p.value[i] = random_array(p.size[i], scales[i] > 0 ? scales[i] : 1);
        for (ptrdiff_t k = 0; k < p.size[i] && i == N0; k++) { /* a divisor; some of a row may be 0 */
            p.value[i][k] = random_below(4) ? fabs(p.value[i][k]) + 0.5 : 0;
        }
        for (ptrdiff_t k = 0; k < p.size[i] && i == ROW; k++) p.value[i][k] = fabs(p.value[i][k]); /* a time, a share */
        p.direction[i] = new_array(p.size[i], sizeof(double));
        for (ptrdiff_t k = 0; k < p.size[i]; k++) {
            p.direction[i][k] = (1 + 0.5 * random_number(1)) * (random_below(2) ? 1 : -1); /* none near zero */
        }
    }
    p.dy = random_array(T * B * D * R, 1);
    p.dc = random_array(T * B * D * H, 1);
    p.y = new_array(T * B * D * R, sizeof(double));
    p.c = new_array(T * B * D * H, sizeof(double));
    for (int i = 0; i < form->states; i++) {
        p.dlast[i] = random_array(D * B * state_width(&p, i), 1);
        p.last[i] = new_array(D * B * state_width(&p, i), sizeof(double));
    }
    return p;
}

/* ---- calling the kernels ---- */

/* A call to be made: all inputs, in the dtype and layout of the kernels. */
typedef struct {
    const elman_cell *cell;
    int is_double, lanes;
    size_t size;       /* of an element */
    elman_layer layer; /* without memory to write into, and without its weights: see layer_of() */
    elman_weights weights[2];
    elman_options options;
    const void *state[ELMAN_STATES], *dy, *dc, *dlast[ELMAN_STATES];
    ptrdiff_t y_t, y_b, c_t, c_b; /* of y and dy, of c and dc */
    double limit;
    int first; /* 1: the cell carries no h, its states begin with c */
    int wants_bias, wants_states, wants_c;
} run;

typedef struct {
    void *y, *c, *last[ELMAN_STATES], *tape;
} outputs;

typedef struct {
    void *of[INPUTS][2]; /* the second only of weights and biases: of direction 1 */
} gradients;

static double get(const run *r, const void *a, ptrdiff_t i)
{
    return r->is_double ? ((const double *)a)[i] : (double)((const float *)a)[i];
}

static void put(const run *r, void *a, ptrdiff_t i, double value)
{
    if (r->is_double) {
        ((double *)a)[i] = value;
    } else {
        ((float *)a)[i] = (float)value;
    }
}

static void *at(const run *r, const void *a, ptrdiff_t i) { return (char *)(uintptr_t)a + i * (ptrdiff_t)r->size; }

static void *converted(const run *r, const double *values, ptrdiff_t n)
{
    void *a = new_array(n, r->size);
    for (ptrdiff_t i = 0; i < n; i++) put(r, a, i, values[i]);
    freeze(a);
    return a;
}

/* POISON even where arrays stay uninitialised: what must not be written. */
static void *poisoned(const run *r, ptrdiff_t n)
{
    void *a = new_array(n, r->size);
    memset(a, POISON, (size_t)n * r->size);
    return a;
}

static ptrdiff_t padded(const run *r, ptrdiff_t n) { return (n + r->lanes - 1) / r->lanes * r->lanes; }

static ptrdiff_t length_in(const run *r, ptrdiff_t b) { return r->layer.lengths ? r->layer.lengths[b] : r->layer.T; }

static ptrdiff_t rows_of(const run *r)
{
    ptrdiff_t rows = 0;
    for (ptrdiff_t b = 0; b < r->layer.B; b++) rows += length_in(r, b);
    return rows;
}

static ptrdiff_t width_of(const run *r, int state) { return state ? r->layer.H : r->layer.R; }
static ptrdiff_t outputs_of(const run *r) { return r->layer.directions * r->layer.R; }
static ptrdiff_t cells_of(const run *r) { return r->layer.directions * r->layer.H; }
static ptrdiff_t state_size(const run *r, int state) { return r->layer.directions * r->layer.B * width_of(r, state); }

/* From one step and one sequence to the next in an array of rows of `width`: time first, batch first, or with gaps. */
static void strides_of(const problem *p, ptrdiff_t width, ptrdiff_t *t, ptrdiff_t *b)
{
    *b = p->layout == 0 ? width : p->layout == 1 ? p->T * width : width + 3;
    *t = p->layout == 0 ? p->B * width : p->layout == 1 ? width : p->B * (width + 3) + 5;
}

static ptrdiff_t extent(const run *r, ptrdiff_t t, ptrdiff_t b, ptrdiff_t width)
{
    const elman_layer *layer = &r->layer;
    return layer->T && layer->B ? (layer->T - 1) * t + (layer->B - 1) * b + width : 0;
}

/* Only what a kernel may read is written; the rest stays NaN. */
static void *scattered(const run *r, const double *values, ptrdiff_t width, ptrdiff_t t_stride, ptrdiff_t b_stride)
{
    void *a = poisoned(r, extent(r, t_stride, b_stride, width));
    for (ptrdiff_t b = 0; b < r->layer.B; b++) {
        for (ptrdiff_t t = 0; t < length_in(r, b); t++) {
            for (ptrdiff_t i = 0; i < width; i++) {
                put(r, a, t * t_stride + b * b_stride + i, values[(t * r->layer.B + b) * width + i]);
            }
        }
    }
    freeze(a);
    for (ptrdiff_t b = 0; b < r->layer.B; b++) {
        for (ptrdiff_t t = length_in(r, b); t < r->layer.T; t++) { /* AddressSanitizer sees even a look at these */
            ASAN_POISON_MEMORY_REGION(at(r, a, t * t_stride + b * b_stride), (size_t)width * r->size);
        }
    }
    return a;
}

/* Input `which` of direction d of D, or NULL. */
static const void *one_direction(const run *r, const problem *p, int which, int d)
{
    const ptrdiff_t n = p->size[which] / p->D;
    return p->has[which] && n ? converted(r, p->value[which] + d * n, n) : NULL;
}

static void pack_weights(run *r, const problem *p, int d)
{
    const ptrdiff_t I = p->I, H = p->H, R = p->R, Ip = padded(r, I), Hp = padded(r, H), Rp = padded(r, R);
    const ptrdiff_t G = r->cell->gates, recurrent = r->cell->is_recurrent;
    const elman_dense dense = {
        .w_ih = one_direction(r, p, W_IH, d), .w_hh = one_direction(r, p, W_HH, d),
        .b_ih = one_direction(r, p, B_IH, d), .b_hh = one_direction(r, p, B_HH, d),
        .units = one_direction(r, p, OF_UNITS, d),
        .w_hr = one_direction(r, p, W_HR, d), .b_hr = one_direction(r, p, B_HR, d)};
    elman_weights packed = {
        .w_ih = new_array(I * G * Hp, r->size), .w_hh = new_array(recurrent * R * G * Hp, r->size),
        .b_ih = new_array(G * Hp, r->size), .b_hh = new_array(recurrent * G * Hp, r->size),
        .units = new_array(r->cell->units * Hp, r->size),
        .wt_ih = new_array(G * Hp * Ip, r->size), .wt_hh = new_array(recurrent * G * Hp * Rp, r->size)};
    if (dense.w_hr) {
        packed.w_hr = new_array(H * Rp, r->size);
        packed.b_hr = new_array(Rp, r->size);
        packed.wt_hr = new_array(Rp * Hp, r->size);
    }
    r->cell->pack(I, H, R, &dense, &packed);
    r->cell->pack_transposed(I, H, R, &dense, &packed);
    const void *const all[] = {packed.w_ih, packed.w_hh, packed.b_ih, packed.b_hh, packed.units,
                               packed.w_hr, packed.b_hr, packed.wt_ih, packed.wt_hh, packed.wt_hr};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i]) freeze(all[i]);
    }
    r->weights[d] = packed;
}

static run new_run(const problem *p, const elman_kernels *kernels, int is_double)
{
    run r = {.cell = &kernels->cells[p->cell], .is_double = is_double, .lanes = kernels->lanes, .limit = INFINITY};
    r.size = is_double ? sizeof(double) : sizeof(float);
    r.options = p->options;
    r.layer = (elman_layer){.T = p->T, .B = p->B, .I = p->I, .H = p->H, .R = p->R, .directions = p->D};
    r.layer.lengths = p->lengths, r.layer.reset = p->reset;
    for (int i = 0; i < 2; i++) r.layer.stays[i] = p->stays[i], r.layer.stay[i] = p->stay[i];
    r.layer.mask = p->mask ? converted(&r, p->mask, p->D * p->B * p->R) : NULL;
    r.layer.row = p->has[ROW] ? scattered(&r, p->value[ROW], 1, p->B, 1) : NULL;
    for (int d = 0; d < p->D; d++) pack_weights(&r, p, d);
    strides_of(p, p->I, &r.layer.x_t, &r.layer.x_b);
    strides_of(p, outputs_of(&r), &r.y_t, &r.y_b);
    strides_of(p, cells_of(&r), &r.c_t, &r.c_b);
    r.layer.x = scattered(&r, p->value[X], p->I, r.layer.x_t, r.layer.x_b);
    r.dy = p->has_dy ? scattered(&r, p->dy, outputs_of(&r), r.y_t, r.y_b) : NULL;
    r.dc = p->has_dc ? scattered(&r, p->dc, cells_of(&r), r.c_t, r.c_b) : NULL;
    r.first = !r.cell->carries_h;
    for (int i = r.first; i < r.cell->states; i++) {
        r.state[i] = p->has[H0 + i] ? converted(&r, p->value[H0 + i], state_size(&r, i)) : NULL;
        r.dlast[i] = p->has_dlast ? converted(&r, p->dlast[i], state_size(&r, i)) : NULL;
    }
    r.wants_bias = p->has[B_IH] || p->has[B_HH] || p->layout == 1;
    r.wants_states = p->wants_states, r.wants_c = p->has_c;
    return r;
}

/* The layer as sizes are asked of it; it points into *r. */
static elman_layer layer_of(const run *r)
{
    elman_layer layer = r->layer;
    layer.weights = r->weights;
    layer.options = &r->options;
    return layer;
}

/* The arrays that forward writes; those of backward; and their memory, so that threads need not allocate. */
static outputs new_outputs(const run *r, int training)
{
    outputs o = {0};
    const elman_layer layer = layer_of(r);
    o.y = poisoned(r, extent(r, r->y_t, r->y_b, outputs_of(r)));
    if (r->wants_c) o.c = poisoned(r, extent(r, r->c_t, r->c_b, cells_of(r)));
    for (int i = r->first; i < r->cell->states && r->wants_states; i++) {
        o.last[i] = new_array(state_size(r, i), r->size);
    }
    if (training) o.tape = new_array(layer.directions * r->cell->tape(&layer, rows_of(r)), r->size);
    return o;
}

/* Elements of gradient `which` of one direction (weights) or of both (x, states, row); 0 if there is none. */
static ptrdiff_t gradient_size(const run *r, int which)
{
    const elman_layer *p = &r->layer;
    const ptrdiff_t rows = r->cell->gates * p->H, recurrent = r->cell->is_recurrent;
    const ptrdiff_t projected = r->weights[0].w_hr != NULL;
    const ptrdiff_t sizes[INPUTS] = {
        [X] = p->T * p->B * p->I, [W_IH] = rows * p->I, [W_HH] = recurrent * rows * p->R, [B_IH] = rows,
        [B_HH] = recurrent * rows, [OF_UNITS] = r->cell->units * p->H, [W_HR] = projected * p->R * p->H,
        [B_HR] = projected * p->R, [ROW] = r->cell->takes_row * p->directions * p->T * p->B};
    const int state = which - H0;
    return state >= r->first && state < r->cell->states ? state_size(r, state) : sizes[which];
}

static gradients new_gradients(const run *r)
{
    gradients g = {{{NULL}}};
    g.of[X][0] = poisoned(r, gradient_size(r, X));
    if (r->layer.row) g.of[ROW][0] = poisoned(r, gradient_size(r, ROW));
    for (int i = r->first; i < r->cell->states && r->wants_states; i++) {
        g.of[H0 + i][0] = new_array(gradient_size(r, H0 + i), r->size);
    }
    for (int which = W_IH; which <= B_HR; which++) {
        const int is_bias = which == B_IH || which == B_HH || which == B_HR;
        const ptrdiff_t n = gradient_size(r, which);
        for (int d = 0; d < r->layer.directions && n && (r->wants_bias || !is_bias); d++) {
            g.of[which][d] = new_array(n, r->size);
        }
    }
    return g;
}

static elman_layer new_layer(const run *r, int threads, int backward)
{
    elman_layer layer = layer_of(r);
    layer.threads = threads;
    layer.index = new_array(2 * layer.B + layer.T + 1, sizeof *layer.index);
    layer.scratch = new_array(backward ? r->cell->backward_scratch(&layer) : r->cell->forward_scratch(&layer), r->size);
    return layer;
}

static elman_forward_call forward_call(const run *r, const outputs *o, int threads)
{
    elman_forward_call call = {.layer = new_layer(r, threads, 0), .y = o->y, .y_t = r->y_t, .y_b = r->y_b};
    call.layer.tape = o->tape;
    call.c = o->c, call.c_t = r->c_t, call.c_b = r->c_b;
    for (int i = 0; i < ELMAN_STATES; i++) {
        call.state[i] = r->state[i];
        call.last[i] = o->last[i];
    }
    return call;
}

static elman_backward_call backward_call(const run *r, const outputs *o, const gradients *g, int threads)
{
    elman_backward_call call = {.layer = new_layer(r, threads, 1), .dy = r->dy, .dy_t = r->y_t, .dy_b = r->y_b};
    call.dc = r->dc, call.dc_t = r->c_t, call.dc_b = r->c_b;
    call.limit = r->limit;
    call.layer.tape = o->tape;
    call.dx = g->of[X][0], call.drow = g->of[ROW][0];
    for (int i = 0; i < ELMAN_STATES; i++) {
        call.dlast[i] = r->dlast[i];
        call.dstate[i] = g->of[H0 + i][0];
    }
    for (int d = 0; d < 2; d++) {
        call.dw_ih[d] = g->of[W_IH][d], call.dw_hh[d] = g->of[W_HH][d];
        call.db_ih[d] = g->of[B_IH][d], call.db_hh[d] = g->of[B_HH][d];
        call.dw_hr[d] = g->of[W_HR][d], call.db_hr[d] = g->of[B_HR][d];
        call.dunits[d] = g->of[OF_UNITS][d];
    }
    return call;
}

static outputs forward(const run *r, int training, int threads)
{
    outputs o = new_outputs(r, training);
    elman_forward_call call = forward_call(r, &o, threads);
    r->cell->forward(&call);
    if (o.tape) freeze(o.tape);
    return o;
}

static gradients backward(const run *r, const outputs *o, int threads)
{
    gradients g = new_gradients(r);
    elman_backward_call call = backward_call(r, o, &g, threads);
    r->cell->backward(&call);
    return g;
}

/* ---- comparing ---- */

static int same(const run *r, const void *a, const void *b, ptrdiff_t n)
{
    return memcmp(a, b, (size_t)n * r->size) == 0;
}

static int same_outputs(const run *r, const outputs *a, const outputs *b)
{
    int good = same(r, a->y, b->y, extent(r, r->y_t, r->y_b, outputs_of(r)));
    if (a->c) good &= same(r, a->c, b->c, extent(r, r->c_t, r->c_b, cells_of(r)));
    for (int i = 0; i < ELMAN_STATES; i++) good &= !a->last[i] || same(r, a->last[i], b->last[i], state_size(r, i));
    return good;
}

static int same_gradients(const run *r, const gradients *a, const gradients *b)
{
    int good = 1;
    for (int which = 0; which < INPUTS; which++) {
        for (int d = 0; d < 2 && a->of[which][d]; d++) {
            good &= same(r, a->of[which][d], b->of[which][d], gradient_size(r, which));
        }
    }
    return good;
}

/* Is all of an array but its true rows as it was made? */
static int rest_untouched(const run *r, const void *a, ptrdiff_t t_stride, ptrdiff_t b_stride, ptrdiff_t width)
{
    const size_t mark = array_count, n = (size_t)extent(r, t_stride, b_stride, width);
    unsigned char *copy = new_array((ptrdiff_t)n, r->size);
    memcpy(copy, a, n * r->size);
    for (ptrdiff_t b = 0; b < r->layer.B; b++) {
        for (ptrdiff_t t = 0; t < length_in(r, b); t++) {
            memset(at(r, copy, t * t_stride + b * b_stride), POISON, (size_t)width * r->size);
        }
    }
    const int good = all_poison(copy, n * r->size);
    release_arrays(mark);
    return good;
}

static void check_padding(group *g, const run *r, const outputs *o, const gradients *got)
{
    const elman_layer *p = &r->layer;
    expect(g, rest_untouched(r, o->y, r->y_t, r->y_b, outputs_of(r)), "y is written past a length");
    if (o->c) expect(g, rest_untouched(r, o->c, r->c_t, r->c_b, cells_of(r)), "c is written past a length");
    expect(g, rest_untouched(r, got->of[X][0], p->B * p->I, p->I, p->I), "dx is written past a length");
    for (int d = 0; d < p->directions && got->of[ROW][0]; d++) {
        const void *drow = at(r, got->of[ROW][0], d * p->T * p->B);
        expect(g, rest_untouched(r, drow, p->B, 1, 1), "drow is written past a length");
    }
}

/* ---- values and gradients against the reference ---- */

#define SIZES "D%d T%td B%td I%td H%td R%td"
#define SIZES_OF(p) (p)->D, (p)->T, (p)->B, (p)->I, (p)->H, (p)->R

static void check_close(group *g, const char *what, const problem *p, double got, double wanted, double tolerance)
{
    const double error = fabs(got - wanted) / fmax(1, fabs(wanted));
    if (error > g->worst_value) g->worst_value = error;
    expect(g, error <= tolerance, "%s is %.9g, not %.9g: " SIZES, what, got, wanted, SIZES_OF(p));
}

static void check_values(group *g, const problem *p, const run *r, const outputs *o)
{
    static const char *const last_names[ELMAN_STATES] = {"last h", "last c", "last n", "last m"};
    const double tolerance = r->is_double ? 2e-14 : 8e-6;
    for (ptrdiff_t b = 0; b < p->B; b++) {
        for (ptrdiff_t t = 0; t < length_of(p, b); t++) {
            const ptrdiff_t row = t * p->B + b;
            for (ptrdiff_t u = 0; u < outputs_of(r); u++) {
                check_close(g, "y", p, get(r, o->y, t * r->y_t + b * r->y_b + u), p->y[row * outputs_of(r) + u],
                            tolerance);
            }
            for (ptrdiff_t u = 0; u < cells_of(r) && o->c; u++) {
                check_close(g, "c", p, get(r, o->c, t * r->c_t + b * r->c_b + u), p->c[row * cells_of(r) + u],
                            tolerance);
            }
        }
    }
    for (int i = 0; i < ELMAN_STATES; i++) {
        for (ptrdiff_t k = 0; o->last[i] && k < state_size(r, i); k++) {
            check_close(g, last_names[i], p, get(r, o->last[i], k), p->last[i][k], tolerance);
        }
    }
}

/* The gradients times the direction must be the derivative of the loss along it. A single wrong element changes the
 * product by about 1 / sqrt(elements) of the gradient's norm. Where a float may round to the other side of a kink,
 * there is nothing to compare. */
static void check_gradients(group *g, const problem *p, const run *r, const gradients *got)
{
    const double tolerance = r->is_double ? 1e-13 : 2e-5;
    if (p->nearest_kink < (r->is_double ? 1e-13 : 1e-5)) return;
    for (int which = 0; which < INPUTS; which++) {
        const ptrdiff_t n = gradient_size(r, which);
        const ptrdiff_t row = which == X ? p->I : which == ROW ? 1 : 0; /* elements, of an array over (T, B) */
        double sum = 0, squares = 0;
        if (!got->of[which][0]) continue;
        for (int d = 0; d < 2 && got->of[which][d]; d++) {
            for (ptrdiff_t i = 0; i < n; i++) {
                if (row && i / row / p->B % p->T >= length_of(p, i / row % p->B)) continue;
                const double value = get(r, got->of[which][d], i);
                sum += value * p->direction[which][which == ROW ? i % (p->T * p->B) : d * n + i];
                squares += value * value;
            }
        }
        const double error = fabs(sum - p->derivative[which]) / fmax(sqrt(squares), 1e-2) / p->steepest_norm;
        if (error > g->worst_gradient) g->worst_gradient = error;
        expect(g, error <= tolerance, "gradient of %s along a direction is %.9g, not %.9g: " SIZES, input_names[which],
               sum, p->derivative[which], SIZES_OF(p));
    }
}

static void check_problem(group *g, const problem *p, const elman_kernels *kernels, int is_double)
{
    const size_t mark = array_count;
    const run r = new_run(p, kernels, is_double);
    const outputs inference = forward(&r, 0, 2), training = forward(&r, 1, 1);
    expect(g, same_outputs(&r, &inference, &training), "training and inference differ: " SIZES, SIZES_OF(p));
    const gradients got = backward(&r, &training, 1);
    check_padding(g, &r, &training, &got);
    if (equations[p->cell].step) {
        check_values(g, p, &r, &inference);
        check_gradients(g, p, &r, &got);
    }
    run other = r;
    other.limit = is_double ? DBL_MAX : (double)FLT_MAX;
    const gradients again = backward(&other, &training, 2);
    expect(g, same_gradients(&r, &got, &again), "a second backward, with a limit, differs: " SIZES, SIZES_OF(p));
    other.layer.recompute = 1;
    const outputs states = forward(&other, 1, 2);
    expect(g, same_outputs(&r, &states, &training), "forward with recompute differs: " SIZES, SIZES_OF(p));
    const gradients recomputed = backward(&other, &states, 2);
    expect(g, same_gradients(&r, &got, &recomputed), "gradients with recompute differ: " SIZES, SIZES_OF(p));
    expect(g, release_arrays(mark) == 0, "memory outside an array or an input is written: " SIZES, SIZES_OF(p));
}

/* Below, at and above every vector width; more rows than a task, a chunk and a block have; more units than a block of
 * a weight gradient; wide enough for the products of few rows; nothing. */
static const shape shapes[] = {
    {1, 1, 1, 1, 1, 0},    {4, 2, 3, 1, 1, 0},   {5, 3, 1, 3, 1, 0},   {3, 4, 8, 8, 1, 0},   {6, 5, 17, 3, 1, 0},
    {2, 7, 3, 17, 1, 0},   {9, 2, 33, 17, 0, 0}, {4, 3, 8, 33, 0, 0},  {3, 5, 50, 50, 0, 0}, {2, 3, 65, 65, 0, 0},
    {0, 3, 3, 8, 1, 0},    {4, 0, 8, 3, 1, 0},   {2, 70, 3, 17, 0, 0}, {70, 1, 3, 5, 1, 0},  {3, 67, 17, 8, 0, 0},
    {33, 4, 1, 3, 0, 0},   {2, 1, 5, 260, 0, 0}, {1, 2, 3, 140, 0, 0}, {1, 3, 300, 70, 0, 0}, {2, 131, 8, 3, 0, 0},
};

/* How many problems had what a cell may have. */
typedef struct {
    int below, above, equal; /* R projected, and H */
    int mask, bytes[2], share[2], row;
} tried;

static void note_tried(tried *all, const problem *p)
{
    all->below += p->R < p->H, all->above += p->R > p->H, all->equal += p->has[W_HR] && p->R == p->H;
    all->mask += p->mask != NULL, all->row += p->has[ROW];
    for (int i = 0; i < 2; i++) all->bytes[i] += p->stays[i] != NULL, all->share[i] += p->stay[i] > 0;
}

static int all_tried(const tried *all, const elman_cell *form)
{
    int good = !form->projects || (all->below && all->above && all->equal);
    good &= (!form->is_recurrent || all->mask) && (!form->takes_row || all->row);
    for (int i = !form->carries_h; i < MIN(form->states, 2); i++) good &= all->bytes[i] && all->share[i];
    return good;
}

static void check_numbers(int cell)
{
    const int sets = elman_isa_count();
    const int is_compared = equations[cell].step != NULL;
    group *groups = calloc((size_t)(2 * sets), sizeof *groups);
    tried all = {0};
    if (!groups) abort();
    for (int i = 0; i < 2 * sets; i++) {
        groups[i] = new_group("%s f%d %s%s", elman_isa_name(i / 2), i % 2 ? 64 : 32, cell_names[cell],
                              is_compared ? "" : " (no equations)");
    }
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        if (quick && !shapes[s].in_quick) continue;
        for (int option = 0; option < 8; option++) {
            const size_t mark = array_count;
            problem p = new_problem(cell, 1 + option % 2, shapes[s], (option / 2) | (random_below(3) ? NOISE : 0));
            note_tried(&all, &p);
            if (is_compared) reference(&p);
            for (int i = 0; i < 2 * sets; i++) {
                if (!elman_isa_usable(i / 2) || (sparing && (option / 2 + i + (int)s) % 4)) continue;
                check_problem(&groups[i], &p, elman_get_kernels(i / 2, i % 2), i % 2);
            }
            release_arrays(mark);
        }
    }
    expect(&groups[0], all_tried(&all, form_of(cell)), "not everything was tried that this cell can");
    for (int i = 0; i < 2 * sets; i++) {
        if (elman_isa_usable(i / 2)) finish(&groups[i]);
    }
    free(groups);
}

/* ---- the promise about bits ---- */

/* Steps t0 to t1 of sequence b of an array (T, B, width) of elements of `size` bytes. */
static void *column_of(const elman_layer *p, const void *from, ptrdiff_t width, size_t size, ptrdiff_t b, ptrdiff_t t0,
                       ptrdiff_t t1)
{
    const size_t row = (size_t)width * size;
    char *column = new_array((t1 - t0) * width, size);
    for (ptrdiff_t t = t0; t < t1; t++) {
        memcpy(column + (size_t)(t - t0) * row, (const char *)from + (size_t)(t * p->B + b) * row, row);
    }
    return column;
}

/* Sequence b of (D, B, W) as (D, 1, W), or NULL. */
static void *part_of(const run *r, const void *from, ptrdiff_t W, ptrdiff_t b)
{
    void *part = new_array(r->layer.directions * W, r->size);
    for (int d = 0; d < r->layer.directions && from; d++) {
        memcpy(at(r, part, d * W), at(r, from, (d * r->layer.B + b) * W), (size_t)W * r->size);
    }
    return from ? part : NULL;
}

/* Steps t0 to t1 of sequence b of a run, alone and without padding. */
static run alone(const run *whole, ptrdiff_t b, ptrdiff_t t0, ptrdiff_t t1)
{
    run r = *whole;
    const elman_layer *p = &whole->layer;
    r.layer.T = t1 - t0, r.layer.B = 1, r.layer.lengths = NULL;
    r.layer.x = at(&r, p->x, t0 * p->x_t + b * p->x_b);
    if (r.dy) r.dy = at(&r, r.dy, t0 * r.y_t + b * r.y_b);
    if (r.dc) r.dc = at(&r, r.dc, t0 * r.c_t + b * r.c_b);
    if (p->reset) r.layer.reset = column_of(p, p->reset, 1, 1, b, t0, t1);
    if (p->row) r.layer.row = column_of(p, p->row, 1, r.size, b, t0, t1);
    r.layer.mask = part_of(whole, p->mask, p->R, b);
    for (int i = 0; i < 2; i++) {
        const ptrdiff_t width = p->directions * width_of(whole, i);
        if (p->stays[i]) r.layer.stays[i] = column_of(p, p->stays[i], width, 1, b, t0, t1);
    }
    for (int i = r.first; i < r.cell->states; i++) {
        r.state[i] = part_of(whole, whole->state[i], width_of(whole, i), b);
        r.dlast[i] = part_of(whole, whole->dlast[i], width_of(whole, i), b);
    }
    return r;
}

/* Is row 0 of each direction of a (D, 1, W) the row b of a (D, B, W)? */
static int same_state(const run *whole, int state, const void *one_row, const void *all, ptrdiff_t b)
{
    const elman_layer *p = &whole->layer;
    const ptrdiff_t W = width_of(whole, state);
    int good = 1;
    for (int d = 0; d < p->directions && all; d++) {
        good &= same(whole, at(whole, one_row, d * W), at(whole, all, (d * p->B + b) * W), W);
    }
    return good;
}

static void check_alone(group *g, const run *whole, const outputs *o, const gradients *wanted, ptrdiff_t b)
{
    const elman_layer *p = &whole->layer;
    const ptrdiff_t n = length_in(whole, b);
    const run r = alone(whole, b, 0, n);
    const outputs got = forward(&r, 1, 1);
    const gradients dgot = backward(&r, &got, 1);
    int good = 1, dgood = 1;
    for (ptrdiff_t t = 0; t < n; t++) {
        good &= same(&r, at(&r, got.y, t * r.y_t), at(&r, o->y, t * r.y_t + b * r.y_b), outputs_of(&r));
        if (o->c) good &= same(&r, at(&r, got.c, t * r.c_t), at(&r, o->c, t * r.c_t + b * r.c_b), cells_of(&r));
        dgood &= same(&r, at(&r, dgot.of[X][0], t * p->I), at(&r, wanted->of[X][0], (t * p->B + b) * p->I), p->I);
        for (int d = 0; d < p->directions && dgot.of[ROW][0]; d++) {
            const ptrdiff_t all_row = (d * p->T + t) * p->B + b;
            dgood &= same(&r, at(&r, dgot.of[ROW][0], d * n + t), at(&r, wanted->of[ROW][0], all_row), 1);
        }
    }
    for (int i = 0; i < ELMAN_STATES; i++) {
        good &= same_state(whole, i, got.last[i], o->last[i], b);
        dgood &= same_state(whole, i, dgot.of[H0 + i][0], wanted->of[H0 + i][0], b);
    }
    expect(g, good, "%s: sequence %td alone gives other bits, T%td B%td I%td H%td R%td", r.cell->name, b, p->T, p->B,
           p->I, p->H, p->R);
    expect(g, dgood, "%s: sequence %td alone has other gradients, T%td B%td I%td H%td R%td", r.cell->name, b, p->T,
           p->B, p->I, p->H, p->R);
}

/* Sequence b of a one-direction run in pieces of `piece` steps, the state carried on in place. */
static void check_pieces(group *g, const run *whole, const outputs *o, ptrdiff_t b, ptrdiff_t piece)
{
    const elman_layer *p = &whole->layer;
    const ptrdiff_t n = length_in(whole, b);
    void *state[ELMAN_STATES] = {NULL};
    int good = 1;
    for (int i = whole->first; i < whole->cell->states; i++) {
        const size_t size = (size_t)width_of(whole, i) * whole->size;
        state[i] = new_array(width_of(whole, i), whole->size);
        memset(state[i], 0, size);
        if (whole->state[i]) memcpy(state[i], at(whole, whole->state[i], b * width_of(whole, i)), size);
    }
    for (ptrdiff_t t0 = 0; t0 < n; t0 += piece) {
        const size_t mark = array_count;
        const run r = alone(whole, b, t0, MIN(t0 + piece, n));
        outputs got = new_outputs(&r, 0);
        elman_forward_call call = forward_call(&r, &got, 1);
        for (int i = 0; i < ELMAN_STATES; i++) call.state[i] = call.last[i] = state[i];
        r.cell->forward(&call);
        for (ptrdiff_t t = 0; t < r.layer.T; t++) {
            good &= same(&r, at(&r, got.y, t * r.y_t), at(&r, o->y, (t0 + t) * r.y_t + b * r.y_b), p->R);
        }
        release_arrays(mark);
    }
    for (int i = 0; i < ELMAN_STATES; i++) good &= same_state(whole, i, state[i], o->last[i], b);
    expect(g, good, "%s: sequence %td in pieces of %td steps gives other bits, T%td B%td I%td H%td R%td",
           whole->cell->name, b, piece, p->T, p->B, p->I, p->H, p->R);
}

static void check_bits(const elman_kernels *kernels, int is_double)
{
    static const shape sizes[] = {{5, 7, 3, 1, 1, 0},   {6, 4, 8, 17, 1, 0},  {3, 13, 33, 33, 0, 0},
                                  {3, 70, 5, 50, 0, 0}, {4, 3, 1, 260, 0, 0}, {30, 17, 17, 3, 0, 0}};
    group g = new_group("%s f%d bits: batch, padding, pieces", kernels->isa, is_double ? 64 : 32);
    for (int cell = 0; cell < ELMAN_CELL_COUNT; cell++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            for (int option = 0; option < 4 && (!quick || sizes[s].in_quick); option++) {
                if (sparing && (cell + (int)s + option + is_double) % 3) continue;
                const size_t mark = array_count;
                const int features = LENGTHS | (option & 2 ? RESET : 0) | (random_below(2) ? NOISE : 0);
                const problem p = new_problem(cell, 1 + option % 2, sizes[s], features);
                const run r = new_run(&p, kernels, is_double);
                const outputs o = forward(&r, 1, 1);
                const gradients wanted = backward(&r, &o, 1);
                for (ptrdiff_t b = 0; b < p.B; b += p.B > 20 ? 11 : 1) {
                    const size_t inner = array_count;
                    check_alone(&g, &r, &o, &wanted, b);
                    for (ptrdiff_t piece = 1; piece < 4 && p.D == 1; piece++) check_pieces(&g, &r, &o, b, piece);
                    expect(&g, release_arrays(inner) == 0, "memory outside an array is written");
                }
                expect(&g, release_arrays(mark) == 0, "memory outside an array or an input is written");
            }
        }
    }
    finish(&g);
}

/* ---- stacks ---- */

/* The layers of a stack one after another, each over all of time: what elman_stack_forward must give in its pieces. The
 * layers are all the same, so their inputs are as many as their outputs. */
static void check_stack(const elman_kernels *kernels, int is_double)
{
    enum { LAYERS = 3, PIECE = 1024 }; /* T and B beyond a piece, and just below and above it */
    static const shape sizes[] = {{2500, 1, 0, 5, 0, 0}, {700, 3, 0, 4, 1, 0},         {512, 2, 0, 4, 0, 0},
                                  {513, 2, 0, 4, 1, 0},  {2, PIECE + 6, 0, 2, 1, 0}, {0, 2, 0, 3, 1, 0},
                                  {1, 1, 0, 17, 1, 0}};
    enum { KINDS = sizeof sizes / sizeof *sizes };
    group g = new_group("%s f%d stacks in pieces of time", kernels->isa, is_double ? 64 : 32);
    for (int cell = 0; cell < ELMAN_CELL_COUNT; cell++) {
        for (int turn = 0; turn < (quick || sparing ? 1 : 4); turn++) { /* of sizes and options each cell has some */
            const size_t mark = array_count;
            const int option = (int)random_below(8), D = 1 + option % 2;
            shape size = sizes[(cell + 2 * turn + is_double) % KINDS];
            if (quick && !size.in_quick) size = sizes[KINDS - 1];
            size.R = random_outputs(cell, size.H);
            size.I = D * size.R;
            const problem p = new_problem(cell, D, size, option / 2 | SHARES);
            run r = new_run(&p, kernels, is_double);
            r.wants_c = 0, r.wants_states = 1;
            const outputs got = new_outputs(&r, 0);
            elman_forward_call call = forward_call(&r, &got, 1 + option % 3);
            elman_weights weights[LAYERS * 2];
            void *wanted[ELMAN_STATES] = {NULL};
            for (int i = r.first; i < r.cell->states; i++) { /* states of all layers */
                const ptrdiff_t states = state_size(&r, i);
                call.last[i] = new_array(LAYERS * states, r.size);
                wanted[i] = new_array(LAYERS * states, r.size);
                if (!r.state[i]) continue;
                void *state = new_array(LAYERS * states, r.size);
                for (int k = 0; k < LAYERS; k++) memcpy(at(&r, state, k * states), r.state[i], (size_t)states * r.size);
                call.state[i] = state;
            }
            for (int k = 0; k < LAYERS * D; k++) weights[k] = r.weights[k % D];
            call.layer.weights = weights;
            call.layer.index = new_array(elman_stack_index(&call.layer), sizeof *call.layer.index);
            call.layer.scratch = new_array(elman_stack_scratch(r.cell, LAYERS, &call.layer), r.size);
            elman_stack_forward(r.cell, LAYERS, &call);

            outputs o = {0};
            for (int k = 0; k < LAYERS; k++) {
                o = forward(&r, 0, 1);
                for (int i = r.first; i < r.cell->states; i++) {
                    memcpy(at(&r, wanted[i], k * state_size(&r, i)), o.last[i], (size_t)state_size(&r, i) * r.size);
                }
                r.layer.x = o.y, r.layer.x_t = r.y_t, r.layer.x_b = r.y_b;
            }
            int good = same(&r, got.y, o.y, extent(&r, r.y_t, r.y_b, outputs_of(&r)));
            for (int i = r.first; i < r.cell->states; i++) {
                good &= same(&r, call.last[i], wanted[i], LAYERS * state_size(&r, i));
            }
            expect(&g, good, "%s: " SIZES " option %d", cell_names[cell], SIZES_OF(&p), option);
            expect(&g, release_arrays(mark) == 0, "memory outside an array or an input is written");
        }
    }
    finish(&g);
}

/* ---- NaN and infinity stay where they are ---- */

static void check_nonfinite(const elman_kernels *kernels, int is_double)
{
    enum { SICK = 2, SICK_STEP = 2, HEALED_STEP = 4 };
    const shape size = {7, 5, 9, 11, 1, 0};
    group g = new_group("%s f%d NaN and infinity", kernels->isa, is_double ? 64 : 32);
    for (int cell = 0; cell < ELMAN_CELL_COUNT; cell++) {
        for (int kind = 0; kind < 2; kind++) {
            const size_t mark = array_count;
            problem p = new_problem(cell, 1, size, SHARES);
            p.reset = new_array(p.T * p.B, 1);
            memset(p.reset, 0, (size_t)(p.T * p.B));
            p.reset[HEALED_STEP * p.B + SICK] = 1;
            const run well = new_run(&p, kernels, is_double);
            p.value[X][(SICK_STEP * p.B + SICK) * p.I + 3] = kind ? INFINITY : NAN;
            const run sick = new_run(&p, kernels, is_double);
            const outputs y = forward(&well, 1, 1), got = forward(&sick, 1, 1);
            const gradients dx = backward(&well, &y, 1), dgot = backward(&sick, &got, 1);
            for (ptrdiff_t b = 0; b < p.B; b++) {
                int good = 1, dgood = 1;
                for (ptrdiff_t t = 0; t < p.T; t++) {
                    const ptrdiff_t row = t * well.y_t + b * well.y_b, dx_row = (t * p.B + b) * p.I;
                    const int healed = carries_state(cell) ? HEALED_STEP : SICK_STEP + 1;
                    const int healthy = b != SICK || t < SICK_STEP || t >= healed;
                    if (healthy) good &= same(&well, at(&well, y.y, row), at(&well, got.y, row), p.R);
                    if (b != SICK) {
                        dgood &= same(&well, at(&well, dx.of[X][0], dx_row), at(&well, dgot.of[X][0], dx_row), p.I);
                    }
                    for (ptrdiff_t u = 0; u < p.R && !healthy && kind == 0; u++) {
                        good &= isnan(get(&well, got.y, row + u));
                    }
                }
                for (int i = 0; i < ELMAN_STATES && b != SICK; i++) {
                    const ptrdiff_t W = width_of(&well, i);
                    if (!dx.of[H0 + i][0]) continue;
                    dgood &= same(&well, at(&well, dgot.of[H0 + i][0], b * W), at(&well, dx.of[H0 + i][0], b * W), W);
                }
                expect(&g, good, "%s: outputs of sequence %td", cell_names[cell], b);
                expect(&g, dgood, "%s: gradients of sequence %td", cell_names[cell], b);
            }
            release_arrays(mark);
        }
    }
    finish(&g);
}

/* ---- exp, sigmoid, tanh ---- */

static double units_in_last_place(double got, long double wanted, int is_double)
{
    const double least = is_double ? DBL_MIN : (double)FLT_MIN, most = is_double ? DBL_MAX : (double)FLT_MAX;
    if (isnan(got) || isnan((double)wanted)) return isnan(got) && isnan((double)wanted) ? 0 : INFINITY;
    if (fabsl(wanted) < least) return fabs(got) <= least ? 0 : INFINITY; /* it may be flushed to zero */
    if (isinf(got) || isinf((double)wanted)) return isinf(got) && fabsl(wanted) > most * 0.999999L ? 0 : INFINITY;
    return (double)fabsl((got - wanted) / ldexpl(1, ilogbl(wanted) - (is_double ? 52 : 23)));
}

static void check_elementwise(const elman_kernels *kernels, int is_double)
{
    static const double special[] = {0, -0.0, INFINITY, -INFINITY, NAN, 1, -1, 88.5, 88.8, -87.5, -104.5, 709.5, 710.5,
                                     -708.5, -746, 1e30, -1e30, 1e-30, -1e-30, 9.01, -9.01, 0.3465, 0.3466, 19.1};
    enum { SPECIAL = sizeof special / sizeof *special, ALL = 3000 };
    static const char *const names[3] = {"exp", "sigmoid", "tanh"};
    void (*const functions[3])(ptrdiff_t, const void *, void *) = {kernels->exp, kernels->sigmoid, kernels->tanh};
    const run r = {.is_double = is_double, .size = is_double ? sizeof(double) : sizeof(float)};
    group g = new_group("%s f%d exp, sigmoid, tanh", kernels->isa, is_double ? 64 : 32);
    const size_t mark = array_count;
    void *x = new_array(ALL, r.size), *y = new_array(ALL, r.size);
    for (int i = 0; i < ALL; i++) {
        const double scale = i % 3 == 0 ? 1 : i % 3 == 1 ? 20 : is_double ? 760 : 110;
        put(&r, x, i, i < SPECIAL ? special[i] : random_number(scale));
    }
    freeze(x);
    double worst = 0;
    for (int f = 0; f < 3; f++) {
        functions[f](ALL, x, y);
        for (int i = 0; i < ALL; i++) {
            const long double a = get(&r, x, i);
            const long double wanted = f == 0 ? expl(a) : f == 1 ? 1 / (1 + expl(-a)) : tanhl(a);
            const double error = units_in_last_place(get(&r, y, i), wanted, is_double);
            if (error > worst) worst = error;
            expect(&g, error <= 4, "%s(%.17g) = %.17g, %.1f ulp", names[f], (double)a, get(&r, y, i), error);
            if (f == 2) expect(&g, !signbit(get(&r, y, i)) == !signbit((double)a) || isnan(a), "tanh: sign of zero");
        }
        for (ptrdiff_t n = 0; n <= 40; n++) { /* partial vectors; and y may be x */
            const size_t inner = array_count;
            const ptrdiff_t start = n * 7;
            void *exact = new_array(n, r.size), *out = new_array(n, r.size);
            memcpy(exact, at(&r, x, start), (size_t)n * r.size);
            functions[f](n, exact, out);
            functions[f](n, exact, exact);
            expect(&g, same(&r, out, at(&r, y, start), n) && same(&r, exact, out, n), "%s of %td elements", names[f], n);
            expect(&g, release_arrays(inner) == 0, "%s: memory outside an array is written", names[f]);
        }
    }
    expect(&g, release_arrays(mark) == 0, "memory outside an array is written");
    snprintf(g.name + strlen(g.name), sizeof g.name - strlen(g.name), ": %.2f ulp", worst);
    finish(&g);
}

/* ---- optimisers ---- */

enum { SGD, SGD_MOMENTUM, SGD_NESTEROV, RMSPROP, RMSPROP_CENTERED, RMSPROP_MOMENTUM, RMSPROP_BOTH, ADAM, RULES };
static const int rule_moments[RULES] = {0, 1, 1, 1, 2, 2, 3, 2};

static elman_rule new_rule(int kind)
{
    elman_rule rule = {.lr = 0.07, .weight_decay = 0.3, .shrink = 1, .mean_decay = 0.9, .square_decay = 0.7};
    rule.eps = 1e-3;
    rule.nesterov = kind == SGD_NESTEROV;
    rule.centered = kind == RMSPROP_CENTERED || kind == RMSPROP_BOTH;
    if (kind == ADAM) rule.shrink = 0.9;
    if (rule_moments[kind] > (kind >= RMSPROP) + rule.centered && kind != ADAM) rule.momentum = 0.6;
    return rule;
}

/* The new weight and moments of one element. */
static double updated(int kind, const elman_rule *r, double w, double g, double *m)
{
    g += r->weight_decay * w;
    if (kind < RMSPROP) {
        if (r->momentum != 0) m[0] = r->momentum * m[0] + g;
        return w - r->lr * (kind == SGD ? g : kind == SGD_NESTEROV ? g + r->momentum * m[0] : m[0]);
    }
    if (kind < ADAM) {
        double square = m[0] = r->square_decay * m[0] + (1 - r->square_decay) * g * g, move;
        if (r->centered) {
            m[1] = r->square_decay * m[1] + (1 - r->square_decay) * g;
            square -= m[1] * m[1];
        }
        move = g / (sqrt(square) + r->eps);
        if (r->momentum != 0) move = m[rule_moments[kind] - 1] = r->momentum * m[rule_moments[kind] - 1] + move;
        return w - r->lr * move;
    }
    m[0] = r->mean_decay * m[0] + (1 - r->mean_decay) * g;
    m[1] = r->square_decay * m[1] + (1 - r->square_decay) * g * g;
    return r->shrink * w - r->lr * m[0] / (sqrt(m[1]) + r->eps);
}

/* All rules over arrays of several sizes at once, the last of them longer than a task; what is not finite in one element
 * stays there and is reported; several threads change no bit. */
static void check_rule(group *g, const elman_kernels *kernels, const run *r, int kind, int threads)
{
    enum { ARRAYS = 5 };
    const ptrdiff_t sizes[ARRAYS] = {0, 1, 37, 64, threads > 1 ? 1000003 : quick ? 100 : 40003};
    const elman_rule rule = new_rule(kind);
    int (*const step)(const elman_rule *, ptrdiff_t, const elman_parameter *, int) =
        kind < RMSPROP ? kernels->sgd : kind < ADAM ? kernels->rmsprop : kernels->adam;
    const size_t mark = array_count;
    elman_parameter parameters[ARRAYS], again[ARRAYS];
    void *gradients[ARRAYS];
    for (int a = 0; a < ARRAYS; a++) {
        elman_parameter *p = &parameters[a];
        *p = (elman_parameter){.n = sizes[a], .w = converted(r, random_array(sizes[a], 1), sizes[a])};
        p->g = gradients[a] = new_array(sizes[a], r->size);
        for (ptrdiff_t i = 0; i < sizes[a]; i++) put(r, gradients[a], i, random_number(2));
        p->w_next = new_array(sizes[a], r->size);
        for (int s = 0; s < rule_moments[kind]; s++) {
            double *old = random_array(sizes[a], 0.1);
            for (ptrdiff_t i = 0; i < sizes[a] && s == 0 && kind >= RMSPROP && kind < ADAM; i++) old[i] = fabs(old[i]) + 1;
            for (ptrdiff_t i = 0; i < sizes[a] && s == 1 && kind == ADAM; i++) old[i] = fabs(old[i]);
            p->old[s] = converted(r, old, sizes[a]);
            p->next[s] = new_array(sizes[a], r->size);
        }
        again[a] = *p;
        again[a].w_next = new_array(sizes[a], r->size);
        for (int s = 0; s < rule_moments[kind]; s++) again[a].next[s] = new_array(sizes[a], r->size);
    }
    expect(g, step(&rule, ARRAYS, parameters, threads) == 1, "rule %d: finite numbers are refused", kind);
    const double tolerance = r->is_double ? 1e-14 : 4e-6;
    for (int a = 0; a < ARRAYS; a++) {
        const elman_parameter *p = &parameters[a];
        for (ptrdiff_t i = 0; i < p->n; i++) {
            double m[3] = {0};
            for (int s = 0; s < rule_moments[kind]; s++) m[s] = get(r, p->old[s], i);
            const double wanted = updated(kind, &rule, get(r, p->w, i), get(r, p->g, i), m);
            double error = fabs(get(r, p->w_next, i) - wanted);
            for (int s = 0; s < rule_moments[kind]; s++) error = fmax(error, fabs(get(r, p->next[s], i) - m[s]));
            if (error > g->worst_value) g->worst_value = error;
            expect(g, error <= tolerance, "rule %d: element %td of %td is wrong by %g", kind, i, p->n, error);
        }
    }
    for (int a = 1; a < ARRAYS; a++) { /* alone on one thread, with a NaN or infinity somewhere */
        const ptrdiff_t bad = random_below(sizes[a]);
        const double good = get(r, gradients[a], bad);
        expect(g, step(&rule, 1, &again[a], 1) == 1 && same(r, again[a].w_next, parameters[a].w_next, sizes[a]),
               "rule %d: other bits alone", kind);
        for (int s = 0; s < rule_moments[kind]; s++) {
            expect(g, same(r, again[a].next[s], parameters[a].next[s], sizes[a]), "rule %d: other moments alone", kind);
        }
        put(r, gradients[a], bad, random_below(2) ? NAN : INFINITY);
        expect(g, step(&rule, ARRAYS, again, threads) == 0, "rule %d: element %td of %td is not finite", kind, bad,
               sizes[a]);
        for (ptrdiff_t i = 0; i < sizes[a]; i++) {
            const int is_same = same(r, at(r, again[a].w_next, i), at(r, parameters[a].w_next, i), 1);
            expect(g, is_same == (i != bad), "rule %d: NaN at %td is seen at %td", kind, bad, i);
        }
        put(r, gradients[a], bad, good);
    }
    expect(g, release_arrays(mark) == 0, "rule %d: memory outside an array is written", kind);
}

static void check_optimizers(const elman_kernels *kernels, int is_double)
{
    group g = new_group("%s f%d optimisers", kernels->isa, is_double ? 64 : 32);
    const run r = {.is_double = is_double, .size = is_double ? sizeof(double) : sizeof(float)};
    for (int kind = 0; kind < RULES; kind++) check_rule(&g, kernels, &r, kind, 1);
    if (!quick) check_rule(&g, kernels, &r, ADAM, 3);
    finish(&g);
}

/* ---- the loss ---- */

/* Of one row, with its gradient: as in src/elman/losses.py, in double. */
static double cross_entropy(ptrdiff_t C, const double *z, ptrdiff_t target, double *d)
{
    double peak = z[0], total = 0;
    for (ptrdiff_t c = 1; c < C; c++) peak = fmax(peak, z[c]);
    for (ptrdiff_t c = 0; c < C; c++) total += d[c] = exp(z[c] - peak);
    for (ptrdiff_t c = 0; c < C; c++) d[c] = d[c] / total - (c == target);
    return log(total) + peak - z[target];
}

/* One problem in all ways: with lengths, whose rest may not be read, and with weights, one of which is 0. */
static void check_loss(group *g, const elman_kernels *kernels, const run *r, ptrdiff_t T, ptrdiff_t B, ptrdiff_t C)
{
    const size_t mark = array_count;
    double *z = random_array(T * B * C, 6), *weights = random_array(C, 1), *d = new_array(C, sizeof *d);
    ptrdiff_t *targets = new_array(T * B, sizeof *targets), *lengths = new_array(B, sizeof *lengths);
    for (ptrdiff_t c = 0; c < C; c++) weights[c] = c == 1 ? 0 : fabs(weights[c]) + 0.5;
    for (ptrdiff_t b = 0; b < B; b++) lengths[b] = random_below(T + 1);
    for (ptrdiff_t row = 0; row < T * B; row++) targets[row] = random_below(C);
    for (int way = 0; way < 8; way++) {
        const int is_ragged = way & 1, is_weighted = way & 2, is_mean = way & 4;
        ptrdiff_t *given = new_array(T * B, sizeof *given);
        double *const logits = new_array(T * B * C, sizeof *logits);
        memcpy(logits, z, (size_t)(T * B * C) * sizeof *z);
        for (ptrdiff_t row = 0; row < T * B; row++) {
            const int is_true = !is_ragged || row / B < lengths[row % B];
            given[row] = is_true ? targets[row] : PTRDIFF_MAX / 64;
            for (ptrdiff_t c = 0; c < C && !is_true; c++) logits[row * C + c] = NAN;
        }
        const elman_cross_entropy call = {
            T, B, C, converted(r, logits, T * B * C), given, is_ragged ? lengths : NULL, is_weighted ? weights : NULL,
            is_mean, poisoned(r, T * B * C)};
        const double got = kernels->softmax_cross_entropy(&call);
        double loss = 0, count = 0;
        for (ptrdiff_t row = 0; row < T * B; row++) {
            if (is_ragged && row / B >= lengths[row % B]) continue;
            const double weight = is_weighted ? weights[targets[row]] : 1;
            loss += weight * cross_entropy(C, z + row * C, targets[row], d), count += weight;
        }
        if (!is_mean) count = 1;
        const double tolerance = (r->is_double ? 1e-13 : 2e-6) * (1 + fabs(loss));
        const double error = count > 0 ? fabs(got - loss / count) * count : !isnan(got);
        expect(g, error <= tolerance, "%td x %td x %td: a loss of %g, not %g", T, B, C, got, loss / count);
        for (ptrdiff_t row = 0; row < T * B && count > 0; row++) {
            const int is_true = !is_ragged || row / B < lengths[row % B];
            const double weight = is_weighted ? weights[targets[row]] : 1;
            cross_entropy(C, z + row * C, targets[row], d);
            for (ptrdiff_t c = 0; c < C; c++) {
                const double wanted = is_true ? d[c] * weight / count : 0;
                const double off = fabs(get(r, call.dlogits, row * C + c) - wanted);
                if (off > g->worst_gradient) g->worst_gradient = off;
                expect(g, off <= (r->is_double ? 1e-14 : 2e-6), "%td x %td x %td: gradient wrong by %g", T, B, C, off);
            }
        }
    }
    expect(g, release_arrays(mark) == 0, "%td x %td x %td: memory outside an array is written", T, B, C);
}

static void check_losses(const elman_kernels *kernels, int is_double)
{
    group g = new_group("%s f%d losses", kernels->isa, is_double ? 64 : 32);
    const run r = {.is_double = is_double, .size = is_double ? sizeof(double) : sizeof(float)};
    for (ptrdiff_t C = 1; C <= 40; C += C < 20 ? 1 : 5) check_loss(&g, kernels, &r, 3, 5, C);
    check_loss(&g, kernels, &r, 60, 7, 5); /* several blocks of rows */
    check_loss(&g, kernels, &r, 2, 2, 1500);
    check_loss(&g, kernels, &r, 0, 3, 4);
    check_loss(&g, kernels, &r, 3, 0, 4);
    for (ptrdiff_t n = 0; n < 5000; n += n < 40 ? 1 : 619) {
        const size_t mark = array_count;
        double *const values = random_array(n, 2);
        const void *x = converted(&r, values, n);
        long double sum = 0;
        for (ptrdiff_t i = 0; i < n; i++) sum += values[i] * values[i];
        const double error = fabs(kernels->sum_of_squares(n, x) - (double)sum);
        expect(&g, error <= 1e-14 * (double)sum, "sum of %td squares: wrong by %g", n, error);
        expect(&g, release_arrays(mark) == 0, "memory outside an array is written");
    }
    finish(&g);
}

/* ---- the loss of CTC ---- */

enum { CTC_STEPS = 20, CTC_CLASSES = 20, CTC_STATES = 2 * 9 + 1 };

/* -log of the probability of a target, as the paper has it, in probabilities; d (n, C): its gradient. */
static double ctc_by_definition(ptrdiff_t n, ptrdiff_t C, const double *logits, ptrdiff_t K, const ptrdiff_t *target,
                                ptrdiff_t blank, double *d)
{
    long double p[CTC_STEPS][CTC_CLASSES], a[CTC_STEPS][CTC_STATES] = {{0}}, b[CTC_STEPS][CTC_STATES];
    ptrdiff_t class[CTC_STATES];
    const ptrdiff_t N = 2 * K + 1;
    for (ptrdiff_t s = 0; s < N; s++) class[s] = s % 2 ? target[s / 2] : blank;
    for (ptrdiff_t t = 0; t < n; t++) {
        long double sum = 0;
        for (ptrdiff_t c = 0; c < C; c++) sum += p[t][c] = expl(logits[t * C + c]);
        for (ptrdiff_t c = 0; c < C; c++) p[t][c] /= sum;
        for (ptrdiff_t s = 0; s < N; s++) {
            a[t][s] = t ? a[t - 1][s] : s < 2;
            if (t && s > 0) a[t][s] += a[t - 1][s - 1];
            if (t && s > 1 && class[s] != class[s - 2]) a[t][s] += a[t - 1][s - 2];
            a[t][s] *= p[t][class[s]];
        }
    }
    long double total = n ? a[n - 1][N - 1] : K == 0;
    if (n && K) total += a[n - 1][N - 2];
    for (ptrdiff_t t = n - 1; t >= 0; t--) {
        for (ptrdiff_t s = N - 1; s >= 0; s--) {
            b[t][s] = t + 1 < n ? b[t + 1][s] * p[t + 1][class[s]] : s >= N - 2;
            if (t + 1 < n && s + 1 < N) b[t][s] += b[t + 1][s + 1] * p[t + 1][class[s + 1]];
            if (t + 1 < n && s + 2 < N && class[s] != class[s + 2]) b[t][s] += b[t + 1][s + 2] * p[t + 1][class[s + 2]];
        }
        for (ptrdiff_t c = 0; c < C; c++) d[t * C + c] = total > 0 ? (double)p[t][c] : 0;
        for (ptrdiff_t s = 0; s < N && total > 0; s++) d[t * C + class[s]] -= (double)(a[t][s] * b[t][s] / total);
    }
    return (double)-logl(total);
}

/* A random problem with outputs and scratch of its own. What lies past an end is POISON, and not to be looked at. */
static elman_ctc new_ctc(const run *r, ptrdiff_t T, ptrdiff_t B, ptrdiff_t C, ptrdiff_t S)
{
    ptrdiff_t *lengths = new_array(B, sizeof *lengths), *counts = new_array(B, sizeof *counts);
    ptrdiff_t *targets = new_array(B * S, sizeof *targets);
    double *scale = random_array(B, 1);
    void *logits = new_array(T * B * C, r->size);
    const ptrdiff_t blank = random_below(C);
    memset(targets, POISON, (size_t)(B * S) * sizeof *targets);
    memset(logits, POISON, (size_t)(T * B * C) * r->size);
    for (ptrdiff_t b = 0; b < B; b++) {
        lengths[b] = random_below(3) ? T : random_below(T + 1);
        counts[b] = C > 1 ? random_below(3) ? S : random_below(S + 1) : 0;
        for (ptrdiff_t k = 0; k < counts[b]; k++) {
            const int again = k > 0 && random_below(3) == 0; /* a blank must stand between equal classes */
            targets[b * S + k] = again ? targets[b * S + k - 1] : (blank + 1 + random_below(C - 1)) % C;
        }
        for (ptrdiff_t i = 0; i < lengths[b] * C; i++) put(r, logits, (i / C * B + b) * C + i % C, random_number(4));
    }
    const void *const inputs[] = {lengths, counts, targets, scale, logits};
    for (int i = 0; i < 5; i++) freeze(inputs[i]);
    for (ptrdiff_t b = 0; b < B; b++) {
        ASAN_POISON_MEMORY_REGION(targets + b * S + counts[b], (size_t)(S - counts[b]) * sizeof *targets);
        for (ptrdiff_t t = lengths[b]; t < T; t++) {
            ASAN_POISON_MEMORY_REGION((char *)logits + (size_t)((t * B + b) * C) * r->size, (size_t)C * r->size);
        }
    }
    const elman_ctc call = {.T = T, .B = B, .C = C, .S = S, .blank = blank, .threads = 1, .is_single = !r->is_double,
                            .logits = logits, .lengths = lengths, .targets = targets, .counts = counts, .scale = scale};
    return call;
}

static void run_ctc(const elman_kernels *kernels, const run *r, elman_ctc *call, int threads)
{
    call->threads = threads;
    call->losses = new_array(call->B, sizeof *call->losses);
    call->dlogits = new_array(call->T * call->B * call->C, r->size);
    call->scratch = new_array(kernels->ctc_scratch(call), sizeof *call->scratch);
    kernels->ctc(call);
}

static void check_ctc(const elman_kernels *kernels)
{
    group g = new_group("%s f64 CTC", kernels->isa);
    for (int repeat = 0; repeat < (quick || sparing ? 60 : 300); repeat++) {
        const size_t mark = array_count;
        const run r = {.is_double = repeat % 2, .size = repeat % 2 ? sizeof(double) : sizeof(float)};
        const ptrdiff_t T = random_below(CTC_STEPS + 1), B = random_below(5), C = 1 + random_below(CTC_CLASSES);
        elman_ctc call = new_ctc(&r, T, B, C, random_below(10)), again = call;
        run_ctc(kernels, &r, &call, 1);
        for (ptrdiff_t b = 0; b < B; b++) {
            double x[CTC_STEPS * CTC_CLASSES], d[CTC_STEPS * CTC_CLASSES];
            const ptrdiff_t n = call.lengths[b];
            for (ptrdiff_t i = 0; i < n * C; i++) x[i] = get(&r, call.logits, (i / C * B + b) * C + i % C);
            const double loss = ctc_by_definition(n, C, x, call.counts[b], call.targets + b * call.S, call.blank, d);
            const double error = isinf(loss) && call.losses[b] == loss ? 0 : fabs(call.losses[b] - loss);
            expect(&g, error <= 4e-15 * (1 + fabs(loss)), "a loss is %.17g, not %.17g", call.losses[b], loss);
            g.worst_value = fmax(g.worst_value, error);
            for (ptrdiff_t i = 0; i < T * C; i++) {
                const double wanted = i < n * C ? call.scale[b] * d[i] : 0;
                const double got = get(&r, call.dlogits, (i / C * B + b) * C + i % C);
                expect(&g, fabs(got - wanted) <= (r.is_double ? 2e-14 : 1e-7), "a gradient is %g, not %g", got, wanted);
                if (r.is_double) g.worst_gradient = fmax(g.worst_gradient, fabs(got - wanted));
            }
        }
        fesetround(FE_UPWARD);
        run_ctc(kernels, &r, &again, 3);
        expect(&g, fegetround() == FE_UPWARD, "the rounding mode is lost");
        fesetround(FE_TONEAREST);
        expect(&g, same(&r, call.dlogits, again.dlogits, T * B * C) &&
                       memcmp(call.losses, again.losses, (size_t)B * sizeof *call.losses) == 0,
               "the caller's rounding mode changes results");
        expect(&g, release_arrays(mark) == 0, "memory outside an array or an input is written");
    }
    finish(&g);
}

static void check_ctc_threads(const elman_kernels *kernels)
{
    group g = new_group("%s f64 CTC: 1 to 4 threads", kernels->isa);
    const run r = {.is_double = 0, .size = sizeof(float)};
    elman_ctc call = new_ctc(&r, 70, 40, 30, 25);
    run_ctc(kernels, &r, &call, 1);
    for (int threads = 2; threads <= 4; threads++) {
        elman_ctc got = call;
        run_ctc(kernels, &r, &got, threads);
        expect(&g, same(&r, call.dlogits, got.dlogits, call.T * call.B * call.C) &&
                       memcmp(call.losses, got.losses, (size_t)call.B * sizeof *call.losses) == 0,
               "results with %d threads", threads);
    }
    expect(&g, release_arrays(0) == 0, "memory outside an array or an input is written");
    finish(&g);
}

/* ---- the limits of the machine ---- */

static void check_limits(const elman_kernels *kernels, int is_double)
{
    group g = new_group("%s f%d limits", kernels->isa, is_double ? 64 : 32);
    const run r = {.is_double = is_double, .size = is_double ? sizeof(double) : sizeof(float)};
    const size_t mark = array_count;
    const ptrdiff_t n = 16 * 64; /* whole blocks of every instruction set */
    void *a = new_array(n, r.size), *sum = new_array(kernels->lanes, r.size);
    for (ptrdiff_t i = 0; i < n; i++) put(&r, a, i, 1);
    freeze(a);
    const double size = kernels->read(3, n, a, sum);
    expect(&g, size == 3.0 * (double)n * (double)r.size, "read: %g bytes", size);
    for (int i = 0; i < kernels->lanes; i++) {
        const double wanted = 3.0 * (double)n / kernels->lanes;
        expect(&g, get(&r, sum, i) == wanted, "read: a sum of %g, not %g", get(&r, sum, i), wanted);
        put(&r, sum, i, 1);
    }
    const double operations = kernels->multiply_add(1000, sum), chains = operations / 2000 / kernels->lanes;
    const double wanted = chains * (chains - 1) / 2 + 1000 * chains;
    expect(&g, chains >= 12 && chains <= 32, "multiply_add: %g operations", operations);
    for (int i = 0; i < kernels->lanes; i++) {
        expect(&g, get(&r, sum, i) == wanted, "multiply_add: a sum of %g, not %g", get(&r, sum, i), wanted);
    }
    expect(&g, release_arrays(mark) == 0, "memory outside an array is written");
    finish(&g);
}

/* ---- the caller's floating-point mode ---- */

static void check_mode(const elman_kernels *kernels, int is_double)
{
    group g = new_group("%s f%d floating-point mode", kernels->isa, is_double ? 64 : 32);
    volatile double tiny = DBL_MIN;
    for (int cell = 0; cell < ELMAN_CELL_COUNT; cell++) {
        const size_t mark = array_count;
        const problem p = new_problem(cell, 2, (shape){4, 5, 9, 11, 1, 0}, NOISE);
        const run r = new_run(&p, kernels, is_double);
        const outputs wanted = forward(&r, 1, 1);
        const gradients dwanted = backward(&r, &wanted, 1);
        fesetround(FE_UPWARD);
        const outputs got = forward(&r, 1, 1);
        const gradients dgot = backward(&r, &got, 1);
        char in[64] = {0}, out[64];
        kernels->tanh((ptrdiff_t)(sizeof in / r.size), in, out);
        const elman_parameter zeros = {.n = (ptrdiff_t)(sizeof in / r.size), .w = in, .g = in, .w_next = out};
        kernels->sgd(&(elman_rule){.lr = 1}, 1, &zeros, 1);
        expect(&g, fegetround() == FE_UPWARD, "%s: the rounding mode is lost", cell_names[cell]);
        fesetround(FE_TONEAREST);
        expect(&g, tiny / 4 > 0, "%s: subnormals are flushed afterwards", cell_names[cell]);
        expect(&g, same_outputs(&r, &wanted, &got) && same_gradients(&r, &dwanted, &dgot),
               "%s: the caller's rounding mode changes results", cell_names[cell]);
        release_arrays(mark);
    }
    finish(&g);
}

/* ---- threads ---- */

/* So many steps that four threads get work: see elman_worth_threads(). */
static shape long_shape(group *g, int cell, int D, ptrdiff_t B, ptrdiff_t H)
{
    shape size = {1, B, 33, H, 0, random_outputs(cell, H)};
    const double row = (double)D * form_of(cell)->gates * (double)size.H * (double)(size.I + size.R);
    size.T = (ptrdiff_t)(2.5e7 / row / (double)B) + 1;
    expect(g, elman_worth_threads(4, row * (double)(size.T * B)) == 4, "too little work for threads");
    return size;
}

static void check_threads(const elman_kernels *kernels, int is_double)
{
    static const struct {
        int D;
        ptrdiff_t B, H;
    } sizes[] = {
        {1, 70, 50}, /* parts of the batch */
        {2, 3, 50},  /* directions */
        {2, 70, 50}, /* both */
        {1, 3, 245}, /* a team that shares the products of each step */
    };
    enum { TEAM = 3 };
    group g = new_group("%s f%d bits: 1 to 4 threads", kernels->isa, is_double ? 64 : 32);
    for (int cell = 0; cell < ELMAN_CELL_COUNT; cell++) {
        for (int option = 0; option <= TEAM; option++) {
            /* The loop is the same for all cells: each has a team and one of the others, or one of all four. */
            const int turn = cell + is_double;
            if (sparing ? turn % (TEAM + 1) != option : option < TEAM && turn % TEAM != option) continue;
            const size_t mark = array_count;
            const int D = sizes[option].D;
            const shape size = long_shape(&g, cell, D, sizes[option].B, sizes[option].H);
            const problem p = new_problem(cell, D, size, RESET | (random_below(2) ? NOISE : 0));
            const run r = new_run(&p, kernels, is_double);
            const outputs wanted = forward(&r, 1, 1);
            const gradients dwanted = backward(&r, &wanted, 1);
            for (int threads = sparing ? 4 : 2; threads <= 4; threads++) {
                const size_t inner = array_count;
                const outputs got = forward(&r, 1, threads);
                const gradients dgot = backward(&r, &got, threads);
                expect(&g, same_outputs(&r, &wanted, &got), "%s: outputs with %d threads", cell_names[cell], threads);
                expect(&g, same_gradients(&r, &dwanted, &dgot), "%s: gradients with %d threads", cell_names[cell],
                       threads);
                expect(&g, release_arrays(inner) == 0, "memory outside an array is written");
            }
            expect(&g, release_arrays(mark) == 0, "memory outside an array or an input is written");
        }
    }
    finish(&g);
}

enum { MOST_TASKS = 200, MOST_WORKERS = 8 };

typedef struct {
    int done[MOST_TASKS];        /* how often each task ran */
    int worked[MOST_WORKERS];    /* tasks of each worker; no lock: a worker is one thread at a time */
    int nested, sleeping, wrong; /* what tasks do */
    int workers;
} tally;

static void nested_task(void *arg, ptrdiff_t task, int worker)
{
    ((int *)arg)[task] += worker >= 0 && worker < 3;
}

static void tally_task(void *arg, ptrdiff_t task, int worker)
{
    tally *t = arg;
    if (worker < 0 || worker >= t->workers) abort();
    t->done[task]++;
    t->worked[worker]++;
    if (t->nested) {
        int inner[5] = {0};
        elman_parallel(3, 5, nested_task, inner);
        for (int i = 0; i < 5; i++) t->done[task] += inner[i] - 1;
    }
    if (t->sleeping) nanosleep(&(struct timespec){0, 1000000}, NULL);
}

static int tally_is_right(int threads, ptrdiff_t tasks, int nested, int sleeping, int *workers_seen)
{
    tally t = {.nested = nested, .sleeping = sleeping, .workers = threads};
    elman_parallel(threads, tasks, tally_task, &t);
    int good = 1, sum = 0;
    for (ptrdiff_t i = 0; i < MOST_TASKS; i++) good &= t.done[i] == (i < tasks);
    for (int w = 0; w < MOST_WORKERS; w++) {
        sum += t.worked[w];
        if (workers_seen) *workers_seen += t.worked[w] > 0;
    }
    return good && sum == tasks;
}

static void check_pool(void)
{
    group g = new_group("pool: every task once");
    for (int repeat = 0; repeat < 200; repeat++) {
        const int threads = 1 + (int)random_below(MOST_WORKERS);
        const ptrdiff_t tasks = random_below(MOST_TASKS + 1);
        expect(&g, tally_is_right(threads, tasks, repeat % 4 == 0, 0, NULL), "%d threads, %td tasks", threads, tasks);
    }
    int most = 0;
    for (int attempt = 0; attempt < 20 && most < 4; attempt++) {
        int seen = 0;
        expect(&g, tally_is_right(4, 40, 0, 1, &seen), "sleeping tasks");
        if (seen > most) most = seen;
    }
    expect(&g, most == 4, "only %d of 4 threads ever worked", most);
    finish(&g);
}

typedef struct {
    const run *r;
    elman_forward_call forward;
    elman_backward_call backward;
} caller;

static void *call_often(void *arg)
{
    const caller *c = arg;
    for (int i = 0; i < 5; i++) {
        c->r->cell->forward(&c->forward);
        c->r->cell->backward(&c->backward);
        tally_is_right(4, 50, 0, 0, NULL);
    }
    return NULL;
}

/* Several callers at once on one set of weights. */
static void check_callers(const elman_kernels *kernels)
{
    enum { CALLERS = 4 };
    group g = new_group("pool: %d callers at once", CALLERS);
    for (int cell = 0; cell < ELMAN_CELL_COUNT; cell += sparing ? 3 : 1) {
        const size_t mark = array_count;
        const problem p = new_problem(cell, 2, long_shape(&g, cell, 2, 30, 50), LENGTHS | RESET | NOISE);
        const run r = new_run(&p, kernels, 0);
        const outputs wanted = forward(&r, 1, 1);
        const gradients dwanted = backward(&r, &wanted, 1);
        outputs got[CALLERS];
        gradients dgot[CALLERS];
        caller callers[CALLERS];
        pthread_t threads[CALLERS];
        for (int i = 0; i < CALLERS; i++) {
            got[i] = new_outputs(&r, 1);
            dgot[i] = new_gradients(&r);
            callers[i] = (caller){&r, forward_call(&r, &got[i], 3), backward_call(&r, &got[i], &dgot[i], 4)};
        }
        for (int i = 0; i < CALLERS; i++) {
            if (pthread_create(&threads[i], NULL, call_often, &callers[i])) abort();
        }
        for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
        for (int i = 0; i < CALLERS; i++) {
            expect(&g, same_outputs(&r, &wanted, &got[i]) && same_gradients(&r, &dwanted, &dgot[i]), "%s: caller %d",
                   cell_names[cell], i);
        }
        expect(&g, release_arrays(mark) == 0, "memory outside an array or an input is written");
    }
    finish(&g);
}

static volatile int busy_caller_may_go_on = 1;

static void *call_without_end(void *arg)
{
    (void)arg;
    while (__atomic_load_n(&busy_caller_may_go_on, __ATOMIC_RELAXED)) tally_is_right(3, 60, 0, 0, NULL);
    return NULL;
}

/* A child that is forked while another thread uses the pool has a pool of its own. */
static void check_fork(void)
{
    group g = new_group("pool: forked children");
    pthread_t thread;
    if (pthread_create(&thread, NULL, call_without_end, NULL)) abort();
    fflush(stdout);
    for (int i = 0; i < (quick ? 5 : 20); i++) {
        const pid_t child = fork();
        if (child == 0) {
            int seen = 0;
            alarm(30); /* instead of waiting for ever */
            for (int attempt = 0; attempt < 20 && seen < 2; attempt++) {
                seen = 0;
                if (!tally_is_right(3, 30, 0, 1, &seen)) _exit(2);
            }
            _exit(seen > 1 ? 0 : 3);
        }
        int status = -1;
        expect(&g, child > 0 && waitpid(child, &status, 0) == child && status == 0, "a child ended with status %#x",
               (unsigned)status);
    }
    __atomic_store_n(&busy_caller_may_go_on, 0, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    finish(&g);
}

/* ---- the dispatcher ---- */

static void check_dispatcher(void)
{
    group g = new_group("dispatcher (%s)", elman_compiler());
    expect(&g, strcmp(elman_isa_name(0), "c") == 0 && elman_isa_usable(0), "plain C is not the first, or not usable");
    for (int i = 0; i < 2 * elman_isa_count(); i++) {
        const elman_kernels *kernels = elman_get_kernels(i / 2, i % 2);
        expect(&g, strcmp(kernels->isa, elman_isa_name(i / 2)) == 0, "%s stands for %s", kernels->isa,
               elman_isa_name(i / 2));
        expect(&g, !kernels->ctc == !(i % 2), "%s: CTC is of double", kernels->isa);
        for (int cell = 0; cell < ELMAN_CELL_COUNT; cell++) {
            const elman_cell *entry = &kernels->cells[cell], *form = form_of(cell);
            expect(&g, strcmp(entry->name, cell_names[cell]) == 0, "%s: %s stands for %s", kernels->isa, entry->name,
                   cell_names[cell]);
            expect(&g, entry->gates > 0 && entry->slots >= carries_state(cell) && entry->units >= 0 &&
                           entry->states > 0 && entry->states <= ELMAN_STATES && entry->size == (i % 2 ? 8 : 4),
                   "%s: the numbers of %s", kernels->isa, entry->name);
            expect(&g, entry->gates == form->gates && entry->slots == form->slots && entry->units == form->units &&
                           entry->states == form->states && entry->is_recurrent == form->is_recurrent &&
                           entry->carries_h == form->carries_h && entry->takes_row == form->takes_row &&
                           entry->projects == form->projects,
                   "%s: %s is another cell than in plain C", kernels->isa, entry->name);
        }
    }
    finish(&g);
}

static int best_isa(void)
{
    int isa = elman_isa_count() - 1;
    while (!elman_isa_usable(isa)) isa--;
    return isa;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "all";
    const int only_threads = !strcmp(mode, "threads"), raw = !strcmp(mode, "raw");
    quick = raw || !strcmp(mode, "quick");
    arrays_stay_uninitialised = raw;
    if (argc > 2 || (!quick && !only_threads && strcmp(mode, "all"))) {
        fprintf(stderr, "usage: check [all | quick | raw | threads]\n");
        return 2;
    }
    check_dispatcher();
    for (int cell = 0; cell < ELMAN_CELL_COUNT && !only_threads; cell++) check_numbers(cell);
    for (int i = 0; i < 2 * elman_isa_count(); i++) {
        const elman_kernels *kernels = elman_get_kernels(i / 2, i % 2);
        if (!elman_isa_usable(i / 2)) {
            printf("skip %s f%d: this machine cannot run it\n", kernels->isa, i % 2 ? 64 : 32);
            continue;
        }
        if (!only_threads) {
            check_bits(kernels, i % 2);
            check_stack(kernels, i % 2);
            check_nonfinite(kernels, i % 2);
            check_elementwise(kernels, i % 2);
            check_optimizers(kernels, i % 2);
            check_losses(kernels, i % 2);
            if (i % 2) check_ctc(kernels);
            check_limits(kernels, i % 2);
            check_mode(kernels, i % 2);
        }
        if (!quick && i / 2 == best_isa()) check_threads(kernels, i % 2); /* the others: tests/test_bits.py */
    }
    check_pool();
    if (!quick) check_ctc_threads(elman_get_kernels(best_isa(), 1));
    if (!quick) check_callers(elman_get_kernels(best_isa(), 0));
#ifdef UNDER_TSAN
    printf("skip pool: forked children: ThreadSanitizer does not allow threads after fork\n");
#else
    if (quick && !raw) {
        printf("skip pool: forked children: qemu-user aborts in the child of a process with threads\n");
    } else {
        check_fork();
    }
#endif
    for (int cell = 0; cell < ELMAN_CELL_COUNT; cell++) {
        if (equations[cell].step) continue;
        printf("note %s is not compared: it has no equations in reference.h\n", cell_names[cell]);
    }
    printf("%d passed, %d failed\n", groups_passed, groups_failed);
    return groups_failed > 0;
}
