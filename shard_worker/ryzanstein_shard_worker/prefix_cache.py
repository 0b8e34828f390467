"""Blocks of the KV cache that several sequences share because they begin with the same tokens.

A full block is known by a hash of its tokens and of the key of the block before it, so that a key stands for
everything from the first token on. The first key of a sequence comes from its salt: sequences of different salts never
meet. Only full blocks are shared, so nobody ever writes to a block that others read. They are published in the step
that computes them: its pages are written before any of its rows attends, so a sequence that begins in that very step
may share them.

A shared block holds the bits that its new owner would have computed, where a row's bits depend on nothing but its own
sequence (`--reproducible`, docs/decisions/0004 and 0010).

Nothing here depends on time or chance: every rank comes to the same blocks from the same plans.
"""

from __future__ import annotations

import hashlib
import struct

from .kv_cache import BlockAllocator
from .sequence import Sequence

#: 128 bits: two different beginnings of one salt with equal keys are not to be expected in 2**64 blocks.
KEY_BYTES = 16


class PrefixCache:
    """Finds and publishes the blocks of sequences; does nothing if the allocator is not to."""

    def __init__(self, allocator: BlockAllocator) -> None:
        self._allocator = allocator
        self._pack = struct.Struct(f"<{allocator.block_size}I").pack
        #: Prompt tokens that were looked up, and of these, those that were found; each sequence once.
        self.queries_total = 0
        self.hits_total = 0

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks that hold its beginning; nobody has taken them yet.

        The last token is always left over, because its row gives the next one. A sequence whose prompt is scored
        finds nothing: each of its rows is wanted.
        """
        if not self._allocator.prefix_caching or sequence.scores_prompt:
            return []
        most = (len(sequence.tokens) - 1) // self._allocator.block_size
        return self._allocator.find(self._key(sequence, index) for index in range(most))

    def admitted(self, sequence: Sequence, found: int) -> None:
        """It begins with `found` blocks of others. Counts it, the first time."""
        sequence.num_published = found
        if sequence.num_cached is None and self._allocator.prefix_caching and not sequence.scores_prompt:
            sequence.num_cached = min(found * self._allocator.block_size, sequence.num_prompt)
            self.queries_total += sequence.num_prompt
            self.hits_total += sequence.num_cached

    def publish(self, sequence: Sequence) -> None:
        """Its blocks that are full by the end of this step can be found from now on."""
        full = sequence.num_computed // self._allocator.block_size
        if full == sequence.num_published or not self._allocator.prefix_caching:
            return
        for index in range(sequence.num_published, full):
            self._allocator.publish(sequence.blocks[index], self._key(sequence, index))
        sequence.num_published = full

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """Of its block `index`, all of whose tokens are known."""
        keys, size = sequence.block_keys, self._allocator.block_size
        while len(keys) <= index:
            before = keys[-1] if keys else root_key(sequence.cache_salt)
            begin = len(keys) * size
            keys.append(block_key(before, self._pack(*sequence.tokens[begin : begin + size])))
        return keys[index]


def root_key(salt: bytes) -> bytes:
    """What stands before the first block of every sequence with this salt."""
    return hashlib.blake2b(salt, digest_size=KEY_BYTES, person=b"ryzanstein root").digest()


def block_key(before: bytes, tokens: bytes) -> bytes:
    """Of a block with these tokens (4 bytes each, little endian) behind the block with the key `before`.

    `before` has a fixed length, so no other pair gives the same bytes to hash.
    """
    return hashlib.blake2b(before + tokens, digest_size=KEY_BYTES).digest()
