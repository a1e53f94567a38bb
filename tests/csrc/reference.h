/* What the kernels should compute, written from the equations one number at a time in double. Gradients come from dual
 * numbers: every value carries its exact derivative along one direction, so no backward equation is written twice.
 */
#ifndef CHECK_REFERENCE_H
#define CHECK_REFERENCE_H
#include <math.h>

#include "elman.h"

/* The arrays that a loss can be differentiated by. Weights and biases of both directions stand one after another. */
enum { X, H0, C0, W_IH, W_HH, B_IH, B_HH, OF_UNITS, INPUTS };
static const char *const input_names[INPUTS] = {"x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh", "weights of units"};

typedef struct {
    int cell, gates, states, units, D;
    elman_options options;
    ptrdiff_t T, B, I, H;
    ptrdiff_t *lengths;   /* (B) or NULL */
    unsigned char *reset; /* (T, B) or NULL */
    int has[INPUTS]; /* 0: NULL is passed, which means zeros */
    int has_dy, has_dlast;
    int layout; /* of x, y and dy in memory */

    ptrdiff_t size[INPUTS];
    double *value[INPUTS];     /* X (T, B, I), H0 and C0 (D, B, H), W_IH (D, G*H, I) ... */
    double *direction[INPUTS]; /* in which the loss is differentiated */
    double *dy, *dlast[2];     /* loss = sum of dy * y + sum of dlast * last */

    double *y, *last[2];          /* the reference's results */
    double derivative[INPUTS];    /* of the loss along each direction */
} problem;

typedef struct {
    double value, slope;
} dual;

static dual plus(dual a, dual b) { return (dual){a.value + b.value, a.slope + b.slope}; }
static dual minus(dual a, dual b) { return (dual){a.value - b.value, a.slope - b.slope}; }
static dual times(dual a, dual b) { return (dual){a.value * b.value, a.slope * b.value + a.value * b.slope}; }
static dual relu(dual a) { return a.value > 0 ? a : (dual){0, 0}; }

static dual sigmoid(dual a)
{
    const double s = 1 / (1 + exp(-a.value));
    return (dual){s, a.slope * s * (1 - s)};
}

static dual hyperbolic_tangent(dual a)
{
    const double t = tanh(a.value);
    return (dual){t, a.slope * (1 - t * t)};
}

/* f(a limited to -clip .. clip), for the activations that new_problem() chooses. */
static dual activated(const problem *p, int role, dual a)
{
    const elman_activation *f = &p->options.activations[role];
    const double clip = role < 2 ? p->options.clip : INFINITY;
    double y, slope;
    if (!(fabs(a.value) < clip)) a = (dual){a.value > 0 ? clip : -clip, 0};
    switch (f->name) {
        case ELMAN_SIGMOID: return sigmoid(a);
        case ELMAN_SCALEDTANH: return times((dual){f->alpha, 0}, hyperbolic_tangent(times((dual){f->beta, 0}, a)));
        case ELMAN_HARDSIGMOID:
            y = f->alpha * a.value + f->beta;
            return y <= 0 ? (dual){0, 0} : y >= 1 ? (dual){1, 0} : (dual){y, f->alpha * a.slope};
        case ELMAN_SOFTSIGN:
            slope = 1 / (1 + fabs(a.value));
            return (dual){a.value * slope, a.slope * slope * slope};
        default: abort();
    }
}

static dual input(const problem *p, int which, int active, ptrdiff_t i)
{
    return (dual){p->has[which] ? p->value[which][i] : 0, which == active ? p->direction[which][i] : 0};
}

/* bias[row] + weight[row] . operand */
static dual affine(const problem *p, int active, int weight, int bias, ptrdiff_t row, ptrdiff_t n, const dual *operand)
{
    dual sum = input(p, bias, active, row);
    for (ptrdiff_t k = 0; k < n; k++) sum = plus(sum, times(input(p, weight, active, row * n + k), operand[k]));
    return sum;
}

/* One step of direction d: h and c (H) in place; memory (2*G*H + H). */
static void reference_step(const problem *p, int active, int d, const dual *x, dual *h, dual *c, dual *memory)
{
    const ptrdiff_t I = p->I, H = p->H, N = p->gates * H;
    dual *ax = memory, *ah = ax + N, *rh = ah + N;
    for (ptrdiff_t row = 0; row < N; row++) {
        ax[row] = affine(p, active, W_IH, B_IH, d * N + row, I, x);
        ah[row] = affine(p, active, W_HH, B_HH, d * N + row, H, h);
    }
    if (p->cell == ELMAN_gru_reset_before || p->cell == ELMAN_gru_reset_before_any) {
        for (ptrdiff_t u = 0; u < H; u++) {
            const dual a = plus(ax[u], ah[u]);
            rh[u] = times(p->cell == ELMAN_gru_reset_before ? sigmoid(a) : activated(p, 0, a), h[u]);
        }
        for (ptrdiff_t u = 2 * H; u < 3 * H; u++) ah[u] = affine(p, active, W_HH, B_HH, d * N + u, H, rh);
    }
    for (ptrdiff_t u = 0; u < H; u++) {
        const dual one = {1, 0}, a = plus(ax[u], ah[u]);
        dual z, n, i, f, seen[3];
        for (int k = 0; k < 3; k++) {
            seen[k] = p->units ? input(p, OF_UNITS, active, (d * p->units + k) * H + u) : (dual){0, 0};
        }
        switch (p->cell) {
            case ELMAN_rnn_tanh: h[u] = hyperbolic_tangent(a); break;
            case ELMAN_rnn_relu: h[u] = relu(a); break;
            case ELMAN_rnn_sigmoid: h[u] = sigmoid(a); break;
            case ELMAN_lstm:
                c[u] = plus(times(sigmoid(plus(ax[H + u], ah[H + u])), c[u]),
                            times(sigmoid(a), hyperbolic_tangent(plus(ax[2 * H + u], ah[2 * H + u]))));
                h[u] = times(sigmoid(plus(ax[3 * H + u], ah[3 * H + u])), hyperbolic_tangent(c[u]));
                break;
            case ELMAN_gru_reset_after:
            case ELMAN_gru_reset_before:
                n = ah[2 * H + u];
                if (p->cell == ELMAN_gru_reset_after) n = times(sigmoid(a), n);
                n = hyperbolic_tangent(plus(ax[2 * H + u], n));
                z = sigmoid(plus(ax[H + u], ah[H + u]));
                h[u] = plus(times(minus(one, z), n), times(z, h[u]));
                break;
            case ELMAN_rnn_any: h[u] = activated(p, 0, a); break;
            case ELMAN_lstm_any:
                i = activated(p, 0, plus(a, times(seen[0], c[u])));
                f = activated(p, 0, plus(plus(ax[H + u], ah[H + u]), times(seen[1], c[u])));
                if (p->options.coupled == 1) f = minus(one, i);
                if (p->options.coupled == 2) i = minus(one, f);
                c[u] = plus(times(f, c[u]), times(i, activated(p, 1, plus(ax[2 * H + u], ah[2 * H + u]))));
                if (!(fabs(c[u].value) < p->options.cell_clip)) {
                    c[u] = (dual){c[u].value > 0 ? p->options.cell_clip : -p->options.cell_clip, 0};
                }
                h[u] = times(activated(p, 0, plus(plus(ax[3 * H + u], ah[3 * H + u]), times(seen[2], c[u]))),
                             activated(p, 2, c[u]));
                break;
            case ELMAN_gru_reset_after_any:
            case ELMAN_gru_reset_before_any:
                n = ah[2 * H + u];
                if (p->cell == ELMAN_gru_reset_after_any) n = times(activated(p, 0, a), n);
                n = activated(p, 1, plus(ax[2 * H + u], n));
                z = activated(p, 0, plus(ax[H + u], ah[H + u]));
                h[u] = plus(times(minus(one, z), n), times(z, h[u]));
                break;
        }
    }
}

static ptrdiff_t length_of(const problem *p, ptrdiff_t b) { return p->lengths ? p->lengths[b] : p->T; }

/* Sequence b in direction d; returns its part of the derivative of the loss. Stores the values in y and last. */
static double reference_sequence(problem *p, int active, int d, ptrdiff_t b, dual *memory)
{
    const ptrdiff_t H = p->H, I = p->I, n = length_of(p, b);
    dual *h = memory, *c = h + H, *x = c + H, *rest = x + I;
    double derivative = 0;
    for (ptrdiff_t u = 0; u < H; u++) {
        h[u] = input(p, H0, active, (d * p->B + b) * H + u);
        if (p->states == 2) c[u] = input(p, C0, active, (d * p->B + b) * H + u);
        else c[u] = (dual){0, 0};
    }
    for (ptrdiff_t s = 0; s < n; s++) {
        const ptrdiff_t t = d ? n - 1 - s : s, border = t + d;
        if (p->reset && border < n && p->reset[border * p->B + b]) memset(h, 0, (size_t)(2 * H) * sizeof *h);
        for (ptrdiff_t i = 0; i < I; i++) x[i] = input(p, X, active, (t * p->B + b) * I + i);
        reference_step(p, active, d, x, h, c, rest);
        for (ptrdiff_t u = 0; u < H; u++) {
            const ptrdiff_t at = ((t * p->B + b) * p->D + d) * H + u;
            p->y[at] = h[u].value;
            if (p->has_dy) derivative += p->dy[at] * h[u].slope;
        }
    }
    for (ptrdiff_t u = 0; u < H; u++) {
        const ptrdiff_t at = (d * p->B + b) * H + u;
        p->last[0][at] = h[u].value;
        p->last[1][at] = c[u].value;
        if (p->has_dlast) derivative += p->dlast[0][at] * h[u].slope + p->dlast[1][at] * c[u].slope;
    }
    return derivative;
}

/* Fills y, last and derivative. */
static void reference(problem *p)
{
    const size_t mark = array_count;
    dual *memory = new_array((2 * p->gates + 3) * p->H + p->I, sizeof *memory);
    for (int active = 0; active < INPUTS; active++) {
        p->derivative[active] = 0;
        for (int d = 0; d < p->D; d++) {
            for (ptrdiff_t b = 0; b < p->B; b++) p->derivative[active] += reference_sequence(p, active, d, b, memory);
        }
    }
    release_arrays(mark);
}

#endif
