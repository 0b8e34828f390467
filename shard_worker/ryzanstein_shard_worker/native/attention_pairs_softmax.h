/* The online softmax of rows whose weights become bfloat16. Part of attention_pairs.h. */

/* How far, in base 2, scores may rise above the number that is subtracted from them before the sums are rescaled:
 * most rows do it once. Floats have room for weights of 2^8. */
#define HEADROOM 8

/* 2^y for y <= HEADROOM; 0 for -infinity, NaN for NaN. Relative error below 4e-6, a thousandth of what rounding
 * to bfloat16 adds: the minimax polynomial of degree 4 on [0, 1] whose value at 0 is exactly 1. */
INLINE __m512 exp2_of(__m512 y)
{
    __m512 rest = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 sum = _mm512_set1_ps(0x1.b7f730p-7f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0x1.abf868p-5f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0x1.ee2450p-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0x1.62d6c6p-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1));
    return _mm512_scalef_ps(sum, y);
}

/* Takes the largest score as the new number to subtract, and rescales what the row has summed up. */
TARGET static __attribute__((noinline)) void raise_maximum(struct tile *tile, int row, __m512 top)
{
    float before = tile->maximum[row], now = _mm512_reduce_max_ps(top) * tile->scale;
    tile->maximum[row] = now;
    tile->limit[row] = (now + HEADROOM) / tile->scale;
    if (before == -INFINITY)
        return; /* there is nothing yet */
    __m512 rescale = exp2_of(_mm512_set1_ps(before - now));
    float *output = tile->output + row * tile->head_dim;
    for (int i = 0; i < tile->head_dim; i += 16)
        _mm512_store_ps(output + i, _mm512_mul_ps(_mm512_load_ps(output + i), rescale));
    tile->denominator[row] = _mm512_mul_ps(tile->denominator[row], rescale);
}

/* One row's step of the online softmax: turns the chunk's scores into weights. `whole`: it sees all of them. */
INLINE void weigh_row(struct tile *tile, int row, const float *scores, struct range seen, int whole, uint16_t *weights)
{
    __m512 score[CHUNK_BLOCKS], scale = _mm512_set1_ps(tile->scale);
    uint64_t visible = (~(uint64_t)0 >> (CHUNK - seen.to)) & (~(uint64_t)0 << seen.from);
    for (int j = 0; j < CHUNK_BLOCKS; j++) {
        score[j] = _mm512_load_ps(scores + 16 * j);
        if (!whole)
            score[j] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), (__mmask16)(visible >> 16 * j), score[j]);
    }
    __m512 top = _mm512_max_ps(_mm512_max_ps(score[0], score[1]), _mm512_max_ps(score[2], score[3]));
    /* true also for NaN */
    if (__builtin_expect(_mm512_cmp_ps_mask(top, _mm512_set1_ps(tile->limit[row]), _CMP_NLE_UQ), 0))
        raise_maximum(tile, row, top);
    __m512 maximum = _mm512_set1_ps(tile->maximum[row]), sum = tile->denominator[row];
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int j = 0; j < CHUNK_BLOCKS; j += 2) {
        if (!whole && !(visible >> 16 * j & 0xffffffffu)) {
            _mm512_store_si512(weights + 16 * j, _mm512_setzero_si512());
            continue;
        }
        __m512 first = exp2_of(_mm512_fmsub_ps(score[j], scale, maximum));
        __m512 second = exp2_of(_mm512_fmsub_ps(score[j + 1], scale, maximum));
        __m512bh rounded = _mm512_cvtne2ps_pbh(second, first);
        _mm512_store_si512(weights + 16 * j, (__m512i)rounded);
        sum = _mm512_dpbf16_ps(sum, rounded, ones);
    }
    tile->denominator[row] = sum;
}

/* The softmax of a band's rows. */
TARGET static void weigh_band(struct tile *tile, int row, int count, int origin)
{
    int whole = tile->begin[row + count - 1] <= origin && tile->end[row] >= origin + CHUNK;
    for (int r = 0; r < count; r++) {
        const float *scores = tile->scores + r * CHUNK;
        uint16_t *weights = tile->weights + r * CHUNK;
        struct range seen = seen_by(tile, row + r, row + r, origin);
        if (whole)
            weigh_row(tile, row + r, scores, seen, 1, weights);
        else if (seen.from < seen.to)
            weigh_row(tile, row + r, scores, seen, 0, weights);
        else
            memset(weights, 0, CHUNK * sizeof *weights);
    }
}
