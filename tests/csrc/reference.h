/* What the kernels should compute, written from the equations one number at a time in double. Gradients come from dual
 * numbers: every value carries its exact derivative along one direction of each input, so no backward equation is
 * written twice.
 *
 * A new cell is compared as soon as it has a line in `equations`: the function of one hidden unit. Without it the check
 * program looks only at what all cells promise.
 */
#ifndef CHECK_REFERENCE_H
#define CHECK_REFERENCE_H
#include <math.h>

#include "elman.h"

/* The arrays that a loss can be differentiated by. Weights and biases of both directions stand one after another. */
enum { X, H0, C0, N0, M0, W_IH, W_HH, B_IH, B_HH, OF_UNITS, W_HR, B_HR, ROW, INPUTS };
static const char *const input_names[INPUTS] = {
    "x", "h0", "c0", "n0", "m0", "w_ih", "w_hh", "b_ih", "b_hh", "weights of units", "w_hr", "b_hr", "row"};

typedef struct {
    int cell, D;
    const elman_cell *form; /* for its gates, states, units and what it can; any instruction set has the same */
    elman_options options;
    ptrdiff_t T, B, I, H, R;
    ptrdiff_t *lengths;      /* (B) or NULL */
    unsigned char *reset;    /* (T, B) or NULL */
    unsigned char *stays[2]; /* (T, B, D*R), (T, B, D*H) or NULL */
    double stay[2];
    double *mask;    /* (D, B, R) or NULL */
    int has[INPUTS]; /* 0: NULL is passed, which means zeros, or 1 for the row's number */
    int has_c, has_dy, has_dc, has_dlast;
    int wants_states; /* the last ones, and the gradients of the first */
    int layout; /* of x, y, c, dy and dc in memory */

    ptrdiff_t size[INPUTS];
    double *value[INPUTS];     /* X (T, B, I), H0 (D, B, R), C0 (D, B, H), W_IH (D, G*H, I) ... */
    double *direction[INPUTS]; /* in which the loss is differentiated */
    double *dy, *dc, *dlast[ELMAN_STATES]; /* loss = sum of dy * y + sum of dc * c + sum of dlast * last */

    double *y, *c, *last[ELMAN_STATES]; /* the reference's results */
    double derivative[INPUTS];          /* of the loss along each direction */
    double nearest_kink; /* how near a number came to where its slope jumps, and rounding can take the other side */
} problem;

typedef struct {
    double value, slope[INPUTS];
} dual;

/* The sanitizers look at kernels; here they would cost half the time. */
#if defined(__has_attribute)
#if __has_attribute(no_sanitize)
#define NOT_WATCHED __attribute__((no_sanitize("address", "undefined")))
#endif
#endif
#ifndef NOT_WATCHED
#define NOT_WATCHED
#endif

static const dual one = {.value = 1}, nothing = {.value = 0};

/* The number f(a), whose slope there is known. */
NOT_WATCHED static dual with_slope(dual a, double value, double slope)
{
    a.value = value;
    for (int k = 0; k < INPUTS; k++) a.slope[k] *= slope;
    return a;
}

NOT_WATCHED static dual plus(dual a, dual b)
{
    a.value += b.value;
    for (int k = 0; k < INPUTS; k++) a.slope[k] += b.slope[k];
    return a;
}

NOT_WATCHED static dual times(dual a, dual b)
{
    for (int k = 0; k < INPUTS; k++) a.slope[k] = a.slope[k] * b.value + a.value * b.slope[k];
    a.value *= b.value;
    return a;
}

static dual scaled(double factor, dual a) { return with_slope(a, factor * a.value, factor); }
static dual minus(dual a, dual b) { return plus(a, scaled(-1, b)); }

/* share * a + (1 - share) * b */
static dual mixed(dual share, dual a, dual b) { return plus(times(share, a), times(minus(one, share), b)); }

static dual sigmoid(dual a)
{
    const double s = 1 / (1 + exp(-a.value));
    return with_slope(a, s, s * (1 - s));
}

static dual hyperbolic_tangent(dual a)
{
    const double t = tanh(a.value);
    return with_slope(a, t, 1 - t * t);
}

static void note_kink(problem *p, double distance) { p->nearest_kink = fmin(p->nearest_kink, fabs(distance)); }

static dual relu(problem *p, dual a)
{
    note_kink(p, a.value);
    return a.value > 0 ? a : nothing;
}

static dual clipped(problem *p, double limit, dual a)
{
    note_kink(p, fabs(a.value) - limit);
    return fabs(a.value) < limit ? a : with_slope(a, a.value > 0 ? limit : -limit, 0);
}

/* An activation of those that options_of() chooses. */
static dual activated(problem *p, int role, dual a)
{
    const elman_activation *f = &p->options.activations[role];
    double y, slope;
    if (role < 2) a = clipped(p, p->options.clip, a);
    switch (f->name) {
        case ELMAN_SIGMOID: return sigmoid(a);
        case ELMAN_SCALEDTANH: return scaled(f->alpha, hyperbolic_tangent(scaled(f->beta, a)));
        case ELMAN_HARDSIGMOID:
            y = f->alpha * a.value + f->beta;
            note_kink(p, y);
            note_kink(p, y - 1);
            return y <= 0 ? nothing : y >= 1 ? one : with_slope(a, y, f->alpha);
        case ELMAN_SOFTSIGN:
            slope = 1 / (1 + fabs(a.value));
            return with_slope(a, a.value * slope, slope * slope);
        default: abort();
    }
}

static dual input(const problem *p, int which, ptrdiff_t i)
{
    dual a = {.value = p->has[which] ? p->value[which][i] : which == ROW};
    a.slope[which] = p->direction[which][i];
    return a;
}

/* bias[row] + weight[row] . operand */
NOT_WATCHED static dual affine(const problem *p, int weight, int bias, ptrdiff_t row, ptrdiff_t n, const dual *operand)
{
    const double *w = p->value[weight] + row * n, *along = p->direction[weight] + row * n;
    dual sum = input(p, bias, row);
    for (ptrdiff_t i = 0; i < n; i++) {
        sum.value += w[i] * operand[i].value;
        for (int k = 0; k < INPUTS; k++) sum.slope[k] += w[i] * operand[i].slope[k];
        sum.slope[weight] += along[i] * operand[i].value;
    }
    return sum;
}

/* ---- the equations of one hidden unit ---- */

typedef struct {
    problem *p;
    const dual *ax, *ah; /* W_ih x + b_ih and W_hh h + b_hh of this unit's first gate; H apart */
    ptrdiff_t d, u;
    dual row;
    dual h, c, n, m; /* the old state, and then the new */
} unit;

static dual ax(const unit *s, int gate) { return s->ax[gate * s->p->H]; }
static dual ah(const unit *s, int gate) { return s->ah[gate * s->p->H]; }
static dual both(const unit *s, int gate) { return plus(ax(s, gate), ah(s, gate)); }
static dual weight(const unit *s, int k)
{
    return input(s->p, OF_UNITS, (s->d * s->p->form->units + k) * s->p->H + s->u);
}

static void rnn_tanh(unit *s) { s->h = hyperbolic_tangent(both(s, 0)); }
static void rnn_relu(unit *s) { s->h = relu(s->p, both(s, 0)); }
static void rnn_sigmoid(unit *s) { s->h = sigmoid(both(s, 0)); }

static void rnn_any(unit *s)
{
    const dual h = activated(s->p, 0, both(s, 0));
    s->h = s->p->options.stay > 0 ? mixed((dual){.value = s->p->options.stay}, s->h, h) : h;
}

static void lstm(unit *s)
{
    s->c = plus(times(sigmoid(both(s, 1)), s->c), times(sigmoid(both(s, 0)), hyperbolic_tangent(both(s, 2))));
    s->h = times(sigmoid(both(s, 3)), hyperbolic_tangent(s->c));
}

static void lstm_any(unit *s)
{
    const elman_options *options = &s->p->options;
    dual i = activated(s->p, 0, plus(both(s, 0), times(weight(s, 0), s->c)));
    dual f = activated(s->p, 0, plus(both(s, 1), times(weight(s, 1), s->c)));
    if (options->coupled == 1) f = minus(one, i);
    if (options->coupled == 2) i = minus(one, f);
    s->c = plus(times(f, s->c), times(i, activated(s->p, 1, both(s, 2))));
    s->c = clipped(s->p, options->cell_clip, s->c);
    s->h = times(activated(s->p, 0, plus(both(s, 3), times(weight(s, 2), s->c))), activated(s->p, 2, s->c));
}

static dual gru_reset(const unit *s) { return sigmoid(both(s, 0)); }
static dual gru_reset_any(const unit *s) { return activated(s->p, 0, both(s, 0)); }

static void gru_reset_after(unit *s)
{
    const dual n = hyperbolic_tangent(plus(ax(s, 2), times(gru_reset(s), ah(s, 2))));
    s->h = mixed(sigmoid(both(s, 1)), s->h, n);
}

static void gru_reset_before(unit *s) { s->h = mixed(sigmoid(both(s, 1)), s->h, hyperbolic_tangent(both(s, 2))); }

static void gru_reset_after_any(unit *s)
{
    const dual n = activated(s->p, 1, plus(ax(s, 2), times(gru_reset_any(s), ah(s, 2))));
    s->h = mixed(activated(s->p, 0, both(s, 1)), s->h, n);
}

static void gru_reset_before_any(unit *s)
{
    s->h = mixed(activated(s->p, 0, both(s, 1)), s->h, activated(s->p, 1, both(s, 2)));
}

static void augru_reset_after(unit *s)
{
    const dual n = hyperbolic_tangent(plus(ax(s, 2), times(gru_reset(s), ah(s, 2))));
    s->h = mixed(times(minus(one, s->row), sigmoid(both(s, 1))), s->h, n);
}

static void indrnn(unit *s) { s->h = activated(s->p, 0, plus(ax(s, 0), times(weight(s, 0), s->h))); }

static void sru(unit *s)
{
    const dual f = sigmoid(plus(plus(ax(s, 1), times(weight(s, 0), s->c)), weight(s, 2)));
    const dual r = sigmoid(plus(plus(ax(s, 2), times(weight(s, 1), s->c)), weight(s, 3)));
    s->c = mixed(f, s->c, ax(s, 0));
    s->h = mixed(r, activated(s->p, 2, s->c), ax(s, 3));
}

static const struct {
    void (*step)(unit *s);          /* NULL: this cell has no equations here */
    dual (*reset)(const unit *s);   /* what h is multiplied with on its way into the last gate; NULL: nothing */
} equations[ELMAN_CELL_COUNT] = {
    [ELMAN_rnn_tanh] = {rnn_tanh, NULL},
    [ELMAN_rnn_relu] = {rnn_relu, NULL},
    [ELMAN_rnn_sigmoid] = {rnn_sigmoid, NULL},
    [ELMAN_lstm] = {lstm, NULL},
    [ELMAN_gru_reset_after] = {gru_reset_after, NULL},
    [ELMAN_gru_reset_before] = {gru_reset_before, gru_reset},
    [ELMAN_rnn_any] = {rnn_any, NULL},
    [ELMAN_lstm_any] = {lstm_any, NULL},
    [ELMAN_gru_reset_after_any] = {gru_reset_after_any, NULL},
    [ELMAN_gru_reset_before_any] = {gru_reset_before_any, gru_reset_any},
    [ELMAN_indrnn] = {indrnn, NULL},
    [ELMAN_sru] = {sru, NULL},
    [ELMAN_augru_reset_after] = {augru_reset_after, NULL},
};

/* ---- a step, a sequence, a batch ---- */

static int has_projection(const problem *p) { return p->has[W_HR]; }
static ptrdiff_t length_of(const problem *p, ptrdiff_t b) { return p->lengths ? p->lengths[b] : p->T; }
static ptrdiff_t state_width(const problem *p, int i) { return i ? p->H : p->R; }

/* Arrays of one sequence. */
typedef struct {
    dual *state[ELMAN_STATES], *old[2]; /* h (R), c ... (H), and those of h and c before the step */
    dual *x, *ax, *ah, *seen, *hidden;  /* (I), (G*H), (G*H), (R) what the recurrent product sees, (H) */
} workspace;

/* Row `row` of the projections of both directions. */
static dual projected(problem *p, ptrdiff_t row, const dual *hidden)
{
    return activated(p, 3, clipped(p, p->options.proj_clip, affine(p, W_HR, B_HR, row, p->H, hidden)));
}

static void reference_step(problem *p, ptrdiff_t d, ptrdiff_t t, ptrdiff_t b, const workspace *w)
{
    const ptrdiff_t I = p->I, H = p->H, R = p->R, N = p->form->gates * H, row = t * p->B + b;
    const double *mask = p->mask ? p->mask + (d * p->B + b) * R : NULL;
    const int states = p->form->states;
    for (int i = 0; i < 2 && i < states; i++) memcpy(w->old[i], w->state[i], (size_t)state_width(p, i) * sizeof(dual));
    for (ptrdiff_t i = 0; i < I; i++) w->x[i] = input(p, X, row * I + i);
    for (ptrdiff_t k = 0; k < R; k++) w->seen[k] = mask ? scaled(mask[k], w->state[0][k]) : w->state[0][k];
    for (ptrdiff_t k = 0; k < N; k++) {
        w->ax[k] = affine(p, W_IH, B_IH, d * N + k, I, w->x);
        if (p->form->is_recurrent) w->ah[k] = affine(p, W_HH, B_HH, d * N + k, R, w->seen);
    }
    unit s = {.p = p, .d = d, .row = p->form->takes_row ? input(p, ROW, row) : one};
    if (equations[p->cell].reset) {
        for (s.u = 0; s.u < H; s.u++) {
            s.ax = w->ax + s.u, s.ah = w->ah + s.u;
            w->seen[s.u] = times(equations[p->cell].reset(&s), w->seen[s.u]);
        }
        for (ptrdiff_t k = N - H; k < N; k++) w->ah[k] = affine(p, W_HH, B_HH, d * N + k, R, w->seen);
    }
    for (s.u = 0; s.u < H; s.u++) {
        dual *const all[ELMAN_STATES] = {&s.h, &s.c, &s.n, &s.m};
        s.ax = w->ax + s.u, s.ah = w->ah + s.u;
        for (int i = has_projection(p); i < states; i++) *all[i] = w->state[i][s.u];
        equations[p->cell].step(&s);
        w->hidden[s.u] = s.h;
        for (int i = 1; i < states; i++) w->state[i][s.u] = *all[i];
    }
    for (ptrdiff_t k = 0; k < R; k++) {
        w->state[0][k] = has_projection(p) ? projected(p, d * R + k, w->hidden) : w->hidden[k];
    }
    for (int i = 0; i < 2 && i < states; i++) { /* zoneout */
        const ptrdiff_t W = state_width(p, i);
        for (ptrdiff_t u = 0; u < W; u++) {
            const double stay = p->stays[i] ? p->stays[i][(row * p->D + d) * W + u] : p->stay[i];
            if (stay > 0) w->state[i][u] = mixed((dual){.value = stay}, w->old[i][u], w->state[i][u]);
        }
    }
}

/* Adds n numbers to the loss, each times its factor, and keeps their values. */
static void add_to_loss(problem *p, ptrdiff_t n, const dual *a, const double *factor, double *values)
{
    for (ptrdiff_t u = 0; u < n; u++) {
        values[u] = a[u].value;
        for (int k = 0; k < INPUTS && factor; k++) p->derivative[k] += factor[u] * a[u].slope[k];
    }
}

/* Sequence b in direction d. */
static void reference_sequence(problem *p, ptrdiff_t d, ptrdiff_t b, const workspace *w)
{
    const ptrdiff_t n = length_of(p, b);
    const int states = p->form->states, first = !p->form->carries_h;
    for (int i = 0; i < states; i++) {
        const ptrdiff_t W = state_width(p, i);
        for (ptrdiff_t u = 0; u < W; u++) {
            w->state[i][u] = i < first ? nothing : input(p, H0 + i, (d * p->B + b) * W + u);
        }
    }
    for (ptrdiff_t s = 0; s < n; s++) {
        const ptrdiff_t t = d ? n - 1 - s : s, border = t + d, at = (t * p->B + b) * p->D + d;
        if (p->reset && border < n && p->reset[border * p->B + b]) {
            for (int i = 0; i < states; i++) memset(w->state[i], 0, (size_t)state_width(p, i) * sizeof(dual));
        }
        reference_step(p, d, t, b, w);
        add_to_loss(p, p->R, w->state[0], p->has_dy ? p->dy + at * p->R : NULL, p->y + at * p->R);
        if (states > 1) add_to_loss(p, p->H, w->state[1], p->has_dc ? p->dc + at * p->H : NULL, p->c + at * p->H);
    }
    for (int i = first; i < states; i++) {
        const ptrdiff_t W = state_width(p, i), at = (d * p->B + b) * W;
        add_to_loss(p, W, w->state[i], p->has_dlast ? p->dlast[i] + at : NULL, p->last[i] + at);
    }
}

/* Fills y, c, last, derivative and nearest_kink. */
static void reference(problem *p)
{
    const size_t mark = array_count;
    const ptrdiff_t H = p->H, R = p->R, N = p->form->gates * H;
    workspace w;
    for (int i = 0; i < ELMAN_STATES; i++) w.state[i] = new_array(state_width(p, i), sizeof(dual));
    for (int i = 0; i < 2; i++) w.old[i] = new_array(state_width(p, i), sizeof(dual));
    w.x = new_array(p->I, sizeof(dual)), w.ax = new_array(N, sizeof(dual)), w.ah = new_array(N, sizeof(dual));
    w.seen = new_array(R, sizeof(dual)), w.hidden = new_array(H, sizeof(dual));
    memset(p->derivative, 0, sizeof p->derivative);
    p->nearest_kink = INFINITY;
    for (ptrdiff_t d = 0; d < p->D; d++) {
        for (ptrdiff_t b = 0; b < p->B; b++) reference_sequence(p, d, b, &w);
    }
    release_arrays(mark);
}

#endif
