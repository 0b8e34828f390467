/* What lies between the matrix products of a transformer layer: norms, rotations, the gate. One pass over memory
 * each, and one call, where a tensor library makes several.
 *
 * Exactness: an output row is computed from its own input row by the same operations in the same order, whatever the
 * number of rows. Products are never contracted with sums, so every level of instructions gives the same bits. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define RZ_EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
/* An element is stored only after the elements that it is made of were loaded. */
#define INDEPENDENT _Pragma("GCC ivdep")

enum { LANES = 64 }; /* partial sums of a row: more than any CPU has lanes, so that their order is the same on all */

/* Mirrored by DTYPES in elementwise.py. */
enum rz_elementwise_dtype { RZ_ELEMENTWISE_F32 = 0, RZ_ELEMENTWISE_BF16 = 1 };

INLINE float same(float value) { return value; }

INLINE float from_bf16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

INLINE uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
}

/* e^x to about 1 unit in the last place (Cephes expf) for |x| up to 87.3, beyond which, and for NaN, it is that of
 * the bound. Without branches on floats, which compilers don't turn into vectors. */
INLINE float exponential(float x)
{
    int32_t bits, magnitude;
    memcpy(&bits, &x, 4);
    magnitude = bits & 0x7fffffff;
    magnitude = magnitude > 0x42aea8f6 ? 0x42aea8f6 : magnitude; /* 87.33 */
    bits = (bits & (int32_t)0x80000000) | magnitude;
    memcpy(&x, &bits, 4);
    float shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to an integer */
    float n = shifted - 12582912.0f;
    x = x - n * 0.693359375f;
    x = x - n * -2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * (x * x) + x + 1.0f;
    uint32_t power;
    memcpy(&power, &shifted, 4);
    power = (power - 0x4b400000u + 127u) << 23;
    float scale;
    memcpy(&scale, &power, 4);
    return y * scale;
}

/* The functions of one stored type. WIDEN: stored to float; ROUND: float to stored. */
#define ELEMENTWISE(SUFFIX, STORED, WIDEN, ROUND)                                                                     \
    INLINE float inverse_rms_##SUFFIX(const STORED *x, int64_t n, float eps)                                          \
    {                                                                                                                 \
        float sums[LANES] = {0};                                                                                      \
        int64_t i = 0;                                                                                                \
        for (; i + LANES <= n; i += LANES)                                                                            \
            for (int lane = 0; lane < LANES; lane++) {                                                                \
                float value = WIDEN(x[i + lane]);                                                                     \
                sums[lane] += value * value;                                                                          \
            }                                                                                                         \
        for (int lane = 0; i < n; i++, lane++) {                                                                      \
            float value = WIDEN(x[i]);                                                                                \
            sums[lane] += value * value;                                                                              \
        }                                                                                                             \
        for (int width = LANES / 2; width > 0; width /= 2)                                                            \
            for (int lane = 0; lane < width; lane++)                                                                  \
                sums[lane] += sums[lane + width];                                                                     \
        return 1.0f / sqrtf(sums[0] / (float)n + eps);                                                                \
    }                                                                                                                 \
                                                                                                                      \
    INLINE void add_rms_norm_##SUFFIX(void *out_, void *sum_, const void *x_, const void *delta_,                     \
                                      const void *weight_, int64_t rows, int64_t n, float eps)                        \
    {                                                                                                                 \
        const STORED *weight = weight_;                                                                               \
        for (int64_t row = 0; row < rows; row++) {                                                                    \
            STORED *out = (STORED *)out_ + row * n;                                                                   \
            const STORED *x = (const STORED *)x_ + row * n;                                                           \
            if (delta_) {                                                                                             \
                STORED *sum = (STORED *)sum_ + row * n;                                                               \
                const STORED *delta = (const STORED *)delta_ + row * n;                                               \
                INDEPENDENT for (int64_t i = 0; i < n; i++) sum[i] = ROUND(WIDEN(x[i]) + WIDEN(delta[i]));            \
                x = sum;                                                                                              \
            }                                                                                                         \
            float scale = inverse_rms_##SUFFIX(x, n, eps);                                                            \
            INDEPENDENT for (int64_t i = 0; i < n; i++) out[i] = ROUND(WIDEN(x[i]) * scale * WIDEN(weight[i]));       \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    INLINE void rotate_head_##SUFFIX(STORED *x, const STORED *cosine, const STORED *sine, int64_t half)               \
    {                                                                                                                 \
        INDEPENDENT for (int64_t i = 0; i < half; i++)                                                                \
        {                                                                                                             \
            float a = WIDEN(x[i]), b = WIDEN(x[i + half]);                                                            \
            x[i] = ROUND(a * WIDEN(cosine[i]) + b * WIDEN(sine[i]));                                                  \
            x[i + half] = ROUND(b * WIDEN(cosine[i + half]) + a * WIDEN(sine[i + half]));                             \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    INLINE void normalise_head_##SUFFIX(STORED *x, const STORED *weight, int64_t n, float eps)                        \
    {                                                                                                                 \
        float scale = inverse_rms_##SUFFIX(x, n, eps);                                                                \
        INDEPENDENT for (int64_t i = 0; i < n; i++) x[i] = ROUND(WIDEN(x[i]) * scale * WIDEN(weight[i]));             \
    }                                                                                                                 \
                                                                                                                      \
    INLINE void rotate_heads_##SUFFIX(void *rows_, int64_t rows, int64_t stride, int64_t queries, int64_t keys,       \
                                      int64_t dim, const void *cosine, const void *sine, const void *query_weight,    \
                                      const void *key_weight, float eps)                                              \
    {                                                                                                                 \
        for (int64_t row = 0; row < rows; row++)                                                                      \
            for (int64_t head = 0; head < queries + keys; head++) {                                                   \
                STORED *x = (STORED *)rows_ + row * stride + head * dim;                                              \
                const STORED *weight = head < queries ? query_weight : key_weight;                                    \
                if (weight)                                                                                           \
                    normalise_head_##SUFFIX(x, weight, dim, eps);                                                     \
                rotate_head_##SUFFIX(x, (const STORED *)cosine + row * dim, (const STORED *)sine + row * dim,         \
                                     dim / 2);                                                                        \
            }                                                                                                         \
    }                                                                                                                 \
                                                                                                                      \
    INLINE void swiglu_##SUFFIX(void *out_, const void *gate_up_, int64_t rows, int64_t n)                            \
    {                                                                                                                 \
        for (int64_t row = 0; row < rows; row++) {                                                                    \
            STORED *out = (STORED *)out_ + row * n;                                                                   \
            const STORED *gate = (const STORED *)gate_up_ + row * 2 * n, *up = gate + n;                              \
            INDEPENDENT for (int64_t i = 0; i < n; i++)                                                               \
            {                                                                                                         \
                float value = WIDEN(gate[i]);                                                                         \
                out[i] = ROUND(value / (1.0f + exponential(-value)) * WIDEN(up[i]));                                  \
            }                                                                                                         \
        }                                                                                                             \
    }

ELEMENTWISE(f32, float, same, same)
ELEMENTWISE(bf16, uint16_t, from_bf16, to_bf16)

/* Compiles NAME for every level of instructions and exports it. PARAMETERS begin with dtype and level, the highest
 * level that may be used (0 baseline, 1 AVX2, 2 AVX-512), so that tests can compare them. */
#define BY_DTYPE(NAME, ARGUMENTS)                                                                                     \
    if (dtype == RZ_ELEMENTWISE_BF16)                                                                                 \
        NAME##_bf16 ARGUMENTS;                                                                                        \
    else                                                                                                              \
        NAME##_f32 ARGUMENTS;
#if defined(__x86_64__)
#define AVX512 "avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"
#define EXPORT(NAME, PARAMETERS, ARGUMENTS)                                                                           \
    __attribute__((target("avx2"))) static void NAME##_avx2 PARAMETERS { BY_DTYPE(NAME, ARGUMENTS) }                  \
    __attribute__((target(AVX512))) static void NAME##_avx512 PARAMETERS { BY_DTYPE(NAME, ARGUMENTS) }                \
    static void NAME##_baseline PARAMETERS { BY_DTYPE(NAME, ARGUMENTS) }                                              \
    RZ_EXPORT void rz_##NAME PARAMETERS
#define CALL(NAME, ...)                                                                                               \
    {                                                                                                                 \
        __builtin_cpu_init();                                                                                         \
        if (level > 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                   \
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))                                 \
            NAME##_avx512(dtype, level, __VA_ARGS__);                                                                 \
        else if (level > 0 && __builtin_cpu_supports("avx2"))                                                         \
            NAME##_avx2(dtype, level, __VA_ARGS__);                                                                   \
        else                                                                                                          \
            NAME##_baseline(dtype, level, __VA_ARGS__);                                                               \
    }
#else
#define EXPORT(NAME, PARAMETERS, ARGUMENTS)                                                                           \
    static void NAME##_baseline PARAMETERS { BY_DTYPE(NAME, ARGUMENTS) }                                              \
    RZ_EXPORT void rz_##NAME PARAMETERS
#define CALL(NAME, ...) { NAME##_baseline(dtype, level, __VA_ARGS__); }
#endif

/* out [rows, n] = norm(x) * weight; with `delta`, sum [rows, n] = x + delta, rounded, is kept (it may be x) and
 * normalised instead. */
EXPORT(add_rms_norm,
       (int32_t dtype, int32_t level, void *out, void *sum, const void *x, const void *delta, const void *weight,
        int64_t rows, int64_t n, float eps),
       (out, sum, x, delta, weight, rows, n, eps))
CALL(add_rms_norm, out, sum, x, delta, weight, rows, n, eps)

/* In place on the first queries + keys heads [dim] of every row, `stride` elements from row to row: normalised where
 * there are weights [dim], then turned by cosine and sine [rows, dim], the sine negative in the first half. */
EXPORT(rotate_heads,
       (int32_t dtype, int32_t level, void *heads, int64_t rows, int64_t stride, int64_t queries, int64_t keys,
        int64_t dim, const void *cosine, const void *sine, const void *query_weight, const void *key_weight,
        float eps),
       (heads, rows, stride, queries, keys, dim, cosine, sine, query_weight, key_weight, eps))
CALL(rotate_heads, heads, rows, stride, queries, keys, dim, cosine, sine, query_weight, key_weight, eps)

/* out [rows, n] = silu(gate) * up, of gate_up [rows, 2 n]. */
EXPORT(swiglu, (int32_t dtype, int32_t level, void *out, const void *gate_up, int64_t rows, int64_t n),
       (out, gate_up, rows, n))
CALL(swiglu, out, gate_up, rows, n)
