/* Numbers that threads read and write without a lock. What was written before a `put` or an `add` is seen after the
 * `get` that sees its value.
 */
#ifndef ELMAN_ATOMIC_H
#define ELMAN_ATOMIC_H

#if defined(_MSC_VER)
#include <windows.h>
typedef volatile long elman_atomic;
static inline long elman_get(elman_atomic *p) { return ReadAcquire(p); }
static inline void elman_put(elman_atomic *p, long value) { WriteRelease(p, value); }
static inline long elman_add(elman_atomic *p, long value) { return InterlockedExchangeAdd(p, value) + value; }
static inline void elman_pause(void) { YieldProcessor(); }
static inline void elman_yield(void) { SwitchToThread(); }

#else
#if defined(_WIN32)
#include <windows.h>
static inline void elman_yield(void) { SwitchToThread(); }
#else
#include <sched.h>
static inline void elman_yield(void) { sched_yield(); }
#endif
typedef long elman_atomic;
static inline long elman_get(elman_atomic *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void elman_put(elman_atomic *p, long value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
static inline long elman_add(elman_atomic *p, long value) { return __atomic_add_fetch(p, value, __ATOMIC_ACQ_REL); }
static inline void elman_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* `yield` takes no time at all there */
#endif
}
#endif

/* Pauses that a thread makes before it gives up its core: 10 to 50 us of them. */
enum { ELMAN_PATIENCE = 1000 };

#endif
