/* Attention with what every CPU of the platform has (SSE2 on x86-64, NEON on arm64), through vector extensions. */
#include "attention.h"

#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define LANES 4
#define VECTORS 2
#define ATTEND_TILE rz_attend_baseline

typedef float floats __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t mask_lanes __attribute__((vector_size(4 * LANES), may_alias));

#if defined(__aarch64__)
#include <arm_neon.h>
/* Said outright, so that it isn't left to the compiler in which places a product and a sum become one rounding. */
INLINE floats multiply_add(floats a, floats b, floats c) { return vfmaq_f32(c, a, b); }
#else
INLINE floats multiply_add(floats a, floats b, floats c) { return a * b + c; }
#endif
INLINE floats larger(floats a, floats b)
{
    mask_lanes above = a > b;
    return (floats)((above & (mask_lanes)a) | (~above & (mask_lanes)b));
}
INLINE float largest_lane(floats a)
{
    float largest = a[0];
    for (int lane = 1; lane < LANES; lane++)
        largest = a[lane] > largest ? a[lane] : largest;
    return largest;
}
INLINE floats zero_where_below(floats x, floats y, float limit)
{
    mask_lanes below = y < limit; /* false for NaN: it stays */
    return (floats)(~below & (mask_lanes)x);
}

/* IEEE half to float without hardware: the exponent is rebased by an exact product, which also makes denormals
 * normal; infinities and NaN get the exponent of theirs. */
INLINE floats from_half(const void *at)
{
    const uint16_t *half = at;
    mask_lanes bits = {half[0], half[1], half[2], half[3]};
    mask_lanes magnitude = (bits & 0x7fff) << 13;
    mask_lanes special = magnitude >= 0x0f800000;
    floats rebased = (floats)magnitude * 0x1p112f;
    mask_lanes result = (special & (magnitude | 0x7f800000)) | (~special & (mask_lanes)rebased);
    return (floats)(result | (bits & 0x8000) << 16);
}

/* Float to IEEE half, rounded to nearest even. */
static uint16_t half_of(float value)
{
    union { float number; uint32_t bits; } in = {value}, sum;
    uint32_t sign = in.bits >> 16 & 0x8000;
    in.bits &= 0x7fffffff;
    if (in.bits > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (in.bits >> 13 & 0x3ff)); /* NaN, quiet, the payload's top kept */
    if (in.bits >= 0x477ff000)
        return (uint16_t)(sign | 0x7c00); /* 65520 and more round to infinity */
    if (in.bits < 0x38800000) {           /* denormal: the sum aligns and rounds the digits */
        sum.number = in.number + 0.5f;
        return (uint16_t)(sign | (sum.bits - 0x3f000000));
    }
    uint32_t odd = in.bits >> 13 & 1;
    return (uint16_t)(sign | ((in.bits - 0x38000000 + 0xfff + odd) >> 13));
}
INLINE void to_half(void *at, floats a)
{
    uint16_t *half = at;
    for (int lane = 0; lane < LANES; lane++)
        half[lane] = half_of(a[lane]);
}

#include "attention_kernel.h"
