/* The floating-point mode inside a kernel: round to nearest, no traps, subnormal numbers taken and given as zero (on
 * many CPUs one of them costs as much as a hundred multiplications). The caller's mode is put back on the way out.
 */
#ifndef ELMAN_FPMODE_H
#define ELMAN_FPMODE_H

#if defined(__x86_64__) || defined(_M_X64) || (defined(__i386__) && defined(__SSE2__))
#include <xmmintrin.h>
typedef unsigned int fp_mode;
static inline fp_mode fp_enter(void)
{
    const fp_mode mode = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* all exceptions masked, flush to zero, subnormals are zero */
    return mode;
}
static inline void fp_leave(fp_mode mode) { _mm_setcsr(mode); }

#elif defined(__aarch64__) && defined(__GNUC__)
typedef unsigned long fp_mode;
static inline fp_mode fp_enter(void)
{
    fp_mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(1UL << 24)); /* flush to zero */
    return mode;
}
static inline void fp_leave(fp_mode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }

#else
typedef int fp_mode;
static inline fp_mode fp_enter(void) { return 0; }
static inline void fp_leave(fp_mode mode) { (void)mode; }
#endif

#endif
