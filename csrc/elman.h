/* elman: forward and backpropagation-through-time loops of recurrent networks. Pure C, usable from any language.
 *
 * Nothing here allocates, checks or reports errors: the caller passes valid sizes and memory, including scratch.
 * Every function may be called from several threads at once on memory of their own. Sizes count elements (of float or
 * double), strides too; an array is dense (C order) unless strides are given. Memory that is written overlaps nothing
 * else, unless said.
 *
 *   T steps, B sequences, I inputs, H hidden units, D directions (1 or 2; the second runs backwards in time)
 *   R outputs of a direction, which are also what its recurrent product sees: H, unless the cell projects them
 *   Hp    H rounded up to the lanes of a vector; the same for Ip, Rp
 *   rows  the true (step, sequence) pairs: T * B, or the sum of the lengths
 */
#ifndef ELMAN_H
#define ELMAN_H
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The cells, in the order of elman_kernels.cells: one line here and one file in cells/ make a new one. */
#define ELMAN_CELLS(X)                                                                               \
    X(rnn_tanh) X(rnn_relu) X(rnn_sigmoid) X(lstm) X(gru_reset_after) X(gru_reset_before) X(rnn_any) \
    X(lstm_any) X(gru_reset_after_any) X(gru_reset_before_any) X(indrnn) X(sru) X(augru_reset_after) \
    X(augru_reset_before) X(min_gru) X(min_lstm) X(qrnn) X(mgu) X(mgu_no_reset) X(cfc_default)       \
    X(cfc_no_gate) X(cfc_pure) X(slstm) X(lstm_norm_gate) X(lstm_norm_joint) X(gru_norm) X(affine)

enum {
#define X(name) ELMAN_##name,
    ELMAN_CELLS(X)
#undef X
        ELMAN_CELL_COUNT
};

/* Activations, as ONNX has them. alpha and beta: see _options.py. */
enum {
    ELMAN_TANH,
    ELMAN_SIGMOID,
    ELMAN_RELU,
    ELMAN_AFFINE,
    ELMAN_LEAKYRELU,
    ELMAN_THRESHOLDEDRELU,
    ELMAN_SCALEDTANH,
    ELMAN_HARDSIGMOID,
    ELMAN_ELU,
    ELMAN_SOFTSIGN,
    ELMAN_SOFTPLUS,
    ELMAN_MIN_G /* that of minGRU and minLSTM, see cells/min_g.inc; no other cell can be asked for it */
};

typedef struct {
    int name;
    double alpha, beta;
} elman_activation;

enum { ELMAN_STATES = 4 }; /* at most: h, c, n and m of sLSTM */

/* What a cell is asked for; each looks at what has meaning for it. */
typedef struct {
    elman_activation activations[4]; /* of gates, candidate, output and projection */
    int coupled;                     /* 1: f = 1 - i, 2: i = 1 - f, and the other gate's weights are not used */
    int peepholes;                   /* whether the gates see c */
    int is_projected;                /* whether there is w_hr */
    int by_deviation;                /* of a joint norm: the divisor is the deviation + 1e-8, as in DyNet */
    double clip, cell_clip, proj_clip; /* of the gates' pre-activations, of c, of the projection; INFINITY: none */
    double stay;                       /* the share of the old h that stays in a leaky RNN, which does not project */
} elman_options;

/* One direction of one layer as everybody else writes it; NULL for what is not there. */
typedef struct {
    const void *w_ih;  /* (G*H, I) */
    const void *w_hh;  /* (G*H, R) */
    const void *b_ih;  /* (G*H) */
    const void *b_hh;  /* (G*H) */
    const void *units; /* (units, H) */
    const void *w_hr;  /* (R, H) */
    const void *b_hr;  /* (R) */
} elman_dense;

/* One direction of one layer as the kernels read it, written by elman_kernels.pack. */
typedef struct {
    const void *w_ih; /* panels of (I, G*Hp) */
    const void *w_hh; /* panels of (R, G*Hp), one set for each stage of the cell */
    const void *b_ih; /* (G, Hp), zeros where there is no bias */
    const void *b_hh; /* (G, Hp) */
    const void *units; /* (the cell's units, Hp) weights of one unit each, such as peepholes; zeros for none */
    const void *w_hr;  /* panels of (H, Rp), the projection of the cell's h; NULL: none */
    const void *b_hr;  /* (Rp) */
    const void *wt_ih; /* panels of (G*Hp, Ip), backward only */
    const void *wt_hh; /* panels of (G*Hp, Rp), one set for each stage, backward only */
    const void *wt_hr; /* panels of (Rp, Hp), backward only */
} elman_weights;

/* One layer over one batch. */
typedef struct {
    ptrdiff_t T, B, I, H, R;
    int directions;
    int threads;                  /* at most so many, up to 1024; the result never depends on it */
    const elman_weights *weights; /* (D) */
    const elman_options *options; /* NULL for a cell without any */
    const void *x;                /* (T, B, I): x[t][b] stands at x + t * x_t + b * x_b; past a length never read */
    ptrdiff_t x_t, x_b;
    const ptrdiff_t *lengths;   /* (B), each 0..T; NULL: all T */
    const unsigned char *reset; /* (T, B), 1: the state is zeroed before that step; NULL: never */
    const void *row;            /* (T, B) the number that some cells take with each row; NULL: 1 */
    const void *mask;           /* (D, B, R) factors of h on its way into the recurrent product; NULL: none */
    /* Zoneout of h and c: stay * old + (1 - stay) * new stands for the new state, with stay 0 or 1 from `stays`
     * (T, B, D*R for h, D*H for c), or where that is NULL the same for all, `stay`: 0 for no zoneout. */
    const unsigned char *stays[2];
    double stay[2];
    ptrdiff_t *index;           /* (2*B + T + 1) scratch: see schedule.h */
    void *tape;                 /* the cell's tape(): written by forward, read by backward; NULL: keep nothing */
    int recompute;              /* the tape has only the states; backward computes the rest once more */
    void *scratch;              /* the size is the cell's forward_scratch or backward_scratch */
} elman_layer;

typedef struct {
    elman_layer layer;
    /* h (D, B, R) and the other states of the cell (D, B, H) before the first step; NULL: zeros. */
    const void *state[ELMAN_STATES];
    void *last[ELMAN_STATES]; /* after each sequence's last true step; may be `state` itself; NULL: not wanted */
    void *y;              /* (T, B, D*R), y[t][b] at y + t * y_t + b * y_b; past a length never written */
    ptrdiff_t y_t, y_b;
    void *c; /* (T, B, D*H) as y, c after every step; NULL: not wanted */
    ptrdiff_t c_t, c_b;
} elman_forward_call;

typedef struct {
    elman_layer layer;
    const void *dy; /* (T, B, D*R) with strides; past a length never read; NULL: zeros */
    ptrdiff_t dy_t, dy_b;
    const void *dc; /* (T, B, D*H) gradient of c after every step, as dy; NULL: zeros */
    ptrdiff_t dc_t, dc_b;
    double limit; /* of what goes back from each step to the one before, -limit to limit; INFINITY: none */
    const void *dlast[ELMAN_STATES]; /* gradient of `last`; NULL: zeros */
    void *dstate[ELMAN_STATES];      /* gradient of `state`; NULL: not wanted */
    void *drow;           /* (D, T, B) gradient of `row`; past a length never written; NULL: not wanted */
    void *dx;             /* (T, B, I) dense; past a length never written */
    void *dw_ih[2];       /* for each direction (G*H, I) */
    void *dw_hh[2];       /* (G*H, R), of a cell with a recurrent product */
    void *db_ih[2];       /* (G*H); NULL: not wanted */
    void *db_hh[2];       /* (G*H); NULL: not wanted */
    void *dunits[2];      /* (the cell's units, H); NULL: not wanted */
    void *dw_hr[2];       /* (R, H), of a cell that projects */
    void *db_hr[2];       /* (R); NULL: not wanted */
} elman_backward_call;

typedef struct {
    const char *name;
    int gates;  /* G: blocks of H rows in the weights */
    int states; /* 1: h, 2: h and c, 4: h, c, n and m */
    int is_recurrent; /* whether there is a product of h with weights */
    int carries_h;    /* 0: h is only what comes out */
    int takes_row;    /* whether it takes a number with each row */
    int projects;     /* whether its h may be projected */
    int slots;  /* arrays of Hp that the tape keeps for each row, beside h */
    int units;  /* weights that each hidden unit has for itself */
    int size;   /* bytes of an element */
    void (*forward)(const elman_forward_call *call);
    void (*backward)(const elman_backward_call *call);
    ptrdiff_t (*forward_scratch)(const elman_layer *layer);
    ptrdiff_t (*backward_scratch)(const elman_layer *layer);
    ptrdiff_t (*tape)(const elman_layer *layer, ptrdiff_t rows); /* elements, for rows true pairs of a direction */
    /* Lay out one direction's weights, elman_dense to elman_weights: the arrays of the latter have room for I*G*Hp,
     * R*G*Hp, G*Hp, G*Hp, units*Hp, H*Rp and Rp elements; pack_transposed writes wt_ih (G*Hp*Ip), wt_hh (G*Hp*Rp) and
     * wt_hr (Rp*Hp). */
    void (*pack)(ptrdiff_t I, ptrdiff_t H, ptrdiff_t R, const elman_dense *dense, const elman_weights *packed);
    void (*pack_transposed)(ptrdiff_t I, ptrdiff_t H, ptrdiff_t R, const elman_dense *dense,
                            const elman_weights *packed);
} elman_cell;

/* The numbers of an optimiser's rule for one step. */
typedef struct {
    double lr;            /* learning rate; of Adam lr * sqrt(1 - beta2^t) / (1 - beta1^t) */
    double weight_decay;  /* g + weight_decay * w stands for g */
    double shrink;        /* Adam: w * shrink stands for w where the step is taken; 1 without decoupled decay */
    double momentum;      /* SGD, RMSprop */
    double mean_decay;    /* Adam: beta1 */
    double square_decay;  /* Adam: beta2, RMSprop: alpha */
    double eps;           /* RMSprop; of Adam eps * sqrt(1 - beta2^t) */
    int nesterov;         /* SGD */
    int centered;         /* RMSprop */
} elman_rule;

/* One array of weights in a step. Moments, in this order: SGD with momentum its buffer; RMSprop the mean square, the
 * mean if centered, the buffer if with momentum; Adam the mean and the mean square. Those not used may be NULL. */
typedef struct {
    ptrdiff_t n;
    const void *w, *g;  /* (n) weights and their gradient */
    const void *old[3]; /* (n) moments; zeros before the first step */
    void *w_next;       /* (n) new weights */
    void *next[3];      /* (n) new moments */
} elman_parameter;

/* Cross-entropy of softmax(logits) against classes: the sum over the true rows of weight * -log p[target], or with
 * is_mean that divided by the sum of their weights; and its gradient. */
typedef struct {
    ptrdiff_t T, B, C;        /* C classes, at least 1 */
    const void *logits;       /* (T, B, C); past a length never read */
    const ptrdiff_t *targets; /* (T, B), each 0..C-1; past a length never read */
    const ptrdiff_t *lengths; /* (B), each 0..T; NULL: all T */
    const double *weights;    /* (C) of the classes; NULL: 1 */
    int is_mean;
    void *dlogits; /* (T, B, C), 0 past a length */
} elman_cross_entropy;

/* Connectionist temporal classification of softmax(logits). Each sequence has `lengths` steps and a target of `counts`
 * classes, none of which is the blank; what lies behind them is never read. */
typedef struct {
    ptrdiff_t T, B, C, S;      /* steps, sequences, classes with the blank, classes of the longest target */
    ptrdiff_t blank;
    int threads;               /* at most so many, up to 1024; the result never depends on it */
    int is_single;             /* 1: logits and dlogits are of float, 0: of double */
    const void *logits;        /* (T, B, C) */
    const ptrdiff_t *lengths;  /* (B), each 0..T */
    const ptrdiff_t *targets;  /* (B, S) */
    const ptrdiff_t *counts;   /* (B), each 0..S */
    const double *scale;       /* (B) factors of each sequence's gradient */
    double *losses;            /* (B) -log of the probability of the target; infinite where the sequence is too short */
    void *dlogits;             /* (T, B, C) gradient of scale * losses: 0 where that is infinite and past the length,
                                * NaN where it is NaN */
    double *scratch;           /* ctc_scratch() */
} elman_ctc;

typedef struct {
    const char *isa;
    int lanes;                          /* of a vector */
    elman_cell cells[ELMAN_CELL_COUNT]; /* in the order of ELMAN_CELLS */
    void (*exp)(ptrdiff_t n, const void *x, void *y); /* y may be x */
    void (*sigmoid)(ptrdiff_t n, const void *x, void *y);
    void (*tanh)(ptrdiff_t n, const void *x, void *y);
    /* Row r of a slot of a tape, x (rows, Hp), to y + place[r], H elements. Where f is not NULL they are
     * pre-activations: f of them, between -limit and limit, is what the cell used. */
    void (*gate)(const elman_activation *f, double limit, ptrdiff_t rows, ptrdiff_t H, const void *x,
                 const ptrdiff_t *place, void *y);
    /* The limits of this core, for whoever takes the time. multiply_add does `rounds` rounds of multiply-adds that wait
     * for nothing, reads the factor from sum (lanes), writes their sum there and returns the operations done; read goes
     * `rounds` times through a (n), writes sum (lanes) and returns the bytes read. */
    double (*multiply_add)(ptrdiff_t rounds, void *sum);
    double (*read)(ptrdiff_t rounds, ptrdiff_t n, const void *a, void *sum);
    /* One step of an optimiser over `count` arrays, on at most so many threads, which change no bit. Returns whether
     * all new weights, and mean squares, are finite. */
    int (*sgd)(const elman_rule *rule, ptrdiff_t count, const elman_parameter *parameters, int threads);
    int (*rmsprop)(const elman_rule *rule, ptrdiff_t count, const elman_parameter *parameters, int threads);
    int (*adam)(const elman_rule *rule, ptrdiff_t count, const elman_parameter *parameters, int threads);
    double (*sum_of_squares)(ptrdiff_t n, const void *x); /* of x (n), in double */
    double (*softmax_cross_entropy)(const elman_cross_entropy *call);
    void (*ctc)(const elman_ctc *call); /* these two compute in double: NULL in the kernels of float */
    ptrdiff_t (*ctc_scratch)(const elman_ctc *call); /* elements */
} elman_kernels;

/* Name and version of the compiler. */
const char *elman_compiler(void);

/* The instruction sets compiled in, best last, and whether this CPU and operating system can run each. */
int elman_isa_count(void);
const char *elman_isa_name(int isa);
int elman_isa_usable(int isa);

/* The kernels of one usable instruction set for float (is_double 0) or double (1). */
const elman_kernels *elman_get_kernels(int isa, int is_double);

/* Inference through `layers` layers, one on top of the other, all of the same H and directions. `call` as for one
 * layer, with a tape of NULL, but: weights (layers * D), state and last (layers * D, B, H), index elman_stack_index()
 * elements, scratch elman_stack_scratch() of them. With one direction the layers take turns on pieces of time, so that
 * scratch does not grow with T; with two it holds one layer's output. */
void elman_stack_forward(const elman_cell *cell, int layers, const elman_forward_call *call);
ptrdiff_t elman_stack_index(const elman_layer *layer);
ptrdiff_t elman_stack_scratch(const elman_cell *cell, int layers, const elman_layer *layer);

/* Calls run(arg, task, worker) once for each task 0..tasks-1, on the calling thread (worker 0) and up to threads - 1
 * workers of a pool (1..threads-1), and returns when all are done. A pool that is busy with another caller means that
 * this one runs alone. Workers look out for the next call for 10 to 50 us, then they sleep; a forked child starts with
 * an empty pool. */
void elman_parallel(int threads, ptrdiff_t tasks, void (*run)(void *arg, ptrdiff_t task, int worker), void *arg);

/* How many threads, of at most `threads`, so many multiplications are worth. Sleeping workers take a while to come: a
 * caller who is back at once after the last call, and finds them awake, gets them for less work than others. */
int elman_worth_threads(int threads, double work);

#ifdef __cplusplus
}
#endif
#endif
