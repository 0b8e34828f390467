/* Whether there is NaN or infinity in what a rank gives to a sum, found out while it is copied: the bytes are at hand
 * anyway. */
#include <string.h>

#include "shared_memory.h"

#define INLINE static inline __attribute__((always_inline))

/* NaN and infinity have all bits of the exponent set, and nothing else has. Adding the exponent's lowest bit to the
 * exponent alone carries into the sign's place just then: three integer operations per element, in every lane. */
#define COPY(NAME, BITS, EXPONENT, LOWEST, SIGN)                                                                      \
    INLINE int NAME(char *to, const char *from, size_t count)                                                         \
    {                                                                                                                 \
        const BITS *in = (const BITS *)from;                                                                          \
        BITS *out = (BITS *)to, seen = 0;                                                                             \
        if (out)                                                                                                      \
            _Pragma("GCC ivdep") for (size_t i = 0; i < count; i++)                                                   \
            {                                                                                                         \
                BITS bits = in[i];                                                                                    \
                out[i] = bits;                                                                                        \
                seen |= (BITS)((bits & (BITS)(EXPONENT)) + (BITS)(LOWEST));                                           \
            }                                                                                                         \
        else                                                                                                          \
            for (size_t i = 0; i < count; i++)                                                                        \
                seen |= (BITS)((in[i] & (BITS)(EXPONENT)) + (BITS)(LOWEST));                                          \
        return (seen & (BITS)(SIGN)) != 0;                                                                            \
    }
COPY(copy_f32, uint32_t, 0x7f800000, 0x00800000, 0x80000000)
COPY(copy_f64, uint64_t, 0x7ff0000000000000, 0x0010000000000000, 0x8000000000000000)
COPY(copy_bf16, uint16_t, 0x7f80, 0x0080, 0x8000)
COPY(copy_f16, uint16_t, 0x7c00, 0x0400, 0x8000)

INLINE int copy(char *to, const char *from, size_t count, enum rz_sum_dtype dtype)
{
    switch (dtype) {
    case RZ_SUM_F32:
        return copy_f32(to, from, count);
    case RZ_SUM_F64:
        return copy_f64(to, from, count);
    case RZ_SUM_BF16:
        return copy_bf16(to, from, count);
    case RZ_SUM_F16:
        return copy_f16(to, from, count);
    default: /* integers */
        if (to)
            memcpy(to, from, count * rz_sum_width(dtype));
        return 0;
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static int copy_avx2(char *to, const char *from, size_t count,
                                                     enum rz_sum_dtype dtype)
{
    return copy(to, from, count, dtype);
}
#endif

int rz_copy_finite(void *to, const void *from, size_t count, enum rz_sum_dtype dtype)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        return copy_avx2(to, from, count, dtype);
#endif
    return copy(to, from, count, dtype);
}

/* For those who don't sum in a segment. */
RZ_EXPORT int rz_non_finite(const void *from, uint64_t count, int32_t dtype)
{
    return rz_copy_finite(NULL, from, count, dtype);
}
