/* Vectors of LANES floats: loads and stores of the tensors' types and of page elements, and exp2. Part of
 * attention_kernel.h, which says what the including file defines. */

typedef uint16_t shorts __attribute__((vector_size(2 * LANES), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t signed_words __attribute__((vector_size(4 * LANES), may_alias));
typedef float unaligned_floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t unaligned_words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t unaligned_shorts __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE floats load(const void *at) { return *(const unaligned_floats *)at; }
INLINE void store(void *at, floats value) { *(unaligned_floats *)at = value; }
INLINE floats splat(float value) { return value - (floats){0}; } /* minus keeps the sign of -0 */

/* LANES contiguous elements as floats. */
INLINE floats widen(int dtype, const void *at)
{
    if (dtype == RZ_FLOAT32)
        return load(at);
    if (dtype == RZ_FLOAT16)
        return from_half(at);
    return (floats)(__builtin_convertvector(*(const unaligned_shorts *)at, words) << 16);
}

/* LANES contiguous elements from floats, rounded to nearest even. */
INLINE void narrow(int dtype, void *at, floats value)
{
    if (dtype == RZ_FLOAT32) {
        store(at, value);
    } else if (dtype == RZ_FLOAT16) {
        to_half(at, value);
    } else {
        words bits = (words)value;
        words is_nan = (words)((bits & 0x7fffffff) > 0x7f800000);
        words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        words result = (is_nan & ((bits >> 16) | 0x40)) | (~is_nan & rounded);
        *(unaligned_shorts *)at = __builtin_convertvector(result, shorts);
    }
}

/* Row 2 * pair + second, columns `column` to column + LANES, of a page's matrix of `width` columns. */
INLINE floats page_lanes(int dtype, const char *page, int pair, int second, int width, int column)
{
    int element = (2 * pair + second) * width + column;
    if (dtype == RZ_FLOAT32)
        return load(page + 4 * element);
    if (dtype == RZ_FLOAT16)
        return from_half(page + 2 * element);
    words both = *(const unaligned_words *)(page + 4 * (pair * width + column));
    if (second)
        return (floats)(both & 0xffff0000u);
    return (floats)(both << 16);
}

/* 2^y for y <= 0, relative error below 8e-8; 0 below -126 (also -infinity), NaN for NaN. The polynomial is the
 * minimax one of degree 6 on [-1/2, 1/2] whose value at 0 is exactly 1. */
INLINE floats exp2_of(floats y)
{
    const float to_integer = 0x1.8p23f + 127; /* its sum with y holds round(y) + 127 in the lowest bits */
    floats shifted = y + to_integer;
    floats power = (floats)((words)shifted << 23);
    floats rest = y - (shifted - to_integer);
    floats sum = splat(0x1.41fbbcp-13f);
    sum = multiply_add(sum, rest, splat(0x1.5f3e54p-10f));
    sum = multiply_add(sum, rest, splat(0x1.3b2d4cp-7f));
    sum = multiply_add(sum, rest, splat(0x1.c6aee8p-5f));
    sum = multiply_add(sum, rest, splat(0x1.ebfbdcp-3f));
    sum = multiply_add(sum, rest, splat(0x1.62e430p-1f));
    sum = multiply_add(sum, rest, splat(1));
    return zero_where_below(sum * power, y, -126);
}
