/* Paged attention on CPU: the entry that attention.py calls, and the split over threads. */
#include <pthread.h>
#include <stdatomic.h>

#include "attention.h"

enum {
    THREADS_MAX = 64,
    /* Multiply-adds that pay for starting threads: about 100 us of one core. */
    THREADED_WORK_MIN = 4000000,
};

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
    int64_t work_done = 0, enough = THREADED_WORK_MIN;
    for (int s = 0; s < call->sequences; s++)
        work_done += (int64_t)(call->query_start[s + 1] - call->query_start[s]) * call->context_len[s];
    work_done *= 2 * (int64_t)call->heads * call->head_dim;
    if (rz_attention_level(call->isa, call->dtype, call->head_dim) == RZ_AMX)
        enough *= 4; /* it does them in a fourth of the time */
    int threads = call->threads < THREADS_MAX ? call->threads : THREADS_MAX;
    return work_done < enough ? 1 : threads;
}

/* Writes the new keys and values into the pages, then computes the attention of every row of the batch.
 * The indices must stay inside of the pages and of each other (StepLayout.check in kv_pool.py looks). Threads are
 * started for the call and joined: nothing outlives it. */
RZ_EXPORT void rz_paged_attention(const struct rz_attention *call)
{
    struct job job = {.call = call, .attend = rz_attention_kernel(call)};
    pthread_t helpers[THREADS_MAX];
    int started = 0;
    rz_write_pages(call);
    for (int wanted = threads_for(call) - 1; started < wanted; started++)
        if (pthread_create(&helpers[started], NULL, work, &job) != 0)
            break; /* out of threads: fewer do the same work */
    work(&job);
    for (int i = 0; i < started; i++)
        pthread_join(helpers[i], NULL);
}
