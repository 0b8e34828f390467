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

RZ_EXPORT int64_t rz_int8_linear_scratch_bytes(int64_t rows, int64_t out_features, int64_t in_features)
{
#if RZ_HAS_AMX
    return rz_int8_linear_amx_scratch_bytes(rows, out_features, in_features);
#else
    return 0;
#endif
}

RZ_EXPORT void rz_int8_linear(const struct rz_int8_linear *call)
{
#if RZ_HAS_AMX
    if (call->rows > 0) /* a tile has one row at least */
        rz_int8_linear_amx(call);
#endif
}
