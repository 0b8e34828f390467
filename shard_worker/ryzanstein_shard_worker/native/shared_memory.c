/* Mapping a group's segment, and waiting for each other in it: posts, deadlines, deaths, the verdict. */
#define _GNU_SOURCE
#include "shared_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    /* Flags of a process in /proc/PID/stat (include/linux/sched.h): it is exiting, dumping core, killed. Seen long
     * before the process is gone: a large one takes up to a second to give back its memory. */
    PF_GOING = 0x4 | 0x200 | 0x400,
    FIRST_NAP_NS = 1000000,
    LONGEST_NAP_NS = 16000000, /* between two looks at whether the others live */
};

int64_t rz_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void wake(struct rz_counter *counter)
{
    /* Not FUTEX_PRIVATE: the sleepers are other processes. */
    syscall(SYS_futex, &counter->value, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void rz_post(struct rz_counter *counter, uint32_t value)
{
    /* Sequentially consistent on both sides: either this sees the waiter or the waiter sees the value. */
    atomic_store(&counter->value, value);
    if (atomic_load(&counter->waiters))
        wake(counter);
}

static uint32_t counters_of(uint32_t world) { return 1 + 2 * world + 2 * world * world; }

void rz_break(struct rz_group *group, enum rz_verdict kind, uint32_t peer)
{
    uint32_t fine = RZ_FINE;
    atomic_compare_exchange_strong(&group->segment->verdict, &fine, (uint32_t)kind | peer << 8 | group->rank << 20);
    for (uint32_t i = 0; i < counters_of(group->world); i++)
        if (atomic_load(&group->posted[i].waiters)) /* `posted` is the first of all counters */
            wake(&group->posted[i]);
}

static int is_going(int stat_fd)
{
    char text[512];
    if (stat_fd < 0)
        return 0;
    ssize_t length = pread(stat_fd, text, sizeof text - 1, 0);
    if (length <= 0)
        return length == 0 || errno == ESRCH;
    text[length] = 0;
    /* pid (name) state ppid pgrp session tty tpgid flags: the name may hold anything, so from its last ")" on. */
    const char *rest = strrchr(text, ')');
    char state;
    unsigned flags;
    if (!rest || sscanf(rest + 1, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
        return 0;
    return state == 'Z' || state == 'X' || (flags & PF_GOING) != 0;
}

static int reached(uint32_t value, uint32_t target) { return (int32_t)(value - target) >= 0; }

/* Looks for a rank that is gone while it is still needed: of the counters beside `counter`, one per rank, those that
 * have not reached the target; or the one owner. */
static int find_dead(struct rz_group *group, struct rz_counter *counter, uint32_t target, uint32_t owner)
{
    int per_rank = counter == &group->posted[owner];
    for (uint32_t r = 0; r < group->world; r++)
        if (r == owner || (per_rank && !reached(atomic_load(&group->posted[r].value), target)))
            if (is_going(group->stat_fd[r]))
                return (int)r;
    return -1;
}

/* The rank that keeps the others waiting: the furthest behind, the owner among equals. A leader may itself be waiting
 * for a reader that leaves no room in the ring. */
static uint32_t latest(struct rz_group *group, struct rz_counter *counter, uint32_t owner)
{
    if (counter == group->ring_head)
        for (uint32_t r = 1; r < group->world; r++)
            if (atomic_load(&counter->value) - atomic_load(&group->ring_tail[r].value) == group->ring_bytes)
                return r;
    if (counter != &group->posted[owner])
        return owner;
    uint32_t last = owner, behind = atomic_load(&counter->value);
    for (uint32_t r = 0; r < group->world; r++) {
        uint32_t value = atomic_load(&group->posted[r].value);
        if ((int32_t)(value - behind) < 0) {
            last = r;
            behind = value;
        }
    }
    return last;
}

/* Sleeps until the counter changes from `seen`, somebody breaks the group, or the time is over. */
static void nap(struct rz_group *group, struct rz_counter *counter, uint32_t seen, int64_t nap_ns)
{
    struct timespec limit = {.tv_sec = nap_ns / 1000000000, .tv_nsec = nap_ns % 1000000000};
    atomic_fetch_add(&counter->waiters, 1);
    if (atomic_load(&counter->value) == seen && atomic_load(&group->segment->verdict) == RZ_FINE)
        syscall(SYS_futex, &counter->value, FUTEX_WAIT, seen, &limit, NULL, 0);
    atomic_fetch_sub(&counter->waiters, 1);
}

int rz_wait(struct rz_group *group, struct rz_counter *counter, uint32_t target, uint32_t owner, int64_t timeout_ns)
{
    _Atomic uint32_t *value = &counter->value, *verdict = &group->segment->verdict;
    if (reached(atomic_load_explicit(value, memory_order_acquire), target) && *verdict == RZ_FINE)
        return 0;
    int64_t start = rz_now_ns(), now = start, nap_ns = FIRST_NAP_NS;
    for (;;) {
        uint32_t seen = 0;
        for (int i = 0; i < 32; i++) {
            seen = atomic_load_explicit(value, memory_order_acquire);
            if (reached(seen, target) || atomic_load_explicit(verdict, memory_order_relaxed) != RZ_FINE)
                break;
            relax();
        }
        if (atomic_load(verdict) != RZ_FINE)
            return -1;
        if (reached(seen, target))
            return 0;
        now = rz_now_ns();
        if (now - start >= timeout_ns) {
            rz_break(group, RZ_PEER_LATE, latest(group, counter, owner));
            return -1;
        }
        if (now - start < group->spin_ns)
            continue;
        if (now - start < group->spin_ns + group->yield_ns) {
            sched_yield();
            continue;
        }
        int64_t left = timeout_ns - (now - start);
        nap(group, counter, seen, left < nap_ns ? left : nap_ns);
        if (nap_ns < LONGEST_NAP_NS)
            nap_ns *= 2;
        if (atomic_load(value) == seen) {
            int dead = find_dead(group, counter, target, owner);
            /* It may have done its part just before. */
            if (dead >= 0 && !reached(atomic_load(value), target)) {
                rz_break(group, RZ_PEER_DEAD, (uint32_t)dead);
                return -1;
            }
        }
    }
}

static size_t data_offset(uint32_t world) { return sizeof(struct rz_segment) + counters_of(world) * RZ_LINE; }

/* Bytes of a segment; the kernel gives memory only to what is touched. */
RZ_EXPORT size_t rz_segment_bytes(uint32_t world, uint32_t slot_bytes, uint32_t ring_bytes, uint32_t pair_bytes)
{
    return data_offset(world) + (size_t)world * 2 * slot_bytes + ring_bytes + (size_t)world * world * pair_bytes;
}

/* Maps the segment behind `fd` (which may be closed afterwards); rank 0 lays it out first. NULL with errno set:
 * EPROTO means that it is not the segment that was asked for. Sizes are powers of two. */
RZ_EXPORT struct rz_group *rz_group_open(int fd, uint32_t rank, uint32_t world, uint32_t slot_bytes,
                                         uint32_t ring_bytes, uint32_t pair_bytes)
{
    size_t bytes = rz_segment_bytes(world, slot_bytes, ring_bytes, pair_bytes);
    struct rz_group *group = calloc(1, sizeof *group);
    if (!group)
        return NULL;
    char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        free(group);
        return NULL;
    }
    struct rz_segment *segment = (struct rz_segment *)base;
    if (rank == 0)
        *segment = (struct rz_segment){.magic = RZ_MAGIC,
                                       .world = world,
                                       .slot_bytes = slot_bytes,
                                       .ring_bytes = ring_bytes,
                                       .pair_bytes = pair_bytes};
    if (segment->magic != RZ_MAGIC || segment->world != world || segment->slot_bytes != slot_bytes ||
        segment->ring_bytes != ring_bytes || segment->pair_bytes != pair_bytes) {
        munmap(base, bytes);
        free(group);
        errno = EPROTO;
        return NULL;
    }
    struct rz_counter *counters = (struct rz_counter *)(segment + 1);
    *group = (struct rz_group){
        .segment = segment,
        .bytes = bytes,
        .rank = rank,
        .world = world,
        .slot_bytes = slot_bytes,
        .ring_bytes = ring_bytes,
        .pair_bytes = pair_bytes,
        .posted = counters,
        .ring_head = counters + world,
        .ring_tail = counters + world + 1,
        .filled = counters + 2 * world + 1,
        .emptied = counters + 2 * world + 1 + world * world,
        .slots = base + data_offset(world),
    };
    group->ring = group->slots + (size_t)world * 2 * slot_bytes;
    group->pairs = group->ring + ring_bytes;
    for (uint32_t r = 0; r < world; r++)
        group->stat_fd[r] = -1;
    /* Its own slots are in memory before the first step needs them. */
    memset(group->slots + (size_t)rank * 2 * slot_bytes, 0, (size_t)2 * slot_bytes);
    return group;
}

/* Waits give up after timeout_ns without a sign of the other; they are busy for spin_ns, give way to other threads
 * for yield_ns more, then sleep. */
RZ_EXPORT void rz_group_tune(struct rz_group *group, int64_t timeout_ns, int64_t spin_ns, int64_t yield_ns)
{
    group->timeout_ns = timeout_ns;
    group->spin_ns = spin_ns;
    group->yield_ns = yield_ns;
}

/* Watches the process of a rank from now on. 0, or -1 with errno set. */
RZ_EXPORT int rz_group_watch(struct rz_group *group, uint32_t rank, int32_t pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    /* An open file stays with that process, also when its number is given to another one. */
    group->stat_fd[rank] = open(path, O_RDONLY | O_CLOEXEC);
    return group->stat_fd[rank] < 0 ? -1 : 0;
}

RZ_EXPORT void rz_group_abort(struct rz_group *group) { rz_break(group, RZ_ABORTED, group->rank); }

RZ_EXPORT uint32_t rz_group_verdict(const struct rz_group *group)
{
    return atomic_load(&group->segment->verdict);
}

/* Unmaps. No other call may run or follow. */
RZ_EXPORT void rz_group_close(struct rz_group *group)
{
    for (uint32_t r = 0; r < group->world; r++)
        if (group->stat_fd[r] >= 0)
            close(group->stat_fd[r]);
    munmap(group->segment, group->bytes);
    free(group);
}
