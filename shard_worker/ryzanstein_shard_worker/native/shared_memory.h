/* A segment of memory that the ranks of one group on one host share, and how they wait for each other in it.
 *
 * Layout: struct rz_segment, then per rank its `posted` line, the ring's lines, per ordered pair of ranks two lines,
 * then the data: two slots per rank, the ring, one buffer per ordered pair. A line is written by one rank and read
 * by the others. */
#ifndef RYZANSTEIN_SHARED_MEMORY_H
#define RYZANSTEIN_SHARED_MEMORY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define RZ_EXPORT __attribute__((visibility("default")))

enum {
    RZ_LINE = 128, /* two cache lines: the prefetcher fetches them in pairs */
    RZ_MAX_WORLD = 64,
    RZ_MAGIC = 0x525a5331,
};

/* Mirrored by DTYPES in shared_memory.py. */
enum rz_sum_dtype { RZ_SUM_F32 = 0, RZ_SUM_F64, RZ_SUM_BF16, RZ_SUM_F16, RZ_SUM_I32, RZ_SUM_I64 };

/* Why a group is broken. Mirrored by Verdict in shared_memory.py. */
enum rz_verdict {
    RZ_FINE = 0,
    RZ_ABORTED = 1,
    RZ_PEER_DEAD = 2,
    RZ_PEER_LATE = 3,
    RZ_DIVERGED = 4,
    RZ_NON_FINITE = 5, /* what the peer gave to a sum holds NaN or infinity */
};

/* A number that only grows (and wraps) and that others wait for. */
struct rz_counter {
    _Atomic uint32_t value;
    _Atomic uint32_t waiters; /* asleep on `value`, or about to be */
    /* What the rank is doing, one per parity of its slots: compared, so that ranks that have diverged say so. */
    _Atomic uint64_t doing[2];
    char pad[RZ_LINE - 24];
};

struct rz_segment {
    uint32_t magic;
    uint32_t world;
    uint32_t slot_bytes;
    uint32_t ring_bytes;
    uint32_t pair_bytes;
    /* kind | peer << 8 | reporter << 20; the first one counts and stays. */
    _Atomic uint32_t verdict;
    char pad[RZ_LINE - 24];
};

/* One rank's view; private to its process. */
struct rz_group {
    struct rz_segment *segment;
    size_t bytes;
    uint32_t rank, world;
    uint32_t slot_bytes, ring_bytes, pair_bytes;
    struct rz_counter *posted;    /* [world] */
    struct rz_counter *ring_head; /* bytes that the leader wrote */
    struct rz_counter *ring_tail; /* [world] bytes that each rank took */
    struct rz_counter *filled;    /* [world * world] source * world + target */
    struct rz_counter *emptied;   /* [world * world] */
    char *slots;                  /* [world][2][slot_bytes] */
    char *ring;
    char *pairs; /* [world * world][pair_bytes] */
    int64_t timeout_ns;
    int64_t spin_ns, yield_ns; /* busy, then giving way, before sleeping */
    uint32_t round;            /* exchanges of slots so far; its parity is the slot in use */
    uint32_t ring_written;     /* what the leader wrote into the ring, published or not */
    int stat_fd[RZ_MAX_WORLD]; /* of /proc/PID/stat, -1: not watched */
};

/* out[i] = ((rows[0][i] + rows[1][i]) + rows[2][i]) + ..., half precisions in float32 with one rounding at the end.
 * `out` may be one of the rows. */
void rz_rank_sum(void *out, const char *const *rows, uint32_t world, size_t count, enum rz_sum_dtype dtype);

/* Copies count elements, unless `to` is NULL. Whether NaN or infinity is among them. */
int rz_copy_finite(void *to, const void *from, size_t count, enum rz_sum_dtype dtype);

size_t rz_sum_width(enum rz_sum_dtype dtype);

int64_t rz_now_ns(void);

/* The first verdict stays; wakes everyone who sleeps. */
void rz_break(struct rz_group *group, enum rz_verdict kind, uint32_t peer);

/* kind | peer << 8 | reporter << 20; 0: fine. */
uint32_t rz_group_verdict(const struct rz_group *group);

/* Publishes a counter's new value. */
void rz_post(struct rz_counter *counter, uint32_t value);

/* Waits until `counter`, which belongs to rank `owner`, has reached `target`. 0, or -1: the group is broken. */
int rz_wait(struct rz_group *group, struct rz_counter *counter, uint32_t target, uint32_t owner, int64_t timeout_ns);

#endif
