/* A tile of query rows in bfloat16: what it holds, how it starts and ends. Part of attention_pairs.h. */

enum {
    CHUNK = 64, /* tokens of a step of the online softmax */
    CHUNK_BLOCKS = CHUNK / RZ_BLOCK,
    BAND = 16, /* rows whose scores are computed together */
};

/* What a tile works on. It lies on the stack, of which only what head_dim needs is touched. */
struct tile {
    _Alignas(64) __m512 denominator[RZ_TILE_ROWS]; /* sums of weights, lane by lane */
    _Alignas(64) uint16_t query[RZ_TILE_ROWS * RZ_HEAD_DIM_MAX];
    _Alignas(64) float output[RZ_TILE_ROWS * RZ_HEAD_DIM_MAX];
    _Alignas(64) uint16_t values[CHUNK * RZ_HEAD_DIM_MAX]; /* copies of a chunk's pages */
    _Alignas(64) float scores[BAND * CHUNK];
    _Alignas(64) uint16_t weights[BAND * CHUNK]; /* of a band, like the scores */
    const char *keys[CHUNK_BLOCKS], *pages[CHUNK_BLOCKS]; /* of a chunk's keys and values */
    float maximum[RZ_TILE_ROWS];                          /* that is subtracted from scores, in base 2 */
    float limit[RZ_TILE_ROWS];                            /* of a score, above which the maximum is raised */
    int begin[RZ_TILE_ROWS], end[RZ_TILE_ROWS];           /* positions that a row sees; both never fall */
    int rows, head_dim;
    float scale; /* of the scores, to base 2 */
};

/* Part of a chunk. */
struct range {
    int from, to;
};

/* The part of the chunk at `origin` that rows [first, last] see together; empty: from >= to. */
INLINE struct range seen_by(const struct tile *tile, int first, int last, int origin)
{
    int from = tile->begin[first] - origin, to = tile->end[last] - origin;
    return (struct range){from > 0 ? from : 0, to < CHUNK ? to : CHUNK};
}

/* Copies the page's values [pair][head_dim][2]; tokens outside of [from, to) become 0. */
TARGET static void copy_values(uint16_t *to_, const char *page, int head_dim, int from, int to)
{
    for (int pair = 0; pair < RZ_BLOCK / 2; pair++) {
        int first = 2 * pair >= from && 2 * pair < to, second = 2 * pair + 1 >= from && 2 * pair + 1 < to;
        __m512i keep = _mm512_set1_epi32((int)((first ? 0xffffu : 0) | (second ? 0xffff0000u : 0)));
        for (int i = 0; i < head_dim; i += 16) {
            size_t at = ((size_t)pair * head_dim + i) * 2;
            _mm512_store_si512(to_ + at, _mm512_and_si512(keep, _mm512_loadu_si512(page + 2 * at)));
        }
    }
}

/* Reads the tile's queries and what each of its rows sees. */
TARGET static void start_tile(const struct rz_attention *call, struct tile *tile, int sequence, int kv_head,
                              int row_begin, int rows)
{
    int group = call->heads / call->kv_heads, head_dim = call->head_dim;
    int first_row = call->query_start[sequence];
    int first_position = call->context_len[sequence] - (call->query_start[sequence + 1] - first_row);
    tile->rows = rows;
    tile->head_dim = head_dim;
    tile->scale = call->scale * 0x1.715476p0f; /* log2(e) */
    int token = row_begin / group, head = row_begin % group;
    for (int r = 0; r < rows; r++) {
        int64_t at = (first_row + token) * call->q_stride + (int64_t)(kv_head * group + head) * head_dim;
        for (int i = 0; i < head_dim; i += 16) {
            const __m256i *from = (const __m256i *)((const uint16_t *)call->q + at + i);
            _mm256_store_si256((__m256i *)(tile->query + r * head_dim + i), _mm256_loadu_si256(from));
        }
        for (int i = 0; i < head_dim; i += 16)
            _mm512_store_ps(tile->output + r * head_dim + i, _mm512_setzero_ps());
        tile->denominator[r] = _mm512_setzero_ps();
        tile->maximum[r] = tile->limit[r] = -INFINITY;
        tile->end[r] = first_position + token + 1;
        tile->begin[r] = call->window && tile->end[r] > call->window ? tile->end[r] - call->window : 0;
        if (++head == group) {
            head = 0;
            token++;
        }
    }
}

/* Divides each row by its sum of weights and writes it out. → whether all sums were finite. */
TARGET static int write_rows(const struct rz_attention *call, const struct tile *tile, int sequence, int kv_head,
                             int row_begin)
{
    int group = call->heads / call->kv_heads, head_dim = tile->head_dim;
    int token = call->query_start[sequence] + row_begin / group, head = row_begin % group;
    __m512 zero = _mm512_setzero_ps(), nothing = zero; /* `nothing` stays 0 unless a sum is NaN or infinite */
    for (int r = 0; r < tile->rows; r++) {
        int64_t at = token * (int64_t)call->heads + kv_head * group + head;
        uint16_t *out = (uint16_t *)call->out + at * head_dim;
        const float *output = tile->output + r * head_dim;
        __m512 inverse = _mm512_set1_ps(1 / _mm512_reduce_add_ps(tile->denominator[r]));
        for (int i = 0; i < head_dim; i += 16) {
            __m512 sum = _mm512_load_ps(output + i);
            nothing = _mm512_fmadd_ps(sum, zero, nothing);
            sum = _mm512_fmadd_ps(sum, inverse, zero); /* -0 becomes +0 */
            _mm256_storeu_si256((__m256i *)(out + i), (__m256i)_mm512_cvtneps_pbh(sum));
        }
        if (++head == group) {
            head = 0;
            token++;
        }
    }
    return _mm512_cmp_ps_mask(nothing, zero, _CMP_EQ_OQ) == 0xffff;
}
