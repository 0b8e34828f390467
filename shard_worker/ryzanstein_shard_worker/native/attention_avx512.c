/* Attention for CPUs with AVX-512 F, BW, DQ and VL. Called only where the CPU says that it has them. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "attention.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define LANES 16
#define VECTORS 4 /* 6 rows x 4 vectors of sums, 4 of operands, 1 broadcast: 29 of 32 registers */
#define ATTEND_TILE rz_attend_avx512

typedef __m512 floats;

INLINE floats multiply_add(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE floats larger(floats a, floats b) { return _mm512_max_ps(a, b); }
INLINE float largest_lane(floats a) { return _mm512_reduce_max_ps(a); }
INLINE floats zero_where_below(floats x, floats y, float limit)
{
    /* "not below" is true for NaN: it stays. */
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_set1_ps(limit), _CMP_NLT_UQ), x);
}
INLINE floats from_half(const void *at) { return _mm512_cvtph_ps(_mm256_loadu_si256(at)); }
INLINE void to_half(void *at, floats a)
{
    _mm256_storeu_si256(at, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#include "attention_kernel.h"
#else
typedef int rz_no_avx512_here; /* an empty file is not C */
#endif
