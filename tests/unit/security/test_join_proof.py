"""The proof that a caller knows the join token: for one method, in one direction, once, and not for long."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from ryzanstein.join_proof import (
    STREAM,
    WINDOW_S,
    JoinTokens,
    ProofVerifier,
    Role,
    digest_of,
    message_digest,
    new_token,
    read_tokens,
)
from ryzanstein.secret_files import SecretFileError

METHOD = "/ryzanstein.v1.ClusterService/Register"
TOKEN, OTHER = b"a token of this cluster", b"the token of another one"


NOW_S = 1_800_000_000.0


def tokens(*known: bytes, now_s: float = NOW_S) -> JoinTokens:
    return JoinTokens(lambda: known, clock=lambda: now_s)


def verifier(*known: bytes, now_s: float = NOW_S) -> ProofVerifier:
    """Of those who call the coordinator."""
    return ProofVerifier(tokens(*known), Role.WORKER, clock=lambda: now_s)


def test_a_member_is_let_in() -> None:
    assert verifier(TOKEN).refusal(METHOD, tokens(TOKEN).prove(Role.WORKER, METHOD)) == ""


def test_the_token_is_not_in_the_proof() -> None:
    assert TOKEN.decode() not in tokens(TOKEN).prove(Role.WORKER, METHOD)


def test_a_stranger_is_told_what_to_do_and_nothing_else() -> None:
    assert "--join-token-file" in verifier(TOKEN).refusal(METHOD, None)
    refusal = verifier(TOKEN).refusal(METHOD, tokens(OTHER).prove(Role.WORKER, METHOD))
    assert "not this cluster's" in refusal
    assert TOKEN.decode() not in refusal


@pytest.mark.parametrize(
    "garbage",
    ["", "v1", "v1...", TOKEN.decode(), "v1.0." + "0" * 32 + "." + "0" * 64, "v2" + "x" * 120, "\x00"],
)
def test_what_is_no_proof_is_refused(garbage: str) -> None:
    assert verifier(TOKEN).refusal(METHOD, garbage)


def test_a_proof_counts_once() -> None:
    door, proof = verifier(TOKEN), tokens(TOKEN).prove(Role.WORKER, METHOD)
    assert door.refusal(METHOD, proof) == ""
    assert "used before" in door.refusal(METHOD, proof)


def test_a_proof_says_which_message_it_is_for_and_that_can_not_be_changed() -> None:
    proof = tokens(TOKEN).prove(Role.WORKER, METHOD, b"my address is 10.0.0.1")
    assert message_digest(proof) == digest_of(b"my address is 10.0.0.1")
    forged = proof.replace(message_digest(proof), digest_of(b"my address is the intruder's"))
    for changed in (forged, proof.replace(message_digest(proof), STREAM)):
        assert "not this cluster's" in verifier(TOKEN).refusal(METHOD, changed)
    assert verifier(TOKEN).refusal(METHOD, proof) == ""
    assert message_digest(tokens(TOKEN).prove(Role.WORKER, METHOD)) == STREAM
    assert message_digest("no proof") == message_digest(None) == ""


def test_a_proof_is_for_one_method_and_one_direction() -> None:
    proof = tokens(TOKEN).prove(Role.WORKER, METHOD)
    assert verifier(TOKEN).refusal("/ryzanstein.v1.ShardWorkerService/Execute", proof)
    assert ProofVerifier(tokens(TOKEN), Role.COORDINATOR).refusal(METHOD, proof)


@pytest.mark.parametrize("late_s", [WINDOW_S + 5, -WINDOW_S - 5])
def test_an_old_proof_is_refused_with_the_difference_of_the_clocks(late_s: float) -> None:
    proof = tokens(TOKEN).prove(Role.WORKER, METHOD)
    assert f"is {late_s:.0f} s old: the clocks" in verifier(TOKEN, now_s=NOW_S + late_s).refusal(
        METHOD, proof
    )
    assert verifier(TOKEN, now_s=NOW_S + late_s * 0.9).refusal(METHOD, proof) == ""


def test_what_was_used_is_forgotten_when_it_is_too_old_to_be_used_again() -> None:
    now_s = NOW_S
    door = ProofVerifier(tokens(TOKEN), Role.WORKER, clock=lambda: now_s)
    for _ in range(50):
        assert door.refusal(METHOD, tokens(TOKEN).prove(Role.WORKER, METHOD)) == ""
        assert door.refusal(METHOD, tokens(OTHER).prove(Role.WORKER, METHOD))
    assert door.remembered == 50
    now_s += 3 * WINDOW_S
    assert door.refusal(METHOD, tokens(TOKEN, now_s=now_s).prove(Role.WORKER, METHOD)) == ""
    assert door.remembered == 1


def test_a_token_is_replaced_without_a_break() -> None:
    """Old alone → new behind old on all sides → new before old → new alone: every neighbour understands the next."""
    steps = [(TOKEN,), (TOKEN, OTHER), (OTHER, TOKEN), (OTHER,)]
    for theirs, ours in [*pairwise(steps), *pairwise(steps[::-1])]:
        assert verifier(*ours).refusal(METHOD, tokens(*theirs).prove(Role.WORKER, METHOD)) == ""


def test_tokens_come_from_a_file_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"# of the cluster\n" + new_token() + new_token())
    path.chmod(0o600)
    first, second = read_tokens(path)
    assert first != second
    assert len(first) == 64


@pytest.mark.parametrize(
    "text", ["# nothing\n", "short\n", "a token with blanks in it\n", "t\u00f6ken-t\u00f6ken-t\u00f6ken"]
)
def test_a_bad_token_is_named_by_its_line_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SecretFileError, match=f"--join-token-file: {path}.*openssl rand -hex 32") as refused:
        read_tokens(path)
    assert "short" not in str(refused.value)
