/* The product of int8_linear.h on AMX tiles. Called only where CPU and kernel grant them. */
#include "int8_linear.h"
#if RZ_HAS_AMX
#include <immintrin.h>

#include "elementwise.h"

#define TARGET __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx2")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define CALL struct rz_int8_linear
#define ELEMENT int8_t
#define SUM int32_t
#define STEP RZ_INT8_STEP
#define PRODUCT "tdpbssd"
#define INPUTS_AT_ONCE 4096 /* a chunk of longer rows would be too few rows */
#define MULTIPLY rz_int8_linear_amx
#define SCRATCH_BYTES rz_int8_linear_scratch_bytes

/* Sums of 16 features → the output's dtype, the first `count` of them. */
INLINE void scale_some(const CALL *call, const SUM *sums, int64_t row, int64_t feature)
{
    int64_t count = call->out_features - feature, at = row * call->out_features + feature;
    __mmask16 some = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
    __m512 value = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums));
    value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, call->feature_scales + feature));
    value = _mm512_mul_ps(value, _mm512_set1_ps(call->row_scales[row]));
    if (call->dtype == RZ_ELEMENTWISE_F32) {
        if (call->bias)
            value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(some, (const float *)call->bias + feature));
        _mm512_mask_storeu_ps((float *)call->out + at, some, value);
        return;
    }
    if (call->bias) {
        __m256i narrow = _mm256_maskz_loadu_epi16(some, (const uint16_t *)call->bias + feature);
        value = _mm512_add_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16)));
    }
    /* To nearest, ties to even; as write_lanes in elementwise_kernel.h. */
    __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
    _mm256_mask_storeu_epi16((uint16_t *)call->out + at, some, _mm512_cvtepi32_epi16(bits));
}

INLINE void finish_rows(const CALL *call, const SUM *sums, int64_t first, int64_t rows, int64_t group)
{
    int64_t feature = group * RZ_INT8_GROUP;
    for (int64_t row = 0; row < rows; row++, sums += RZ_INT8_GROUP) {
        scale_some(call, sums, first + row, feature);
        if (call->out_features - feature > 16)
            scale_some(call, sums + 16, first + row, feature + 16);
    }
}

#include "linear_tiles.h"
#else
typedef int rz_no_amx_int8_here; /* an empty file is not C */
#endif
