/* The entries of linear.py: whether tiles can be used here, weights to tiles and back, the product. */
#include "linear.h"

/* Whether this CPU has what the functions below need; ask it before the first of them. */
RZ_EXPORT int32_t rz_linear_available(void)
{
#if RZ_HAS_AMX
    return rz_attention_isa() == RZ_AMX;
#else
    return 0;
#endif
}

/* weight [out_features, in_features] → tiles. */
RZ_EXPORT void rz_linear_tile(uint16_t *tiles, const uint16_t *weight, int64_t out_features, int64_t in_features)
{
#if RZ_HAS_AMX
    rz_linear_tile_amx(tiles, weight, out_features, in_features);
#endif
}

/* And back, bit by bit. */
RZ_EXPORT void rz_linear_untile(uint16_t *weight, const uint16_t *tiles, int64_t out_features, int64_t in_features)
{
#if RZ_HAS_AMX
    rz_linear_untile_amx(weight, tiles, out_features, in_features);
#endif
}

/* 0, or -1: out of memory. */
RZ_EXPORT int32_t rz_linear(const struct rz_linear *call)
{
#if RZ_HAS_AMX
    if (call->rows < 1) /* a tile has one row at least */
        return 0;
    char *scratch = rz_linear_scratch(rz_linear_scratch_bytes(call));
    if (!scratch)
        return -1;
    rz_linear_amx(call, scratch);
    return 0;
#else
    return -1;
#endif
}
