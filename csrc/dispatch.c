/* The only file that knows which instruction sets exist: what was compiled in (ELMAN_HAVE_*, set by the build), what
 * this machine can run, and where the kernels of each are.
 */
#include "elman.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
static void cpuid(unsigned leaf, unsigned subleaf, unsigned r[4])
{
    if (!__get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3])) r[0] = r[1] = r[2] = r[3] = 0;
}
static unsigned saved_registers(void) /* XCR0: which registers the operating system saves */
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}
#define X86 1
#elif defined(_M_X64) || defined(_M_IX86)
#include <intrin.h>
static void cpuid(unsigned leaf, unsigned subleaf, unsigned r[4])
{
    __cpuidex((int *)r, 0, 0);
    if (r[0] < leaf) {
        r[0] = r[1] = r[2] = r[3] = 0;
    } else {
        __cpuidex((int *)r, (int)leaf, (int)subleaf);
    }
}
static unsigned saved_registers(void) { return (unsigned)_xgetbv(0); }
#define X86 1
#endif

static int always(void) { return 1; }

#ifdef X86
enum { EAX, EBX, ECX, EDX };

/* CPU bits of leaf 1 (ecx) and leaf 7 (ebx), and the registers that the operating system must save. */
static int x86_can(unsigned leaf1_ecx, unsigned leaf7_ebx, unsigned registers)
{
    const unsigned osxsave = 1u << 27;
    unsigned r[4];
    cpuid(1, 0, r);
    if ((r[ECX] & (leaf1_ecx | osxsave)) != (leaf1_ecx | osxsave)) return 0;
    if ((saved_registers() & registers) != registers) return 0;
    cpuid(7, 0, r);
    return (r[EBX] & leaf7_ebx) == leaf7_ebx;
}

enum {
    FMA = 1 << 12, AVX = 1 << 28,                    /* leaf 1, ecx */
    AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, /* leaf 7, ebx */
    YMM = 0x6, ZMM = 0xe6,                           /* XCR0: xmm and ymm; also the mask and zmm registers */
};

static int can_avx2(void) { return x86_can(FMA | AVX, AVX2, YMM); }
static int can_avx512(void) { return x86_can(FMA | AVX, AVX2 | AVX512F | AVX512DQ, ZMM); }
#endif

#define TARGET(name) extern const elman_kernels elman_kernels_f32_##name, elman_kernels_f64_##name;
TARGET(c)
#ifdef ELMAN_HAVE_AVX2
TARGET(avx2)
#endif
#ifdef ELMAN_HAVE_AVX512
TARGET(avx512)
#endif
#ifdef ELMAN_HAVE_NEON
TARGET(neon)
#endif
#undef TARGET

typedef struct {
    const char *name;
    int (*usable)(void);
    const elman_kernels *f32, *f64;
} target;

static const target targets[] = {
#define TARGET(name, usable) {#name, usable, &elman_kernels_f32_##name, &elman_kernels_f64_##name},
    TARGET(c, always)
#ifdef ELMAN_HAVE_AVX2
    TARGET(avx2, can_avx2)
#endif
#ifdef ELMAN_HAVE_AVX512
    TARGET(avx512, can_avx512)
#endif
#ifdef ELMAN_HAVE_NEON
    TARGET(neon, always)
#endif
#undef TARGET
};

const char *elman_compiler(void)
{
#define STRING2(a) #a
#define STRING(a) STRING2(a)
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " STRING(_MSC_FULL_VER);
#else
    return "unknown";
#endif
}

int elman_isa_count(void) { return (int)(sizeof targets / sizeof *targets); }
const char *elman_isa_name(int isa) { return targets[isa].name; }
int elman_isa_usable(int isa) { return targets[isa].usable(); }

const elman_kernels *elman_get_kernels(int isa, int is_double)
{
    return is_double ? targets[isa].f64 : targets[isa].f32;
}
