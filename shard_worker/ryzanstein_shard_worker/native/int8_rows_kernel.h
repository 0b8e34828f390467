/* What stands before and after a product of 8-bit integers, compiled once for each level of instructions: included by
 * the elementwise_*.c after elementwise_kernel.h, whose vectors and habits these functions share. They also define
 * store_octets: LANES integers from -128 to 127 to as many bytes. */

typedef int32_t integers __attribute__((vector_size(4 * LANES), may_alias));

/* Below this a row counts as zeros: 127 / max would overflow. */
#define RZ_LEAST_MAXIMUM 1e-30f

/* The largest absolute value of a row, as the bits of a float: so infinities and NaN, which are larger than any number,
 * are found too. The order of the comparisons does not matter. */
INLINE uint32_t largest_bits(int dtype, const char *x, int64_t n)
{
    integers largest = (integers)splat(0);
    for (int64_t i = 0; i < n; i += LANES) {
        integers bits = (integers)read_some(dtype, x + i * bytes_of(dtype), n - i) & 0x7fffffff;
        integers larger_ones = bits > largest;
        largest = (larger_ones & bits) | (~larger_ones & largest);
    }
    uint32_t result = 0;
    for (int lane = 0; lane < LANES; lane++)
        result = (uint32_t)largest[lane] > result ? (uint32_t)largest[lane] : result;
    return result;
}

/* A row with a value that is not finite gets zeros and a scale of NaN: what comes of it is NaN. */
INLINE void quantize_rows(int dtype, int8_t *out, float *scales, const char *x, int64_t rows, int64_t n)
{
    int64_t size = bytes_of(dtype);
    for (int64_t row = 0; row < rows; row++, out += n, x += n * size) {
        uint32_t bits = largest_bits(dtype, x, n);
        float largest, inverse = 0, scale = 0;
        memcpy(&largest, &bits, sizeof largest);
        if (bits >= 0x7f800000u)
            scale = NAN;
        else if (largest >= RZ_LEAST_MAXIMUM)
            scale = largest / 127.0f, inverse = 127.0f / largest;
        scales[row] = scale;
        if (inverse == 0) {
            memset(out, 0, (size_t)n);
            continue;
        }
        for (int64_t i = 0; i < n; i += LANES) {
            floats value = read_some(dtype, x + i * size, n - i) * inverse;
            /* 1.5 * 2^23: rounds to an integer, ties to even, and lays it into the lowest bits. */
            words rounded = (words)(value + 12582912.0f) - 0x4b400000u;
            if (n - i >= LANES) {
                store_octets((char *)out + i, rounded);
            } else {
                char padded[LANES];
                store_octets(padded, rounded);
                memcpy(out + i, padded, (size_t)(n - i));
            }
        }
    }
}

INLINE void rescale_rows(int dtype, char *out, const float *y, const float *scales, const char *bias, int64_t rows,
                         int64_t n)
{
    int64_t size = bytes_of(dtype);
    for (int64_t row = 0; row < rows; row++, out += n * size, y += n)
        for (int64_t i = 0; i < n; i += LANES) {
            floats value = read_some(RZ_ELEMENTWISE_F32, (const char *)(y + i), n - i) * scales[row];
            if (bias)
                value = value + read_some(dtype, bias + i * size, n - i);
            write_some(dtype, out + i * size, value, n - i);
        }
}

TARGET void NAME(rz_quantize_rows)(int dtype, int8_t *out, float *scales, const void *x, int64_t rows, int64_t n)
{
    BY_DTYPE(quantize_rows, out, scales, x, rows, n)
}

TARGET void NAME(rz_rescale_rows)(int dtype, void *out, const float *y, const float *scales, const void *bias,
                                  int64_t rows, int64_t n)
{
    BY_DTYPE(rescale_rows, out, y, scales, bias, rows, n)
}
