/* Vectors of plain C, for any machine: no intrinsics, no fused multiply-add. With GCC and clang a vector is 16 bytes
 * of their generic vector type, which becomes SSE2, AltiVec, WebAssembly SIMD or scalars, elsewhere it is one number.
 * This file is also the description of the wrappers: every vec_<isa>.h has the same names with the same meaning.
 */
#ifndef ELMAN_VEC_H
#define ELMAN_VEC_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "real.h"

#define ISA_NAME c
#define TILE_ROWS 3 /* 3 x 2 accumulators, 2 weights and a broadcast: 9 of the 16 registers of SSE2 */
#define TILE_VECS 2

#ifdef ELMAN_F64
typedef uint64_t real_bits;
#define SIGN_BIT 0x8000000000000000ULL
#define EXPONENT_BIAS 1023
#define SQRT sqrt
#define MANTISSA_BITS 52
#else
typedef uint32_t real_bits;
#define SIGN_BIT 0x80000000U
#define EXPONENT_BIAS 127
#define SQRT sqrtf
#define MANTISSA_BITS 23
#endif

#if defined(__GNUC__)
#ifdef ELMAN_F64
#define LANES 2
#else
#define LANES 4
#endif
typedef real vec __attribute__((vector_size(16)));
typedef real_bits bits_vec __attribute__((vector_size(16)));
#define MASK(comparison) ((bits_vec)(comparison)) /* all ones where it holds */
#else
#define LANES 1
typedef real vec;
typedef real_bits bits_vec;
#define MASK(comparison) ((real_bits)0 - (real_bits)(comparison))
#endif

static inline bits_vec bits_of(vec a)
{
    bits_vec bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}
static inline vec vec_of(bits_vec bits)
{
    vec a;
    memcpy(&a, &bits, sizeof a);
    return a;
}
static inline vec pick(bits_vec mask, vec a, vec b) { return vec_of((mask & bits_of(a)) | (~mask & bits_of(b))); }

static inline vec v_load(const real *p) /* from any address */
{
    vec a;
    memcpy(&a, p, sizeof a);
    return a;
}
static inline void v_store(real *p, vec a) { memcpy(p, &a, sizeof a); }
static inline vec v_set1(real x) { return x - (vec){0}; } /* minus 0, since -0 plus 0 would lose its sign */
static inline vec v_add(vec a, vec b) { return a + b; }
static inline vec v_sub(vec a, vec b) { return a - b; }
static inline vec v_mul(vec a, vec b) { return a * b; }
static inline vec v_div(vec a, vec b) { return a / b; }
static inline vec v_sqrt(vec a)
{
    real lanes[LANES];
    v_store(lanes, a);
    for (int i = 0; i < LANES; i++) lanes[i] = SQRT(lanes[i]);
    return v_load(lanes);
}
/* a * b + c, rounded once where the machine can */
static inline vec v_fma(vec a, vec b, vec c) { return a * b + c; }
/* the smaller, the larger; where b is NaN the result is NaN */
static inline vec v_min(vec a, vec b) { return pick(MASK(a < b), a, b); }
static inline vec v_max(vec a, vec b) { return pick(MASK(a > b), a, b); }
static inline vec v_abs(vec a) { return vec_of(bits_of(a) & ~SIGN_BIT); }
/* a >= 0 with the sign of s */
static inline vec v_sign_of(vec a, vec s) { return vec_of(bits_of(a) | (bits_of(s) & SIGN_BIT)); }
/* s > 0 ? a : 0 */
static inline vec v_where_positive(vec s, vec a) { return vec_of(MASK(s > (vec){0}) & bits_of(a)); }
/* a, but every NaN the same one */
static inline vec v_one_nan(vec a) { return pick(MASK(a == a), a, v_set1(NAN)); }
/* 2^n for whole n in the range of normal numbers */
static inline vec v_pow2(vec n) { return vec_of((bits_of(n + MAGIC) + EXPONENT_BIAS) << MANTISSA_BITS); }

#endif
