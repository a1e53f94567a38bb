/* Vectors of plain C, for any machine: 4 float or 2 double in a struct, no intrinsics, no fused multiply-add.
 * This file is also the description of the wrappers: every vec_<isa>.h has the same names with the same meaning.
 */
#ifndef ELMAN_VEC_H
#define ELMAN_VEC_H
#include <stdint.h>
#include <string.h>

#include "real.h"

#define ISA_NAME c
#define TILE_ROWS 3 /* 3 x 2 accumulators, 2 weights and a broadcast: 9 of the 16 registers of SSE2 */
#define TILE_VECS 2

#ifdef ELMAN_F64
typedef uint64_t real_bits;
#define LANES 2
#define SIGN_BIT 0x8000000000000000ULL
#define EXPONENT_BIAS 1023
#define MANTISSA_BITS 52
#else
typedef uint32_t real_bits;
#define LANES 4
#define SIGN_BIT 0x80000000U
#define EXPONENT_BIAS 127
#define MANTISSA_BITS 23
#endif

typedef struct {
    real lane[LANES];
} vec;

static inline real_bits bits_of(real a)
{
    real_bits b;
    memcpy(&b, &a, sizeof b);
    return b;
}
static inline real real_of(real_bits b)
{
    real a;
    memcpy(&a, &b, sizeof a);
    return a;
}

#define EACH(expression)              \
    vec y;                            \
    for (int l = 0; l < LANES; l++) { \
        y.lane[l] = (expression);     \
    }                                 \
    return y

static inline vec v_load(const real *p) { EACH(p[l]); } /* from any address */
static inline void v_store(real *p, vec a) { memcpy(p, a.lane, sizeof a.lane); }
static inline vec v_set1(real a) { EACH(a); }
static inline vec v_add(vec a, vec b) { EACH(a.lane[l] + b.lane[l]); }
static inline vec v_sub(vec a, vec b) { EACH(a.lane[l] - b.lane[l]); }
static inline vec v_mul(vec a, vec b) { EACH(a.lane[l] * b.lane[l]); }
static inline vec v_div(vec a, vec b) { EACH(a.lane[l] / b.lane[l]); }
/* a * b + c, rounded once where the machine can */
static inline vec v_fma(vec a, vec b, vec c) { EACH(a.lane[l] * b.lane[l] + c.lane[l]); }
/* the smaller, the larger; where b is NaN the result is NaN */
static inline vec v_min(vec a, vec b) { EACH(a.lane[l] < b.lane[l] ? a.lane[l] : b.lane[l]); }
static inline vec v_max(vec a, vec b) { EACH(a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l]); }
static inline vec v_abs(vec a) { EACH(real_of(bits_of(a.lane[l]) & ~SIGN_BIT)); }
/* a >= 0 with the sign of s */
static inline vec v_sign_of(vec a, vec s) { EACH(real_of(bits_of(a.lane[l]) | (bits_of(s.lane[l]) & SIGN_BIT))); }
/* s > 0 ? a : 0 */
static inline vec v_where_positive(vec s, vec a) { EACH(s.lane[l] > 0 ? a.lane[l] : 0); }
/* 2^n for whole n in the range of normal numbers */
static inline vec v_pow2(vec n)
{
    EACH(real_of((bits_of(n.lane[l] + MAGIC) + EXPONENT_BIAS) << MANTISSA_BITS));
}
#endif
