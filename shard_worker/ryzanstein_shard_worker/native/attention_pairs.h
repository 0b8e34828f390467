/* The attention of one tile of query rows in bfloat16, by instructions that multiply pairs of bfloat16 and sum up in
 * float. Compiled once for each of them.
 *
 * The including file defines TARGET, INLINE, ATTEND_TILE and the functions declared below. head_dim is a multiple of
 * 16. Queries, keys and values enter the products as they are, the scale goes to the scores. A weight is rounded to
 * bfloat16, and the sum of weights that a row is divided by is that of the rounded ones: a value that all tokens
 * share comes out unchanged, and of the others an error only touches how far they lie from the mean.
 *
 * Exactness: the operations of a row, and their order, depend only on its position and on its own keys and values.
 *   - A score is one chain of products over the pairs of dimensions, an output element one over the pairs of tokens,
 *     whatever rows are computed beside it.
 *   - The softmax is online, over chunks of 64 tokens that start at multiples of 64 of the sequence. A row runs
 *     through weigh_row in every chunk that holds a visible key, and in no other.
 *   - Tokens that some rows of a tile see and others don't have weight 0 in these. That changes nothing but perhaps
 *     the sign of a zero, which the end makes +, as long as the values are finite. If an output is not, the tokens of
 *     the tile are computed again one by one.
 *   - Values that no row of the tile sees are taken as 0. So garbage there can't leak.
 * These instructions take numbers below 2^-126 as 0. */
#include <math.h>
#include <string.h>

#include "attention_pairs_tile.h"

#include "attention_pairs_softmax.h"

INLINE void start_products(int rows);
INLINE void end_products(void);

/* Takes in the chunk's values, of which those outside of the range are 0, for add_band. */
TARGET static void take_values(struct tile *tile, struct range seen);

/* Scores of a band's rows with at least the tokens of the range. */
TARGET static void score_band(struct tile *tile, int row, int count, struct range seen);

/* Adds the values of at least the tokens of the range, times the weights, to a band's outputs. */
TARGET static void add_band(struct tile *tile, int row, int count, struct range seen);

/* The pages of the chunk at `origin`. Past the last token that is seen its page stands in. */
TARGET static void find_pages(const struct rz_attention *call, const int32_t *table, int kv_head, int origin, int seen,
                              const char **keys, const char **values)
{
    for (int b = 0; b < CHUNK_BLOCKS; b++) {
        int index = origin / RZ_BLOCK + b;
        index = index * RZ_BLOCK < seen ? index : (seen - 1) / RZ_BLOCK;
        keys[b] = rz_page(call, 0, table[index], kv_head);
        values[b] = rz_page(call, 1, table[index], kv_head);
    }
}

/* Pages are too short for the hardware to see the stream: they are asked for one chunk ahead. */
INLINE void prefetch(const char *const *pages, int bytes)
{
    for (int offset = 0; offset < bytes; offset += 64)
        for (int b = 0; b < CHUNK_BLOCKS; b++)
            __builtin_prefetch(pages[b] + offset, 0, 2);
}

/* The attention of a tile's rows. → whether all sums were finite. */
TARGET static int attend(const struct rz_attention *call, int sequence, int kv_head, int row_begin, int rows)
{
    struct tile tile;
    const int32_t *table = call->block_table + (int64_t)sequence * call->table_width;
    int page_bytes = call->head_dim * RZ_BLOCK * 2;
    const char *next_keys[CHUNK_BLOCKS], *next_pages[CHUNK_BLOCKS];
    start_tile(call, &tile, sequence, kv_head, row_begin, rows);
    start_products(rows);
    int seen = tile.end[rows - 1], origin = tile.begin[0] / CHUNK * CHUNK;
    find_pages(call, table, kv_head, origin, seen, next_keys, next_pages);
    for (; origin < seen; origin += CHUNK) {
        memcpy(tile.keys, next_keys, sizeof next_keys);
        memcpy(tile.pages, next_pages, sizeof next_pages);
        int ahead = rows <= BAND && origin + CHUNK < seen; /* large tiles find their pages in the cache anyway */
        if (origin + CHUNK < seen)
            find_pages(call, table, kv_head, origin + CHUNK, seen, next_keys, next_pages);
        if (ahead)
            prefetch(next_keys, page_bytes);
        take_values(&tile, seen_by(&tile, 0, rows - 1, origin));
        if (ahead)
            prefetch(next_pages, page_bytes);
        for (int row = 0; row < rows; row += BAND) {
            int count = rows - row < BAND ? rows - row : BAND;
            struct range seen_here = seen_by(&tile, row, row + count - 1, origin);
            if (seen_here.from >= seen_here.to)
                continue;
            score_band(&tile, row, count, seen_here);
            weigh_band(&tile, row, count, origin);
            add_band(&tile, row, count, seen_here);
        }
    }
    end_products();
    return write_rows(call, &tile, sequence, kv_head, row_begin);
}

TARGET void ATTEND_TILE(const struct rz_attention *call, int sequence, int kv_head, int row_begin, int row_end)
{
    int group = call->heads / call->kv_heads;
    if (attend(call, sequence, kv_head, row_begin, row_end - row_begin))
        return;
    /* A row may have taken in a weight of 0 times a value that is no number. The rows of a token see the same. */
    while (row_begin < row_end) {
        int token_end = (row_begin / group + 1) * group;
        token_end = token_end < row_end ? token_end : row_end;
        attend(call, sequence, kv_head, row_begin, token_end - row_begin);
        row_begin = token_end;
    }
}
