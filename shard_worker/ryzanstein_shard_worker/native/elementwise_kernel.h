/* The functions of elementwise.h, compiled once for each level of instructions.
 *
 * The including file defines TARGET, INLINE, LANES, NAME, the vector types floats and words, the operations smaller and
 * larger, which give their second operand where one is NaN, and load_shorts and store_shorts: LANES integers of 16
 * bits to and from words, whose upper halves are 0.
 *
 * Exactness: an output row is computed from its own input row by the same operations in the same order, whatever the
 * number of rows. Products are never contracted with sums, so every level of instructions gives the same bits. */
#include <math.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors are passed between functions of one file only */

typedef float unaligned_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum { SUMS = 64 }; /* partial sums of a row: more than any CPU has lanes, so that their order is the same on all */

INLINE floats splat(float value) { return value - (floats){0}; } /* minus keeps the sign of -0 */
INLINE int64_t bytes_of(int dtype) { return dtype == RZ_ELEMENTWISE_F32 ? 4 : 2; }

/* LANES elements as floats. */
INLINE floats read_lanes(int dtype, const char *at)
{
    if (dtype == RZ_ELEMENTWISE_F32)
        return *(const unaligned_floats *)at;
    return (floats)(load_shorts(at) << 16);
}

/* LANES elements from floats, to nearest, ties to even. Numbers that are computed from bfloat16 are no NaN that
 * rounding could make a number of: their lower half is 0. */
INLINE void write_lanes(int dtype, char *at, floats value)
{
    words bits = (words)value;
    if (dtype == RZ_ELEMENTWISE_F32)
        *(unaligned_floats *)at = value;
    else
        store_shorts(at, (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The first `count` of LANES elements, the others 0; all if there are more. */
INLINE floats read_some(int dtype, const char *at, int64_t count)
{
    if (count >= LANES)
        return read_lanes(dtype, at);
    char padded[4 * LANES] = {0};
    memcpy(padded, at, (size_t)(count * bytes_of(dtype)));
    return read_lanes(dtype, padded);
}

INLINE void write_some(int dtype, char *at, floats value, int64_t count)
{
    if (count >= LANES) {
        write_lanes(dtype, at, value);
        return;
    }
    char padded[4 * LANES];
    write_lanes(dtype, padded, value);
    memcpy(at, padded, (size_t)(count * bytes_of(dtype)));
}

/* 1 / sqrt(mean of squares + eps). */
INLINE float inverse_rms(int dtype, const char *x, int64_t n, float eps)
{
    floats sums[SUMS / LANES];
    for (int j = 0; j < SUMS / LANES; j++)
        sums[j] = splat(0);
    int64_t i = 0, size = bytes_of(dtype);
    for (; i + SUMS <= n; i += SUMS)
        for (int j = 0; j < SUMS / LANES; j++) {
            floats value = read_lanes(dtype, x + (i + j * LANES) * size);
            sums[j] += value * value;
        }
    for (int j = 0; i < n; j++, i += LANES) {
        floats value = read_some(dtype, x + i * size, n - i);
        sums[j] += value * value;
    }
    for (int width = SUMS / LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            sums[j] += sums[j + width];
    float lanes[LANES];
    memcpy(lanes, sums, sizeof lanes);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; lane++)
            lanes[lane] += lanes[lane + width];
    return 1.0f / sqrtf(lanes[0] / (float)n + eps);
}

/* out = x * scale * weight; out may be x. */
INLINE void scale_row(int dtype, char *out, const char *x, float scale, const char *weight, int64_t n)
{
    int64_t size = bytes_of(dtype);
    for (int64_t i = 0; i < n; i += LANES)
        write_some(dtype, out + i * size,
                   read_some(dtype, x + i * size, n - i) * scale * read_some(dtype, weight + i * size, n - i), n - i);
}

/* Adds where there is something to add, then normalises, a few rows at a time: the end of a row's sum is a chain of
 * waiting, in which the next rows are summed up. */
INLINE void add_rms_norm(int dtype, char *out, char *sum, const char *x, const char *delta, const char *weight,
                         int64_t rows, int64_t n, float eps)
{
    enum { TOGETHER = 8 };
    int64_t size = bytes_of(dtype), bytes = n * size;
    for (int64_t row = 0; row < rows; row += TOGETHER) {
        int64_t end = row + TOGETHER < rows ? row + TOGETHER : rows;
        const char *added = delta ? sum : x;
        float scale[TOGETHER];
        for (int64_t r = row; r < end; r++) {
            for (int64_t i = 0; delta && i < n; i += LANES) {
                int64_t at = r * bytes + i * size;
                write_some(dtype, sum + at, read_some(dtype, x + at, n - i) + read_some(dtype, delta + at, n - i),
                           n - i);
            }
            scale[r - row] = inverse_rms(dtype, added + r * bytes, n, eps);
        }
        for (int64_t r = row; r < end; r++)
            scale_row(dtype, out + r * bytes, added + r * bytes, scale[r - row], weight, n);
    }
}

INLINE void rotate_head(int dtype, char *x, const char *cosine, const char *sine, int64_t half)
{
    int64_t size = bytes_of(dtype), middle = half * size;
    for (int64_t i = 0; i < half; i += LANES) {
        int64_t at = i * size, count = half - i;
        floats a = read_some(dtype, x + at, count), b = read_some(dtype, x + middle + at, count);
        floats first = a * read_some(dtype, cosine + at, count) + b * read_some(dtype, sine + at, count);
        floats second = b * read_some(dtype, cosine + middle + at, count) +
                        a * read_some(dtype, sine + middle + at, count);
        write_some(dtype, x + at, first, count);
        write_some(dtype, x + middle + at, second, count);
    }
}

INLINE void rotate_heads(int dtype, char *rows_, int64_t rows, int64_t stride, int64_t queries, int64_t keys,
                         int64_t dim, const char *cosine, const char *sine, const char *query_weight,
                         const char *key_weight, float eps)
{
    int64_t size = bytes_of(dtype), bytes = dim * size;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < queries + keys; head++) {
            char *x = rows_ + row * stride * size + head * bytes;
            const char *weight = head < queries ? query_weight : key_weight;
            if (weight)
                scale_row(dtype, x, x, inverse_rms(dtype, x, dim, eps), weight, dim);
            rotate_head(dtype, x, cosine + row * bytes, sine + row * bytes, dim / 2);
        }
}

/* e^x to about 1 unit in the last place (Cephes expf) for |x| up to 87.3, beyond which it is that of the bound. */
INLINE floats exponential(floats x)
{
    x = larger(smaller(x, splat(87.33f)), splat(-87.33f));
    floats shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    floats n = shifted - 12582912.0f;
    x = x - n * 0.693359375f;
    x = x - n * -2.12194440e-4f;
    floats y = splat(1.9875691500e-4f);
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * (x * x) + x + 1.0f;
    return y * (floats)(((words)shifted - 0x4b400000u + 127u) << 23);
}

/* The same to 1e-5, less than a three-hundredth of what rounding to bfloat16 adds: 2^(x log2(e)) by the minimax
 * polynomial of degree 4 on [-1/2, 1/2] whose value at 0 is exactly 1. */
INLINE floats short_exponential(floats x)
{
    x = larger(smaller(x * 0x1.715476p0f, splat(126)), splat(-126));
    floats shifted = x + 12582912.0f;
    x = x - (shifted - 12582912.0f);
    floats y = splat(0x1.3cbf60p-7f);
    y = y * x + 0x1.ca1ce2p-5f;
    y = y * x + 0x1.ebfa4cp-3f;
    y = y * x + 0x1.62e0c2p-1f;
    y = y * x + 1.0f;
    return (floats)((words)y + ((words)shifted << 23)); /* the lowest bits of `shifted` are the exponent's */
}

INLINE void swiglu(int dtype, char *out, const char *gate, int64_t rows, int64_t n)
{
    int64_t size = bytes_of(dtype), bytes = n * size;
    for (int64_t row = 0; row < rows; row++, out += bytes, gate += 2 * bytes)
        for (int64_t i = 0; i < n; i += LANES) {
            floats value = read_some(dtype, gate + i * size, n - i);
            floats up = read_some(dtype, gate + bytes + i * size, n - i);
            floats power = dtype == RZ_ELEMENTWISE_F32 ? exponential(-value) : short_exponential(-value);
            write_some(dtype, out + i * size, value / (1.0f + power) * up, n - i);
        }
}

/* One copy for each dtype. */
#define BY_DTYPE(function, ...)                                                                                        \
    if (dtype == RZ_ELEMENTWISE_F32)                                                                                   \
        function(RZ_ELEMENTWISE_F32, __VA_ARGS__);                                                                     \
    else                                                                                                               \
        function(RZ_ELEMENTWISE_BF16, __VA_ARGS__);

TARGET void NAME(rz_add_rms_norm)(int dtype, void *out, void *sum, const void *x, const void *delta,
                                  const void *weight, int64_t rows, int64_t n, float eps)
{
    BY_DTYPE(add_rms_norm, out, sum, x, delta, weight, rows, n, eps)
}

TARGET void NAME(rz_rotate_heads)(int dtype, void *heads, int64_t rows, int64_t stride, int64_t queries, int64_t keys,
                                  int64_t dim, const void *cosine, const void *sine, const void *query_weight,
                                  const void *key_weight, float eps)
{
    BY_DTYPE(rotate_heads, heads, rows, stride, queries, keys, dim, cosine, sine, query_weight, key_weight, eps)
}

TARGET void NAME(rz_swiglu)(int dtype, void *out, const void *gate_up, int64_t rows, int64_t n)
{
    BY_DTYPE(swiglu, out, gate_up, rows, n)
}
