/* The product of rows with a weight on AMX tiles, compiled once for each kind of element.
 *
 * The including file defines TARGET, INLINE, CALL (a struct as in linear.h), ELEMENT, SUM (of 4 bytes), STEP (elements of
 * 64 bytes: the inputs of one product of tiles), PRODUCT (the instruction), INPUTS_AT_ONCE, MULTIPLY and SCRATCH_BYTES
 * (names), and finish_rows(call, sums [rows][32], first, rows, group): these rows' sums of a group of features to their
 * output.
 *
 * Up to 16 rows cost as much as reading the weight: one pass over it in the order of its tiles, and what is read next
 * is asked for in time (measured on Sapphire Rapids, bfloat16, 4 KiB pages: 12 GB/s where oneDNN reads 11; 2 MiB pages:
 * 16). More rows are taken in chunks whose copy stays in the second cache. Rows that are too long for that are multiplied
 * part by part; so that their sums need no more than 5 MiB meanwhile, a block of features is finished before the next. */
#include <string.h>

/* Tiles 0 to 3 are sums [16 rows][16]: 0 and 1 of the first 16 rows, 2 and 3 of the second; 4 and 5 are rows of x
 * [16][64 bytes], 6 and 7 of the weight [16][16][4 bytes]. Written out, because the intrinsics of some compilers don't say
 * that they read and write memory. */
#define LOAD(tile, at, stride)                                                                                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, at, stride)                                                                                        \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define ADD_PRODUCT(sums, first, second)                                                                               \
    __asm__ volatile(PRODUCT " %%tmm" #second ", %%tmm" #first ", %%tmm" #sums : :)

enum {
    BAND = 16,                    /* rows of a tile */
    TILE = BAND * STEP,           /* elements of a tile of x or of the weight */
    GROUP = 32,                   /* features of two tiles */
    SUMS = 2 * BAND * GROUP,      /* of two bands and a group */
    CHUNK_BYTES = 640 * 1024,     /* of x: leaves room in the second cache for two groups of the weight */
    MOST_ROWS = 512,
    BLOCK_GROUPS = 8192 / GROUP,  /* whose sums are kept from part to part: each block copies the rows again */
    FEW_PAIRS = 3,
    AHEAD_BYTES = 2048,           /* of the weight, while there are few bands: found by trying */
};

INLINE void configure(int rows)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.row_bytes[tile] = 64;
        shapes.rows[tile] = (uint8_t)(tile < 6 ? rows : BAND);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}

/* Rows [rows][from, from + inputs) of x → tiles [bands][inputs / STEP][16][STEP]. What is missing of the last band stays as
 * it is: it gives rows that nobody reads. */
INLINE void take_rows(ELEMENT *to, const CALL *call, int64_t first, int64_t rows, int64_t from, int64_t inputs)
{
    for (int64_t row = 0; row < rows; row++) {
        const ELEMENT *x = call->x + (first + row) * call->x_stride + from;
        ELEMENT *tile = to + row / BAND * BAND * inputs + row % BAND * STEP;
        for (int64_t i = 0; i < inputs; i += STEP)
            _mm512_store_si512(tile + i * BAND, _mm512_loadu_si512(x + i));
    }
}

/* sums [2][16][32] += one band of x times a group of the weight. */
INLINE void multiply_band(SUM *sums, const ELEMENT *x, const ELEMENT *tiles, int64_t inputs, int begins)
{
    if (begins) {
        ZERO(0);
        ZERO(1);
    } else {
        LOAD(0, sums, 128);
        LOAD(1, sums + 16, 128);
    }
    for (int64_t i = 0; i < inputs; i += STEP, x += TILE, tiles += 2 * TILE) {
        const char *ahead = (const char *)tiles + AHEAD_BYTES;
        for (int line = 0; line < 32; line++)
            _mm_prefetch(ahead + line * 64, _MM_HINT_T0);
        LOAD(4, x, 64);
        LOAD(6, tiles, 64);
        ADD_PRODUCT(0, 4, 6);
        LOAD(7, tiles + TILE, 64);
        ADD_PRODUCT(1, 4, 7);
    }
    STORE(0, sums, 128);
    STORE(1, sums + 16, 128);
}

/* The same of two bands; meanwhile `lines` lines of `next` per product come into the second cache, or, with `stream`, all
 * lines into the first. */
INLINE void multiply_bands(SUM *sums, const ELEMENT *x, const ELEMENT *tiles, int64_t inputs, int begins,
                           const char *next, int64_t lines, int stream)
{
    SUM *second = sums + BAND * GROUP;
    if (begins) {
        ZERO(0);
        ZERO(1);
        ZERO(2);
        ZERO(3);
    } else {
        LOAD(0, sums, 128);
        LOAD(1, sums + 16, 128);
        LOAD(2, second, 128);
        LOAD(3, second + 16, 128);
    }
    for (int64_t i = 0; i < inputs; i += STEP, x += TILE, tiles += 2 * TILE) {
        LOAD(4, x, 64);
        LOAD(6, tiles, 64);
        ADD_PRODUCT(0, 4, 6);
        LOAD(5, x + BAND * inputs, 64);
        ADD_PRODUCT(2, 5, 6);
        for (int64_t line = 0; line < lines; line++, next += 64)
            _mm_prefetch(next, _MM_HINT_T1);
        if (stream)
            for (int line = 0; line < 32; line++, next += 64)
                _mm_prefetch(next, _MM_HINT_T0);
        LOAD(7, tiles + TILE, 64);
        ADD_PRODUCT(1, 4, 7);
        ADD_PRODUCT(3, 5, 7);
    }
    STORE(0, sums, 128);
    STORE(1, sums + 16, 128);
    STORE(2, second, 128);
    STORE(3, second + 16, 128);
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t groups_of(int64_t features) { return (features + GROUP - 1) / GROUP; }

/* How a call is cut: rows of a chunk, inputs of a part, groups of a block. */
struct cut {
    int64_t rows, inputs, groups;
};

static struct cut cut_of(const CALL *call)
{
    int64_t inputs = call->in_features, groups = groups_of(call->out_features);
    if (call->rows <= BAND)
        return (struct cut){BAND, inputs, groups};
    if (inputs > INPUTS_AT_ONCE) {
        inputs = INPUTS_AT_ONCE;
        groups = smaller(groups, BLOCK_GROUPS);
    }
    int64_t fit = CHUNK_BYTES / (int64_t)(sizeof(ELEMENT) * inputs) / (2 * BAND) * (2 * BAND);
    int64_t all = (call->rows + 2 * BAND - 1) / (2 * BAND) * (2 * BAND);
    return (struct cut){smaller(smaller(fit, MOST_ROWS), all), inputs, groups};
}

size_t SCRATCH_BYTES(const CALL *call)
{
    struct cut cut = cut_of(call);
    int64_t kept = cut.inputs < call->in_features ? cut.rows * cut.groups * GROUP : SUMS;
    return (size_t)(cut.rows * cut.inputs) * sizeof(ELEMENT) + (size_t)kept * sizeof(SUM);
}

/* One chunk of rows, over a part of the inputs, for the groups [begin, end). `kept` are sums of all of these groups if there
 * are several parts, else of one. */
INLINE void multiply_chunk(const CALL *call, const ELEMENT *x, SUM *kept, int64_t first, int64_t rows, int64_t from,
                           int64_t inputs, int64_t begin, int64_t end)
{
    int parts = inputs < call->in_features;
    int64_t pairs = (rows + 2 * BAND - 1) / (2 * BAND), lines = (32 + pairs - 1) / pairs;
    int64_t group_elements = call->in_features * GROUP;
    for (int64_t group = begin; group < end; group++) {
        const ELEMENT *tiles = call->tiles + group * group_elements + from * GROUP;
        const char *next = (const char *)(tiles + group_elements);
        for (int64_t row = 0; row < rows; row += 2 * BAND) {
            SUM *sums = parts ? kept + ((group - begin) * pairs + row / (2 * BAND)) * SUMS : kept;
            int64_t count = smaller(rows - row, 2 * BAND);
            /* With few bands the products would wait for what the first of them reads: it asks ahead for that. Else each
             * asks for its part of the next group. */
            if (count <= BAND)
                multiply_band(sums, x + row * inputs, tiles, inputs, from == 0);
            else if (pairs > FEW_PAIRS)
                multiply_bands(sums, x + row * inputs, tiles, inputs, from == 0,
                               next + row / (2 * BAND) * lines * inputs / STEP * 64, lines, 0);
            else
                multiply_bands(sums, x + row * inputs, tiles, inputs, from == 0, (const char *)tiles + AHEAD_BYTES, 0,
                               row == 0);
            if (from + inputs == call->in_features)
                finish_rows(call, sums, first + row, count, group);
        }
    }
}

TARGET void MULTIPLY(const CALL *call, char *scratch)
{
    struct cut cut = cut_of(call);
    int64_t groups = groups_of(call->out_features);
    ELEMENT *x = (ELEMENT *)scratch;
    SUM *kept = (SUM *)(x + cut.rows * cut.inputs);
    configure(call->rows < BAND ? (int)call->rows : BAND);
    for (int64_t first = 0; first < call->rows; first += cut.rows) {
        int64_t rows = smaller(call->rows - first, cut.rows);
        for (int64_t group = 0; group < groups; group += cut.groups)
            for (int64_t from = 0; from < call->in_features; from += cut.inputs) {
                int64_t inputs = smaller(call->in_features - from, cut.inputs);
                take_rows(x, call, first, rows, from, inputs);
                multiply_chunk(call, x, kept, first, rows, from, inputs, group, smaller(groups, group + cut.groups));
            }
    }
    __asm__ volatile("tilerelease" : : : "memory");
}
