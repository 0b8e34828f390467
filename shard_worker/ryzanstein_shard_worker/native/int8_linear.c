/* The entries of int8_linear.py: whether tiles can be used here, weights to tiles, the product. */
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "int8_linear.h"

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

/* weight [out_features, in_features] → tiles, which are zeros where nothing is written. */
RZ_EXPORT void rz_int8_linear_tile(int8_t *tiles, const int8_t *weight, int64_t out_features, int64_t in_features)
{
    enum { TILE = 16 * RZ_INT8_STEP };
    for (int64_t feature = 0; feature < out_features; feature++, weight += in_features) {
        int8_t *column = tiles + feature / RZ_INT8_GROUP * RZ_INT8_GROUP * in_features +
                         feature / 16 % 2 * TILE + feature % 16 * 4;
        for (int64_t input = 0; input < in_features; input += 4)
            memcpy(column + input / RZ_INT8_STEP * 2 * TILE + input % RZ_INT8_STEP / 4 * 64, weight + input, 4);
    }
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
