/* Norms, rotations and the gate for CPUs with AVX-512 F, BW, DQ and VL. Called only where the CPU has them. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "elementwise.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define LANES 16
#define NAME(function) function##_avx512

typedef __m512 floats;
typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));

INLINE floats smaller(floats a, floats b) { return _mm512_min_ps(a, b); }
INLINE floats larger(floats a, floats b) { return _mm512_max_ps(a, b); }
INLINE words load_shorts(const char *at) { return (words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at)); }
INLINE void store_shorts(char *at, words value)
{
    _mm256_storeu_si256((void *)at, _mm512_cvtepi32_epi16((__m512i)value));
}
INLINE void store_octets(char *at, words value)
{
    _mm_storeu_si128((void *)at, _mm512_cvtepi32_epi8((__m512i)value));
}

#include "elementwise_kernel.h"
#include "int8_rows_kernel.h"
#else
typedef int rz_no_avx512_here; /* an empty file is not C */
#endif
