/* The sum over ranks in the order of the ranks. */
#include <string.h>

#include "shared_memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 512 }; /* elements whose float32 sums stay in the first cache */

size_t rz_sum_width(enum rz_sum_dtype dtype)
{
    switch (dtype) {
    case RZ_SUM_F64:
    case RZ_SUM_I64:
        return 8;
    case RZ_SUM_BF16:
    case RZ_SUM_F16:
        return 2;
    default:
        return 4;
    }
}

INLINE float bf16_to_float(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t float_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
}

INLINE float half_to_float(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    float value;
    if (rest >= 0x7c00) { /* infinity, NaN */
        uint32_t wide = sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000 : 0);
        memcpy(&value, &wide, 4);
        return value;
    }
    /* Moves the exponent by an exact product, which also makes denormals normal. */
    uint32_t wide = rest << 13;
    memcpy(&value, &wide, 4);
    value *= 0x1p112f;
    memcpy(&wide, &value, 4);
    wide |= sign;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t float_to_half(float value)
{
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) /* NaN */
        return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff));
    if (bits >= 0x477ff000) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00);
    if (bits < 0x38800000) { /* below 2^-14: the unit of the result is 2^-24, that of a float at 0.5 */
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + (bits >> 13 & 1); /* to nearest, ties to even */
    return (uint16_t)(sign | ((bits >> 13) - (112 << 10)));
}

/* Adds, or for the first row stores, a block of n elements into sums. */
#define ADD_BLOCK(NAME, STORED, WIDE, CONVERT)                                                                        \
    INLINE void NAME(WIDE *sums, const char *row, size_t n, int first)                                                \
    {                                                                                                                 \
        const STORED *from = (const STORED *)row;                                                                     \
        if (first)                                                                                                    \
            for (size_t i = 0; i < n; i++)                                                                            \
                sums[i] = CONVERT(from[i]);                                                                           \
        else                                                                                                          \
            for (size_t i = 0; i < n; i++)                                                                            \
                sums[i] += CONVERT(from[i]);                                                                          \
    }
#define SAME(x) (x)
ADD_BLOCK(add_f32, float, float, SAME)
ADD_BLOCK(add_f64, double, double, SAME)
ADD_BLOCK(add_i32, uint32_t, uint32_t, SAME) /* unsigned: wraps as torch's does */
ADD_BLOCK(add_i64, uint64_t, uint64_t, SAME)
ADD_BLOCK(add_bf16, uint16_t, float, bf16_to_float)

INLINE void add_f16(float *sums, const char *row, size_t n, int first)
{
    const uint16_t *from = (const uint16_t *)row;
    for (size_t i = 0; i < n; i++)
        sums[i] = first ? half_to_float(from[i]) : sums[i] + half_to_float(from[i]);
}

INLINE void store_bf16(char *out, const float *sums, size_t n)
{
    uint16_t *to = (uint16_t *)out;
    for (size_t i = 0; i < n; i++)
        to[i] = float_to_bf16(sums[i]);
}

INLINE void store_f16(char *out, const float *sums, size_t n)
{
    uint16_t *to = (uint16_t *)out;
    for (size_t i = 0; i < n; i++)
        to[i] = float_to_half(sums[i]);
}

#define SUM(WIDE, WIDTH, ADD, STORE)                                                                                  \
    do {                                                                                                              \
        WIDE sums[BLOCK] __attribute__((aligned(64)));                                                                \
        for (size_t at = 0; at < count; at += BLOCK) {                                                                \
            size_t n = count - at < BLOCK ? count - at : BLOCK;                                                       \
            for (uint32_t r = 0; r < world; r++)                                                                      \
                ADD(sums, rows[r] + at * (WIDTH), n, r == 0);                                                         \
            STORE;                                                                                                    \
        }                                                                                                             \
    } while (0)
#define COPY(WIDTH) memcpy(out + at * (WIDTH), sums, n * (WIDTH))

/* Two ranks, the common case, in one pass. The same operations in the same order as above. ivdep: `out` may be one of
 * the rows, but an element is only ever stored after it was loaded. */
#define SUM_PAIR(NAME, STORED, CONVERT, ROUND)                                                                        \
    INLINE void NAME(char *out, const char *const *rows, size_t count)                                                \
    {                                                                                                                 \
        const STORED *a = (const STORED *)rows[0], *b = (const STORED *)rows[1];                                      \
        STORED *to = (STORED *)out;                                                                                   \
        _Pragma("GCC ivdep") for (size_t i = 0; i < count; i++) to[i] = ROUND(CONVERT(a[i]) + CONVERT(b[i]));         \
    }
SUM_PAIR(pair_f32, float, SAME, SAME)
SUM_PAIR(pair_bf16, uint16_t, bf16_to_float, float_to_bf16)

INLINE void sum_without_f16(char *out, const char *const *rows, uint32_t world, size_t count, enum rz_sum_dtype dtype)
{
    if (world == 2 && dtype == RZ_SUM_F32) {
        pair_f32(out, rows, count);
        return;
    }
    if (world == 2 && dtype == RZ_SUM_BF16) {
        pair_bf16(out, rows, count);
        return;
    }
    switch (dtype) {
    case RZ_SUM_F32:
        SUM(float, 4, add_f32, COPY(4));
        break;
    case RZ_SUM_F64:
        SUM(double, 8, add_f64, COPY(8));
        break;
    case RZ_SUM_BF16:
        SUM(float, 2, add_bf16, store_bf16(out + at * 2, sums, n));
        break;
    case RZ_SUM_I32:
        SUM(uint32_t, 4, add_i32, COPY(4));
        break;
    case RZ_SUM_I64:
        SUM(uint64_t, 8, add_i64, COPY(8));
        break;
    case RZ_SUM_F16:
        break;
    }
}

static void sum_f16(char *out, const char *const *rows, uint32_t world, size_t count)
{
    SUM(float, 2, add_f16, store_f16(out + at * 2, sums, n));
}

static void sum_baseline(char *out, const char *const *rows, uint32_t world, size_t count, enum rz_sum_dtype dtype)
{
    if (dtype == RZ_SUM_F16)
        sum_f16(out, rows, world, count);
    else
        sum_without_f16(out, rows, world, count, dtype);
}

#if defined(__x86_64__)
__attribute__((target("avx2,f16c"))) static void sum_f16_f16c(char *out, const char *const *rows, uint32_t world,
                                                             size_t count)
{
    size_t whole = count / 8 * 8;
    for (size_t i = 0; i < whole; i += 8) {
        __m256 sums = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(rows[0] + i * 2)));
        for (uint32_t r = 1; r < world; r++)
            sums = _mm256_add_ps(sums, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(rows[r] + i * 2))));
        _mm_storeu_si128((__m128i *)(out + i * 2), _mm256_cvtps_ph(sums, _MM_FROUND_TO_NEAREST_INT));
    }
    const char *rest[RZ_MAX_WORLD];
    for (uint32_t r = 0; r < world; r++)
        rest[r] = rows[r] + whole * 2;
    sum_f16(out + whole * 2, rest, world, count - whole);
}

/* The same loops, compiled for more lanes: an element's operations and their order stay the same. */
#define SUM_FOR(NAME, TARGET)                                                                                         \
    __attribute__((target(TARGET))) static void NAME(char *out, const char *const *rows, uint32_t world,              \
                                                     size_t count, enum rz_sum_dtype dtype)                           \
    {                                                                                                                 \
        if (dtype == RZ_SUM_F16)                                                                                      \
            sum_f16_f16c(out, rows, world, count);                                                                    \
        else                                                                                                          \
            sum_without_f16(out, rows, world, count, dtype);                                                          \
    }
SUM_FOR(sum_avx2, "avx2,f16c")
SUM_FOR(sum_avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c")
#endif

/* As rz_rank_sum, with no more than this level of instructions: 0 baseline, 1 AVX2, 2 AVX-512. For tests. */
RZ_EXPORT void rz_rank_sum_at(void *out, const char *const *rows, uint32_t world, size_t count, int32_t dtype,
                              int32_t level)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (level > 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
        if (level > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
            sum_avx512(out, rows, world, count, dtype);
        else
            sum_avx2(out, rows, world, count, dtype);
        return;
    }
#endif
    (void)level;
    sum_baseline(out, rows, world, count, dtype);
}

void rz_rank_sum(void *out, const char *const *rows, uint32_t world, size_t count, enum rz_sum_dtype dtype)
{
    rz_rank_sum_at(out, rows, world, count, dtype, 2);
}
