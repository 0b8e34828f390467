/* The product of int8_linear.h on AMX tiles. Called only where CPU and kernel grant them.
 *
 * Up to 16 rows cost as much as reading the weight: one pass over it in the order of its tiles, and what is read next
 * is asked for in time. More rows are taken in chunks whose copy stays in the second cache. */
#include "int8_linear.h"
#if RZ_HAS_AMX
#include <immintrin.h>
#include <string.h>

#include "elementwise.h"

#define TARGET __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512dq,avx512vl,avx2")))
#define INLINE static inline __attribute__((always_inline)) TARGET

/* Tiles 0 to 3 are sums [16 rows][16] of integers: 0 and 1 of the first 16 rows, 2 and 3 of the second; 4 and 5 are rows
 * of x [16][64], 6 and 7 of the weight [16][16][4]. Written out, because the intrinsics of some compilers don't say
 * that they read and write memory. */
#define LOAD(tile, at, stride)                                                                                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, at, stride)                                                                                        \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define MULTIPLY(sums, first, second)                                                                                  \
    __asm__ volatile("tdpbssd %%tmm" #second ", %%tmm" #first ", %%tmm" #sums : :)

enum {
    BAND = 16,                      /* rows of a tile */
    TILE = BAND * RZ_INT8_STEP,     /* bytes of a tile of x or of the weight */
    SUMS = 2 * BAND * RZ_INT8_GROUP, /* of two bands and a group */
    CHUNK_BYTES = 640 * 1024,       /* of x: leaves room in the second cache for two groups of the weight */
    INPUTS_AT_ONCE = 4096,          /* a chunk of longer rows would be too few rows */
    MOST_ROWS = 512,
    FEW_PAIRS = 3,
    AHEAD_BYTES = 2048, /* of the weight, while there are few bands: found by trying */
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

/* Rows [rows][from, from + inputs) of x → tiles [bands][inputs / 64][16][64]. What is missing of the last band stays as
 * it is: it gives rows that nobody reads. */
INLINE void take_rows(int8_t *to, const struct rz_int8_linear *call, int64_t first, int64_t rows, int64_t from,
                      int64_t inputs)
{
    for (int64_t row = 0; row < rows; row++) {
        const int8_t *x = call->x + (first + row) * call->in_features + from;
        int8_t *tile = to + row / BAND * BAND * inputs + row % BAND * RZ_INT8_STEP;
        for (int64_t i = 0; i < inputs; i += RZ_INT8_STEP)
            _mm512_store_si512(tile + i * BAND, _mm512_loadu_si512(x + i));
    }
}

/* sums [2][16][32] += one band of x times a group of the weight. */
INLINE void multiply_band(int32_t *sums, const int8_t *x, const int8_t *tiles, int64_t inputs, int begins)
{
    if (begins) {
        ZERO(0);
        ZERO(1);
    } else {
        LOAD(0, sums, 128);
        LOAD(1, sums + 16, 128);
    }
    for (int64_t i = 0; i < inputs; i += RZ_INT8_STEP, x += TILE, tiles += 2 * TILE) {
        for (int line = 0; line < 32; line++)
            _mm_prefetch((const char *)tiles + AHEAD_BYTES + line * 64, _MM_HINT_T0);
        LOAD(4, x, 64);
        LOAD(6, tiles, 64);
        MULTIPLY(0, 4, 6);
        LOAD(7, tiles + TILE, 64);
        MULTIPLY(1, 4, 7);
    }
    STORE(0, sums, 128);
    STORE(1, sums + 16, 128);
}

/* The same of two bands; meanwhile `lines` lines of `next` per product come into the second cache. */
INLINE void multiply_bands(int32_t *sums, const int8_t *x, const int8_t *tiles, int64_t inputs, int begins,
                           const char *next, int64_t lines)
{
    int32_t *second = sums + BAND * RZ_INT8_GROUP;
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
    for (int64_t i = 0; i < inputs; i += RZ_INT8_STEP, x += TILE, tiles += 2 * TILE) {
        LOAD(4, x, 64);
        LOAD(6, tiles, 64);
        MULTIPLY(0, 4, 6);
        LOAD(5, x + BAND * inputs, 64);
        MULTIPLY(2, 5, 6);
        for (int64_t line = 0; line < lines; line++, next += 64)
            _mm_prefetch(next, _MM_HINT_T1);
        LOAD(7, tiles + TILE, 64);
        MULTIPLY(1, 4, 7);
        MULTIPLY(3, 5, 7);
    }
    STORE(0, sums, 128);
    STORE(1, sums + 16, 128);
    STORE(2, second, 128);
    STORE(3, second + 16, 128);
}

/* Sums of 16 features → the output's dtype, the first `count` of them. */
INLINE void scale_some(const struct rz_int8_linear *call, const int32_t *sums, int64_t row, int64_t feature)
{
    int64_t count = call->out_features - feature, at = row * call->out_features + feature;
    __mmask16 some = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
    __m512 value = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums));
    value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, call->feature_scales + feature));
    value = _mm512_mul_ps(value, _mm512_set1_ps(call->row_scales[row]));
    if (call->dtype == RZ_ELEMENTWISE_F32) {
        if (call->bias)
            value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(some, (const float *)call->bias + feature));
        _mm512_mask_storeu_ps((float *)call->out + at, some, value);
        return;
    }
    if (call->bias) {
        __m256i narrow = _mm256_maskz_loadu_epi16(some, (const uint16_t *)call->bias + feature);
        value = _mm512_add_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16)));
    }
    /* To nearest, ties to even; as write_lanes in elementwise_kernel.h. */
    __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
    _mm256_mask_storeu_epi16((uint16_t *)call->out + at, some, _mm512_cvtepi32_epi16(bits));
}

INLINE void scale_rows(const struct rz_int8_linear *call, const int32_t *sums, int64_t first, int64_t rows,
                       int64_t group)
{
    int64_t feature = group * RZ_INT8_GROUP;
    for (int64_t row = 0; row < rows; row++, sums += RZ_INT8_GROUP) {
        scale_some(call, sums, first + row, feature);
        if (call->out_features - feature > 16)
            scale_some(call, sums + 16, first + row, feature + 16);
    }
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t groups_of(int64_t features) { return (features + RZ_INT8_GROUP - 1) / RZ_INT8_GROUP; }

/* Rows of a chunk, a multiple of two bands unless all fit into one. */
static int64_t chunk_rows(int64_t rows, int64_t in_features)
{
    int64_t fit = CHUNK_BYTES / smaller(in_features, INPUTS_AT_ONCE) / (2 * BAND) * (2 * BAND);
    int64_t all = (rows + 2 * BAND - 1) / (2 * BAND) * (2 * BAND);
    return rows <= BAND ? BAND : smaller(smaller(fit, MOST_ROWS), all);
}

/* Whether sums have to be kept from one part of the inputs to the next. */
static int in_parts(int64_t rows, int64_t in_features) { return rows > BAND && in_features > INPUTS_AT_ONCE; }

int64_t rz_int8_linear_amx_scratch_bytes(int64_t rows, int64_t out_features, int64_t in_features)
{
    int64_t most = chunk_rows(rows, in_features), parts = in_parts(rows, in_features);
    int64_t sums = parts ? most * groups_of(out_features) * RZ_INT8_GROUP : SUMS;
    return most * (parts ? INPUTS_AT_ONCE : in_features) + sums * (int64_t)sizeof(int32_t);
}

/* One chunk of rows, over a part of the inputs. */
INLINE void multiply_chunk(const struct rz_int8_linear *call, const int8_t *x, int32_t *kept, int64_t first,
                           int64_t rows, int64_t from, int64_t inputs)
{
    int64_t groups = groups_of(call->out_features), parts = in_parts(call->rows, call->in_features);
    int64_t pairs = (rows + 2 * BAND - 1) / (2 * BAND), lines = (32 + pairs - 1) / pairs;
    int64_t group_bytes = call->in_features * RZ_INT8_GROUP;
    for (int64_t group = 0; group < groups; group++) {
        const int8_t *tiles = call->tiles + group * group_bytes + from * RZ_INT8_GROUP;
        for (int64_t row = 0; row < rows; row += 2 * BAND) {
            int32_t *sums = parts ? kept + (group * pairs + row / (2 * BAND)) * SUMS : kept;
            int64_t count = smaller(rows - row, 2 * BAND);
            /* With few bands the products would wait for what the first of them reads: it asks ahead for that. Else each
             * asks for its part of the next group. */
            const char *near = (const char *)tiles + AHEAD_BYTES;
            const char *next = (const char *)tiles + group_bytes + row / (2 * BAND) * lines * (inputs / RZ_INT8_STEP) * 64;
            if (count <= BAND)
                multiply_band(sums, x + row * inputs, tiles, inputs, from == 0);
            else if (pairs > FEW_PAIRS)
                multiply_bands(sums, x + row * inputs, tiles, inputs, from == 0, next, lines);
            else
                multiply_bands(sums, x + row * inputs, tiles, inputs, from == 0, near, row == 0 ? 32 : 0);
            if (from + inputs == call->in_features)
                scale_rows(call, sums, first + row, count, group);
        }
    }
}

TARGET void rz_int8_linear_amx(const struct rz_int8_linear *call)
{
    int64_t most = chunk_rows(call->rows, call->in_features);
    int64_t at_once = in_parts(call->rows, call->in_features) ? INPUTS_AT_ONCE : call->in_features;
    int8_t *x = (int8_t *)call->scratch;
    int32_t *kept = (int32_t *)(call->scratch + most * at_once);
    configure(call->rows < BAND ? (int)call->rows : BAND);
    for (int64_t first = 0; first < call->rows; first += most) {
        int64_t rows = smaller(call->rows - first, most);
        for (int64_t from = 0; from < call->in_features; from += at_once) {
            int64_t inputs = smaller(call->in_features - from, at_once);
            take_rows(x, call, first, rows, from, inputs);
            multiply_chunk(call, x, kept, first, rows, from, inputs);
        }
    }
    __asm__ volatile("tilerelease" : : : "memory");
}
#else
typedef int rz_no_amx_int8_here; /* an empty file is not C */
#endif
