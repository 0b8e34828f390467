/* Products of a few or many rows with one weight in bfloat16, for CPUs with AMX. */
#ifndef RYZANSTEIN_LINEAR_H
#define RYZANSTEIN_LINEAR_H

#include "attention.h" /* RZ_EXPORT, RZ_HIDDEN, RZ_HAS_AMX */

/* y [rows, out_features] = x [rows, in_features] @ weight.T + bias, of numbers in bfloat16, rounded once.
 *
 * The weight lies in tiles [groups][in_features / 32][2][16][16][2]: a group of 32 features, 32 inputs of these, then
 * 16 features as the second operand of TDPBF16PS: 16 rows of a pair of inputs of each feature. What is missing of the
 * last group is 0. in_features is a multiple of 32.
 *
 * A row's bits depend on that row only: its sums are taken over the inputs in order, however many rows there are. */
struct rz_linear {
    uint16_t *out; /* contiguous */
    const uint16_t *x;
    const uint16_t *tiles; /* at a multiple of 64 bytes */
    const uint16_t *bias;  /* NULL: none */
    int64_t x_stride;      /* elements from row to row */
    int64_t rows, out_features, in_features;
};

enum { RZ_LINEAR_GROUP = 32, RZ_LINEAR_STEP = 32 /* inputs of one product of tiles */ };

int32_t rz_attention_isa(void);

/* Memory of this thread at a multiple of 4096 bytes, at least so large, as long as the thread lives; NULL: there is none.
 * Every product of the thread uses the same. */
RZ_HIDDEN char *rz_linear_scratch(size_t bytes);

RZ_HIDDEN void rz_linear_amx(const struct rz_linear *call, char *scratch);
RZ_HIDDEN size_t rz_linear_scratch_bytes(const struct rz_linear *call);
RZ_HIDDEN void rz_linear_tile_amx(uint16_t *tiles, const uint16_t *weight, int64_t out_features, int64_t in_features);
RZ_HIDDEN void rz_linear_untile_amx(uint16_t *weight, const uint16_t *tiles, int64_t out_features,
                                    int64_t in_features);

#endif
