/* Norms, rotations and the gate with what every CPU of the platform has (SSE2 on x86-64, NEON on arm64). */
#if defined(__x86_64__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <string.h>

#include "elementwise.h"

#define TARGET
#define INLINE static inline __attribute__((always_inline))
#define LANES 4
#define NAME(function) function##_baseline

typedef float floats __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t mask_lanes __attribute__((vector_size(4 * LANES), may_alias));

INLINE floats chosen(mask_lanes first, floats a, floats b)
{
    return (floats)((first & (mask_lanes)a) | (~first & (mask_lanes)b));
}
INLINE floats smaller(floats a, floats b) { return chosen(a < b, a, b); }
INLINE floats larger(floats a, floats b) { return chosen(a > b, a, b); }
#if defined(__x86_64__)
INLINE words load_shorts(const char *at)
{
    return (words)_mm_unpacklo_epi16(_mm_loadl_epi64((const void *)at), _mm_setzero_si128());
}
INLINE void store_shorts(char *at, words value)
{
    __m128i halves = _mm_shufflehi_epi16(_mm_shufflelo_epi16((__m128i)value, 0x08), 0x08);
    _mm_storel_epi64((void *)at, _mm_shuffle_epi32(halves, 0x08));
}
INLINE void store_octets(char *at, words value)
{
    __m128i shorts = _mm_packs_epi32((__m128i)value, (__m128i)value);
    int32_t packed = _mm_cvtsi128_si32(_mm_packs_epi16(shorts, shorts));
    memcpy(at, &packed, sizeof packed);
}
#elif defined(__aarch64__)
INLINE words load_shorts(const char *at) { return (words)vmovl_u16(vld1_u16((const uint16_t *)at)); }
INLINE void store_shorts(char *at, words value) { vst1_u16((uint16_t *)at, vmovn_u32((uint32x4_t)value)); }
INLINE void store_octets(char *at, words value)
{
    for (int lane = 0; lane < LANES; lane++)
        at[lane] = (char)value[lane];
}
#else
INLINE words load_shorts(const char *at)
{
    const uint16_t *from = (const uint16_t *)at;
    return (words){from[0], from[1], from[2], from[3]};
}
INLINE void store_shorts(char *at, words value)
{
    for (int lane = 0; lane < LANES; lane++)
        ((uint16_t *)at)[lane] = (uint16_t)value[lane];
}
INLINE void store_octets(char *at, words value)
{
    for (int lane = 0; lane < LANES; lane++)
        at[lane] = (char)value[lane];
}
#endif

#include "elementwise_kernel.h"
#include "int8_rows_kernel.h"
