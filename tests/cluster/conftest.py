"""Clusters that several tests share: starting one costs seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ryzanstein_client import Client

from ..checkpoints import make_checkpoint
from .harness import Cluster


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The bundled model on two ranks. Tests that break it use a cluster of their own."""
    with Cluster(tmp_path_factory.mktemp("two-ranks")) as cluster:
        yield cluster.ready()


@pytest.fixture
def client(two_ranks: Cluster) -> Iterator[Client]:
    with Client(two_ranks.grpc) as client:
        yield client


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with random weights, a tokenizer and a long context: it never ends a stream by itself."""
    directory = tmp_path_factory.mktemp("random-model") / "random"
    return make_checkpoint(directory, tokenizer=True, max_position_embeddings=4096)
