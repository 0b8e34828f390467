"""Which processors each worker of a host gets, on machines that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.processors import (
    Processor,
    format_processors,
    parse_processors,
    read_processors,
    share_processors,
)


def machine(sockets: int, cores: int, threads: int) -> tuple[Processor, ...]:
    """As Linux numbers them: the first threads of all cores, then the second ones."""
    total = sockets * cores
    return tuple(
        Processor(number, number % total // cores, (number % total // cores, number % total))
        for number in range(total * threads)
    )


LARGE = machine(2, 56, 2)


def shared(processors: tuple[Processor, ...], count: int, threads: int) -> list[str]:
    return [format_processors(block) for block in share_processors(processors, count, threads)]


@pytest.mark.parametrize(
    ("processors", "count", "threads", "blocks"),
    [
        (LARGE, 2, 56, ["0-55", "56-111"]),
        (LARGE, 4, 28, ["0-27", "56-83", "28-55", "84-111"]),
        (LARGE, 2, 112, ["0-55,112-167", "56-111,168-223"]),
        (LARGE, 4, 56, ["0-27,112-139", "56-83,168-195", "28-55,140-167", "84-111,196-223"]),
        (LARGE, 1, 113, []),
        (LARGE, 3, 75, []),
        (machine(1, 2, 1), 2, 1, ["0", "1"]),
        (machine(1, 2, 1), 3, 1, []),
        (machine(1, 2, 2), 2, 2, ["0,2", "1,3"]),
        ((), 1, 1, []),
    ],
    ids=[
        "a socket for each of two ranks",
        "sockets in turn",
        "hyper-threads only when cores do not suffice",
        "both threads of a core to one rank",
        "no rank over two nodes",
        "room in sum but not in each node",
        "two cores, two ranks",
        "a spare too many",
        "two cores with two threads",
        "nothing",
    ],
)
def test_each_worker_gets_a_block_of_one_node(
    processors: tuple[Processor, ...], count: int, threads: int, blocks: list[str]
) -> None:
    assert shared(processors, count, threads) == blocks


def test_holes_in_the_cpuset_are_left_out() -> None:
    """Others have cores 0 to 7; of the second socket four cores are ours, without their second threads."""
    allowed = {*range(8, 16), *range(120, 128), *range(56, 60)}
    mine = tuple(processor for processor in LARGE if processor.number in allowed)
    assert shared(mine, 3, 4) == ["8-11", "12-15", "56-59"]
    assert shared(mine, 2, 8) == ["8-11,120-123", "12-15,124-127"]


@given(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 2), st.integers(1, 6), st.integers(1, 6), st.data()
)
def test_no_processor_is_given_twice_or_taken_from_another_node(
    sockets: int, cores: int, siblings: int, count: int, threads: int, data: st.DataObject
) -> None:
    whole = machine(sockets, cores, siblings)
    mine = tuple(data.draw(st.sets(st.sampled_from(whole))))
    blocks = share_processors(mine, count, threads)
    assert len(blocks) in (0, count)
    given_out = [number for block in blocks for number in block]
    assert len(set(given_out)) == len(given_out) == len(blocks) * threads
    node_of = {processor.number: processor.node for processor in mine}
    assert all(len({node_of[number] for number in block}) == 1 for block in blocks)


def test_the_system_tells_nodes_and_cores(tmp_path: Path) -> None:
    for node, listed in enumerate(("0-1,4-5", "2-3,6-7")):
        (tmp_path / f"node/node{node}").mkdir(parents=True)
        (tmp_path / f"node/node{node}/cpulist").write_text(listed + "\n")
    for number in range(8):
        topology = tmp_path / f"cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
        (topology / "physical_package_id").write_text(f"{number % 4 // 2}\n")
    assert read_processors({1, 5, 6}, tmp_path) == (
        Processor(1, 0, (0, 1)),
        Processor(5, 0, (0, 1)),
        Processor(6, 1, (1, 2)),
    )


def test_a_system_that_tells_nothing_is_one_node_with_a_core_for_each(tmp_path: Path) -> None:
    assert shared(read_processors({0, 1, 2, 3}, tmp_path), 2, 2) == ["0-1", "2-3"]


def test_lists_are_written_as_linux_writes_them() -> None:
    assert parse_processors(" 0-3,8,10-11\n") == (0, 1, 2, 3, 8, 10, 11)
    assert format_processors((11, 10, 8, 0, 1, 2, 3)) == "0-3,8,10-11"
    for wrong in ("", "3-1", "a", "0-", "-1", "0-99999999"):
        with pytest.raises(ValueError, match="range"):
            parse_processors(wrong)
