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
#include "attention_tile.h"

/* Up to this many rows, widening elements on the fly costs less than a pass through scratch memory. */
enum { DIRECT_ROWS = 12 };

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

/* Finds out which tokens of the chunk at `origin` each row sees. */
TARGET static void look(struct tile *tile, int rows, int origin)
{
    for (int r = 0; r < rows; r++) {
        int from = tile->begin[r] > origin ? tile->begin[r] - origin : 0;
        int to = tile->end[r] < origin + CHUNK ? tile->end[r] - origin : CHUNK;
        tile->from[r] = from < to ? from : 0;
        tile->to[r] = from < to ? to : 0;
    }
}

/* Scores of `count` rows with the chunk, at least those that are seen. */
TARGET static void score(int dtype, int head_dim, int width, struct tile *tile, int row, int count,
                         const char *const *keys)
{
    int from = CHUNK, to = 0;
    for (int r = row; r < row + count; r++) {
        from = tile->to[r] && tile->from[r] < from ? tile->from[r] : from;
        to = tile->to[r] > to ? tile->to[r] : to;
    }
    if (from < to)
        score_kernels[dtype][count - 1](tile->query + row * width, width, keys, from / LANES,
                                        (to + LANES - 1) / LANES, head_dim, tile->scores);
}

/* The softmax of those of `count` rows that see some of the chunk. */
TARGET static void weigh(struct tile *tile, int row, int count)
{
    float *scores = tile->scores;
    for (int r = row; r < row + count; r++, scores += CHUNK) {
        if (tile->to[r] == 0)
            continue;
        if (tile->to[r] - tile->from[r] < CHUNK)
            hide(scores, tile->from[r], tile->to[r]);
        tile->rescale[r] = softmax_row(scores, &tile->maximum[r], &tile->denominator[r]);
    }
}

/* Weighted values of the chunk into the outputs of `count` rows. */
TARGET static void add_values(int dtype, int width, struct tile *tile, int row, int count, const char *const *values)
{
    static const float ones[ROWS] = {1, 1, 1, 1, 1, 1};
    float *output = tile->output + row * width;
    const float *weights = tile->scores;
    const int *from = tile->from + row, *to = tile->to + row;
    int all_from = 0, all_to = CHUNK; /* what every row sees */
    for (int r = 0; r < count; r++) {
        all_from = from[r] > all_from ? from[r] : all_from;
        all_to = to[r] < all_to ? to[r] : all_to;
    }
    if (all_from == 0 && all_to == CHUNK) {
        value_kernels[dtype][count - 1](weights, values, 0, CHUNK, tile->rescale + row, output, width);
        return;
    }
    /* Each row's tokens stay in their order: its own first ones, those of all rows, its own last ones. */
    if (all_from >= all_to)
        all_from = all_to = CHUNK;
    for (int r = 0; r < count; r++) {
        if (to[r] == 0)
            continue;
        value_kernels[dtype][0](weights + r * CHUNK, values, from[r], to[r] < all_from ? to[r] : all_from,
                                tile->rescale + row + r, output + r * width, width);
    }
    value_kernels[dtype][count - 1](weights, values, all_from, all_to, ones, output, width);
    for (int r = 0; r < count; r++)
        value_kernels[dtype][0](weights + r * CHUNK, values, all_to, to[r], ones, output + r * width, width);
}

/* The pages of the chunk at `origin`. Past the last token that is seen its page stands in: read, then selected away. */
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

TARGET void ATTEND_TILE(const struct rz_attention *call, int sequence, int kv_head, int row_begin, int row_end)
{
    struct tile tile;
    int head_dim = call->head_dim, rows = row_end - row_begin;
    int groups = (rows + ROWS - 1) / ROWS;
    int width = (head_dim + LANES - 1) / LANES * LANES; /* of a row of floats in the tile */
    int direct = head_dim == width && (call->dtype == RZ_FLOAT32 || rows <= DIRECT_ROWS);
    int dtype = direct ? call->dtype : RZ_FLOAT32; /* that the inner kernels read */
    int page_bytes = head_dim * RZ_BLOCK * (int)rz_element_bytes(call->dtype);
    const int32_t *table = call->block_table + (int64_t)sequence * call->table_width;
    start_tile(call, &tile, sequence, kv_head, row_begin, rows, width);

    int seen = tile.end[rows - 1];
    int origin = tile.begin[0] / CHUNK * CHUNK;
    struct chunk next = find_chunk(call, table, kv_head, origin, seen);
    for (; origin < seen; origin += CHUNK) {
        struct chunk chunk = next;
        int ahead = direct && origin + CHUNK < seen; /* large tiles find their pages in the cache anyway */
        if (origin + CHUNK < seen)
            next = find_chunk(call, table, kv_head, origin + CHUNK, seen);
        if (!direct)
            widen_chunk(call->dtype, &chunk, seen - origin, head_dim, width, &tile);
        look(&tile, rows, origin);
        for (int g = 0; g < groups; g++) {
            int row = rows * g / groups, count = rows * (g + 1) / groups - row; /* sizes differ by 1 at most */
            if (ahead && g == 0)
                prefetch(next.keys, page_bytes);
            score(dtype, head_dim, width, &tile, row, count, chunk.keys);
            if (ahead && g == 0)
                prefetch(next.values, page_bytes);
            weigh(&tile, row, count);
            add_values(dtype, width, &tile, row, count, chunk.values);
        }
    }
    write_rows(call, &tile, sequence, kv_head, row_begin, rows, width);
}
