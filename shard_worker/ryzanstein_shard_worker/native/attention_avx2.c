/* Attention for CPUs with AVX2, FMA and F16C. Called only where the CPU says that it has them. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "attention.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define LANES 8
#define VECTORS 2 /* 6 rows x 2 vectors of sums, 2 of operands, 1 broadcast: 15 of 16 registers */
#define ATTEND_TILE rz_attend_avx2

typedef __m256 floats;

INLINE floats multiply_add(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE floats larger(floats a, floats b) { return _mm256_max_ps(a, b); }
INLINE float largest_lane(floats a)
{
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
INLINE floats zero_where_below(floats x, floats y, float limit)
{
    /* "not below" is true for NaN: it stays. */
    return _mm256_and_ps(x, _mm256_cmp_ps(y, _mm256_set1_ps(limit), _CMP_NLT_UQ));
}
INLINE floats from_half(const void *at) { return _mm256_cvtph_ps(_mm_loadu_si128(at)); }
INLINE void to_half(void *at, floats a)
{
    _mm_storeu_si128(at, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#include "attention_kernel.h"
#else
typedef int rz_no_avx2_here; /* an empty file is not C */
#endif
