/* Writing a step's new keys and values into pages of the order that attention.h describes. */
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "attention.h"

/* Puts `rows` rows of words, `stride` bytes apart, into neighbouring columns of [words][RZ_BLOCK]; words % 4 is 0. */
static void put_columns(uint32_t *to, const char *from, int64_t stride, int rows, int words)
{
    int r = 0;
#if defined(__x86_64__)
    for (; r + 4 <= rows; r += 4)
        for (int w = 0; w < words; w += 4) {
            const char *at = from + r * stride + w * 4;
            __m128 a = _mm_loadu_ps((const void *)at), b = _mm_loadu_ps((const void *)(at + stride));
            __m128 c = _mm_loadu_ps((const void *)(at + 2 * stride)), d = _mm_loadu_ps((const void *)(at + 3 * stride));
            _MM_TRANSPOSE4_PS(a, b, c, d);
            float *square = (float *)(to + w * RZ_BLOCK + r);
            _mm_storeu_ps(square, a);
            _mm_storeu_ps(square + RZ_BLOCK, b);
            _mm_storeu_ps(square + 2 * RZ_BLOCK, c);
            _mm_storeu_ps(square + 3 * RZ_BLOCK, d);
        }
#endif
    for (; r < rows; r++)
        for (int w = 0; w < words; w++)
            memcpy(to + w * RZ_BLOCK + r, from + r * stride + w * 4, 4);
}

/* The same with elements of 2 bytes, of which there may be any number. */
static void put_half_columns(uint16_t *to, const char *from, int64_t stride, int rows, int count)
{
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < count; i++)
            memcpy(to + i * RZ_BLOCK + r, from + r * stride + i * 2, 2);
}

/* Puts rows of bfloat16 into rows of [RZ_BLOCK / 2][count][2] from `slot` on. */
static void put_pairs(uint16_t *page, int slot, const char *from, int64_t stride, int rows, int count)
{
    for (int r = 0; r < rows;) {
        const uint16_t *first = (const uint16_t *)(from + r * stride), *second;
        uint16_t *to = page + (size_t)(slot + r) / 2 * count * 2;
        if ((slot + r) % 2 == 0 && r + 1 < rows) {
            second = (const uint16_t *)(from + (r + 1) * stride);
            for (int i = 0; i < count; i++) {
                to[2 * i] = first[i];
                to[2 * i + 1] = second[i];
            }
            r += 2;
        } else {
            to += (slot + r) % 2;
            for (int i = 0; i < count; i++)
                to[2 * i] = first[i];
            r++;
        }
    }
}

/* Puts `rows` new keys and values of one head, which go to neighbouring slots of one page, into it. */
static void write_page(const struct rz_attention *call, char *keys, char *values, int slot, const char *k,
                       const char *v, int rows)
{
    int head_dim = call->head_dim;
    int64_t element = (int64_t)rz_element_bytes(call->dtype);
    int64_t k_stride = call->k_stride * element, v_stride = call->v_stride * element;
    if (call->dtype == RZ_FLOAT16)
        put_half_columns((uint16_t *)keys + slot, k, k_stride, rows, head_dim);
    else /* two neighbours of a key in bfloat16 stay neighbours: one word */
        put_columns((uint32_t *)keys + slot, k, k_stride, rows, head_dim * (int)element / 4);
    if (call->dtype == RZ_BFLOAT16)
        put_pairs((uint16_t *)values, slot, v, v_stride, rows, head_dim);
    else
        for (int r = 0; r < rows; r++)
            memcpy(values + (slot + r) * head_dim * element, v + r * v_stride, (size_t)(head_dim * element));
}

void rz_write_pages(const struct rz_attention *call)
{
    int64_t element = (int64_t)rz_element_bytes(call->dtype);
    for (int s = 0; s < call->sequences; s++) {
        int64_t end = call->query_start[s + 1], position = call->context_len[s] - (end - call->query_start[s]);
        for (int64_t row = call->query_start[s]; row < end;) {
            int slot = (int)(position % RZ_BLOCK);
            int rows = end - row < RZ_BLOCK - slot ? (int)(end - row) : RZ_BLOCK - slot;
            int32_t block = call->block_table[(int64_t)s * call->table_width + position / RZ_BLOCK];
            for (int head = 0; head < call->kv_heads; head++)
                write_page(call, rz_page(call, 0, block, head), rz_page(call, 1, block, head), slot,
                           (const char *)call->k + (row * call->k_stride + head * call->head_dim) * element,
                           (const char *)call->v + (row * call->v_stride + head * call->head_dim) * element, rows);
            row += rows;
            position += rows;
        }
    }
}
