"""What one owner's prompts left in the cache is of no use to another: each submission carries its owner's salt."""

from __future__ import annotations

from array import array

from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein_coordinator.group_stream import submission
from ryzanstein_coordinator.output import RecordedOutput
from ryzanstein_coordinator.requests import RequestRecord, RequestSpec, Timings
from ryzanstein_coordinator.tokenization import ModelTokenizer

from .trained_tokenizers import byte_level


def salt_of(owner: str, request_id: str) -> bytes:
    spec = RequestSpec(owner, request_id, "tiny", array("I", [20]), SamplingParams(max_tokens=1))
    output = RecordedOutput(ModelTokenizer(byte_level()).detokenizer())
    return submission(RequestRecord(spec, output, arrival=0, timings=Timings(admitted_at=0.0))).cache_salt


def test_all_requests_of_one_owner_have_one_salt_and_no_other_owners() -> None:
    assert salt_of("alice", "a") == salt_of("alice", "b")
    assert len({salt_of(owner, "a") for owner in ("alice", "bob", "")}) == 3


def test_an_owners_name_stays_with_the_coordinator() -> None:
    assert b"alice" not in salt_of("alice", "a")
    assert len(salt_of("alice", "a")) == 16
