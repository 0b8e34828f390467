/* Collective and point-to-point operations over a group's segment.
 *
 * A collective goes in rounds. In a round every rank writes its slot, posts, and waits until all have posted; then
 * all slots of the round may be read. Slots alternate: a rank writes the one that it used two rounds ago only after
 * all have posted the round between, and a rank posts a round only when it has read all that it needs of the round
 * before. So no round needs a second wait. */
#include <string.h>

#include "shared_memory.h"

enum operation { ALL_REDUCE = 1, ALL_GATHER, REDUCE_SCATTER, BROADCAST, BARRIER };

/* Below, everyone sums everything; above, everyone sums a part and copies the others' parts, which costs a second
 * wait and for more than two ranks saves memory traffic. */
enum { SPREAD_MIN_BYTES = 16 * 1024, SPREAD_MIN_WORLD = 3 };

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static char *slot_of(const struct rz_group *group, uint32_t rank)
{
    return group->slots + ((size_t)rank * 2 + (group->round & 1)) * group->slot_bytes;
}

/* Posts this rank's slot and waits for all others'. `doing` must be the same on all ranks. */
static int meet(struct rz_group *group, uint64_t doing)
{
    struct rz_counter *own = &group->posted[group->rank];
    uint32_t target = atomic_load_explicit(&own->value, memory_order_relaxed) + 1;
    atomic_store_explicit(&own->doing[target & 1], doing, memory_order_relaxed);
    rz_post(own, target);
    for (uint32_t r = 0; r < group->world; r++) {
        if (r == group->rank)
            continue;
        if (rz_wait(group, &group->posted[r], target, r, group->timeout_ns))
            return -1;
        if (atomic_load_explicit(&group->posted[r].doing[target & 1], memory_order_relaxed) != doing) {
            rz_break(group, RZ_DIVERGED, r);
            return -1;
        }
    }
    return 0;
}

/* Copies this rank's part of a sum into its slot. 0, or -1: it holds NaN or infinity; the group is broken before
 * anybody can take the sum, and everybody knows by whom. */
static int contribute(struct rz_group *group, char *slot, const char *own, size_t count, enum rz_sum_dtype dtype)
{
    if (!rz_copy_finite(slot, own, count, dtype))
        return 0;
    rz_break(group, RZ_NON_FINITE, group->rank);
    return -1;
}

static uint64_t describe(enum operation operation, unsigned detail, uint64_t bytes)
{
    return (uint64_t)operation << 56 | (uint64_t)(detail & 0xff) << 48 | (bytes & 0xffffffffffff);
}

/* data [count] += the others', in place. 0, or -1: the group is broken, data is of no use. */
RZ_EXPORT int rz_all_reduce(struct rz_group *group, char *data, uint64_t count, int32_t dtype)
{
    size_t width = rz_sum_width(dtype), at_once = group->slot_bytes / width;
    uint64_t doing = describe(ALL_REDUCE, dtype, count * width);
    const char *rows[RZ_MAX_WORLD];
    uint32_t world = group->world, rank = group->rank;
    for (uint64_t at = 0; at < count; at += at_once) {
        size_t n = smaller(count - at, at_once);
        char *own = data + at * width;
        if (contribute(group, slot_of(group, rank), own, n, dtype) || meet(group, doing))
            return -1;
        if (world < SPREAD_MIN_WORLD || n * width < SPREAD_MIN_BYTES) {
            for (uint32_t r = 0; r < world; r++)
                rows[r] = r == rank ? own : slot_of(group, r);
            rz_rank_sum(own, rows, world, n, dtype);
        } else {
            /* Rank r sums elements n*r/world up to n*(r+1)/world of all slots into its own: nobody else reads
             * those before the second meeting. */
            size_t from = n * rank / world, until = n * (rank + 1) / world;
            for (uint32_t r = 0; r < world; r++)
                rows[r] = slot_of(group, r) + from * width;
            rz_rank_sum(slot_of(group, rank) + from * width, rows, world, until - from, dtype);
            if (meet(group, doing + 1))
                return -1;
            for (uint32_t r = 0; r < world; r++) {
                from = n * r / world;
                until = n * (r + 1) / world;
                memcpy(own + from * width, slot_of(group, r) + from * width, (until - from) * width);
            }
        }
        group->round++;
    }
    return 0;
}

/* in [bytes] of every rank → out [world, bytes]. */
RZ_EXPORT int rz_all_gather(struct rz_group *group, char *out, const char *in, uint64_t bytes)
{
    uint64_t doing = describe(ALL_GATHER, 0, bytes);
    memcpy(out + group->rank * bytes, in, bytes);
    for (uint64_t at = 0; at < bytes; at += group->slot_bytes) {
        size_t n = smaller(bytes - at, group->slot_bytes);
        memcpy(slot_of(group, group->rank), in + at, n);
        if (meet(group, doing))
            return -1;
        for (uint32_t r = 0; r < group->world; r++)
            if (r != group->rank)
                memcpy(out + r * bytes + at, slot_of(group, r), n);
        group->round++;
    }
    return 0;
}

/* in [world, count] of every rank → out [count], this rank's row of the sum. */
RZ_EXPORT int rz_reduce_scatter(struct rz_group *group, char *out, const char *in, uint64_t count, int32_t dtype)
{
    size_t width = rz_sum_width(dtype), at_once = group->slot_bytes / width / group->world;
    uint64_t doing = describe(REDUCE_SCATTER, dtype, count * width);
    const char *rows[RZ_MAX_WORLD];
    for (uint64_t at = 0; at < count; at += at_once) {
        size_t n = smaller(count - at, at_once);
        char *own = slot_of(group, group->rank);
        for (uint32_t r = 0; r < group->world; r++)
            if (contribute(group, own + r * n * width, in + (r * count + at) * width, n, dtype))
                return -1;
        if (meet(group, doing))
            return -1;
        for (uint32_t r = 0; r < group->world; r++)
            rows[r] = slot_of(group, r) + group->rank * n * width;
        rz_rank_sum(out + at * width, rows, group->world, n, dtype);
        group->round++;
    }
    return 0;
}

/* data [bytes] of `source` → data of all others. */
RZ_EXPORT int rz_broadcast(struct rz_group *group, char *data, uint64_t bytes, uint32_t source)
{
    uint64_t doing = describe(BROADCAST, source, bytes);
    for (uint64_t at = 0; at < bytes; at += group->slot_bytes) {
        size_t n = smaller(bytes - at, group->slot_bytes);
        if (group->rank == source)
            memcpy(slot_of(group, source), data + at, n);
        if (meet(group, doing))
            return -1;
        if (group->rank != source)
            memcpy(data + at, slot_of(group, source), n);
        group->round++;
    }
    return 0;
}

RZ_EXPORT int rz_barrier(struct rz_group *group)
{
    int broken = meet(group, describe(BARRIER, 0, 0));
    group->round++;
    return broken;
}

/* The buffer of a pair holds two halves, so that one is filled while the other is emptied. */
RZ_EXPORT int rz_send(struct rz_group *group, const char *data, uint64_t bytes, uint32_t target)
{
    uint32_t pair = group->rank * group->world + target, half = group->pair_bytes / 2;
    struct rz_counter *filled = &group->filled[pair], *emptied = &group->emptied[pair];
    for (uint64_t at = 0; at < bytes; at += half) {
        uint32_t number = atomic_load_explicit(&filled->value, memory_order_relaxed) + 1;
        if (rz_wait(group, emptied, number - 2, target, group->timeout_ns))
            return -1;
        memcpy(group->pairs + (size_t)pair * group->pair_bytes + (number & 1) * half, data + at,
               smaller(bytes - at, half));
        atomic_store_explicit(&filled->doing[number & 1], bytes, memory_order_relaxed);
        rz_post(filled, number);
    }
    return 0;
}

RZ_EXPORT int rz_receive(struct rz_group *group, char *data, uint64_t bytes, uint32_t source)
{
    uint32_t pair = source * group->world + group->rank, half = group->pair_bytes / 2;
    struct rz_counter *filled = &group->filled[pair], *emptied = &group->emptied[pair];
    for (uint64_t at = 0; at < bytes; at += half) {
        uint32_t number = atomic_load_explicit(&emptied->value, memory_order_relaxed) + 1;
        if (rz_wait(group, filled, number, source, group->timeout_ns))
            return -1;
        if (atomic_load_explicit(&filled->doing[number & 1], memory_order_relaxed) != bytes) {
            rz_break(group, RZ_DIVERGED, source);
            return -1;
        }
        memcpy(data + at, group->pairs + (size_t)pair * group->pair_bytes + (number & 1) * half,
               smaller(bytes - at, half));
        rz_post(emptied, number);
    }
    return 0;
}
