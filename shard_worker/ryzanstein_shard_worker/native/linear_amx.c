/* The product of linear.h on AMX tiles. Called only where CPU and kernel grant them.
 *
 * Up to 16 rows cost as much as reading the weight: one pass over it in the order of its tiles, and what is read next
 * is asked for in time (measured on Sapphire Rapids, 4 KiB pages: 12 GB/s where oneDNN reads 11; 2 MiB pages: 16).
 * More rows are taken in chunks whose copy stays in the second cache. */
#include "linear.h"
#if RZ_HAS_AMX
#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

/* Tiles 0 to 3 are sums [16 rows][16] of floats: 0 and 1 of the first 16 rows, 2 and 3 of the second; 4 and 5 are rows
 * of x [16][32], 6 and 7 of the weight [16][16][2]. Written out, because the intrinsics of some compilers don't say
 * that they read and write memory. */
#define LOAD(tile, at, stride)                                                                                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, at, stride)                                                                                        \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define MULTIPLY(sums, first, second)                                                                                  \
    __asm__ volatile("tdpbf16ps %%tmm" #second ", %%tmm" #first ", %%tmm" #sums : :)

enum {
    BAND = 16,                              /* rows of a tile */
    TILE = BAND * RZ_LINEAR_STEP,           /* elements of a tile of x or of the weight */
    SUMS = 2 * BAND * RZ_LINEAR_GROUP,      /* of two bands and a group */
    CHUNK_BYTES = 640 * 1024,               /* of x: leaves room in the second cache for two groups of the weight */
    INPUTS_AT_ONCE = 2048,                  /* a chunk of longer rows would be too few rows */
    MOST_ROWS = 512,
    FEW_PAIRS = 3,
    AHEAD_BYTES = 2048,                     /* of the weight, while there is one band: found by trying */
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

/* Rows [rows][from, from + inputs) of x → tiles [bands][inputs / 32][16][32]. What is missing of the last band stays as it
 * is: it gives rows that nobody reads. */
INLINE void take_rows(uint16_t *to, const struct rz_linear *call, int64_t first, int64_t rows, int64_t from,
                      int64_t inputs)
{
    for (int64_t row = 0; row < rows; row++) {
        const uint16_t *x = call->x + (first + row) * call->x_stride + from;
        uint16_t *tile = to + row / BAND * BAND * inputs + row % BAND * RZ_LINEAR_STEP;
        for (int64_t i = 0; i < inputs; i += RZ_LINEAR_STEP)
            _mm512_store_si512(tile + i * BAND, _mm512_loadu_si512(x + i));
    }
}

/* sums [2][16][32] += one band of x times a group of the weight. */
INLINE void multiply_band(float *sums, const uint16_t *x, const uint16_t *tiles, int64_t inputs, int begins)
{
    if (begins) {
        ZERO(0);
        ZERO(1);
    } else {
        LOAD(0, sums, 128);
        LOAD(1, sums + 16, 128);
    }
    for (int64_t i = 0; i < inputs; i += RZ_LINEAR_STEP, x += TILE, tiles += 2 * TILE) {
        const char *ahead = (const char *)tiles + AHEAD_BYTES;
        for (int line = 0; line < 32; line++)
            _mm_prefetch(ahead + line * 64, _MM_HINT_T0);
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
INLINE void multiply_bands(float *sums, const uint16_t *x, const uint16_t *tiles, int64_t inputs, int begins,
                           const char *next, int64_t lines, int stream)
{
    float *second = sums + BAND * RZ_LINEAR_GROUP;
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
    for (int64_t i = 0; i < inputs; i += RZ_LINEAR_STEP, x += TILE, tiles += 2 * TILE) {
        LOAD(4, x, 64);
        LOAD(6, tiles, 64);
        MULTIPLY(0, 4, 6);
        LOAD(5, x + BAND * inputs, 64);
        MULTIPLY(2, 5, 6);
        for (int64_t line = 0; line < lines; line++, next += 64)
            _mm_prefetch(next, _MM_HINT_T1);
        if (stream)
            for (int line = 0; line < 32; line++, next += 64)
                _mm_prefetch(next, _MM_HINT_T0);
        LOAD(7, tiles + TILE, 64);
        MULTIPLY(1, 4, 7);
        MULTIPLY(3, 5, 7);
    }
    STORE(0, sums, 128);
    STORE(1, sums + 16, 128);
    STORE(2, second, 128);
    STORE(3, second + 16, 128);
}

/* Sums of 16 features → bfloat16, the first `count` of them. */
INLINE void round_some(uint16_t *out, const float *sums, const uint16_t *bias, int64_t count)
{
    __mmask16 some = count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1);
    __m512 value = _mm512_loadu_ps(sums);
    if (bias) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, bias));
        value = _mm512_add_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
    }
    _mm256_mask_storeu_epi16(out, some, (__m256i)_mm512_cvtneps_pbh(value));
}

INLINE void round_rows(const struct rz_linear *call, const float *sums, int64_t first, int64_t rows, int64_t group)
{
    int64_t feature = group * RZ_LINEAR_GROUP, features = call->out_features;
    const uint16_t *bias = call->bias ? call->bias + feature : NULL;
    for (int64_t row = 0; row < rows; row++, sums += RZ_LINEAR_GROUP) {
        uint16_t *out = call->out + (first + row) * features + feature;
        round_some(out, sums, bias, features - feature);
        if (features - feature > 16)
            round_some(out + 16, sums + 16, bias ? bias + 16 : NULL, features - feature - 16);
    }
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t groups_of(int64_t features) { return (features + RZ_LINEAR_GROUP - 1) / RZ_LINEAR_GROUP; }

/* Rows of a chunk, a multiple of two bands unless all fit into one. */
static int64_t chunk_rows(const struct rz_linear *call)
{
    int64_t fit = CHUNK_BYTES / (2 * smaller(call->in_features, INPUTS_AT_ONCE)) / (2 * BAND) * (2 * BAND);
    int64_t all = (call->rows + 2 * BAND - 1) / (2 * BAND) * (2 * BAND);
    return call->rows <= BAND ? BAND : smaller(smaller(fit, MOST_ROWS), all);
}

/* Whether sums have to be kept from one part of the inputs to the next. */
static int in_parts(const struct rz_linear *call) { return call->rows > BAND && call->in_features > INPUTS_AT_ONCE; }

size_t rz_linear_scratch_bytes(const struct rz_linear *call)
{
    int64_t rows = chunk_rows(call), inputs = call->rows > BAND ? smaller(call->in_features, INPUTS_AT_ONCE)
                                                                : call->in_features;
    size_t kept = in_parts(call) ? (size_t)(rows * groups_of(call->out_features) * RZ_LINEAR_GROUP) * sizeof(float)
                                 : SUMS * sizeof(float);
    return (size_t)(rows * inputs) * 2 + kept;
}

/* One chunk of rows, over a part of the inputs. */
INLINE void multiply_chunk(const struct rz_linear *call, const uint16_t *x, float *kept, int64_t first, int64_t rows,
                           int64_t from, int64_t inputs)
{
    int64_t groups = groups_of(call->out_features), parts = in_parts(call);
    int64_t pairs = (rows + 2 * BAND - 1) / (2 * BAND), lines = (32 + pairs - 1) / pairs;
    int64_t group_elements = call->in_features * RZ_LINEAR_GROUP;
    for (int64_t group = 0; group < groups; group++) {
        const uint16_t *tiles = call->tiles + group * group_elements + from * RZ_LINEAR_GROUP;
        const char *next = (const char *)(tiles + group_elements);
        for (int64_t row = 0; row < rows; row += 2 * BAND) {
            float *sums = parts ? kept + (group * pairs + row / (2 * BAND)) * SUMS : kept;
            int64_t count = smaller(rows - row, 2 * BAND);
            if (count <= BAND)
                multiply_band(sums, x + row * inputs, tiles, inputs, from == 0);
            else if (pairs > FEW_PAIRS)
                multiply_bands(sums, x + row * inputs, tiles, inputs, from == 0,
                               next + row / (2 * BAND) * lines * inputs / RZ_LINEAR_STEP * 64, lines, 0);
            else
                multiply_bands(sums, x + row * inputs, tiles, inputs, from == 0, (const char *)tiles + AHEAD_BYTES, 0, row == 0);
            if (from + inputs == call->in_features)
                round_rows(call, sums, first + row, count, group);
        }
    }
}

TARGET void rz_linear_amx(const struct rz_linear *call, char *scratch)
{
    int64_t most = chunk_rows(call), at_once = in_parts(call) ? INPUTS_AT_ONCE : call->in_features;
    uint16_t *x = (uint16_t *)scratch;
    float *kept = (float *)(scratch + most * at_once * 2);
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

/* Rows [16][16] of words → columns. */
INLINE void transpose(__m512i *rows)
{
    __m512i half[16];
    for (int i = 0; i < 16; i += 2) {
        half[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        half[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            rows[i + 2 * j] = _mm512_unpacklo_epi64(half[i + j], half[i + j + 2]);
            rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(half[i + j], half[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) { /* rows[4 a + i]: of rows 4 a to 4 a + 3, columns i, i + 4, i + 8, i + 12 */
        __m512i a = rows[i], b = rows[i + 4], c = rows[i + 8], d = rows[i + 12];
        half[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        half[i + 4] = _mm512_shuffle_i32x4(a, b, 0xdd);
        half[i + 8] = _mm512_shuffle_i32x4(c, d, 0x88);
        half[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
        rows[i + 4] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0x88);
        rows[i + 12] = _mm512_shuffle_i32x4(half[i + 4], half[i + 12], 0xdd);
    }
}

/* Where the tile of these 16 features and 32 inputs is. */
INLINE int64_t tile_at(int64_t feature, int64_t input, int64_t in_features)
{
    return feature / RZ_LINEAR_GROUP * RZ_LINEAR_GROUP * in_features + input / RZ_LINEAR_STEP * 2 * TILE +
           feature / 16 % 2 * TILE;
}

TARGET void rz_linear_tile_amx(uint16_t *tiles, const uint16_t *weight, int64_t out_features, int64_t in_features)
{
    __m512i rows[16];
    for (int64_t feature = 0; feature < groups_of(out_features) * RZ_LINEAR_GROUP; feature += 16)
        for (int64_t input = 0; input < in_features; input += RZ_LINEAR_STEP) {
            for (int i = 0; i < 16; i++)
                rows[i] = feature + i < out_features
                              ? _mm512_loadu_si512(weight + (feature + i) * in_features + input)
                              : _mm512_setzero_si512();
            transpose(rows);
            uint16_t *tile = tiles + tile_at(feature, input, in_features);
            for (int i = 0; i < 16; i++)
                _mm512_store_si512(tile + i * 32, rows[i]);
        }
}

TARGET void rz_linear_untile_amx(uint16_t *weight, const uint16_t *tiles, int64_t out_features, int64_t in_features)
{
    __m512i rows[16];
    for (int64_t feature = 0; feature < out_features; feature += 16)
        for (int64_t input = 0; input < in_features; input += RZ_LINEAR_STEP) {
            const uint16_t *tile = tiles + tile_at(feature, input, in_features);
            for (int i = 0; i < 16; i++)
                rows[i] = _mm512_load_si512(tile + i * 32);
            transpose(rows);
            for (int i = 0; i < 16 && feature + i < out_features; i++)
                _mm512_storeu_si512(weight + (feature + i) * in_features + input, rows[i]);
        }
}
#else
typedef int rz_no_amx_here; /* an empty file is not C */
#endif
