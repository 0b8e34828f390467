"""Files with secrets: who may read them, when they are read again, and what is said when they can't be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ryzanstein.secret_files import SecretFileError, Watched, WatchedFiles, read_secret, secret_lines
from ryzanstein_coordinator.api_keys import read_keys

SECRET = "very-secret-text-0123456789"


def secret_file(directory: Path, text: str = SECRET, mode: int = 0o600) -> Path:
    path = directory / "secret"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
def test_a_file_that_only_its_owner_and_group_read_is_read(tmp_path: Path, mode: int) -> None:
    assert read_secret(secret_file(tmp_path, mode=mode), "--flag") == SECRET.encode()


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o606, 0o666, 0o777])
def test_a_file_that_others_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, mode=mode)
    with pytest.raises(
        SecretFileError, match=rf"^--flag: {path} can be read or changed by others .*chmod 600"
    ):
        read_secret(path, "--flag")


def test_what_can_not_be_read_is_named(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (secret_file(tmp_path, " \n"), "is empty"),
    ):
        with pytest.raises(SecretFileError, match=f"--flag: .*{path}.*{said}|--flag: .*{path} {said}"):
            read_secret(path, "--flag")
    with pytest.raises(SecretFileError, match="larger than"):
        read_secret(secret_file(tmp_path, "x" * 2_000_000), "--flag")


def test_a_file_in_memory_is_read_by_its_descriptor_whenever_it_is_asked_for() -> None:
    descriptor = os.memfd_create("secret")
    try:
        os.fchmod(descriptor, 0o400)
        os.write(descriptor, SECRET.encode())
        for _ in range(2):
            assert read_secret(Path(f"/dev/fd/{descriptor}"), "--flag") == SECRET.encode()
    finally:
        os.close(descriptor)


def test_blank_lines_and_comments_are_no_secrets(tmp_path: Path) -> None:
    data = b"# one\n\n  a b \r\n\t# two\nc"
    assert secret_lines(data, tmp_path, "--flag") == [(3, "a b"), (5, "c")]
    with pytest.raises(SecretFileError, match="not UTF-8"):
        secret_lines(b"\xff\xfe", tmp_path, "--flag")


class Clock:
    """Seconds that a test decides."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_change_is_seen_once_and_no_sooner_than_the_next_look(tmp_path: Path) -> None:
    clock, path = Clock(), secret_file(tmp_path)
    files = WatchedFiles([path], every_s=1.0, clock=clock)
    path.write_text("another text of another length")
    assert not files.changed()
    clock.now_s += 1.0
    assert files.changed()
    clock.now_s += 1.0
    assert not files.changed()
    path.chmod(0o400)  # other rights are a change too: the file may be one that can be read now
    clock.now_s += 1.0
    assert files.changed()
    path.unlink()
    clock.now_s += 1.0
    assert files.changed()


def test_what_can_not_be_read_again_stays_as_it_was(tmp_path: Path) -> None:
    clock, path = Clock(), secret_file(tmp_path, "first-key-0123456789 alice\n")
    watched = Watched(lambda: read_keys(path), (path,), clock=clock)
    assert [key.name for key in watched.get()] == ["alice"]
    for text in ("half", "", "another-key-0123456789 bob\n"):
        path.write_text(text)
        clock.now_s += 1.0
        name = watched.get()[0].name
        assert name == ("bob" if text.endswith("bob\n") else "alice")
