/* The entries of int8_linear.py: whether tiles can be used here, weights to tiles, the product. */
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "int8_linear.h"
#include "linear.h"

/* Whether this CPU has what the functions below need; ask it before the first of them. */
RZ_EXPORT int32_t rz_int8_linear_available(void)
{
#if RZ_HAS_AMX
    enum { AMX_INT8 = 1 << 25 };
    unsigned eax, ebx, ecx, edx;
    if (rz_attention_isa() != RZ_AMX || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return 0;
    return (edx & AMX_INT8) != 0;
#else
    return 0;
#endif
}

/* weight [out_features, in_features] → tiles. Four inputs lie where linear.h has a pair of twice their size. */
RZ_EXPORT void rz_int8_linear_tile(int8_t *tiles, const int8_t *weight, int64_t out_features, int64_t in_features)
{
#if RZ_HAS_AMX
    rz_linear_tile_amx((uint16_t *)tiles, (const uint16_t *)weight, out_features, in_features / 2);
#endif
}

/* 0, or -1: out of memory. */
RZ_EXPORT int32_t rz_int8_linear(const struct rz_int8_linear *call)
{
#if RZ_HAS_AMX
    if (call->rows < 1) /* a tile has one row at least */
        return 0;
    char *scratch = rz_linear_scratch(rz_int8_linear_scratch_bytes(call));
    if (!scratch)
        return -1;
    rz_int8_linear_amx(call, scratch);
    return 0;
#else
    return -1;
#endif
}
