/* Threads that stay with one caller for a while and share jobs of a few microseconds, which nobody could be woken for:
 * the product of one time step. They spin from one job to the next and sleep when elman_team_lead returns.
 */
#ifndef ELMAN_TEAM_H
#define ELMAN_TEAM_H
#include "atomic.h"

typedef struct elman_team elman_team;

/* Calls lead(arg, team) once on the calling thread, with up to threads - 1 members of the pool to come to its aid. */
void elman_team_lead(int threads, void (*lead)(void *arg, elman_team *team), void *arg);

/* For the leader: calls job(arg, part, parts) once for each part 0..parts-1, itself part 0, the others one member each,
 * and returns when all are done. parts counts who has come by now, so that nobody waits for a thread that sleeps. */
void elman_team_share(elman_team *team, void (*job)(void *arg, int part, int parts), void *arg);

#endif
