/* Paged attention on CPU: what the entry (attention.c), its parts and the kernels of each ISA level share. */
#ifndef RYZANSTEIN_ATTENTION_H
#define RYZANSTEIN_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#define RZ_HIDDEN __attribute__((visibility("hidden")))
#define RZ_EXPORT __attribute__((visibility("default")))

enum {
    RZ_BLOCK = 16,         /* tokens of a page */
    RZ_HEAD_DIM_MAX = 256, /* bounds the scratch on the stack */
    RZ_TILE_ROWS = 96,     /* query rows that share one conversion of a chunk of keys and values to float */
};

/* Mirrored by DTYPES in attention.py. */
enum rz_dtype { RZ_FLOAT32 = 0, RZ_BFLOAT16 = 1, RZ_FLOAT16 = 2 };

/* Mirrored by Isa in attention.py; a CPU with a higher one has the lower ones. AVX512BF16 and AMX have kernels for
 * bfloat16 only. */
enum rz_isa { RZ_BASELINE = 0, RZ_AVX2 = 1, RZ_AVX512 = 2, RZ_AVX512BF16 = 3, RZ_AMX = 4 };

/* What the compiler can make: gcc knows AVX512-BF16 since 10 and AMX since 11, clang since 9 and 12. */
#if defined(__x86_64__) && defined(__clang__)
#define RZ_HAS_AVX512BF16 (__clang_major__ >= 9)
#define RZ_HAS_AMX (__clang_major__ >= 12)
#elif defined(__x86_64__)
#define RZ_HAS_AVX512BF16 (__GNUC__ >= 10)
#define RZ_HAS_AMX (__GNUC__ >= 11)
#else
#define RZ_HAS_AVX512BF16 0
#define RZ_HAS_AMX 0
#endif

/* One layer's attention over one step's batch; mirrored by Call in attention.py.
 *
 * q [T, heads, head_dim], k and v [T, kv_heads, head_dim] may be slices of wider rows: `*_stride` counts elements
 * from row to row. out [T, heads, head_dim] is contiguous. Rows query_start[s] to query_start[s + 1] belong to
 * sequence s and are its last tokens; context_len[s] counts its tokens with them.
 *
 * pages [2, num_blocks, kv_heads, head_dim * RZ_BLOCK] is this layer's part of the pool. A page holds the matrix
 * [head_dim][RZ_BLOCK] of keys (transposed: lanes of the kernel are tokens) or [RZ_BLOCK][head_dim] of values
 * (lanes are dimensions). For bfloat16, rows 2n and 2n + 1 of either matrix are interleaved element by element:
 * one 32-bit lane then holds both, and widening them to float is a shift and a mask. It is also the order in which
 * instructions that multiply pairs of bfloat16 want their second operand. */
struct rz_attention {
    void *out;
    const void *q, *k, *v;
    void *pages;
    const int32_t *query_start; /* [sequences + 1] */
    const int32_t *context_len; /* [sequences] */
    const int32_t *block_table; /* [sequences, table_width] */
    int64_t q_stride, k_stride, v_stride;
    int64_t num_blocks;
    int32_t sequences, table_width;
    int32_t heads, kv_heads, head_dim;
    int32_t dtype;
    int32_t window; /* a key is seen when key position > query position - window; 0: no window */
    int32_t threads;
    int32_t isa;
    float scale; /* of the scores, before the softmax; above 0 */
};

static inline size_t rz_element_bytes(int dtype) { return dtype == RZ_FLOAT32 ? 4 : 2; }

/* The page of `block` for `kv_head`: keys, or values when `is_value`. */
static inline char *rz_page(const struct rz_attention *call, int is_value, int32_t block, int kv_head)
{
    int64_t index = (is_value * call->num_blocks + block) * call->kv_heads + kv_head;
    return (char *)call->pages + (size_t)index * call->head_dim * RZ_BLOCK * rz_element_bytes(call->dtype);
}

/* Attention of rows [row_begin, row_end) of one sequence and kv head, RZ_TILE_ROWS at most. Row i is query token
 * i / group of this step, query head kv_head * group + i % group, where group = heads / kv_heads. */
typedef void rz_attend_tile(const struct rz_attention *call, int sequence, int kv_head, int row_begin, int row_end);

RZ_HIDDEN rz_attend_tile rz_attend_baseline;
RZ_HIDDEN rz_attend_tile rz_attend_avx2;
RZ_HIDDEN rz_attend_tile rz_attend_avx512;
RZ_HIDDEN rz_attend_tile rz_attend_avx512bf16;
RZ_HIDDEN rz_attend_tile rz_attend_amx;

/* The level of the kernel for such heads where `isa` is the highest allowed. */
RZ_EXPORT int32_t rz_attention_level(int32_t isa, int32_t dtype, int32_t head_dim);

/* The kernel for a call: of that level. */
RZ_HIDDEN rz_attend_tile *rz_attention_kernel(const struct rz_attention *call);

/* Puts the step's new keys and values into their pages. */
RZ_HIDDEN void rz_write_pages(const struct rz_attention *call);

#endif
