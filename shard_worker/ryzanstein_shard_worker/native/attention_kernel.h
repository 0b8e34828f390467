/* The attention of one tile of query rows, compiled once for each ISA level.
 *
 * The including file defines TARGET, INLINE, LANES, VECTORS, ATTEND_TILE, the vector type `floats` and the operations
 * multiply_add, larger, largest_lane, zero_where_below, from_half, to_half.
 *
 * Exactness: the operations of a row, and their order, depend only on its position and on its own keys and values.
 *   - A score is one chain of multiply-adds over the dimensions, whatever tile it is computed in.
 *   - The softmax is online, over chunks of 64 tokens that start at multiples of 64 of the sequence. In every chunk
 *     that holds a visible key, and in no other, a row runs through softmax_row, of which there is one copy.
 *   - An output element is one chain over the visible tokens in their order, rescaled once per chunk. Keys that are
 *     not visible are selected away, values that are not visible are not touched: garbage there can't leak.
 * So a row's bits are the same alone and in any batch, in a step of any size, at any number of threads. They are the
 * same within one ISA level, not across levels: sums of weights run over another number of lanes, and without FMA
 * products are rounded. */
#include <math.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed between functions of one file only */

#include "attention_lanes.h"
#include "attention_products.h"

/* Up to this many rows, widening elements on the fly costs less than a pass through scratch memory. */
enum { DIRECT_ROWS = 12 };

/* The pages of a chunk. */
struct chunk {
    const char *keys[CHUNK_BLOCKS], *values[CHUNK_BLOCKS];
};

/* What a tile carries from chunk to chunk. */
struct tile {
    _Alignas(64) floats denominator[RZ_TILE_ROWS]; /* sums of weights, lane by lane */
    _Alignas(64) float query[RZ_TILE_ROWS * RZ_HEAD_DIM_MAX];
    _Alignas(64) float output[RZ_TILE_ROWS * RZ_HEAD_DIM_MAX];
    _Alignas(64) float keys[CHUNK * RZ_HEAD_DIM_MAX];
    _Alignas(64) float values[CHUNK * RZ_HEAD_DIM_MAX];
    float maximum[RZ_TILE_ROWS];
    int begin[RZ_TILE_ROWS], end[RZ_TILE_ROWS]; /* visible positions of each row */
};

/* One row's step of the online softmax: turns the chunk's scores (base 2, -infinity where not visible) into weights.
 * Returns the factor for what the row has summed up before. Not inlined: one copy, so one rounding. */
TARGET static __attribute__((noinline)) float softmax_row(float *scores, float *maximum, floats *denominator)
{
    floats top = load(scores);
    for (int j = 1; j < CHUNK_VECTORS; j++)
        top = larger(top, load(scores + j * LANES));
    float before = *maximum, now = largest_lane(top);
    now = before > now ? before : now;
    float rescale = 1;
    if (now != before) {
        rescale = exp2_of(splat(before - now))[0];
        *maximum = now;
    }
    floats sum = *denominator * rescale;
    for (int j = 0; j < CHUNK_VECTORS; j++) {
        floats weight = exp2_of(load(scores + j * LANES) - now);
        store(scores + j * LANES, weight);
        sum = sum + weight;
    }
    *denominator = sum;
    return rescale;
}

/* Minus infinity for the scores outside of [begin, end). */
TARGET static void hide(float *scores, int begin, int end)
{
    signed_words index;
    for (int lane = 0; lane < LANES; lane++)
        index[lane] = lane;
    for (int j = 0; j < CHUNK_VECTORS; j++, index += LANES) {
        words visible = (words)(index >= begin) & (words)(index < end);
        words lanes = (words)load(scores + j * LANES);
        store(scores + j * LANES, (floats)((visible & lanes) | (~visible & 0xff800000u)));
    }
}

/* A chunk of which not every row sees every token. `begin` and `end` are each row's visible tokens of the chunk. */
TARGET static void attend_ragged(int dtype, int rows, const int *begin, const int *end, float *scores,
                                 const char *const *values, struct tile *tile, int row, int width)
{
    static const float ones[ROWS] = {1, 1, 1, 1, 1, 1};
    float *output = tile->output + row * width;
    int shared_begin = 0, shared_end = CHUNK; /* what every row sees */
    for (int r = 0; r < rows; r++) {
        shared_begin = begin[r] > shared_begin ? begin[r] : shared_begin;
        shared_end = end[r] < shared_end ? end[r] : shared_end;
        if (begin[r] >= end[r])
            continue;
        hide(scores + r * CHUNK, begin[r], end[r]);
        float rescale = softmax_row(scores + r * CHUNK, &tile->maximum[row + r], &tile->denominator[row + r]);
        for (int i = 0; i < width; i += LANES)
            store(output + r * width + i, load(output + r * width + i) * rescale);
    }
    /* Each row's tokens stay in their order: its own first ones, the shared ones, its own last ones. */
    if (shared_begin >= shared_end)
        shared_begin = shared_end = CHUNK;
    for (int r = 0; r < rows; r++) {
        int stop = end[r] < shared_begin ? end[r] : shared_begin;
        value_kernels[dtype][0](scores + r * CHUNK, values, begin[r], stop, ones, output + r * width, width);
    }
    value_kernels[dtype][rows - 1](scores, values, shared_begin, shared_end, ones, output, width);
    for (int r = 0; r < rows; r++)
        value_kernels[dtype][0](scores + r * CHUNK, values, shared_end, end[r], ones, output + r * width, width);
}

/* Widens `count` elements, which may end anywhere, and fills up with zeros to a multiple of LANES. */
TARGET static void widen_row(int dtype, const char *from, int count, float *to)
{
    _Alignas(64) char padded[4 * LANES] = {0};
    size_t element = rz_element_bytes(dtype);
    int i = 0;
    for (; i + LANES <= count; i += LANES)
        store(to + i, widen(dtype, from + i * element));
    if (i < count) {
        memcpy(padded, from + i * element, (size_t)(count - i) * element);
        store(to + i, widen(dtype, padded));
    }
}

/* Copies the pages of the chunk's first `tokens` tokens to the tile as floats, keys [dim][RZ_BLOCK] and values
 * [RZ_BLOCK][width], and puts the copies in their place. */
TARGET static void widen_chunk(int dtype, struct chunk *chunk, int tokens, int head_dim, int width, struct tile *tile)
{
    for (int b = 0; b < CHUNK_BLOCKS; b++) {
        const char *keys = chunk->keys[b], *values = chunk->values[b];
        chunk->keys[b] = (const char *)(tile->keys + b * RZ_BLOCK * head_dim);
        chunk->values[b] = (const char *)(tile->values + b * RZ_BLOCK * width);
        if (b * RZ_BLOCK >= tokens)
            continue; /* nothing of it is visible */
        float *to = tile->keys + b * RZ_BLOCK * head_dim;
        for (int i = 0; i < head_dim; i++)
            for (int column = 0; column < RZ_BLOCK; column += LANES)
                store(to + i * RZ_BLOCK + column, page_lanes(dtype, keys, i, RZ_BLOCK, column));
        for (int t = 0; t < RZ_BLOCK; t++) {
            to = tile->values + (b * RZ_BLOCK + t) * width;
            int i = 0;
            for (; i + LANES <= head_dim; i += LANES)
                store(to + i, page_lanes(dtype, values, t, head_dim, i));
            if (i == head_dim)
                continue;
            /* The last lanes would reach over the page's end: head_dim % LANES of them by way of a copy. */
            _Alignas(64) char last[8 * LANES] = {0};
            int paired = dtype == RZ_BFLOAT16;
            size_t element = paired ? 4 : rz_element_bytes(dtype);
            memcpy(last, values + ((size_t)(paired ? t / 2 : t) * head_dim + i) * element, (head_dim - i) * element);
            store(to + i, page_lanes(dtype, last, paired ? t % 2 : 0, 0, 0));
        }
    }
}

/* Divides each row by its sum of weights and writes it out in the tensors' type. */
TARGET static void write_rows(const struct rz_attention *call, struct tile *tile, int sequence, int kv_head,
                              int row_begin, int rows, int width)
{
    int group = call->heads / call->kv_heads, head_dim = call->head_dim;
    size_t element = rz_element_bytes(call->dtype);
    for (int r = 0; r < rows; r++) {
        int row = row_begin + r;
        float total[LANES];
        store(total, tile->denominator[r]);
        for (int step = LANES / 2; step > 0; step /= 2)
            for (int lane = 0; lane < step; lane++)
                total[lane] += total[lane + step];
        int64_t at = (call->query_start[sequence] + row / group) * (int64_t)call->heads + kv_head * group + row % group;
        char *out = (char *)call->out + (size_t)at * head_dim * element;
        floats inverse = splat(1 / total[0]);
        const float *output = tile->output + r * width;
        int i = 0;
        for (; i + LANES <= head_dim; i += LANES)
            narrow(call->dtype, out + i * element, load(output + i) * inverse);
        if (i < head_dim) {
            char last[4 * LANES];
            narrow(call->dtype, last, load(output + i) * inverse);
            memcpy(out + i * element, last, (head_dim - i) * element);
        }
    }
}

/* Reads the tile's queries and what each of its rows sees. Scores come out in base 2: the factor goes to the query. */
TARGET static void start_tile(const struct rz_attention *call, struct tile *tile, int sequence, int kv_head,
                              int row_begin, int rows, int width)
{
    int group = call->heads / call->kv_heads;
    int first_row = call->query_start[sequence];
    int first_position = call->context_len[sequence] - (call->query_start[sequence + 1] - first_row);
    float scale = call->scale * 0x1.715476p0f; /* log2(e) */
    for (int r = 0; r < rows; r++) {
        int token = (row_begin + r) / group, head = kv_head * group + (row_begin + r) % group;
        int64_t at = (first_row + token) * call->q_stride + (int64_t)head * call->head_dim;
        float *query = tile->query + r * width, *output = tile->output + r * width;
        widen_row(call->dtype, (const char *)call->q + at * rz_element_bytes(call->dtype), call->head_dim, query);
        for (int i = 0; i < width; i += LANES) {
            store(query + i, load(query + i) * scale);
            store(output + i, (floats){0});
        }
        tile->denominator[r] = (floats){0};
        tile->maximum[r] = -INFINITY;
        tile->end[r] = first_position + token + 1;
        tile->begin[r] = call->window && tile->end[r] > call->window ? tile->end[r] - call->window : 0;
    }
}

/* The pages of the chunk at `origin`. Those past the last visible token stand for its page: read, then selected away. */
TARGET static struct chunk find_chunk(const struct rz_attention *call, const int32_t *table, int kv_head, int origin,
                                      int seen)
{
    struct chunk chunk;
    for (int b = 0; b < CHUNK_BLOCKS; b++) {
        int index = origin / RZ_BLOCK + b;
        index = index * RZ_BLOCK < seen ? index : (seen - 1) / RZ_BLOCK;
        chunk.keys[b] = rz_page(call, 0, table[index], kv_head);
        chunk.values[b] = rz_page(call, 1, table[index], kv_head);
    }
    return chunk;
}

/* Pages are too short for the hardware to see the stream: asked for one chunk ahead, decoding reads cold pages a
 * third faster. */
INLINE void prefetch(const char *const *pages, int bytes)
{
    for (int offset = 0; offset < bytes; offset += 64)
        for (int b = 0; b < CHUNK_BLOCKS; b++)
            __builtin_prefetch(pages[b] + offset, 0, 2);
}

/* `count` rows of the tile, ROWS at most, with the chunk at `origin`; `next` is the chunk to fetch meanwhile. */
TARGET static void attend_rows(int dtype, int head_dim, int width, struct tile *tile, int row, int count, int origin,
                               const struct chunk *chunk, const struct chunk *next)
{
    _Alignas(64) float scores[ROWS * CHUNK];
    float rescale[ROWS];
    int begin[ROWS], end[ROWS], ragged = 0, first = CHUNK, last = 0;
    int page_bytes = head_dim * RZ_BLOCK * (int)rz_element_bytes(dtype);
    for (int r = 0; r < count; r++) {
        begin[r] = tile->begin[row + r] > origin ? tile->begin[row + r] - origin : 0;
        end[r] = tile->end[row + r] < origin + CHUNK ? tile->end[row + r] - origin : CHUNK;
        ragged |= begin[r] > 0 || end[r] < CHUNK;
        if (begin[r] >= end[r]) {
            begin[r] = end[r] = 0;
        } else {
            first = begin[r] < first ? begin[r] : first;
            last = end[r] > last ? end[r] : last;
        }
    }
    if (first >= last)
        return;
    if (next)
        prefetch(next->keys, page_bytes);
    score_kernels[dtype][count - 1](tile->query + row * width, width, chunk->keys, first / LANES,
                                    (last + LANES - 1) / LANES, head_dim, scores);
    if (next)
        prefetch(next->values, page_bytes);
    if (ragged) {
        attend_ragged(dtype, count, begin, end, scores, chunk->values, tile, row, width);
        return;
    }
    for (int r = 0; r < count; r++)
        rescale[r] = softmax_row(scores + r * CHUNK, &tile->maximum[row + r], &tile->denominator[row + r]);
    value_kernels[dtype][count - 1](scores, chunk->values, 0, CHUNK, rescale, tile->output + row * width, width);
}

TARGET void ATTEND_TILE(const struct rz_attention *call, int sequence, int kv_head, int row_begin, int row_end)
{
    struct tile tile;
    int head_dim = call->head_dim, rows = row_end - row_begin;
    int groups = (rows + ROWS - 1) / ROWS;
    int width = (head_dim + LANES - 1) / LANES * LANES; /* of a row of floats in the tile */
    int direct = head_dim == width && (call->dtype == RZ_FLOAT32 || rows <= DIRECT_ROWS);
    int dtype = direct ? call->dtype : RZ_FLOAT32; /* that the inner kernels read */
    const int32_t *table = call->block_table + (int64_t)sequence * call->table_width;
    start_tile(call, &tile, sequence, kv_head, row_begin, rows, width);

    int seen = tile.end[rows - 1];
    int origin = tile.begin[0] / CHUNK * CHUNK;
    struct chunk next = find_chunk(call, table, kv_head, origin, seen);
    for (; origin < seen; origin += CHUNK) {
        struct chunk chunk = next;
        int more = origin + CHUNK < seen;
        if (more)
            next = find_chunk(call, table, kv_head, origin + CHUNK, seen);
        if (!direct)
            widen_chunk(call->dtype, &chunk, seen - origin, head_dim, width, &tile);
        for (int g = 0; g < groups; g++) {
            int row = rows * g / groups, count = rows * (g + 1) / groups - row; /* sizes differ by 1 at most */
            attend_rows(dtype, head_dim, width, &tile, row, count, origin, &chunk, more && direct && g == 0 ? &next : 0);
        }
    }
    write_rows(call, &tile, sequence, kv_head, row_begin, rows, width);
}
