"""The model of a step: its limits, its fit, and the document that quotes it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from benchmarks import scaling
from benchmarks.scaling_fit import fit
from benchmarks.scaling_known import (
    ETHERNET,
    MEDIUM,
    NVLINK,
    PUBLISHED,
    SHAPE_8B,
    SHAPE_70B,
    one_host,
    ours_fit,
    published_fit,
    several_hosts,
    shared_memory_fits,
)
from benchmarks.scaling_model import Cluster, Device, Link, Load, all_reduce_s, fits, gather_s, step

#: No time for anything but reading and multiplying.
IDEAL = Device(1e12, 1e14, 1e12, layer_s=0.0, step_s=0.0)
FREE = Link(1e30, 0.0, 0.0, 0.0, 0.0, 0.0)
DECODE, PREFILL = Load(1, 1, 1024), Load(1, 2048)


def test_shapes_have_the_sizes_of_their_models() -> None:
    assert MEDIUM.stored_bytes == pytest.approx(0.99e9, rel=0.01)
    assert SHAPE_8B.stored_bytes == pytest.approx(16.06e9, rel=0.01)
    assert SHAPE_70B.stored_bytes == pytest.approx(141.1e9, rel=0.01)
    assert PUBLISHED["llama-2-7b"].stored_bytes == pytest.approx(13.48e9, rel=0.01)


@pytest.mark.parametrize("load", [DECODE, PREFILL])
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_without_links_and_fixed_times_n_ranks_are_n_times_as_fast(load: Load, ranks: int) -> None:
    one = step(SHAPE_8B, load, Cluster(IDEAL, FREE, 1)).total_s
    assert step(SHAPE_8B, load, Cluster(IDEAL, FREE, ranks)).total_s == pytest.approx(one / ranks)


def test_more_ranks_than_key_value_heads_hold_copies() -> None:
    eight, sixteen = (step(SHAPE_8B, DECODE, Cluster(IDEAL, FREE, ranks)) for ranks in (8, 16))
    assert sixteen.attention_s == eight.attention_s
    assert sixteen.matrices_s == eight.matrices_s / 2


def test_what_does_not_shrink_bounds_the_gain() -> None:
    """Amdahl: with a tenth that is fixed, no number of ranks gives ten times."""
    one = step(SHAPE_8B, DECODE, Cluster(IDEAL, FREE, 1)).total_s
    slow = replace(IDEAL, step_s=one / 9)
    times = [step(SHAPE_8B, DECODE, Cluster(slow, FREE, ranks)).total_s for ranks in (1, 8)]
    assert times[0] / times[1] == pytest.approx(1 / (0.1 + 0.9 / 8))


def test_overlapping_reads_and_products_take_the_longer_and_others_both() -> None:
    overlapped = step(SHAPE_8B, PREFILL, Cluster(IDEAL, FREE, 1))
    added = step(SHAPE_8B, PREFILL, Cluster(replace(IDEAL, overlaps=False), FREE, 1))
    read_s = SHAPE_8B.matrix_values * 2 / IDEAL.bytes_per_s
    assert added.matrices_s == pytest.approx(overlapped.matrices_s + read_s)


def test_a_small_sum_costs_hops_and_a_large_one_bytes() -> None:
    cluster = one_host("H100 SXM", 8)
    assert all_reduce_s(0, cluster) == pytest.approx(NVLINK.base_s + 14 * NVLINK.hop_s)
    large = 1e9
    assert all_reduce_s(large, cluster) == pytest.approx(2 * 7 / 8 * large / NVLINK.bytes_per_s, rel=0.05)


def test_one_rank_exchanges_nothing() -> None:
    alone = one_host("H100 SXM", 1)
    assert (
        all_reduce_s(1e6, alone)
        == gather_s(1e6, alone)
        == step(SHAPE_8B, PREFILL, alone).communication_s
        == 0
    )


def test_a_slower_link_between_hosts_is_what_counts() -> None:
    near, far = one_host("H100 SXM", 8), several_hosts("H100 SXM", 2, ETHERNET)
    assert all_reduce_s(1e6, far) > 10 * all_reduce_s(1e6, near)


def test_a_model_that_is_too_large_does_not_fit() -> None:
    assert not fits(SHAPE_70B, DECODE, one_host("H200 SXM", 1))
    assert fits(SHAPE_70B, DECODE, one_host("H200 SXM", 2))


def test_a_fit_finds_what_made_the_numbers() -> None:
    rows = [[1.0, 1e9], [1.0, 2e9], [1.0, 5e9]]
    found = fit(rows, [2 + 3e-9 * size for _, size in rows])
    assert found.coefficients == pytest.approx((2.0, 3e-9))
    assert found.worst == pytest.approx(0.0, abs=1e-9)


def test_a_fit_takes_what_is_known_as_given() -> None:
    assert fit([[1.0], [2.0]], [11.0, 12.0], [10.0, 10.0]).coefficients == pytest.approx((1.0,))


def test_no_coefficient_is_negative() -> None:
    found = fit([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]], [3.0, 2.0, 1.0])
    assert min(found.coefficients) == 0.0


def test_columns_that_can_not_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="apart"):
        fit([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="1 observations"):
        fit([[1.0, 2.0]], [1.0])


def test_the_model_explains_what_was_measured() -> None:
    assert published_fit().worst < 0.04
    assert ours_fit().worst < 0.10
    assert all(found.worst < 0.25 for found in shared_memory_fits().values())


def test_the_document_says_what_the_model_says() -> None:
    text = scaling.DOCUMENT.read_text()
    assert text == scaling.filled(text), "run python -m benchmarks.scaling and commit what it wrote"


def test_the_prose_quotes_the_constants_of_the_fit() -> None:
    per_byte, per_layer, per_sum = published_fit().coefficients
    text = " ".join(scaling.DOCUMENT.read_text().split())
    assert f"{1 / per_byte / 1e9:,.0f} GB/s for reading" in text
    assert f"{per_layer * 1e6:.1f} µs per layer that do not shrink, {per_sum * 1e6:.1f} µs per sum" in text


def test_a_document_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("<!-- table: measured here -->")):
        scaling.filled("# nothing\n")
