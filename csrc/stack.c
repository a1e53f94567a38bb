/* Inference through stacked layers: see elman_stack_forward in elman.h. It only hands pieces of time from layer to
 * layer; what is between two layers lies in `y` and in one buffer of the same form, in turn, so that the last layer
 * writes into `y`.
 */
#include "elman.h"

/* (step, sequence) pairs that one layer takes before the next has its turn: enough to give threads work, few enough
 * for what lies between two layers to stay in the second cache. */
enum { PIECE_ROWS = 1024 };

static ptrdiff_t steps_of_piece(const elman_layer *p, int layers)
{
    if (layers == 1 || p->directions == 2) return p->T; /* the second direction begins at the end */
    const ptrdiff_t steps = PIECE_ROWS / (p->B > 0 ? p->B : 1);
    return steps < 1 ? 1 : steps > p->T ? p->T : steps;
}

static ptrdiff_t between_layers(const elman_layer *p, int layers)
{
    return layers == 1 ? 0 : steps_of_piece(p, layers) * p->B * p->directions * p->R;
}

ptrdiff_t elman_stack_index(const elman_layer *layer) { return 3 * layer->B + layer->T + 1; }

ptrdiff_t elman_stack_scratch(const elman_cell *cell, int layers, const elman_layer *layer)
{
    elman_layer p = *layer;
    p.T = steps_of_piece(&p, layers);
    ptrdiff_t most = cell->forward_scratch(&p);
    if (layers > 1) {
        p.I = p.directions * p.R;
        const ptrdiff_t above = cell->forward_scratch(&p);
        if (above > most) most = above;
    }
    return (between_layers(&p, layers) + 15) / 16 * 16 + most;
}

void elman_stack_forward(const elman_cell *cell, int layers, const elman_forward_call *call)
{
    const elman_layer *p = &call->layer;
    const ptrdiff_t size = cell->size, outputs = p->directions * p->R;
    const ptrdiff_t piece = steps_of_piece(p, layers);
    ptrdiff_t *lengths = p->index + 2 * p->B + p->T + 1; /* within the piece */
    char *between = p->scratch;
    for (ptrdiff_t start = 0; start == 0 || start < p->T; start += piece) {
        elman_forward_call one = *call;
        one.layer.T = p->T - start < piece ? p->T - start : piece;
        if (start && p->reset) one.layer.reset += start * p->B;
        if (start && p->row) one.layer.row = (const char *)p->row + start * p->B * size;
        if (piece < p->T && p->lengths) {
            for (ptrdiff_t b = 0; b < p->B; b++) {
                const ptrdiff_t rest = p->lengths[b] - start;
                lengths[b] = rest < 0 ? 0 : rest > one.layer.T ? one.layer.T : rest;
            }
            one.layer.lengths = lengths;
        }
        one.layer.x = (const char *)p->x + start * p->x_t * size;
        one.layer.scratch = between + (between_layers(p, layers) + 15) / 16 * 16 * size;
        for (int k = 0; k < layers; k++) {
            const int last = (layers - 1 - k) % 2 == 0;
            one.layer.weights = p->weights + k * p->directions;
            for (int i = 0; i < cell->states; i++) {
                const ptrdiff_t of_layer = k * p->directions * p->B * (i ? p->H : p->R) * size;
                const char *state = start ? call->last[i] : call->state[i];
                one.state[i] = state ? state + of_layer : NULL;
                one.last[i] = call->last[i] ? (char *)call->last[i] + of_layer : NULL;
            }
            one.y = last ? (char *)call->y + start * call->y_t * size : between;
            one.y_t = last ? call->y_t : p->B * outputs;
            one.y_b = last ? call->y_b : outputs;
            cell->forward(&one);
            one.layer.x = one.y, one.layer.x_t = one.y_t, one.layer.x_b = one.y_b, one.layer.I = outputs;
        }
        if (piece == 0) break; /* no steps: the states are copied, that is all */
    }
}
