/* Attention in bfloat16 for CPUs with AVX512-BF16. Called only where the CPU says that it has it, for head_dim in
 * multiples of 16. */
#include "attention.h"
#if RZ_HAS_AVX512BF16
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define ATTEND_TILE rz_attend_avx512bf16

#include "attention_pairs.h"

enum {
    ROWS = 6,    /* rows of a micro-tile */
    VECTORS = 4, /* 6 rows x 4 vectors of sums, 4 of operands, 1 broadcast: 29 of 32 registers */
};

INLINE void start_products(int rows) { (void)rows; }
INLINE void end_products(void) {}

/* Adds one pair's products to the sums: a pair of each row, `stride` elements apart, times `count` vectors. */
INLINE void multiply_pair(int rows, int count, const uint16_t *pair, int stride, const __m512bh *with,
                          __m512 sum[ROWS][VECTORS])
{
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        int32_t both;
        memcpy(&both, pair + r * stride, 4);
        __m512bh first = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 8
        for (int j = 0; j < count; j++)
            sum[r][j] = _mm512_dpbf16_ps(sum[r][j], first, with[j]);
    }
}

/* Scores of `rows` rows with all of the chunk. */
INLINE void scores_of(int rows, const struct tile *tile, int row, float *scores)
{
    int head_dim = tile->head_dim;
    const uint16_t *query = tile->query + row * head_dim;
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++)
            sum[r][j] = _mm512_setzero_ps();
    for (int i = 0; i < head_dim; i += 2) {
        __m512bh key[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++)
            key[j] = (__m512bh)_mm512_loadu_si512(tile->keys[j] + i * 32);
        multiply_pair(rows, VECTORS, query + i, head_dim, key, sum);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++)
            _mm512_store_ps(scores + r * CHUNK + 16 * j, sum[r][j]);
}

/* Adds pages [first, last) of weighted values to `count` vectors of the outputs, from dimension `i` on. */
INLINE void values_pass(int rows, int count, struct tile *tile, int row, const uint16_t *weights, int i, int first,
                        int last)
{
    int head_dim = tile->head_dim;
    float *output = tile->output + row * head_dim + i;
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < count; j++)
            sum[r][j] = _mm512_load_ps(output + r * head_dim + 16 * j);
    for (int b = first; b < last; b++) {
        const char *page = tile->pages[b] + i * 4;
        for (int pair = 0; pair < RZ_BLOCK / 2; pair++) {
            __m512bh value[VECTORS];
#pragma GCC unroll 8
            for (int j = 0; j < count; j++)
                value[j] = (__m512bh)_mm512_loadu_si512(page + ((size_t)pair * head_dim + 16 * j) * 4);
            multiply_pair(rows, count, weights + b * RZ_BLOCK + 2 * pair, CHUNK, value, sum);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < count; j++)
            _mm512_store_ps(output + r * head_dim + 16 * j, sum[r][j]);
}

INLINE void values_of(int rows, struct tile *tile, int row, const uint16_t *weights, int first, int last)
{
    int i = 0;
    for (; i + 16 * VECTORS <= tile->head_dim; i += 16 * VECTORS)
        values_pass(rows, VECTORS, tile, row, weights, i, first, last);
    for (; i + 32 <= tile->head_dim; i += 32)
        values_pass(rows, 2, tile, row, weights, i, first, last);
    if (i < tile->head_dim)
        values_pass(rows, 1, tile, row, weights, i, first, last);
}

/* One copy for each number of rows. */
typedef void scores_function(const struct tile *tile, int row, float *scores);
typedef void values_function(struct tile *tile, int row, const uint16_t *weights, int first, int last);
#define COPY(rows)                                                                                                     \
    TARGET static void scores_##rows(const struct tile *tile, int row, float *scores)                                  \
    {                                                                                                                  \
        scores_of(rows, tile, row, scores);                                                                            \
    }                                                                                                                  \
    TARGET static void values_##rows(struct tile *tile, int row, const uint16_t *weights, int first, int last)         \
    {                                                                                                                  \
        values_of(rows, tile, row, weights, first, last);                                                              \
    }
COPY(1) COPY(2) COPY(3) COPY(4) COPY(5) COPY(6)
static scores_function *const score_kernels[ROWS] = {scores_1, scores_2, scores_3, scores_4, scores_5, scores_6};
static values_function *const value_kernels[ROWS] = {values_1, values_2, values_3, values_4, values_5, values_6};

TARGET static void take_values(struct tile *tile, struct range seen)
{
    for (int b = 0; b < CHUNK_BLOCKS; b++) {
        int from = seen.from - b * RZ_BLOCK, to = seen.to - b * RZ_BLOCK;
        if (to <= 0 || from >= RZ_BLOCK || (from <= 0 && to >= RZ_BLOCK))
            continue; /* not read, or as a whole: where it lies */
        uint16_t *copy = tile->values + b * RZ_BLOCK * tile->head_dim;
        copy_values(copy, tile->pages[b], tile->head_dim, from, to);
        tile->pages[b] = (const char *)copy;
    }
}

TARGET static void score_band(struct tile *tile, int row, int count, struct range seen)
{
    (void)seen;
    int parts = (count + ROWS - 1) / ROWS;
    for (int part = 0; part < parts; part++) {
        int at = count * part / parts, rows = count * (part + 1) / parts - at; /* sizes differ by 1 at most */
        score_kernels[rows - 1](tile, row + at, tile->scores + at * CHUNK);
    }
}

TARGET static void add_band(struct tile *tile, int row, int count, struct range seen)
{
    int first = seen.from / RZ_BLOCK, last = (seen.to + RZ_BLOCK - 1) / RZ_BLOCK;
    int parts = (count + ROWS - 1) / ROWS;
    for (int part = 0; part < parts; part++) {
        int at = count * part / parts, rows = count * (part + 1) / parts - at;
        value_kernels[rows - 1](tile, row + at, tile->weights + at * CHUNK, first, last);
    }
}
#else
typedef int rz_no_avx512bf16_here; /* an empty file is not C */
#endif
