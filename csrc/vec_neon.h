/* Vectors of AArch64 Advanced SIMD: 4 float or 2 double. See vec_c.h for what each function means. */
#ifndef ELMAN_VEC_H
#define ELMAN_VEC_H
#include <arm_neon.h>

#include <math.h>

#include "real.h"

#define ISA_NAME neon
#define TILE_ROWS 6 /* 6 x 4 accumulators, 4 weights and a broadcast: 29 of 32 registers */
#define TILE_VECS 4

#ifdef ELMAN_F64

typedef float64x2_t vec;
#define LANES 2
static inline vec v_load(const real *p) { return vld1q_f64(p); }
static inline void v_store(real *p, vec a) { vst1q_f64(p, a); }
static inline vec v_set1(real a) { return vdupq_n_f64(a); }
static inline vec v_add(vec a, vec b) { return vaddq_f64(a, b); }
static inline vec v_sub(vec a, vec b) { return vsubq_f64(a, b); }
static inline vec v_mul(vec a, vec b) { return vmulq_f64(a, b); }
static inline vec v_div(vec a, vec b) { return vdivq_f64(a, b); }
static inline vec v_sqrt(vec a) { return vsqrtq_f64(a); }
static inline vec v_fma(vec a, vec b, vec c) { return vfmaq_f64(c, a, b); }
static inline vec v_min(vec a, vec b) { return vminq_f64(a, b); }
static inline vec v_max(vec a, vec b) { return vmaxq_f64(a, b); }
static inline vec v_abs(vec a) { return vabsq_f64(a); }
static inline vec v_sign_of(vec a, vec s) { return vbslq_f64(vdupq_n_u64(0x8000000000000000ULL), s, a); }
static inline vec v_one_nan(vec a) { return vbslq_f64(vceqq_f64(a, a), a, vdupq_n_f64(NAN)); }
static inline vec v_where_positive(vec s, vec a)
{
    return vreinterpretq_f64_u64(vandq_u64(vcgtzq_f64(s), vreinterpretq_u64_f64(a)));
}
static inline vec v_pow2(vec n)
{
    const uint64x2_t bits = vreinterpretq_u64_f64(vaddq_f64(n, vdupq_n_f64(MAGIC)));
    return vreinterpretq_f64_u64(vshlq_n_u64(vaddq_u64(bits, vdupq_n_u64(1023)), 52));
}

#else

typedef float32x4_t vec;
#define LANES 4
static inline vec v_load(const real *p) { return vld1q_f32(p); }
static inline void v_store(real *p, vec a) { vst1q_f32(p, a); }
static inline vec v_set1(real a) { return vdupq_n_f32(a); }
static inline vec v_add(vec a, vec b) { return vaddq_f32(a, b); }
static inline vec v_sub(vec a, vec b) { return vsubq_f32(a, b); }
static inline vec v_mul(vec a, vec b) { return vmulq_f32(a, b); }
static inline vec v_div(vec a, vec b) { return vdivq_f32(a, b); }
static inline vec v_sqrt(vec a) { return vsqrtq_f32(a); }
static inline vec v_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
static inline vec v_min(vec a, vec b) { return vminq_f32(a, b); }
static inline vec v_max(vec a, vec b) { return vmaxq_f32(a, b); }
static inline vec v_abs(vec a) { return vabsq_f32(a); }
static inline vec v_sign_of(vec a, vec s) { return vbslq_f32(vdupq_n_u32(0x80000000U), s, a); }
static inline vec v_one_nan(vec a) { return vbslq_f32(vceqq_f32(a, a), a, vdupq_n_f32(NAN)); }
static inline vec v_where_positive(vec s, vec a)
{
    return vreinterpretq_f32_u32(vandq_u32(vcgtzq_f32(s), vreinterpretq_u32_f32(a)));
}
static inline vec v_pow2(vec n)
{
    const uint32x4_t bits = vreinterpretq_u32_f32(vaddq_f32(n, vdupq_n_f32(MAGIC)));
    return vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(bits, vdupq_n_u32(127)), 23));
}

#endif
#endif
