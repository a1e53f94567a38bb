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
    double steepest_norm; /* how many times a layer normalisation magnifies what comes in, at most; at least 1 */
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

NOT_WATCHED static dual scaled(double factor, dual a) { return with_slope(a, factor * a.value, factor); }
NOT_WATCHED static dual minus(dual a, dual b) { return plus(a, scaled(-1, b)); }

/* share * a + (1 - share) * b */
static dual mixed(dual share, dual a, dual b) { return plus(times(share, a), times(minus(one, share), b)); }

NOT_WATCHED static dual divided(dual a, dual b)
{
    return times(a, with_slope(b, 1 / b.value, -1 / (b.value * b.value)));
}

static dual exponential(dual a) { return with_slope(a, exp(a.value), exp(a.value)); }
static dual square_root(dual a) { return with_slope(a, sqrt(a.value), 0.5 / sqrt(a.value)); }

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

static dual magnitude(problem *p, dual a)
{
    note_kink(p, a.value);
    return a.value < 0 ? scaled(-1, a) : a;
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
    double stay; /* the share of c that zoneout keeps */
    int begins;  /* whether n is 0 in all units */
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

static dual new_c(unit *s, dual a_i, dual a_f, dual a_g)
{
    const elman_options *options = &s->p->options;
    dual i = activated(s->p, 0, a_i), f = activated(s->p, 0, a_f);
    if (options->coupled == 1) f = minus(one, i);
    if (options->coupled == 2) i = minus(one, f);
    return clipped(s->p, options->cell_clip, plus(times(f, s->c), times(i, activated(s->p, 1, a_g))));
}

static void lstm_any(unit *s)
{
    const dual a_i = plus(both(s, 0), times(weight(s, 0), s->c)), a_f = plus(both(s, 1), times(weight(s, 1), s->c));
    s->c = new_c(s, a_i, a_f, both(s, 2));
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

static void augru_reset_before(unit *s)
{
    s->h = mixed(times(minus(one, s->row), sigmoid(both(s, 1))), s->h, hyperbolic_tangent(both(s, 2)));
}

static void indrnn(unit *s) { s->h = activated(s->p, 0, plus(ax(s, 0), times(weight(s, 0), s->h))); }

static void sru(unit *s)
{
    const dual f = sigmoid(plus(plus(ax(s, 1), times(weight(s, 0), s->c)), weight(s, 2)));
    const dual r = sigmoid(plus(plus(ax(s, 2), times(weight(s, 1), s->c)), weight(s, 3)));
    s->c = mixed(f, s->c, ax(s, 0));
    s->h = mixed(r, activated(s->p, 2, s->c), ax(s, 3));
}

static void affine_map(unit *s) { s->h = ax(s, 0); }

static dual min_g(problem *p, dual a)
{
    note_kink(p, a.value);
    return a.value >= 0 ? plus(a, (dual){.value = 0.5}) : sigmoid(a);
}

static void min_gru(unit *s) { s->h = mixed(sigmoid(ax(s, 1)), min_g(s->p, ax(s, 0)), s->h); }

static void min_lstm(unit *s)
{
    const dual f = sigmoid(ax(s, 1)), i = sigmoid(ax(s, 2));
    s->h = mixed(divided(f, plus(f, i)), s->h, min_g(s->p, ax(s, 0)));
}

static void qrnn(unit *s)
{
    s->c = mixed(scaled(1 - s->stay, sigmoid(ax(s, 1))), hyperbolic_tangent(ax(s, 0)), s->c);
    s->h = times(sigmoid(ax(s, 2)), s->c);
}

static void mgu(unit *s)
{
    const dual f = sigmoid(both(s, 0));
    s->h = mixed(f, s->h, hyperbolic_tangent(plus(ax(s, 1), times(f, ah(s, 1)))));
}

static void mgu_no_reset(unit *s)
{
    const dual b_hn = input(s->p, B_HH, (2 * s->d + 1) * s->p->H + s->u); /* is not used */
    s->h = mixed(sigmoid(both(s, 0)), s->h, hyperbolic_tangent(minus(both(s, 1), b_hn)));
}

static dual cfc_time(const unit *s) { return sigmoid(plus(times(both(s, 2), s->row), both(s, 3))); }

static void cfc_default(unit *s)
{
    s->h = mixed(cfc_time(s), hyperbolic_tangent(both(s, 1)), hyperbolic_tangent(both(s, 0)));
}

static void cfc_no_gate(unit *s)
{
    s->h = plus(hyperbolic_tangent(both(s, 0)), times(cfc_time(s), hyperbolic_tangent(both(s, 1))));
}

static void cfc_pure(unit *s)
{
    const dual a = both(s, 0), rate = plus(magnitude(s->p, weight(s, 0)), magnitude(s->p, a));
    s->h = times(weight(s, 1), minus(one, times(exponential(scaled(-1, times(s->row, rate))), a)));
}

static void slstm(unit *s)
{
    const dual a_i = both(s, 0), a_f = both(s, 1), softplus = {.value = log1p(exp(-a_f.value))};
    const dual l = plus(with_slope(a_f, -softplus.value, 1 - sigmoid(a_f).value), s->m);
    const int is_larger = l.value > a_i.value;
    const dual m = !s->begins && is_larger ? l : a_i, f = is_larger ? one : exponential(minus(l, m));
    const dual i = exponential(minus(a_i, m));
    note_kink(s->p, l.value - a_i.value);
    s->c = plus(times(f, s->c), times(i, hyperbolic_tangent(both(s, 2))));
    s->n = plus(times(f, s->n), i);
    s->h = times(sigmoid(both(s, 3)), divided(s->c, s->n));
    s->m = m;
}

/* ---- layer normalisation, where the units of a row look at one another ----
 *
 * The order of the weights of units, in blocks of H: GRU b (3) b_h (3) gamma_x (3) gamma_h (3); LSTM by gate b (4)
 * gamma (4) p_i p_f p_o; LSTM joint b (4) gamma_x (4) gamma_h (4) gamma_c beta_c. */

/* Arrays of one sequence. */
typedef struct {
    dual *state[ELMAN_STATES], *old[2]; /* h (R), c ... (H), and those of h and c before the step */
    dual *x, *ax, *ah, *seen, *hidden;  /* (I), (G*H), (G*H), (R) what the recurrent product sees, (H) */
} workspace;

enum { NONE = -1 };

/* beta + gamma * (a - mean a) / (sqrt(variance a + eps) + beside) in place of the elements of a, `blocks` times H. Of
 * the weights of units gamma and beta name the first. */
NOT_WATCHED static void normalise(problem *p, ptrdiff_t d, int blocks, dual *a, int gamma, int beta, double eps,
                                  double beside)
{
    const ptrdiff_t n = blocks * p->H, units = d * p->form->units;
    dual mean = nothing, variance = {.value = eps};
    for (ptrdiff_t i = 0; i < n; i++) mean = plus(mean, scaled(1 / (double)n, a[i]));
    for (ptrdiff_t i = 0; i < n; i++) {
        a[i] = minus(a[i], mean);
        variance = plus(variance, scaled(1 / (double)n, times(a[i], a[i])));
    }
    if (variance.value > eps) p->steepest_norm = fmax(p->steepest_norm, 1 / sqrt(variance.value));
    const dual divisor = plus(square_root(variance), (dual){.value = beside});
    for (ptrdiff_t i = 0; i < n; i++) {
        a[i] = times(input(p, OF_UNITS, (units + gamma) * p->H + i), divided(a[i], divisor));
        if (beta != NONE) a[i] = plus(a[i], input(p, OF_UNITS, (units + beta) * p->H + i));
    }
}

static void gru_norm_products(problem *p, ptrdiff_t d, const workspace *w)
{
    normalise(p, d, 3, w->ax, 6, 0, 1e-5, 0);
    normalise(p, d, 3, w->ah, 9, 3, 1e-5, 0);
}

static void joint_norm(problem *p, ptrdiff_t d, int blocks, dual *a, int gamma, int beta)
{
    const int is_dynet = p->options.by_deviation;
    normalise(p, d, blocks, a, gamma, beta, is_dynet ? 1e-30 : 1e-5, is_dynet ? 1e-8 : 0);
}

static void joint_norm_products(problem *p, ptrdiff_t d, const workspace *w)
{
    joint_norm(p, d, 4, w->ax, 4, 0);
    joint_norm(p, d, 4, w->ah, 8, NONE);
}

static void lstm_norm_joint(unit *s)
{
    s->c = new_c(s, both(s, 0), both(s, 1), both(s, 2));
    s->h = activated(s->p, 0, both(s, 3));
}

static void joint_norm_output(problem *p, ptrdiff_t d, const workspace *w)
{
    dual *c = w->ax; /* which nobody needs any more */
    memcpy(c, w->state[1], (size_t)p->H * sizeof(dual));
    joint_norm(p, d, 1, c, 12, 13);
    for (ptrdiff_t u = 0; u < p->H; u++) w->hidden[u] = times(w->hidden[u], activated(p, 2, c[u]));
}

static dual seen_c(const unit *s, int peephole)
{
    dual w = weight(s, 8 + peephole);
    if (!s->p->options.peepholes) w.value = 0; /* their gradient is there all the same */
    return times(w, s->c);
}

static void gate_norm_sums(problem *p, ptrdiff_t d, const workspace *w)
{
    for (ptrdiff_t k = 0; k < 4 * p->H; k++) {
        const unit s = {.p = p, .d = d, .u = k % p->H, .c = w->state[1][k % p->H]};
        w->ax[k] = plus(w->ax[k], w->ah[k]);
        if (k < 2 * p->H) w->ax[k] = plus(w->ax[k], seen_c(&s, (int)(k / p->H)));
    }
    for (int k = 0; k < 3; k++) normalise(p, d, 1, w->ax + k * p->H, 4 + k, k, 1e-8, 0);
}

static void lstm_norm_gate(unit *s)
{
    s->c = new_c(s, ax(s, 0), ax(s, 1), ax(s, 2));
    s->h = plus(ax(s, 3), seen_c(s, 2)); /* what the output gate has a norm of */
}

static void gate_norm_output(problem *p, ptrdiff_t d, const workspace *w)
{
    normalise(p, d, 1, w->hidden, 7, 3, 1e-8, 0);
    for (ptrdiff_t u = 0; u < p->H; u++) {
        w->hidden[u] = times(activated(p, 0, w->hidden[u]), activated(p, 2, w->state[1][u]));
    }
}

static const struct {
    void (*step)(unit *s);          /* NULL: this cell has no equations here */
    dual (*reset)(const unit *s);   /* what h is multiplied with on its way into the last gate; NULL: nothing */
    void (*before)(problem *p, ptrdiff_t d, const workspace *w); /* of a whole row, before the units' steps */
    void (*after)(problem *p, ptrdiff_t d, const workspace *w);  /* and after them: makes `hidden` */
    int keeps_c;                    /* whether zoneout of c is in the step already */
} equations[ELMAN_CELL_COUNT] = {
    [ELMAN_rnn_tanh] = {.step = rnn_tanh},
    [ELMAN_rnn_relu] = {.step = rnn_relu},
    [ELMAN_rnn_sigmoid] = {.step = rnn_sigmoid},
    [ELMAN_lstm] = {.step = lstm},
    [ELMAN_gru_reset_after] = {.step = gru_reset_after},
    [ELMAN_gru_reset_before] = {.step = gru_reset_before, .reset = gru_reset},
    [ELMAN_rnn_any] = {.step = rnn_any},
    [ELMAN_lstm_any] = {.step = lstm_any},
    [ELMAN_gru_reset_after_any] = {.step = gru_reset_after_any},
    [ELMAN_gru_reset_before_any] = {.step = gru_reset_before_any, .reset = gru_reset_any},
    [ELMAN_indrnn] = {.step = indrnn},
    [ELMAN_sru] = {.step = sru},
    [ELMAN_augru_reset_after] = {.step = augru_reset_after},
    [ELMAN_augru_reset_before] = {.step = augru_reset_before, .reset = gru_reset},
    [ELMAN_min_gru] = {.step = min_gru},
    [ELMAN_min_lstm] = {.step = min_lstm},
    [ELMAN_qrnn] = {.step = qrnn, .keeps_c = 1},
    [ELMAN_mgu] = {.step = mgu},
    [ELMAN_mgu_no_reset] = {.step = mgu_no_reset},
    [ELMAN_cfc_default] = {.step = cfc_default},
    [ELMAN_cfc_no_gate] = {.step = cfc_no_gate},
    [ELMAN_cfc_pure] = {.step = cfc_pure},
    [ELMAN_slstm] = {.step = slstm},
    [ELMAN_lstm_norm_gate] = {.step = lstm_norm_gate, .before = gate_norm_sums, .after = gate_norm_output},
    [ELMAN_lstm_norm_joint] = {.step = lstm_norm_joint, .before = joint_norm_products, .after = joint_norm_output},
    [ELMAN_affine] = {.step = affine_map},
    [ELMAN_gru_norm] = {.step = gru_reset_after_any, .before = gru_norm_products},
};

/* ---- a step, a sequence, a batch ---- */

static int has_projection(const problem *p) { return p->has[W_HR]; }
static ptrdiff_t length_of(const problem *p, ptrdiff_t b) { return p->lengths ? p->lengths[b] : p->T; }
static ptrdiff_t state_width(const problem *p, int i) { return i ? p->H : p->R; }

/* The share of unit u of h or c that zoneout keeps in a row. */
static double kept(const problem *p, int i, ptrdiff_t d, ptrdiff_t row, ptrdiff_t u)
{
    return p->stays[i] ? p->stays[i][(row * p->D + d) * state_width(p, i) + u] : p->stay[i];
}

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
    unit s = {.p = p, .d = d, .row = p->form->takes_row ? input(p, ROW, row) : one, .begins = 1};
    for (ptrdiff_t u = 0; u < H && states > 2; u++) s.begins &= w->state[2][u].value == 0;
    if (equations[p->cell].reset) {
        for (s.u = 0; s.u < H; s.u++) {
            s.ax = w->ax + s.u, s.ah = w->ah + s.u;
            w->seen[s.u] = times(equations[p->cell].reset(&s), w->seen[s.u]);
        }
        for (ptrdiff_t k = N - H; k < N; k++) w->ah[k] = affine(p, W_HH, B_HH, d * N + k, R, w->seen);
    }
    if (equations[p->cell].before) equations[p->cell].before(p, d, w);
    for (s.u = 0; s.u < H; s.u++) {
        dual *const all[ELMAN_STATES] = {&s.h, &s.c, &s.n, &s.m};
        s.ax = w->ax + s.u, s.ah = w->ah + s.u;
        for (int i = has_projection(p); i < states; i++) *all[i] = w->state[i][s.u];
        s.stay = kept(p, 1, d, row, s.u);
        equations[p->cell].step(&s);
        w->hidden[s.u] = s.h;
        for (int i = 1; i < states; i++) w->state[i][s.u] = *all[i];
    }
    if (equations[p->cell].after) equations[p->cell].after(p, d, w);
    for (ptrdiff_t k = 0; k < R; k++) {
        w->state[0][k] = has_projection(p) ? projected(p, d * R + k, w->hidden) : w->hidden[k];
    }
    for (int i = 0; i < 2 && i < states; i++) { /* zoneout */
        for (ptrdiff_t u = 0; u < state_width(p, i) && !(i == 1 && equations[p->cell].keeps_c); u++) {
            const double stay = kept(p, i, d, row, u);
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
    p->nearest_kink = INFINITY, p->steepest_norm = 1;
    for (ptrdiff_t d = 0; d < p->D; d++) {
        for (ptrdiff_t b = 0; b < p->B; b++) reference_sequence(p, d, b, &w);
    }
    release_arrays(mark);
}

#endif
