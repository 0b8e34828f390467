/* The product of linear.h on AMX tiles, and weights to tiles and back. Called only where CPU and kernel grant them. */
#include "linear.h"
#if RZ_HAS_AMX
#include <immintrin.h>

#define TARGET __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define CALL struct rz_linear
#define ELEMENT uint16_t
#define SUM float
#define STEP RZ_LINEAR_STEP
#define PRODUCT "tdpbf16ps"
#define INPUTS_AT_ONCE 2048 /* a chunk of longer rows would be too few rows */
#define MULTIPLY rz_linear_amx
#define SCRATCH_BYTES rz_linear_scratch_bytes

/* Sums of 16 features → bfloat16, the first `count` of them. */
INLINE void round_some(uint16_t *out, const float *sums, const uint16_t *bias, int64_t count)
{
    __mmask16 some = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
    __m512 value = _mm512_loadu_ps(sums);
    if (bias) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, bias));
        value = _mm512_add_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
    }
    _mm256_mask_storeu_epi16(out, some, (__m256i)_mm512_cvtneps_pbh(value));
}

INLINE void finish_rows(const CALL *call, const SUM *sums, int64_t first, int64_t rows, int64_t group)
{
    int64_t feature = group * RZ_LINEAR_GROUP, features = call->out_features;
    const uint16_t *bias = call->bias ? call->bias + feature : NULL;
    for (int64_t row = 0; row < rows; row++, sums += RZ_LINEAR_GROUP) {
        uint16_t *out = call->out + (first + row) * features + feature;
        round_some(out, sums, bias, features - feature);
        if (features - feature > 16)
            round_some(out + 16, sums + 16, bias ? bias + 16 : NULL, features - feature - 16);
    }
}

#include "linear_tiles.h"

/* Rows [16][16] of words → columns. */
INLINE void transpose(__m512i *rows)
{
    __m512i half[16];
    for (int i = 0; i < 16; i += 2) {
        half[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        half[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            rows[i + 2 * j] = _mm512_unpacklo_epi64(half[i + j], half[i + j + 2]);
            rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(half[i + j], half[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) { /* rows[4 a + i]: of rows 4 a to 4 a + 3, columns i, i + 4, i + 8, i + 12 */
        __m512i a = rows[i], b = rows[i + 4], c = rows[i + 8], d = rows[i + 12];
        half[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        half[i + 4] = _mm512_shuffle_i32x4(a, b, 0xdd);
        half[i + 8] = _mm512_shuffle_i32x4(c, d, 0x88);
        half[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
        rows[i + 4] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0x88);
        rows[i + 12] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0xdd);
    }
}

/* Where the tile of these 16 features and 32 inputs is. */
INLINE int64_t tile_at(int64_t feature, int64_t input, int64_t in_features)
{
    return feature / GROUP * GROUP * in_features + input / STEP * 2 * TILE +
           feature / 16 % 2 * TILE;
}

TARGET void rz_linear_tile_amx(uint16_t *tiles, const uint16_t *weight, int64_t out_features, int64_t in_features)
{
    __m512i rows[16];
    for (int64_t feature = 0; feature < groups_of(out_features) * GROUP; feature += 16)
        for (int64_t input = 0; input < in_features; input += STEP) {
            for (int i = 0; i < 16; i++)
                rows[i] = feature + i < out_features
                              ? _mm512_loadu_si512(weight + (feature + i) * in_features + input)
                              : _mm512_setzero_si512();
            transpose(rows);
            uint16_t *tile = tiles + tile_at(feature, input, in_features);
            for (int i = 0; i < 16; i++)
                _mm512_store_si512(tile + i * 32, rows[i]);
        }
}

TARGET void rz_linear_untile_amx(uint16_t *weight, const uint16_t *tiles, int64_t out_features, int64_t in_features)
{
    __m512i rows[16];
    for (int64_t feature = 0; feature < out_features; feature += 16)
        for (int64_t input = 0; input < in_features; input += STEP) {
            const uint16_t *tile = tiles + tile_at(feature, input, in_features);
            for (int i = 0; i < 16; i++)
                rows[i] = _mm512_load_si512(tile + i * 32);
            transpose(rows);
            for (int i = 0; i < 16 && feature + i < out_features; i++)
                _mm512_storeu_si512(weight + (feature + i) * in_features + input, rows[i]);
        }
}
#else
typedef int rz_no_amx_here; /* an empty file is not C */
#endif
