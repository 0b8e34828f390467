/* Products of rows of 8-bit integers with one weight of such, for CPUs with AMX. */
#ifndef RYZANSTEIN_INT8_LINEAR_H
#define RYZANSTEIN_INT8_LINEAR_H

#include "attention.h" /* RZ_EXPORT, RZ_HIDDEN, RZ_HAS_AMX */

/* out [rows, out_features] = float(x @ weight.T) * feature_scales * row_scales + bias, in this order in float32, rounded
 * once. The sums are of 32 bits, and exact.
 *
 * The weight lies in tiles [groups][in_features / 64][2][16][16][4]: a group of 32 features, 64 inputs of these, then 16
 * features as the second operand of TDPBSSD: 16 rows of four inputs of each feature. What is missing of the last group
 * is 0. in_features is a multiple of 64. */
struct rz_int8_linear {
    void *out;           /* contiguous, of `dtype` */
    const int8_t *x;
    const int8_t *tiles; /* at a multiple of 64 bytes */
    const float *row_scales;
    const float *feature_scales;
    const void *bias; /* of `dtype`; NULL: none */
    int64_t x_stride; /* elements from row to row */
    int64_t rows, out_features, in_features;
    int32_t dtype; /* enum rz_elementwise_dtype */
};

enum { RZ_INT8_GROUP = 32, RZ_INT8_STEP = 64 /* inputs of one product of tiles */ };

int32_t rz_attention_isa(void);

RZ_HIDDEN void rz_int8_linear_amx(const struct rz_int8_linear *call, char *scratch);
RZ_HIDDEN size_t rz_int8_linear_scratch_bytes(const struct rz_int8_linear *call);

#endif
