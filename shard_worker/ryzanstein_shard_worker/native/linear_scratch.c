/* Memory that products need beside their operands: see linear.h. */
#include <pthread.h>
#include <stdlib.h>

#include "linear.h"

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

struct scratch {
    size_t bytes;
    char *at;
};

static void free_scratch(void *held)
{
    free(((struct scratch *)held)->at);
    free(held);
}

static void make_key(void) { pthread_key_create(&scratch_key, free_scratch); }

char *rz_linear_scratch(size_t bytes)
{
    pthread_once(&scratch_once, make_key);
    struct scratch *held = pthread_getspecific(scratch_key);
    if (!held) {
        held = calloc(1, sizeof *held);
        if (!held)
            return NULL;
        pthread_setspecific(scratch_key, held);
    }
    if (held->bytes < bytes) {
        free(held->at);
        held->bytes = 0;
        held->at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        if (!held->at)
            return NULL;
        held->bytes = bytes;
    }
    return held->at;
}
