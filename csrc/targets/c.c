/* Plain C: the target that every machine has. */
#include "../vec_c.h"

#include "../kernels.inc"
