/* The entries of norms, rotations and the gate that elementwise.py calls: each finds the level of instructions.
 * `level` is the highest that may be used (0 baseline, 1 AVX2, 2 AVX-512), so that tests can compare them. */
#include "elementwise.h"

#if defined(__x86_64__)
static int usable(int level)
{
    __builtin_cpu_init();
    if (level > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return 2;
    return level > 0 && __builtin_cpu_supports("avx2");
}
#define CALL(function, ...)                                                                                            \
    switch (usable(level)) {                                                                                           \
    case 2:                                                                                                            \
        function##_avx512(__VA_ARGS__);                                                                                \
        break;                                                                                                         \
    case 1:                                                                                                            \
        function##_avx2(__VA_ARGS__);                                                                                  \
        break;                                                                                                         \
    default:                                                                                                           \
        function##_baseline(__VA_ARGS__);                                                                              \
    }
#else
#define CALL(function, ...) (void)level, function##_baseline(__VA_ARGS__);
#endif

RZ_EXPORT void rz_add_rms_norm(int32_t dtype, int32_t level, void *out, void *sum, const void *x, const void *delta,
                               const void *weight, int64_t rows, int64_t n, float eps)
{
    CALL(rz_add_rms_norm, dtype, out, sum, x, delta, weight, rows, n, eps)
}

RZ_EXPORT void rz_rotate_heads(int32_t dtype, int32_t level, void *heads, int64_t rows, int64_t stride,
                               int64_t queries, int64_t keys, int64_t dim, const void *cosine, const void *sine,
                               const void *query_weight, const void *key_weight, float eps)
{
    CALL(rz_rotate_heads, dtype, heads, rows, stride, queries, keys, dim, cosine, sine, query_weight, key_weight, eps)
}

RZ_EXPORT void rz_swiglu(int32_t dtype, int32_t level, void *out, const void *gate_up, int64_t rows, int64_t n)
{
    CALL(rz_swiglu, dtype, out, gate_up, rows, n)
}

RZ_EXPORT void rz_quantize_rows(int32_t dtype, int32_t level, int8_t *out, float *scales, const void *x, int64_t rows,
                                int64_t n)
{
    CALL(rz_quantize_rows, dtype, out, scales, x, rows, n)
}

RZ_EXPORT void rz_rescale_rows(int32_t dtype, int32_t level, void *out, const float *y, const float *scales,
                               const void *bias, int64_t rows, int64_t n)
{
    CALL(rz_rescale_rows, dtype, out, y, scales, bias, rows, n)
}
