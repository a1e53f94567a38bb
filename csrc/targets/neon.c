/* AArch64 Advanced SIMD, which every such machine has. */
#if !defined(__aarch64__) && !defined(_M_ARM64)
#error "compile this file with the flags of its instruction set (setup.py)"
#endif
#include "../vec_neon.h"

#include "../kernels.inc"
