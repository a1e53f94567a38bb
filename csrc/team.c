/* See team.h. */
#include "team.h"

#include "elman.h"

enum { OVER = -1, MOST_MEMBERS = 1023 };

struct elman_team {
    void (*lead)(void *arg, elman_team *team);
    void *lead_arg;
    elman_atomic arrived; /* members */
    char apart[64];       /* what the leader writes lies on another cache line */
    /* Which job is on, and for how many members: number * (MOST_MEMBERS + 1) + members, or OVER. One word, because a
     * member that has just arrived must not take the number of one job and the members of the next. */
    elman_atomic turn;
    void (*job)(void *arg, int part, int parts);
    void *job_arg;
    long number;
    char apart_too[64];
    elman_atomic busy; /* members that have not done their part of the job */
};

/* Waits until *p is not `value` any more, and returns what it is. */
static long wait_while(elman_atomic *p, long value)
{
    long now;
    for (long waited = 0; (now = elman_get(p)) == value; waited++) {
        if (waited < ELMAN_PATIENCE) {
            elman_pause();
        } else {
            elman_yield();
        }
    }
    return now;
}

static void stay(elman_team *team)
{
    const long member = elman_add(&team->arrived, 1);
    for (long turn = 0; (turn = wait_while(&team->turn, turn)) != OVER;) {
        const long members = turn % (MOST_MEMBERS + 1);
        if (member > members) continue; /* came too late for this one */
        team->job(team->job_arg, (int)member, (int)members + 1);
        elman_add(&team->busy, -1);
    }
}

static void lead_or_stay(void *arg, ptrdiff_t task, int worker)
{
    elman_team *team = arg;
    (void)task;
    if (worker) {
        stay(team);
    } else if (elman_get(&team->turn) != OVER) {
        team->lead(team->lead_arg, team);
        elman_put(&team->turn, OVER);
    }
}

void elman_team_lead(int threads, void (*lead)(void *arg, elman_team *team), void *arg)
{
    elman_team team = {.lead = lead, .lead_arg = arg};
    elman_parallel(threads, threads, lead_or_stay, &team);
}

void elman_team_share(elman_team *team, void (*job)(void *arg, int part, int parts), void *arg)
{
    const long members = elman_get(&team->arrived);
    if (members) {
        team->job = job;
        team->job_arg = arg;
        team->number = (team->number + 1) % (1L << 20); /* so that `turn` fits into 31 bits */
        elman_put(&team->busy, members);
        elman_put(&team->turn, team->number * (MOST_MEMBERS + 1) + members);
    }
    job(arg, 0, (int)members + 1);
    for (long left = members; left;) left = wait_while(&team->busy, left);
}
