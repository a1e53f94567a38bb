/* The one pool of threads of the process: see elman_parallel in elman.h. Workers are started when first needed, look
 * out for the next job for some microseconds, then sleep on a condition variable, and are never joined. It refuses to
 * nest and to queue.
 */
#if defined(__linux__)
#define _GNU_SOURCE
#elif !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#endif

#include "atomic.h"
#include "elman.h"

#if defined(_WIN32)
#include <windows.h>

typedef SRWLOCK lock;
typedef CONDITION_VARIABLE condition;
#define LOCK_READY SRWLOCK_INIT
#define CONDITION_READY CONDITION_VARIABLE_INIT
static void lock_take(lock *l) { AcquireSRWLockExclusive(l); }
static int lock_try(lock *l) { return TryAcquireSRWLockExclusive(l); }
static void lock_give(lock *l) { ReleaseSRWLockExclusive(l); }
static void wait_for(condition *c, lock *l) { SleepConditionVariableSRW(c, l, INFINITE, 0); }
static void wake_one(condition *c) { WakeConditionVariable(c); }
static void worker_loop(void);
static long now(void) /* microseconds */
{
    LARGE_INTEGER ticks, rate;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&rate);
    const long long seconds = ticks.QuadPart / rate.QuadPart, rest = ticks.QuadPart % rate.QuadPart;
    return (long)(unsigned long)(seconds * 1000000 + rest * 1000000 / rate.QuadPart);
}
static DWORD WINAPI worker_main(LPVOID unused)
{
    (void)unused;
    worker_loop();
    return 0;
}
static int start_worker(void)
{
    HANDLE thread = CreateThread(NULL, 0, worker_main, NULL, 0, NULL);
    if (!thread) return 0;
    CloseHandle(thread);
    return 1;
}
static void prepare_for_fork(void) {}

#else
#include <pthread.h>
#include <signal.h>
#include <time.h>

typedef pthread_mutex_t lock;
typedef pthread_cond_t condition;
#define LOCK_READY PTHREAD_MUTEX_INITIALIZER
#define CONDITION_READY PTHREAD_COND_INITIALIZER
static int lock_try(lock *l) { return pthread_mutex_trylock(l) == 0; }
static void lock_take(lock *l) /* it is never held for long: to sleep would take longer */
{
    for (int tries = 0; tries < ELMAN_PATIENCE; tries++) {
        if (lock_try(l)) return;
        elman_pause();
    }
    pthread_mutex_lock(l);
}
static void lock_give(lock *l) { pthread_mutex_unlock(l); }
static void wait_for(condition *c, lock *l) { pthread_cond_wait(c, l); }
static void wake_one(condition *c) { pthread_cond_signal(c); }
static long now(void) /* microseconds */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long)((unsigned long)t.tv_sec * 1000000 + (unsigned long)t.tv_nsec / 1000);
}
static void worker_loop(void);
static void *worker_main(void *unused)
{
    (void)unused;
    worker_loop();
    return NULL;
}
static int start_worker(void)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&thread, NULL, worker_main, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return 0;
    pthread_detach(thread);
    return 1;
}
static void prepare_for_fork(void);
#endif

/* Where a worker last ran. Linux may wake it on the core of the thread that calls, though others are idle, and leave it
 * there for longer than the job takes: it is told to keep away from that core. */
#if defined(__linux__)
#include <sched.h>
typedef struct {
    pthread_t thread;
    cpu_set_t allowed; /* cores, from the start on */
    int core;
} place;
static void find_place(place *p)
{
    p->thread = pthread_self();
    p->core = -1;
    if (pthread_getaffinity_np(p->thread, sizeof p->allowed, &p->allowed)) CPU_ZERO(&p->allowed);
}
static void note_place(place *p) { p->core = sched_getcpu(); }
static void keep_away(place *p, int core)
{
    cpu_set_t others = p->allowed;
    if (p->core != core || core < 0 || core >= CPU_SETSIZE) return;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others)) pthread_setaffinity_np(p->thread, sizeof others, &others);
}
static int this_core(void) { return sched_getcpu(); }
#else
typedef int place;
static void find_place(place *p) { *p = 0; }
static void note_place(place *p) { (void)p; }
static void keep_away(place *p, int core) { (void)p, (void)core; }
static int this_core(void) { return 0; }
#endif

enum { MOST_PLACES = 64 }; /* workers beyond are woken wherever it pleases the system */

typedef struct {
    lock call;         /* held by the caller whose job this is */
    lock mutex;        /* guards all below */
    condition work;    /* a worker is wanted */
    condition done;    /* the last worker has left the job */
    int started;       /* workers in existence */
    int placed;        /* of them have come to `places` */
    place places[MOST_PLACES];
    elman_atomic wanted, inside; /* workers the job still wants; that are at work now. Changed under the mutex */
    int joined;                  /* workers that have come */
    void (*run)(void *arg, ptrdiff_t task, int worker);
    void *arg;
    ptrdiff_t next, tasks;
    elman_atomic weighed; /* the work of this call is worth threads, so that its end is of interest */
    elman_atomic end;     /* when that was, in microseconds */
} job_pool;

static const job_pool empty_pool = {.call = LOCK_READY, .mutex = LOCK_READY, .work = CONDITION_READY,
                                    .done = CONDITION_READY};
static job_pool pool = {.call = LOCK_READY, .mutex = LOCK_READY, .work = CONDITION_READY, .done = CONDITION_READY};

#if !defined(_WIN32)
static void after_fork_in_child(void) { pool = empty_pool; } /* the workers stayed in the parent */
static void prepare_for_fork(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }
#endif

/* Takes tasks until none is left. The mutex is held on entry and on return, not while a task runs. */
static void work_on_job(int worker)
{
    while (pool.next < pool.tasks) {
        const ptrdiff_t task = pool.next++;
        lock_give(&pool.mutex);
        pool.run(pool.arg, task, worker);
        lock_take(&pool.mutex);
    }
}

/* Gives the mutex away until one of these is so, but not for long. */
static void look_out(int (*for_what)(void))
{
    lock_give(&pool.mutex);
    for (int waited = 0; waited < ELMAN_PATIENCE && !for_what(); waited++) elman_pause();
    lock_take(&pool.mutex);
}

static int is_wanted(void) { return elman_get(&pool.wanted) != 0; }
static int is_done(void) { return elman_get(&pool.inside) == 0; }

static void worker_loop(void)
{
    place here, *p = &here; /* a worker beyond the last place notes it for itself */
    lock_take(&pool.mutex);
    if (pool.placed < MOST_PLACES) p = &pool.places[pool.placed++];
    find_place(p);
    for (;;) {
        if (!is_wanted()) look_out(is_wanted);
        while (!is_wanted()) {
            note_place(p);
            wait_for(&pool.work, &pool.mutex);
        }
        elman_add(&pool.wanted, -1);
        elman_add(&pool.inside, 1);
        work_on_job(++pool.joined);
        if (elman_add(&pool.inside, -1) == 0) wake_one(&pool.done);
    }
}

int elman_worth_threads(int threads, double work)
{
    /* Multiplications: a thread's share that is worth it if it is awake, 20 to 50 us, and all of them, if it sleeps. */
    const double least_share = 2.5e6, least_to_wake = 2.4e7;
    enum { BACK_AT_ONCE = 50 }; /* us */
    const int is_worth = threads > 1 && work >= 2 * least_share;
    if (elman_get(&pool.weighed) != is_worth) elman_put(&pool.weighed, is_worth);
    if (!is_worth) return 1;
    if (work < least_to_wake && (unsigned long)now() - (unsigned long)elman_get(&pool.end) > BACK_AT_ONCE) return 1;
    return work / least_share < threads ? (int)(work / least_share) : threads;
}

/* What elman_parallel does. */
static void share_out(int threads, ptrdiff_t tasks, void (*run)(void *arg, ptrdiff_t task, int worker), void *arg)
{
    static int fork_is_prepared = 0;
    if (threads > tasks) threads = (int)tasks;
    if (threads <= 1 || !lock_try(&pool.call)) {
        for (ptrdiff_t task = 0; task < tasks; task++) run(arg, task, 0);
        return;
    }
    if (!fork_is_prepared) {
        prepare_for_fork();
        fork_is_prepared = 1;
    }
    lock_take(&pool.mutex);
    while (pool.started < threads - 1 && start_worker()) pool.started++;
    pool.run = run;
    pool.arg = arg;
    pool.next = 0;
    pool.tasks = tasks;
    pool.joined = 0;
    const int wanted = threads - 1 < pool.started ? threads - 1 : pool.started;
    for (int i = 0, core = this_core(); i < pool.placed; i++) keep_away(&pool.places[i], core);
    elman_put(&pool.wanted, wanted);
    for (int i = 0; i < wanted; i++) wake_one(&pool.work);
    work_on_job(0);
    elman_put(&pool.wanted, 0); /* who has not come by now need not come */
    if (!is_done()) look_out(is_done);
    while (!is_done()) wait_for(&pool.done, &pool.mutex);
    lock_give(&pool.mutex);
    lock_give(&pool.call);
}

void elman_parallel(int threads, ptrdiff_t tasks, void (*run)(void *arg, ptrdiff_t task, int worker), void *arg)
{
    share_out(threads, tasks, run, arg);
    if (elman_get(&pool.weighed)) elman_put(&pool.end, now());
}
