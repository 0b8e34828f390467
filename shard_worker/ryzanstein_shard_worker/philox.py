"""Random numbers without state: what is drawn depends on the key and the counter alone.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), table 2 and
section 3.3. A request that is repeated, pre-empted, replayed after a failure or run on another number of ranks draws
the same numbers.
"""

from __future__ import annotations

import torch

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32(
    counter: tuple[torch.Tensor | int, ...], key: tuple[torch.Tensor | int, torch.Tensor | int]
) -> tuple[torch.Tensor, ...]:
    """Four random words per counter.

    Args:
        counter: four words, integers or int64 tensors of one shape with values in [0, 2**32).
        key: two words in [0, 2**32), of all counters or of each.

    Returns:
        Four int64 tensors of the counter's shape with values in [0, 2**32).
    """
    template = next(word for word in counter if isinstance(word, torch.Tensor))
    c0, c1, c2, c3 = (
        word if isinstance(word, torch.Tensor) else torch.full_like(template, word) for word in counter
    )
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _multiply(c0, _MULTIPLIERS[0])
        hi1, lo1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of a 32 x 32 bit product. int64 wraps, which leaves all 64 bits right."""
    product = word * factor
    return (product >> 32) & _MASK, product & _MASK


def gumbel_noise(token_ids: torch.Tensor, *, seed: int, choice: int, position: int) -> torch.Tensor:
    """Standard Gumbel noise for each token id of one draw.

    Args:
        token_ids: [K] int64.
        seed: of the request, 64 bits: the key.
        choice: which completion of the prompt.
        position: index of the token in the output.

    Returns:
        [K] float32, -log(-log(u)) with u uniform in (0, 1), 24 bits.
    """
    words = philox4x32((token_ids, position & _MASK, choice & _MASK, 0), (seed & _MASK, seed >> 32))
    uniform = ((words[0] >> 8).to(torch.float64) + 0.5) * 2.0**-24
    return -torch.log(-torch.log(uniform)).to(torch.float32)
