/* The element type of this compilation: float, or double where ELMAN_F64 is defined. Every target is compiled once
 * for each, so that the templates need no suffixes.
 */
#ifndef ELMAN_REAL_H
#define ELMAN_REAL_H

#ifdef ELMAN_F64
typedef double real;
#define MAGIC 0x1.8p52 /* added to |n| < 2^51 it rounds n to the nearest integer and leaves it in the low bits */
#define LARGEST 0x1.fffffffffffffp1023
#define DTYPE_NAME f64
#else
typedef float real;
#define MAGIC 0x1.8p23f
#define LARGEST 0x1.fffffep127f
#define DTYPE_NAME f32
#endif

#endif
