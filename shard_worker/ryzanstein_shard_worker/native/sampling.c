/* The draw of one token: the maximum of logit / temperature plus Gumbel noise, as philox.py and sampling.py define it.
 *
 * Noise is a growing function of 24 random bits, and costs two logarithms. Most tokens can't win whatever their lower
 * bits are: a table by the upper bits bounds the noise from above, and only those that might win are computed. */
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

enum {
    TOGETHER = 64, /* counters whose words are computed at once */
    TABLE_BITS = 10,
};

static float highest[1 << TABLE_BITS]; /* noise of the largest number with these upper bits */
static pthread_once_t highest_once = PTHREAD_ONCE_INIT;

/* -log(-log(u)) for u = (bits + 1/2) / 2^24. */
static float noise_of(uint32_t bits) { return (float)-log(-log(((double)bits + 0.5) * 0x1p-24)); }

static void fill_highest(void)
{
    for (uint32_t upper = 0; upper < 1 << TABLE_BITS; upper++)
        highest[upper] = noise_of(((upper + 1) << (24 - TABLE_BITS)) - 1);
}

/* The upper 24 bits of the first word of Philox4x32-10 (Salmon et al., SC 2011) for each counter
 * (ids[j], position, choice, 0). */
INLINE void random_bits(uint32_t *bits, const uint32_t *ids, uint32_t position, uint32_t choice, uint64_t seed)
{
    uint32_t c0[TOGETHER], c1[TOGETHER], c2[TOGETHER], c3[TOGETHER];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int j = 0; j < TOGETHER; j++) {
        c0[j] = ids[j];
        c1[j] = position;
        c2[j] = choice;
        c3[j] = 0;
    }
    for (int round = 0; round < 10; round++) { /* counters inside: a loop that the compiler makes vectors of */
        for (int j = 0; j < TOGETHER; j++) {
            uint64_t first = (uint64_t)c0[j] * 0xD2511F53u, second = (uint64_t)c2[j] * 0xCD9E8D57u;
            c0[j] = (uint32_t)(second >> 32) ^ c1[j] ^ k0;
            c1[j] = (uint32_t)second;
            c2[j] = (uint32_t)(first >> 32) ^ c3[j] ^ k1;
            c3[j] = (uint32_t)first;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int j = 0; j < TOGETHER; j++)
        bits[j] = c0[j] >> 8;
}

INLINE int64_t draw(const float *logits, const int64_t *ids, int64_t count, float temperature, uint64_t seed,
                    uint32_t choice, uint32_t position)
{
    uint32_t counters[TOGETHER], bits[TOGETHER];
    float scaled[TOGETHER], best = -INFINITY;
    int64_t winner = 0;
    for (int64_t at = 0; at < count; at += TOGETHER) {
        int n = (int)(count - at < TOGETHER ? count - at : TOGETHER);
        for (int j = 0; j < TOGETHER; j++)
            counters[j] = (uint32_t)(ids && j < n ? ids[at + j] : at + j);
        random_bits(bits, counters, position, choice, seed);
        for (int j = 0; j < n; j++)
            scaled[j] = logits[at + j] / temperature;
        for (int j = 0; j < n; j++) {
            /* Rounding keeps order: what is not above the best with the highest noise is not with its own. */
            if (!(scaled[j] + highest[bits[j] >> (24 - TABLE_BITS)] > best))
                continue;
            float value = scaled[j] + noise_of(bits[j]);
            if (value > best) {
                best = value;
                winner = at + j;
            }
        }
    }
    return winner;
}

#if defined(__x86_64__)
/* The same loops, compiled for more lanes. */
#define DRAW_FOR(NAME, TARGET)                                                                                        \
    __attribute__((target(TARGET))) static int64_t NAME(const float *logits, const int64_t *ids, int64_t count,       \
                                                        float temperature, uint64_t seed, uint32_t choice,            \
                                                        uint32_t position)                                            \
    {                                                                                                                 \
        return draw(logits, ids, count, temperature, seed, choice, position);                                         \
    }
DRAW_FOR(draw_avx2, "avx2")
DRAW_FOR(draw_avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx2,prefer-vector-width=512")
#endif

/* logits [count], of these token ids, or of ids 0, 1, .. where `ids` is NULL: the place of the
 * first of the largest logits[i] / temperature + noise(ids[i]). */
EXPORT int64_t rz_draw(const float *logits, const int64_t *ids, int64_t count, float temperature, uint64_t seed,
                       uint32_t choice, uint32_t position)
{
    pthread_once(&highest_once, fill_highest);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return draw_avx512(logits, ids, count, temperature, seed, choice, position);
    if (__builtin_cpu_supports("avx2"))
        return draw_avx2(logits, ids, count, temperature, seed, choice, position);
#endif
    return draw(logits, ids, count, temperature, seed, choice, position);
}
