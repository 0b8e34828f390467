/* The largest number of each row of logits, and whether all of a row is finite: one pass over them. */
#include <math.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 64,   /* partial results: loops over them become vectors */
    STRETCH = 16, /* times LANES: only in the one with the largest number is its place looked for */
};

INLINE float largest_of(const float *lanes)
{
    float largest = lanes[0];
    for (int lane = 1; lane < LANES; lane++)
        largest = lanes[lane] > largest ? lanes[lane] : largest;
    return largest;
}

INLINE int64_t find_row(const float *row, int64_t count, int32_t *finite)
{
    float spoiled[LANES] = {0}, best = -INFINITY;
    int64_t place = 0;
    for (int64_t at = 0; at < count; at += STRETCH * LANES) {
        int64_t end = at + STRETCH * LANES < count ? at + STRETCH * LANES : count, i = at;
        float lanes[LANES];
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] = -INFINITY;
        for (; i + LANES <= end; i += LANES)
            for (int lane = 0; lane < LANES; lane++) {
                float value = row[i + lane];
                lanes[lane] = value > lanes[lane] ? value : lanes[lane];
                spoiled[lane] += value * 0.0f; /* stays 0 while all are finite */
            }
        for (int lane = 0; i < end; i++, lane++) {
            lanes[lane] = row[i] > lanes[lane] ? row[i] : lanes[lane];
            spoiled[lane] += row[i] * 0.0f;
        }
        float largest = largest_of(lanes);
        if (largest > best) {
            best = largest;
            place = at;
        }
    }
    int good = 1;
    for (int lane = 0; lane < LANES; lane++)
        good &= spoiled[lane] == 0.0f;
    *finite = good;
    while (good && row[place] != best)
        place++;
    return place;
}

INLINE void find_rows(int64_t *places, int32_t *finite, const float *logits, int64_t rows, int64_t count,
                      int64_t stride)
{
    for (int64_t row = 0; row < rows; row++)
        places[row] = find_row(logits + row * stride, count, finite + row);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void find_rows_avx2(int64_t *places, int32_t *finite, const float *logits,
                                                           int64_t rows, int64_t count, int64_t stride)
{
    find_rows(places, finite, logits, rows, count, stride);
}
__attribute__((target("avx512f"))) static void find_rows_avx512(int64_t *places, int32_t *finite,
                                                                const float *logits, int64_t rows, int64_t count,
                                                                int64_t stride)
{
    find_rows(places, finite, logits, rows, count, stride);
}
#endif

/* logits [rows, count], rows `stride` apart → the place of the first of the largest of each row; of a row that is not
 * finite the place means nothing. count > 0. */
EXPORT void rz_greedy(int64_t *places, int32_t *finite, const float *logits, int64_t rows, int64_t count,
                      int64_t stride)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        find_rows_avx512(places, finite, logits, rows, count, stride);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        find_rows_avx2(places, finite, logits, rows, count, stride);
        return;
    }
#endif
    find_rows(places, finite, logits, rows, count, stride);
}
