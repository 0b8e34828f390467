/* Paged attention on CPU: the entries that attention.py calls, the writing of pages, and the split over threads. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "attention.h"

enum {
    THREADS_MAX = 64,
    /* Multiply-adds that pay for starting threads: about 100 us of one core. */
    THREADED_WORK_MIN = 4000000,
};

static int cpu_isa(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            return RZ_AVX512;
        return RZ_AVX2;
    }
#endif
    return RZ_BASELINE;
}

/* The highest ISA level that this CPU and its operating system have. */
RZ_EXPORT int32_t rz_attention_isa(void) { return cpu_isa(); }

static rz_attend_tile *kernel_of(int isa)
{
#if defined(__x86_64__)
    int best = cpu_isa();
    isa = isa < best ? isa : best;
    if (isa == RZ_AVX512)
        return rz_attend_avx512;
    if (isa == RZ_AVX2)
        return rz_attend_avx2;
#endif
    (void)isa;
    return rz_attend_baseline;
}

/* Copies `count` elements of 2 or 4 bytes, `stride` elements apart at their destination. */
static void scatter(char *to, const char *from, int count, int stride, size_t element)
{
    if (stride == 1)
        memcpy(to, from, count * element);
    else if (element == 4)
        for (int i = 0; i < count; i++)
            memcpy(to + (size_t)i * stride * 4, from + (size_t)i * 4, 4);
    else
        for (int i = 0; i < count; i++)
            memcpy(to + (size_t)i * stride * 2, from + (size_t)i * 2, 2);
}

/* Puts the step's new keys and values into their pages. */
static void write_pages(const struct rz_attention *call)
{
    size_t element = rz_element_bytes(call->dtype);
    int head_dim = call->head_dim, paired = call->dtype == RZ_BFLOAT16;
    for (int s = 0; s < call->sequences; s++) {
        int64_t begin = call->query_start[s], end = call->query_start[s + 1];
        for (int64_t row = begin; row < end; row++) {
            int64_t position = call->context_len[s] - (end - row);
            int slot = (int)(position % RZ_BLOCK);
            int32_t block = call->block_table[(int64_t)s * call->table_width + position / RZ_BLOCK];
            for (int head = 0; head < call->kv_heads; head++) {
                const char *k = (const char *)call->k + (row * call->k_stride + head * head_dim) * element;
                const char *v = (const char *)call->v + (row * call->v_stride + head * head_dim) * element;
                char *keys = rz_page(call, 0, block, head), *values = rz_page(call, 1, block, head);
                if (paired) { /* two neighbours of a key stay neighbours: one 32-bit element */
                    scatter(keys + slot * 4, k, head_dim / 2, RZ_BLOCK, 4);
                    scatter(values + ((size_t)(slot / 2) * head_dim * 2 + slot % 2) * 2, v, head_dim, 2, 2);
                } else {
                    scatter(keys + slot * element, k, head_dim, RZ_BLOCK, element);
                    scatter(values + (size_t)slot * head_dim * element, v, head_dim, 1, element);
                }
            }
        }
    }
}

/* The tiles of a call, taken one by one by whichever thread is free: a tile's result doesn't depend on its thread. */
struct job {
    const struct rz_attention *call;
    rz_attend_tile *attend;
    atomic_long next;
};

static void *work(void *argument)
{
    struct job *job = argument;
    const struct rz_attention *call = job->call;
    int group = call->heads / call->kv_heads, sequence = 0;
    long before = 0; /* tiles of the sequences before `sequence` */
    for (;;) {
        long mine = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed);
        for (; sequence < call->sequences; sequence++) {
            int rows = (call->query_start[sequence + 1] - call->query_start[sequence]) * group;
            int tiles = (rows + RZ_TILE_ROWS - 1) / RZ_TILE_ROWS;
            if (mine < before + (long)tiles * call->kv_heads) {
                int begin = (int)((mine - before) % tiles) * RZ_TILE_ROWS;
                int end = begin + RZ_TILE_ROWS < rows ? begin + RZ_TILE_ROWS : rows;
                job->attend(call, sequence, (int)((mine - before) / tiles), begin, end);
                break;
            }
            before += (long)tiles * call->kv_heads;
        }
        if (sequence == call->sequences)
            return NULL;
    }
}

static int threads_for(const struct rz_attention *call)
{
    int64_t work_done = 0;
    for (int s = 0; s < call->sequences; s++)
        work_done += (int64_t)(call->query_start[s + 1] - call->query_start[s]) * call->context_len[s];
    work_done *= 2 * (int64_t)call->heads * call->head_dim;
    int threads = call->threads < THREADS_MAX ? call->threads : THREADS_MAX;
    return work_done < THREADED_WORK_MIN ? 1 : threads;
}

/* Writes the new keys and values into the pages, then computes the attention of every row of the batch.
 * The indices must stay inside of the pages and of each other (StepLayout.check in kv_pool.py looks). Threads are
 * started for the call and joined: nothing outlives it. */
RZ_EXPORT void rz_paged_attention(const struct rz_attention *call)
{
    struct job job = {.call = call, .attend = kernel_of(call->isa)};
    pthread_t helpers[THREADS_MAX];
    int started = 0;
    write_pages(call);
    for (int wanted = threads_for(call) - 1; started < wanted; started++)
        if (pthread_create(&helpers[started], NULL, work, &job) != 0)
            break; /* out of threads: fewer do the same work */
    work(&job);
    for (int i = 0; i < started; i++)
        pthread_join(helpers[i], NULL);
}
