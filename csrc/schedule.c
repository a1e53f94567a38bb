/* See schedule.h. */
#include "schedule.h"

#include <string.h>

elman_schedule elman_make_schedule(ptrdiff_t T, ptrdiff_t B, const ptrdiff_t *lengths, ptrdiff_t *index)
{
    elman_schedule schedule = {T, B, 0, index, index + B, index + 2 * B};
    ptrdiff_t *offset = schedule.offset;
    if (!lengths) {
        for (ptrdiff_t j = 0; j < B; j++) {
            schedule.order[j] = j;
            schedule.length[j] = T;
        }
        for (ptrdiff_t s = 0; s <= T; s++) offset[s] = s * B;
        schedule.rows = T * B;
        return schedule;
    }
    /* A counting sort, stable: offset[n] counts the sequences of length n, then where the next of them goes. */
    memset(offset, 0, (size_t)(T + 1) * sizeof *offset);
    for (ptrdiff_t b = 0; b < B; b++) offset[lengths[b]]++;
    for (ptrdiff_t n = T, start = 0; n >= 0; n--) {
        const ptrdiff_t count = offset[n];
        offset[n] = start;
        start += count;
    }
    for (ptrdiff_t b = 0; b < B; b++) {
        const ptrdiff_t j = offset[lengths[b]]++;
        schedule.order[j] = b;
        schedule.length[j] = lengths[b];
    }
    ptrdiff_t alive = B;
    offset[0] = 0;
    for (ptrdiff_t s = 0; s < T; s++) {
        while (alive > 0 && schedule.length[alive - 1] <= s) alive--;
        offset[s + 1] = offset[s] + alive;
    }
    schedule.rows = offset[T];
    return schedule;
}

ptrdiff_t elman_part_start(const elman_schedule *schedule, ptrdiff_t start, ptrdiff_t end, ptrdiff_t parts,
                           ptrdiff_t p)
{
    if (p <= 0) return 0;
    if (p >= parts) return schedule->B;
    const double all = (double)(schedule->offset[end] - schedule->offset[start]);
    const double wanted = all * (double)p / (double)parts;
    ptrdiff_t j = 0;
    for (double steps = 0; j < schedule->B; j++) {
        const ptrdiff_t last = schedule->length[j] < end ? schedule->length[j] : end;
        if (last > start) steps += (double)(last - start);
        if (steps > wanted) break;
    }
    return j;
}
