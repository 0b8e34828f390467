"""Building and finding the native library, with a compiler and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ryzanstein_shard_worker.native import library

SOURCE = Path(__file__).parents[3] / "shard_worker"

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler here"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The build script with the smallest of the sources."""
    native = tmp_path / "shard_worker" / "ryzanstein_shard_worker" / "native"
    native.mkdir(parents=True)
    shutil.copy(SOURCE / "build_native.py", tmp_path / "shard_worker")
    shutil.copy(SOURCE / "ryzanstein_shard_worker" / "native" / "library.c", native)
    return native


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    script = tree.parents[1] / "build_native.py"
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@needs_compiler
def test_a_built_library_is_found_and_knows_its_sources(tree: Path) -> None:
    assert build(tree).returncode == 0
    loaded, problem = library._load(tree / "_native.so", library._source_digest(tree))
    assert problem == ""
    assert loaded is not None


@needs_compiler
def test_a_library_of_older_sources_is_not_used(tree: Path) -> None:
    build(tree)
    (tree / "library.c").write_text((tree / "library.c").read_text() + "/* changed */\n")
    loaded, problem = library._load(tree / "_native.so", library._source_digest(tree))
    assert loaded is None
    assert "built from other sources" in problem
    assert "build_native.py" in problem


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_there_is_a_notice_and_no_stale_library(tree: Path, compiler: str) -> None:
    (tree / "_native.so").write_bytes(b"of older sources")
    result = build(tree, CC=compiler)
    assert result.returncode == 1
    assert "torch and gloo instead" in result.stderr
    assert "Install a C compiler" in result.stderr
    assert not (tree / "_native.so").exists()
    assert [path.name for path in tree.iterdir()] == ["library.c"]


@needs_compiler
def test_a_mistake_in_the_sources_is_shown(tree: Path) -> None:
    (tree / "broken.c").write_text("int main(void) { return undeclared; }\n")
    result = build(tree)
    assert result.returncode == 1
    assert "undeclared" in result.stderr


def test_a_missing_library_says_what_to_do(tmp_path: Path) -> None:
    loaded, problem = library._load(tmp_path / "_native.so", "digest")
    assert loaded is None
    assert "install again" in problem


def test_what_is_no_library_says_so(tmp_path: Path) -> None:
    (tmp_path / "_native.so").write_bytes(b"not a library")
    loaded, problem = library._load(tmp_path / "_native.so", "digest")
    assert loaded is None
    assert "can't be loaded" in problem


def run_hook(tree: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What pip does for this target."""
    pytest.importorskip("hatchling")
    monkeypatch.syspath_prepend(tree.parents[1])
    monkeypatch.delitem(sys.modules, "build_native", raising=False)
    import build_native

    nothing: Any = SimpleNamespace()
    hook = build_native.NativeBuildHook(str(tree.parents[2]), {}, nothing, nothing, str(tree), target)
    data: dict[str, Any] = {"artifacts": [], "pure_python": True}
    hook.initialize("standard", data)
    monkeypatch.delitem(sys.modules, "build_native")
    return data


@needs_compiler
def test_a_wheel_holds_the_library_and_says_its_platform(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = run_hook(tree, "wheel", monkeypatch)
    assert data["artifacts"] == ["/shard_worker/ryzanstein_shard_worker/native/_native.so"]
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-linux")


def test_an_install_without_a_compiler_makes_a_pure_wheel(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert run_hook(tree, "wheel", monkeypatch) == {"artifacts": [], "pure_python": True}


def test_a_source_distribution_is_not_compiled(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_hook(tree, "sdist", monkeypatch) == {"artifacts": [], "pure_python": True}
    assert not (tree / "_native.so").exists()
