/* The two products of attention, scores = query x keys and output += weights x values, as micro-tiles of ROWS rows by
 * VECTORS vectors. Part of attention_kernel.h. Every element is one chain of fused multiply-adds in the order of
 * dimensions or tokens, so that it doesn't depend on the micro-tile that computes it. */

enum {
    ROWS = 6,   /* rows of a micro-tile */
    CHUNK = 64, /* tokens of a step of the online softmax */
    CHUNK_BLOCKS = CHUNK / RZ_BLOCK,
    CHUNK_VECTORS = CHUNK / LANES,
};

/* Scores of `rows` rows with the tokens of `count` vectors, the first of which is vector `first` of the chunk. */
INLINE void scores_pass(int dtype, int rows, int count, const float *query, int padded, const char *const *pages,
                        int first, int head_dim, float *scores)
{
    floats sum[ROWS][VECTORS];
    const char *page[VECTORS];
    int column[VECTORS];
#pragma GCC unroll 8
    for (int j = 0; j < count; j++) {
        page[j] = pages[(first + j) * LANES / RZ_BLOCK];
        column[j] = (first + j) * LANES % RZ_BLOCK;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            sum[r][j] = (floats){0};
    }
    for (int pair = 0; 2 * pair < head_dim; pair++) { /* of dimensions: bfloat16 holds them in one load */
#pragma GCC unroll 2
        for (int second = 0; second < 2; second++) {
            floats key[VECTORS];
#pragma GCC unroll 8
            for (int j = 0; j < count; j++)
                key[j] = page_lanes(dtype, page[j], pair, second, RZ_BLOCK, column[j]);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                floats element = splat(query[r * padded + 2 * pair + second]);
#pragma GCC unroll 8
                for (int j = 0; j < count; j++)
                    sum[r][j] = multiply_add(element, key[j], sum[r][j]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < count; j++)
            store(scores + r * CHUNK + (first + j) * LANES, sum[r][j]);
}

/* Scores with at least the vectors [first, last) of the chunk; `pages` are those of the whole chunk. */
INLINE void scores_of(int dtype, int rows, const float *query, int padded, const char *const *pages, int first,
                      int last, int head_dim, float *scores)
{
    first -= first % VECTORS;
    for (; first < last; first += VECTORS)
        scores_pass(dtype, rows, VECTORS, query, padded, pages, first, head_dim, scores);
}

/* Adds the values of one token, the first or second of its pair, to `count` vectors of each row's sums. */
INLINE void add_token(int dtype, int rows, int count, const float *weights, int token, int second, const char *page,
                      int width, int column, floats sum[ROWS][VECTORS])
{
    floats value[VECTORS];
#pragma GCC unroll 8
    for (int j = 0; j < count; j++)
        value[j] = page_lanes(dtype, page, token % RZ_BLOCK / 2, second, width, column + j * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        floats weight = splat(weights[r * CHUNK + token]);
#pragma GCC unroll 8
        for (int j = 0; j < count; j++)
            sum[r][j] = multiply_add(weight, value[j], sum[r][j]);
    }
}

/* Rescales `count` vectors of each row's output and adds the weighted values of tokens [token, end) of the chunk. */
INLINE void values_pass(int dtype, int rows, int count, const float *weights, const char *const *pages, int token,
                        int end, const float *rescale, float *output, int width, int column)
{
    floats sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < count; j++)
            sum[r][j] = load(output + r * width + column + j * LANES) * rescale[r];
    while (token < end) {
        const char *page = pages[token / RZ_BLOCK];
        int stop = (token / RZ_BLOCK + 1) * RZ_BLOCK;
        stop = stop < end ? stop : end;
        if (token & 1) {
            add_token(dtype, rows, count, weights, token, 1, page, width, column, sum);
            token++;
        }
        for (; token + 2 <= stop; token += 2) { /* bfloat16 holds both in one load */
            add_token(dtype, rows, count, weights, token, 0, page, width, column, sum);
            add_token(dtype, rows, count, weights, token + 1, 1, page, width, column, sum);
        }
        if (token < stop) {
            add_token(dtype, rows, count, weights, token, 0, page, width, column, sum);
            token++;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < count; j++)
            store(output + r * width + column + j * LANES, sum[r][j]);
}

/* Weighted values of tokens [begin, end) of the chunk into the output, all `width` dimensions of it. */
INLINE void values_of(int dtype, int rows, const float *weights, const char *const *pages, int begin, int end,
                      const float *rescale, float *output, int width)
{
    int column = 0;
    for (; column + VECTORS * LANES <= width; column += VECTORS * LANES)
        values_pass(dtype, rows, VECTORS, weights, pages, begin, end, rescale, output, width, column);
    for (; column < width; column += LANES)
        values_pass(dtype, rows, 1, weights, pages, begin, end, rescale, output, width, column);
}

/* One copy for each dtype and number of rows; a tile's remainder runs through the same operations. */
typedef void scores_function(const float *query, int padded, const char *const *pages, int first, int last,
                             int head_dim, float *scores);
typedef void values_function(const float *weights, const char *const *pages, int begin, int end, const float *rescale,
                             float *output, int width);
#define COPY(dtype, rows)                                                                                              \
    TARGET static void scores_##dtype##_##rows(const float *query, int padded, const char *const *pages, int first,    \
                                               int last, int head_dim, float *scores)                                  \
    {                                                                                                                  \
        scores_of(dtype, rows, query, padded, pages, first, last, head_dim, scores);                                   \
    }                                                                                                                  \
    TARGET static void values_##dtype##_##rows(const float *weights, const char *const *pages, int begin, int end,     \
                                               const float *rescale, float *output, int width)                         \
    {                                                                                                                  \
        values_of(dtype, rows, weights, pages, begin, end, rescale, output, width);                                    \
    }
#define COPIES(dtype) COPY(dtype, 1) COPY(dtype, 2) COPY(dtype, 3) COPY(dtype, 4) COPY(dtype, 5) COPY(dtype, 6)
COPIES(RZ_FLOAT32)
COPIES(RZ_BFLOAT16)
COPIES(RZ_FLOAT16)
#define NAMES(kind, dtype)                                                                                             \
    [dtype] = {kind##_##dtype##_1, kind##_##dtype##_2, kind##_##dtype##_3,                                             \
               kind##_##dtype##_4, kind##_##dtype##_5, kind##_##dtype##_6}
static scores_function *const score_kernels[3][ROWS] = {
    NAMES(scores, RZ_FLOAT32), NAMES(scores, RZ_BFLOAT16), NAMES(scores, RZ_FLOAT16)};
static values_function *const value_kernels[3][ROWS] = {
    NAMES(values, RZ_FLOAT32), NAMES(values, RZ_BFLOAT16), NAMES(values, RZ_FLOAT16)};
