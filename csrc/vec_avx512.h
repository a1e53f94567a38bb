/* Vectors of AVX-512: 16 float or 8 double. See vec_c.h for what each function means. */
#ifndef ELMAN_VEC_H
#define ELMAN_VEC_H
#include <immintrin.h>

#include <math.h>

#include "real.h"

#define ISA_NAME avx512
#define TILE_ROWS 6 /* 6 x 4 accumulators, 4 weights and a broadcast: 29 of 32 registers */
#define TILE_VECS 4
#define HAS_SCALE

#ifdef ELMAN_F64

typedef __m512d vec;
#define LANES 8
static inline vec v_load(const real *p) { return _mm512_loadu_pd(p); }
static inline void v_store(real *p, vec a) { _mm512_storeu_pd(p, a); }
static inline vec v_set1(real a) { return _mm512_set1_pd(a); }
static inline vec v_add(vec a, vec b) { return _mm512_add_pd(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm512_sub_pd(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm512_mul_pd(a, b); }
static inline vec v_div(vec a, vec b) { return _mm512_div_pd(a, b); }
static inline vec v_sqrt(vec a) { return _mm512_sqrt_pd(a); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_pd(a, b, c); }
static inline vec v_min(vec a, vec b) { return _mm512_min_pd(a, b); }
static inline vec v_max(vec a, vec b) { return _mm512_max_pd(a, b); }
static inline vec v_abs(vec a) { return _mm512_abs_pd(a); }
static inline vec v_sign_of(vec a, vec s)
{
    const __m512i sign = _mm512_set1_epi64((long long)0x8000000000000000ULL);
    return _mm512_castsi512_pd(_mm512_or_si512(_mm512_castpd_si512(a), _mm512_and_si512(_mm512_castpd_si512(s), sign)));
}
static inline vec v_one_nan(vec a)
{
    return _mm512_mask_mov_pd(a, _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q), _mm512_set1_pd(NAN));
}
static inline vec v_where_positive(vec s, vec a)
{
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(s, _mm512_setzero_pd(), _CMP_GT_OQ), a);
}
static inline vec v_scale(vec a, vec n) { return _mm512_scalef_pd(a, n); }

#else

typedef __m512 vec;
#define LANES 16
static inline vec v_load(const real *p) { return _mm512_loadu_ps(p); }
static inline void v_store(real *p, vec a) { _mm512_storeu_ps(p, a); }
static inline vec v_set1(real a) { return _mm512_set1_ps(a); }
static inline vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
static inline vec v_sqrt(vec a) { return _mm512_sqrt_ps(a); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
static inline vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec v_abs(vec a) { return _mm512_abs_ps(a); }
static inline vec v_sign_of(vec a, vec s)
{
    const __m512i sign = _mm512_set1_epi32((int)0x80000000U);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), _mm512_and_si512(_mm512_castps_si512(s), sign)));
}
static inline vec v_one_nan(vec a)
{
    return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_ps(NAN));
}
static inline vec v_where_positive(vec s, vec a)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(s, _mm512_setzero_ps(), _CMP_GT_OQ), a);
}
static inline vec v_scale(vec a, vec n) { return _mm512_scalef_ps(a, n); }

#endif
#endif
