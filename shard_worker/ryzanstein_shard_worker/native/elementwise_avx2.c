/* Norms, rotations and the gate for CPUs with AVX2. Called only where the CPU has it. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "elementwise.h"

#define TARGET __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define LANES 8
#define NAME(function) function##_avx2

typedef __m256 floats;
typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));

INLINE floats smaller(floats a, floats b) { return _mm256_min_ps(a, b); }
INLINE floats larger(floats a, floats b) { return _mm256_max_ps(a, b); }
INLINE words load_shorts(const char *at) { return (words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)at)); }
INLINE void store_shorts(char *at, words value)
{
    __m256i halves = _mm256_packus_epi32((__m256i)value, (__m256i)value); /* of each half of the lanes, twice */
    _mm_storeu_si128((void *)at, _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08)));
}
INLINE void store_octets(char *at, words value)
{
    __m128i low = _mm256_castsi256_si128((__m256i)value), high = _mm256_extracti128_si256((__m256i)value, 1);
    __m128i shorts = _mm_packs_epi32(low, high);
    _mm_storel_epi64((void *)at, _mm_packs_epi16(shorts, shorts));
}

#include "elementwise_kernel.h"
#include "int8_rows_kernel.h"
#else
typedef int rz_no_avx2_here; /* an empty file is not C */
#endif
