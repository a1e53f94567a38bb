/* Which rows of a batch are alive at which step. Sequences are sorted by length, longest first, so that at every step
 * the living ones are the first rows and a ragged batch costs what its true steps cost. Step s of a sequence is time s
 * forwards, length - 1 - s backwards.
 */
#ifndef ELMAN_SCHEDULE_H
#define ELMAN_SCHEDULE_H
#include <stddef.h>

typedef struct {
    ptrdiff_t T, B, rows;
    ptrdiff_t *order;  /* (B) row j belongs to sequence order[j] */
    ptrdiff_t *length; /* (B) of row j, never rising */
    ptrdiff_t *offset; /* (T + 1) row j of step s is row offset[s] + j of all */
} elman_schedule;

/* Fills the schedule in index (2*B + T + 1). lengths: (B) or NULL for T each. */
elman_schedule elman_make_schedule(ptrdiff_t T, ptrdiff_t B, const ptrdiff_t *lengths, ptrdiff_t *index);

/* The first row of part p when the rows are dealt to `parts` with about the same number each of the true steps from
 * `start` to `end`. */
ptrdiff_t elman_part_start(const elman_schedule *schedule, ptrdiff_t start, ptrdiff_t end, ptrdiff_t parts,
                           ptrdiff_t p);

static inline ptrdiff_t elman_alive(const elman_schedule *schedule, ptrdiff_t s)
{
    return schedule->offset[s + 1] - schedule->offset[s];
}

static inline ptrdiff_t elman_time(const elman_schedule *schedule, int backwards, ptrdiff_t s, ptrdiff_t j)
{
    return backwards ? schedule->length[j] - 1 - s : s;
}

#endif
