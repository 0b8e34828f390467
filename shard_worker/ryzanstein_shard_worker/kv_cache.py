"""Which blocks of the KV pool belong to whom. The memory itself is in `paged_attention`."""

from __future__ import annotations

from collections.abc import Iterable


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockAllocator:
    """Hands out the blocks of one pool. Deterministic: the same calls give the same ids on every rank.

    Block 0 is never handed out: padding and warm-up write there.
    """

    SCRATCH_BLOCK = 0

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`num_blocks` counts the scratch block.

        Raises:
            ValueError: there is no block beside the scratch block.
        """
        if num_blocks < 2 or block_size < 1:
            raise ValueError(
                f"a KV pool needs 2 blocks or more of 1 token or more, not {num_blocks} of {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: the block freed last is warm in the caches and goes out first.
        self._free = list(range(num_blocks - 1, 0, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - len(self._free)

    @property
    def capacity_tokens(self) -> int:
        """Most tokens that one sequence can hold when it is alone."""
        return (self.num_blocks - 1) * self.block_size

    def can_allocate(self, count: int) -> bool:
        return len(self._free) >= count

    def allocate(self, count: int) -> list[int]:
        """`count` blocks, which the caller asked `can_allocate` for."""
        assert len(self._free) >= count, f"{count} blocks wanted, {len(self._free)} free"
        return [self._free.pop() for _ in range(count)]

    def free(self, blocks: list[int]) -> None:
        """Takes the blocks back; the list is emptied, so that its owner can't use them again."""
        self._free.extend(reversed(blocks))
        blocks.clear()

    def check_integrity(self, owners: Iterable[list[int]]) -> None:
        """Every block is free or has exactly one owner.

        Raises:
            AssertionError: a block is lost, doubly owned or out of range.
        """
        owned = [block for blocks in owners for block in blocks]
        everything = sorted(owned + self._free)
        expected = list(range(1, self.num_blocks))
        if everything != expected:
            seen = set(everything)
            lost = [block for block in expected if block not in seen]
            twice = sorted({block for block in seen if everything.count(block) > 1})
            raise AssertionError(f"KV pool is not whole: lost {lost[:8]}, in two places {twice[:8]}")
