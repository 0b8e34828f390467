/* What lies between the matrix products of a transformer layer: norms, rotations, the gate. One pass over memory
 * each, and one call, where a tensor library makes several. elementwise.c chooses among the levels of instructions. */
#ifndef RYZANSTEIN_ELEMENTWISE_H
#define RYZANSTEIN_ELEMENTWISE_H

#include <stdint.h>

#define RZ_HIDDEN __attribute__((visibility("hidden")))
#define RZ_EXPORT __attribute__((visibility("default")))

/* Mirrored by DTYPES in elementwise.py. */
enum rz_elementwise_dtype { RZ_ELEMENTWISE_F32 = 0, RZ_ELEMENTWISE_BF16 = 1 };

/* out [rows, n] = norm(x) * weight; with `delta`, sum [rows, n] = x + delta, rounded, is kept (it may be x) and
 * normalised instead. */
typedef void rz_add_rms_norm_function(int dtype, void *out, void *sum, const void *x, const void *delta,
                                      const void *weight, int64_t rows, int64_t n, float eps);

/* In place on the first queries + keys heads [dim] of every row, `stride` elements from row to row: normalised where
 * there are weights [dim], then turned by cosine and sine [rows, dim], the sine negative in the first half. */
typedef void rz_rotate_heads_function(int dtype, void *heads, int64_t rows, int64_t stride, int64_t queries,
                                      int64_t keys, int64_t dim, const void *cosine, const void *sine,
                                      const void *query_weight, const void *key_weight, float eps);

/* out [rows, n] = silu(gate) * up, of gate_up [rows, 2 n]. */
typedef void rz_swiglu_function(int dtype, void *out, const void *gate_up, int64_t rows, int64_t n);

/* out [rows, n] = x / scale, rounded to nearest, ties to even; scales [rows] = largest absolute value / 127. */
typedef void rz_quantize_rows_function(int dtype, int8_t *out, float *scales, const void *x, int64_t rows, int64_t n);

/* out [rows, n] = y * scales [rows] + bias [n], rounded once; without a bias where there is none. */
typedef void rz_rescale_rows_function(int dtype, void *out, const float *y, const float *scales, const void *bias,
                                      int64_t rows, int64_t n);

#define RZ_ELEMENTWISE_LEVEL(level)                                                                                    \
    RZ_HIDDEN rz_add_rms_norm_function rz_add_rms_norm_##level;                                                        \
    RZ_HIDDEN rz_rotate_heads_function rz_rotate_heads_##level;                                                        \
    RZ_HIDDEN rz_swiglu_function rz_swiglu_##level;                                                                    \
    RZ_HIDDEN rz_quantize_rows_function rz_quantize_rows_##level;                                                      \
    RZ_HIDDEN rz_rescale_rows_function rz_rescale_rows_##level;
RZ_ELEMENTWISE_LEVEL(baseline)
RZ_ELEMENTWISE_LEVEL(avx2)
RZ_ELEMENTWISE_LEVEL(avx512)

#endif
