/* Attention in bfloat16 for CPUs with AMX-BF16. Called only where CPU and kernel grant the tiles, for head_dim in
 * multiples of 32.
 *
 * A page of keys [head_dim / 2][16 tokens][2] is what TDPBF16PS wants as its second operand, 16 rows of pairs at a
 * time; so are the copies of a chunk's values [32 pairs of tokens][head_dim][2]. Values are copied because 32 tokens
 * are two pages. A row of a product depends on that row of the first operand only. */
#include "attention.h"
#if RZ_HAS_AMX
#include <immintrin.h>

#define TARGET __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#define ATTEND_TILE rz_attend_amx

#include "attention_pairs.h"

/* Tiles 0 to 3 are sums [rows][16] of floats, 4 and 5 first operands [rows][32], 6 and 7 second ones [16][16][2].
 * Written out, because the intrinsics of some compilers don't say that they read and write memory. */
#define LOAD(tile, at, stride)                                                                                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, at, stride)                                                                                        \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(at), "r"((int64_t)(stride)) : "memory")
#define ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define MULTIPLY(sums, first, second)                                                                                  \
    __asm__ volatile("tdpbf16ps %%tmm" #second ", %%tmm" #first ", %%tmm" #sums : :)

INLINE void start_products(int rows)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.row_bytes[tile] = 64;
        shapes.rows[tile] = (uint8_t)(tile < 6 && rows < BAND ? rows : BAND);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
}

INLINE void end_products(void) { __asm__ volatile("tilerelease" : : : "memory"); }

TARGET static void score_band(struct tile *tile, int row, int count, struct range seen)
{
    (void)count;
    int head_dim = tile->head_dim;
    const uint16_t *query = tile->query + row * head_dim;
    const char *const *keys = tile->keys;
    float *scores = tile->scores;
    ZERO(0);
    ZERO(1);
    ZERO(2);
    ZERO(3);
    int second = seen.to > 16, third = seen.to > 32, fourth = seen.to > 48;
    for (int i = 0; i < head_dim; i += 32) {
        LOAD(4, query + i, head_dim * 2);
        LOAD(6, keys[0] + i * 32, 64);
        MULTIPLY(0, 4, 6);
        if (second) {
            LOAD(7, keys[1] + i * 32, 64);
            MULTIPLY(1, 4, 7);
        }
        if (third) {
            LOAD(6, keys[2] + i * 32, 64);
            MULTIPLY(2, 4, 6);
        }
        if (fourth) {
            LOAD(7, keys[3] + i * 32, 64);
            MULTIPLY(3, 4, 7);
        }
    }
    STORE(0, scores, CHUNK * 4);
    STORE(1, scores + 16, CHUNK * 4);
    STORE(2, scores + 32, CHUNK * 4);
    STORE(3, scores + 48, CHUNK * 4);
}

TARGET static void take_values(struct tile *tile, struct range seen)
{
    for (int b = 0; b < CHUNK_BLOCKS; b++)
        copy_values(tile->values + b * RZ_BLOCK * tile->head_dim, tile->pages[b], tile->head_dim,
                    seen.from - b * RZ_BLOCK, seen.to - b * RZ_BLOCK);
}

TARGET static void add_band(struct tile *tile, int row, int count, struct range seen)
{
    (void)count;
    int head_dim = tile->head_dim, stride = head_dim * 4;
    float *output = tile->output + row * head_dim;
    int early = seen.from < 32, late = seen.to > 32;
    if (early)
        LOAD(4, tile->weights, CHUNK * 2);
    if (late)
        LOAD(5, tile->weights + 32, CHUNK * 2);
    for (int i = 0; i < head_dim; i += 32) {
        const uint16_t *values = tile->values + i * 2;
        LOAD(0, output + i, stride);
        LOAD(1, output + i + 16, stride);
        if (early) {
            LOAD(6, values, stride);
            MULTIPLY(0, 4, 6);
            LOAD(7, values + 32, stride);
            MULTIPLY(1, 4, 7);
        }
        if (late) {
            LOAD(6, values + 32 * head_dim, stride);
            MULTIPLY(0, 5, 6);
            LOAD(7, values + 32 * head_dim + 32, stride);
            MULTIPLY(1, 5, 7);
        }
        STORE(0, output + i, stride);
        STORE(1, output + i + 16, stride);
    }
}
#else
typedef int rz_no_amx_here; /* an empty file is not C */
#endif
