/* Which of the attention kernels this CPU can run, and which one a call gets. */
#include <stdatomic.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "attention.h"

#if RZ_HAS_AMX
/* Whether the CPU has tiles of bfloat16, the kernel saves them, and this process may use them (it has to ask once;
 * a kernel before 5.16 doesn't know the question). */
static int may_use_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_TILE_DATA = 18, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned eax, ebx, ecx, edx, low, high;
    if (!__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low >> 17 & 3) != 3 || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return 0;
    if (!(edx & AMX_BF16) || !(edx & AMX_TILE))
        return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}
#endif

static int find_isa(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return RZ_BASELINE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return RZ_AVX2;
#if RZ_HAS_AVX512BF16
    if (!__builtin_cpu_supports("avx512bf16"))
        return RZ_AVX512;
#if RZ_HAS_AMX
    if (may_use_amx())
        return RZ_AMX;
#endif
    return RZ_AVX512BF16;
#endif
    return RZ_AVX512;
#endif
    return RZ_BASELINE;
}

/* The highest ISA level that this CPU and its operating system have. */
RZ_EXPORT int32_t rz_attention_isa(void)
{
    static atomic_int found = -1; /* threads that look at once find the same */
    int isa = atomic_load_explicit(&found, memory_order_relaxed);
    if (isa < 0) {
        isa = find_isa();
        atomic_store_explicit(&found, isa, memory_order_relaxed);
    }
    return isa;
}

/* The level to use unless told otherwise. AVX512-BF16 does twice the work of an FMA on AMD's CPUs, and takes four times
 * as long as one on Intel's (measured on Sapphire Rapids): it pays on the former only. */
RZ_EXPORT int32_t rz_attention_best_isa(void)
{
    int isa = rz_attention_isa();
#if defined(__x86_64__)
    if (isa == RZ_AVX512BF16 && !__builtin_cpu_is("amd"))
        return RZ_AVX512;
#endif
    return isa;
}

/* The level of the kernel for such heads where `isa` is the highest allowed. It depends on nothing that differs
 * between the steps of a model, above all not on the number of rows: levels differ in their bits. */
RZ_EXPORT int32_t rz_attention_level(int32_t isa, int32_t dtype, int32_t head_dim)
{
    int most = rz_attention_isa();
    isa = isa < most ? isa : most;
    if (isa == RZ_AMX && (dtype != RZ_BFLOAT16 || head_dim % 32))
        return RZ_AVX512; /* only Intel has AMX */
    if (isa == RZ_AVX512BF16 && (dtype != RZ_BFLOAT16 || head_dim % 16))
        return RZ_AVX512;
    return isa;
}

rz_attend_tile *rz_attention_kernel(const struct rz_attention *call)
{
    switch (rz_attention_level(call->isa, call->dtype, call->head_dim)) {
#if RZ_HAS_AMX
    case RZ_AMX:
        return rz_attend_amx;
#endif
#if RZ_HAS_AVX512BF16
    case RZ_AVX512BF16:
        return rz_attend_avx512bf16;
#endif
#if defined(__x86_64__)
    case RZ_AVX512:
        return rz_attend_avx512;
    case RZ_AVX2:
        return rz_attend_avx2;
#endif
    default:
        return rz_attend_baseline;
    }
}
