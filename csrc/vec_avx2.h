/* Vectors of AVX2 with FMA: 8 float or 4 double. See vec_c.h for what each function means. */
#ifndef ELMAN_VEC_H
#define ELMAN_VEC_H
#include <immintrin.h>

#include <math.h>

#include "real.h"

#define ISA_NAME avx2
#define TILE_ROWS 6 /* 6 x 2 accumulators, 2 weights and a broadcast: 15 of 16 registers */
#define TILE_VECS 2

#ifdef ELMAN_F64

typedef __m256d vec;
#define LANES 4
static inline vec v_load(const real *p) { return _mm256_loadu_pd(p); }
static inline void v_store(real *p, vec a) { _mm256_storeu_pd(p, a); }
static inline vec v_set1(real a) { return _mm256_set1_pd(a); }
static inline vec v_add(vec a, vec b) { return _mm256_add_pd(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm256_sub_pd(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm256_mul_pd(a, b); }
static inline vec v_div(vec a, vec b) { return _mm256_div_pd(a, b); }
static inline vec v_sqrt(vec a) { return _mm256_sqrt_pd(a); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_pd(a, b, c); }
static inline vec v_min(vec a, vec b) { return _mm256_min_pd(a, b); }
static inline vec v_max(vec a, vec b) { return _mm256_max_pd(a, b); }
static inline vec v_abs(vec a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
static inline vec v_sign_of(vec a, vec s) { return _mm256_or_pd(a, _mm256_and_pd(_mm256_set1_pd(-0.0), s)); }
static inline vec v_one_nan(vec a)
{
    return _mm256_blendv_pd(a, _mm256_set1_pd(NAN), _mm256_cmp_pd(a, a, _CMP_UNORD_Q));
}
static inline vec v_where_positive(vec s, vec a)
{
    return _mm256_and_pd(_mm256_cmp_pd(s, _mm256_setzero_pd(), _CMP_GT_OQ), a);
}
static inline vec v_pow2(vec n)
{
    const __m256i bits = _mm256_castpd_si256(_mm256_add_pd(n, _mm256_set1_pd(MAGIC)));
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_add_epi64(bits, _mm256_set1_epi64x(1023)), 52));
}

#else

typedef __m256 vec;
#define LANES 8
static inline vec v_load(const real *p) { return _mm256_loadu_ps(p); }
static inline void v_store(real *p, vec a) { _mm256_storeu_ps(p, a); }
static inline vec v_set1(real a) { return _mm256_set1_ps(a); }
static inline vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec v_sqrt(vec a) { return _mm256_sqrt_ps(a); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec v_min(vec a, vec b) { return _mm256_min_ps(a, b); }
static inline vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec v_abs(vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vec v_sign_of(vec a, vec s) { return _mm256_or_ps(a, _mm256_and_ps(_mm256_set1_ps(-0.0f), s)); }
static inline vec v_one_nan(vec a)
{
    return _mm256_blendv_ps(a, _mm256_set1_ps(NAN), _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
static inline vec v_where_positive(vec s, vec a)
{
    return _mm256_and_ps(_mm256_cmp_ps(s, _mm256_setzero_ps(), _CMP_GT_OQ), a);
}
static inline vec v_pow2(vec n)
{
    const __m256i bits = _mm256_castps_si256(_mm256_add_ps(n, _mm256_set1_ps(MAGIC)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(127)), 23));
}

#endif
#endif
