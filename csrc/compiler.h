/* What each compiler calls the things that a template needs, and a few macros of everybody. */
#ifndef ELMAN_COMPILER_H
#define ELMAN_COMPILER_H

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define NOT_INLINE static __attribute__((noinline))
#if defined(__clang__) /* takes no notice of GCC's: a tile would stay in memory, five times slower */
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define RESTRICT __restrict__
#elif defined(_MSC_VER)
#define INLINE static __forceinline
#define NOT_INLINE static __declspec(noinline)
#define UNROLL
#define RESTRICT __restrict
#else
#define INLINE static inline
#define NOT_INLINE static
#define UNROLL
#define RESTRICT
#endif

#if defined(__GNUC__)
#define PREFETCH(p) __builtin_prefetch(p, 0, 2)
#else
#define PREFETCH(p) ((void)(p))
#endif
#define PADDED(n) (((n) + LANES - 1) / LANES * LANES)
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)

#ifdef __FAST_MATH__
#error "-ffast-math would reorder the sums and round the wrong way: see setup.py"
#endif
#ifdef _MSC_VER
#pragma fp_contract(off)
#endif

#endif
