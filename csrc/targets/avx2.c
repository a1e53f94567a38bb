/* AVX2 and FMA: -mavx2 -mfma. */
#if !defined(__AVX2__) || (!defined(__FMA__) && !defined(_MSC_VER))
#error "compile this file with the flags of its instruction set (setup.py)"
#endif
#include "../vec_avx2.h"

#include "../kernels.inc"
