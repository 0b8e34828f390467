"""Clusters on one GPU: `serve`, and two workers that share the device, which `serve` does not start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.cluster.harness import READY, Cluster, Program

#: CUDA's context, kernels and a model come up within it, also where the driver is slow to start.
READY_S = 120.0


def one_rank(state_dir: Path, model: Path, *flags: str) -> Cluster:
    """`ryzanstein serve --device cuda`; the last of two equal flags counts."""
    return Cluster(state_dir, model, "--device", "cuda", *flags, tensor_parallel_size=1)


@contextmanager
def two_ranks(state_dir: Path, model: Path, *flags: str) -> Iterator[str]:
    """A coordinator and two workers on cuda:0; gives the coordinator's gRPC address when it serves."""
    with ExitStack() as programs:
        coordinator = programs.enter_context(
            Program(
                "coordinator", str(model), "--tensor-parallel-size", "2", "--device", "cuda", "--grpc-port", "0",
                "--http-port", "0", "--state-dir", str(state_dir), *flags,
            )
        )  # fmt: skip
        coordinator.wait_for_log("listening")
        found = re.search(r"grpc=(\S+?:\d+)", coordinator.stderr)
        assert found, coordinator.stderr
        for number in range(2):
            programs.enter_context(
                Program(
                    "shard-worker", "--coordinator", found[1], "--device", "cuda:0", "--worker-id",
                    f"worker-{number}", "--cpu-threads", "1", module="ryzanstein_shard_worker",
                )
            )  # fmt: skip
        line = coordinator.line(READY_S)
        ready = READY.fullmatch(line)
        assert ready, f"not a ready line: {line!r}"
        yield ready["grpc"]
