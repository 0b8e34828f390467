"""Which blocks of the KV pool belong to whom, and what the others still hold. The memory itself is in `kv_pool`.

A block is in one of three places:
  - used: one or more sequences refer to it.
  - idle: nobody refers to it, but it holds keys and values that are known by their key, and somebody may ask for them.
  - free: it holds nothing of worth.
Free blocks are handed out first, then the idle one that was used longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

_MASK = (1 << 64) - 1
#: Odd, so that multiplying loses no bits: Knuth's constant for multiplicative hashing.
_STEP = 0x9E3779B97F4A7C15


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockAllocator:
    """Hands out the blocks of one pool. Deterministic: the same calls give the same ids on every rank.

    Block 0 is never handed out: padding and warm-up write there.
    """

    SCRATCH_BLOCK = 0

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = False) -> None:
        """`num_blocks` counts the scratch block. `prefix_caching`: see `PrefixCache`.

        Raises:
            ValueError: there is no block beside the scratch block.
        """
        if num_blocks < 2 or block_size < 1:
            raise ValueError(
                f"a KV pool needs 2 blocks or more of 1 token or more, not {num_blocks} of {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        #: Of everything that changed what can be found: equal on two ranks whose caches went the same way.
        self.fingerprint = 0
        # A stack: the block freed last is warm in the caches and goes out first.
        self._free = list(range(num_blocks - 1, 0, -1))
        #: Least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out, those that are idle included."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - self.num_free

    @property
    def num_idle(self) -> int:
        """Blocks that nobody refers to and somebody may find."""
        return len(self._idle)

    @property
    def capacity_tokens(self) -> int:
        """Most tokens that one sequence can hold when it is alone."""
        return (self.num_blocks - 1) * self.block_size

    def can_allocate(self, count: int, beside: Sequence[int] = ()) -> bool:
        """Whether there are `count` blocks, also after `share(beside)`."""
        shared = sum(block in self._idle for block in beside) if self._idle else 0
        return self.num_free - shared >= count

    def allocate(self, count: int) -> list[int]:
        """`count` blocks, which the caller asked `can_allocate` for."""
        assert self.num_free >= count, f"{count} blocks wanted, {self.num_free} free"
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._references[block] = 1
            blocks.append(block)
        return blocks

    def free(self, blocks: list[int]) -> None:
        """Gives up one reference to each; the list is emptied, so that its owner can't use them again."""
        # From the last: a block is of no use without those before it, so it is to go before them.
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block]:
                continue
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._free.append(block)
        blocks.clear()

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks that hold the first of these keys, up to the first that none holds. `share` takes them."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Sequence[int]) -> None:
        """One more reference to each of these, which `find` gave."""
        for block in blocks:
            if not self._references[block]:
                del self._idle[block]
            self._references[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """From now on `find` knows what this used block holds, and nobody writes to it. The first with a key counts."""
        assert self._references[block], f"block {block} belongs to nobody"
        if key in self._block_of or block in self._key_of:
            return
        self._block_of[key] = block
        self._key_of[block] = key
        self._note(int.from_bytes(key[:8], "little") + block)

    def forget(self, blocks: Iterable[int]) -> None:
        """Nobody finds these used blocks any more: what they hold is not to be trusted."""
        for block in blocks:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]
                self._note(block)

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Every block is free, idle, or used by as many owners as it counts; what can be found is used or idle.

        Raises:
            AssertionError: a block is lost, in two places, out of range, or found under a wrong key.
        """
        counts = [0] * self.num_blocks
        for blocks in owners:
            for block in blocks:
                counts[block] += 1
        places = [int(count > 0) for count in counts]
        for block in (*self._free, *self._idle):
            places[block] += 1
        lost = [b for b in range(1, self.num_blocks) if not places[b] or counts[b] < self._references[b]]
        twice = [b for b in range(1, self.num_blocks) if places[b] > 1 or counts[b] > self._references[b]]
        if places[self.SCRATCH_BLOCK]:
            twice.append(self.SCRATCH_BLOCK)
        if lost or twice:
            raise AssertionError(f"KV pool is not whole: lost {lost[:8]}, in two places {twice[:8]}")
        wrong = [b for b, key in self._key_of.items() if self._block_of.get(key) != b]
        wrong += [b for b in self._free if b in self._key_of]
        wrong += [b for b in self._idle if b not in self._key_of]
        wrong += [b for b in self._block_of.values() if b not in self._key_of]
        assert not wrong, f"blocks {wrong[:8]} are known by a wrong key, or by none"

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        self._note(block)
        return block

    def _note(self, event: int) -> None:
        self.fingerprint = ((self.fingerprint ^ event) * _STEP + 1) & _MASK
