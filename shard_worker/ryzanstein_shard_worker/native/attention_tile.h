/* A tile of query rows: what it holds, how it starts, takes in pages, and ends. Part of attention_kernel.h. */

/* The pages of a chunk. */
struct chunk {
    const char *keys[CHUNK_BLOCKS], *values[CHUNK_BLOCKS];
};

/* What a tile works on. It lies on the stack, of which only what head_dim needs is touched. */
struct tile {
    _Alignas(64) floats denominator[RZ_TILE_ROWS]; /* sums of weights, lane by lane */
    _Alignas(64) float query[RZ_TILE_ROWS * RZ_HEAD_DIM_MAX];
    _Alignas(64) float output[RZ_TILE_ROWS * RZ_HEAD_DIM_MAX];
    _Alignas(64) float keys[CHUNK * RZ_HEAD_DIM_MAX];
    _Alignas(64) float values[CHUNK * RZ_HEAD_DIM_MAX];
    _Alignas(64) float scores[ROWS * CHUNK]; /* of a micro-tile's rows with the chunk, then their weights */
    float maximum[RZ_TILE_ROWS], rescale[RZ_TILE_ROWS];
    int begin[RZ_TILE_ROWS], end[RZ_TILE_ROWS]; /* positions that a row sees */
    int from[RZ_TILE_ROWS], to[RZ_TILE_ROWS];   /* tokens of the chunk that a row sees; both 0: none */
};

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
                store(to + i * RZ_BLOCK + column, page_lanes(dtype, keys, i / 2, i % 2, RZ_BLOCK, column));
        for (int t = 0; t < RZ_BLOCK; t++) {
            to = tile->values + (b * RZ_BLOCK + t) * width;
            int i = 0;
            for (; i + LANES <= head_dim; i += LANES)
                store(to + i, page_lanes(dtype, values, t / 2, t % 2, head_dim, i));
            if (i == head_dim)
                continue;
            /* The last lanes would reach over the page's end: head_dim % LANES of them by way of a copy. */
            _Alignas(64) char last[8 * LANES] = {0};
            int paired = dtype == RZ_BFLOAT16;
            size_t element = paired ? 4 : rz_element_bytes(dtype);
            memcpy(last, values + ((size_t)(paired ? t / 2 : t) * head_dim + i) * element, (head_dim - i) * element);
            store(to + i, page_lanes(dtype, last, 0, paired ? t % 2 : 0, 0, 0));
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
