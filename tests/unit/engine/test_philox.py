"""The generator is the published one, and its noise has the distribution it claims."""

from __future__ import annotations

import pytest
import torch

from ryzanstein_shard_worker.native.library import load_library
from ryzanstein_shard_worker.native.sampling import native_draw
from ryzanstein_shard_worker.philox import gumbel_noise, philox4x32


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that the authors publish with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox4x32((torch.tensor([counter[0]]), *counter[1:]), key)
    assert tuple(int(word) for word in words) == expected


def test_noise_of_a_token_does_not_depend_on_which_others_are_asked() -> None:
    everything = gumbel_noise(torch.arange(1000), seed=2**63 + 5, choice=1, position=77)
    some = gumbel_noise(torch.tensor([3, 999, 500]), seed=2**63 + 5, choice=1, position=77)
    assert torch.equal(some, everything[[3, 999, 500]])


@pytest.mark.parametrize("change", [{"seed": 8}, {"choice": 1}, {"position": 1}])
def test_noise_changes_with_every_part_of_its_key(change: dict[str, int]) -> None:
    key = {"seed": 7, "choice": 0, "position": 0}
    ids = torch.arange(100)
    assert not torch.equal(gumbel_noise(ids, **key), gumbel_noise(ids, **{**key, **change}))


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise(torch.arange(200_000), seed=1, choice=0, position=0)
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)  # the Euler-Mascheroni constant
    assert float(noise.var()) == pytest.approx(1.6449, abs=0.03)  # π²/6


@pytest.mark.skipif(load_library() is None, reason="no C compiler built the native library here")
@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 1003])
@pytest.mark.parametrize("listed", [False, True], ids=["all ids", "some ids"])
def test_the_draw_in_c_takes_what_the_noise_makes_largest(vocabulary: int, listed: bool) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    drawn = torch.randperm(2**20, generator=generator)
    for number in range(100):
        logits = torch.randn(vocabulary, generator=generator) * (number % 5)  # all equal now and then
        ids = drawn[number * vocabulary :][:vocabulary] if listed else None
        temperature = 0.2 + number % 4
        key = {"seed": (number * 0x9E3779B97F4A7C15) % 2**64, "choice": number % 3, "position": number}
        noise = gumbel_noise(torch.arange(vocabulary) if ids is None else ids, **key)
        expected = int((logits / temperature + noise).argmax())
        assert native_draw(logits, ids, temperature=temperature, **key) == expected
