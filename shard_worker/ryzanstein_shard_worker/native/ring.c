/* Messages from rank 0 to all others: a ring of bytes that every reader takes at its own pace.
 *
 * A message is its length (4 bytes) and its bytes; it may be longer than the ring, and wraps around its end.
 * Positions count bytes and wrap at 2^32; the ring's size is a power of two. */
#include <string.h>

#include "shared_memory.h"

static uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Copies n bytes, n not more than the ring, between `data` and the ring's position. */
static void copy(struct rz_group *group, uint32_t position, char *data, uint32_t n, int into_ring)
{
    while (n) {
        uint32_t at = position & (group->ring_bytes - 1), run = smaller(n, group->ring_bytes - at);
        if (into_ring)
            memcpy(group->ring + at, data, run);
        else
            memcpy(data, group->ring + at, run);
        position += run;
        data += run;
        n -= run;
    }
}

static int write_bytes(struct rz_group *group, const char *data, uint32_t bytes, int publish)
{
    uint32_t head = group->ring_written;
    while (bytes) {
        /* As much as the slowest reader leaves. */
        uint32_t room = group->ring_bytes;
        for (uint32_t r = 1; r < group->world; r++)
            room = smaller(room, group->ring_bytes - (head - atomic_load(&group->ring_tail[r].value)));
        if (!room) {
            rz_post(group->ring_head, head);
            for (uint32_t r = 1; r < group->world; r++)
                if (rz_wait(group, &group->ring_tail[r], head - group->ring_bytes + 1, r, group->timeout_ns))
                    return -1;
            continue;
        }
        uint32_t n = smaller(bytes, room);
        copy(group, head, (char *)data, n, 1);
        head += n;
        data += n;
        bytes -= n;
        group->ring_written = head;
    }
    if (publish)
        rz_post(group->ring_head, head);
    return 0;
}

/* On rank 0. Waits only while a reader leaves no room. 0, or -1: the group is broken. */
RZ_EXPORT int rz_ring_send(struct rz_group *group, const char *data, uint32_t bytes)
{
    if (rz_group_verdict(group) != RZ_FINE)
        return -1;
    uint32_t length = bytes;
    if (write_bytes(group, (const char *)&length, sizeof length, 0))
        return -1;
    return write_bytes(group, data, bytes, 1);
}

static int read_bytes(struct rz_group *group, char *data, uint32_t bytes, int64_t timeout_ns)
{
    struct rz_counter *own = &group->ring_tail[group->rank];
    uint32_t tail = atomic_load_explicit(&own->value, memory_order_relaxed);
    while (bytes) {
        if (rz_wait(group, group->ring_head, tail + 1, 0, timeout_ns))
            return -1;
        uint32_t n = smaller(bytes, atomic_load_explicit(&group->ring_head->value, memory_order_acquire) - tail);
        copy(group, tail, data, n, 0);
        tail += n;
        data += n;
        bytes -= n;
        rz_post(own, tail);
    }
    return 0;
}

/* On the others: waits for the next message. Its length, or -1: the group is broken. */
RZ_EXPORT int64_t rz_ring_await(struct rz_group *group, int64_t timeout_ns)
{
    uint32_t length;
    if (read_bytes(group, (char *)&length, sizeof length, timeout_ns))
        return -1;
    return length;
}

/* Takes the message whose length rz_ring_await told. 0, or -1. */
RZ_EXPORT int rz_ring_take(struct rz_group *group, char *data, uint32_t bytes)
{
    return read_bytes(group, data, bytes, group->timeout_ns);
}
