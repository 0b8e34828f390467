"""The file of API keys, and who may do what with one."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from ryzanstein.secret_files import SecretFileError
from ryzanstein.wire import StatusError
from ryzanstein_coordinator.access import Access, access_to_method, access_to_path, identify
from ryzanstein_coordinator.api_keys import KeyRing, read_keys

ALICE, DASHBOARD, ADMIN = "alice-key-0123456789", "dashboard-key-012345", "admin-key-0123456789"
FILE = f"""# who        name      roles
{ALICE}   alice
  {DASHBOARD}\tdashboard operations

{ADMIN} admin inference,operations
"""


def key_file(directory: Path, text: str = FILE) -> Path:
    path = directory / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.from_file(key_file(tmp_path))


def test_a_line_is_a_key_its_owner_and_roles(ring: KeyRing) -> None:
    found = {key: ring.find(key) for key in (ALICE, DASHBOARD, ADMIN)}
    names = {key: (known.name, sorted(known.roles)) for key, known in found.items() if known}
    assert names == {
        ALICE: ("alice", ["inference"]),
        DASHBOARD: ("dashboard", ["operations"]),
        ADMIN: ("admin", ["inference", "operations"]),
    }


@pytest.mark.parametrize("wrong", ["", ALICE[:-1], ALICE + "0", ALICE.upper(), "alice", FILE, "\udcff\x00"])
def test_what_is_not_a_key_is_not_found(ring: KeyRing, wrong: str) -> None:
    assert ring.find(wrong) is None


def test_a_key_without_a_name_is_called_after_its_hash_and_stays_so(tmp_path: Path) -> None:
    (alone,) = read_keys(key_file(tmp_path, ADMIN))
    assert alone.name.startswith("key-")
    assert len(alone.name) == 12
    assert read_keys(key_file(tmp_path, f"{ALICE}\n{ADMIN}\n"))[1].name == alone.name


def test_keys_are_nowhere_in_what_is_printed(tmp_path: Path) -> None:
    (key,) = read_keys(key_file(tmp_path, f"{ALICE} alice"))
    assert ALICE not in repr(key)
    assert key.digest.hex() not in repr(key)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("short-key alice", "a key has 16 or more"),
        (f"{ALICE}\u00e9 alice", "a key has 16 or more"),
        (f"{ALICE} a/b", "a name has"),
        (f"{ALICE} alice root", "roles are inference and operations"),
        (f"{ALICE} alice inference,", "roles are inference and operations"),
        (f"{ALICE} alice inference operations", "and nothing else"),
        (f"{ALICE}", "stands in the file twice"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_and_not_shown(tmp_path: Path, line: str, said: str) -> None:
    path = key_file(tmp_path, f"# keys\n{ALICE} alice\n{line}\n")
    with pytest.raises(SecretFileError, match=rf"^--api-key-file: {path}, line 3: .*{said}") as refused:
        read_keys(path)
    assert "key-0123" not in str(refused.value)
    assert "short" not in str(refused.value)


def test_a_file_without_keys_would_lock_everybody_out(tmp_path: Path) -> None:
    with pytest.raises(SecretFileError, match="holds no key; make one: openssl rand"):
        read_keys(key_file(tmp_path, "# none yet\n"))


@pytest.mark.parametrize(
    ("path", "access"),
    [
        ("/livez", Access.OPEN),
        ("/readyz", Access.OPEN),
        ("/health", Access.OPEN),
        ("/", Access.OPEN),
        ("/dashboard/main.js", Access.OPEN),
        ("/openapi.json", Access.ANY_KEY),
        ("/v1/models", Access.INFERENCE),
        ("/v1/chat/completions", Access.INFERENCE),
        ("/tokenize", Access.INFERENCE),
        ("/cluster", Access.OPERATIONS),
        ("/cluster/events", Access.OPERATIONS),
        ("/metrics", Access.OPERATIONS),
        ("//v1/models", Access.OPERATIONS),
        ("/V1/models", Access.OPERATIONS),
        ("/health/", Access.OPERATIONS),
        ("/dashboard", Access.OPERATIONS),
        ("/of/a/later/release", Access.OPERATIONS),
    ],
)
def test_every_path_needs_what_the_table_says(path: str, access: Access) -> None:
    assert access_to_path(path) is access


@pytest.mark.parametrize(
    ("method", "access"),
    [
        ("/grpc.health.v1.Health/Check", Access.OPEN),
        ("/grpc.health.v1.Health/Watch", Access.OPERATIONS),
        ("/ryzanstein.v1.InferenceService/Generate", Access.INFERENCE),
        ("/ryzanstein.v1.OperationsService/DrainWorker", Access.OPERATIONS),
        ("/ryzanstein.v1.ClusterService/Register", Access.MEMBER),
        ("/ryzanstein.v1.RendezvousService/SetValue", Access.MEMBER),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access.ANY_KEY),
        ("/of.a.later.Release/Anything", Access.OPERATIONS),
        ("no path", Access.OPERATIONS),
        ("", Access.OPERATIONS),
    ],
)
def test_every_method_needs_what_the_table_says(method: str, access: Access) -> None:
    assert access_to_method(method) is access


def test_a_key_opens_what_its_roles_say_and_nothing_else(ring: KeyRing) -> None:
    for key, name, opens in (
        (ALICE, "alice", {Access.INFERENCE, Access.ANY_KEY}),
        (DASHBOARD, "dashboard", {Access.OPERATIONS, Access.ANY_KEY}),
        (ADMIN, "admin", {Access.INFERENCE, Access.OPERATIONS, Access.ANY_KEY}),
    ):
        for access in (Access.INFERENCE, Access.OPERATIONS, Access.ANY_KEY):
            if access in opens:
                assert identify(ring, access, f"Bearer {key}", "it").name == name
                continue
            with pytest.raises(StatusError, match=f"{name} may do .*it needs one with the role") as refused:
                identify(ring, access, f"Bearer {key}", "it")
            assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Basic {ALICE}", ALICE, f"Bearer{ALICE}", f"Bearer {ALICE} x"]
)
def test_without_a_good_key_nothing_opens_but_what_is_open(ring: KeyRing, given: str | None) -> None:
    assert identify(ring, Access.OPEN, given, "it").name == ""
    for access in (Access.INFERENCE, Access.OPERATIONS, Access.ANY_KEY):
        with pytest.raises(StatusError) as refused:
            identify(ring, access, given, "it")
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
        assert ALICE not in refused.value.message


def test_where_no_keys_are_wanted_everybody_may() -> None:
    for access in (Access.INFERENCE, Access.OPERATIONS, Access.ANY_KEY):
        assert identify(None, access, "Bearer whatever", "it").name == ""
