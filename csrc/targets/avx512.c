/* AVX-512: -mavx512f -mavx512dq -mavx2 -mfma. */
#if !defined(__AVX512F__) || !defined(__AVX512DQ__)
#error "compile this file with the flags of its instruction set (setup.py)"
#endif
#include "../vec_avx512.h"

#include "../kernels.inc"
