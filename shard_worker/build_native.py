"""Compiles the worker's C parts into `native/_native.so`: as a hatch build hook, or by hand in place.

    python shard_worker/build_native.py

An install never fails because of it: without a C compiler there is no library, and torch and gloo do the
work.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

NATIVE = Path(__file__).resolve().parent / "ryzanstein_shard_worker" / "native"
LIBRARY = NATIVE / "_native.so"

# One library for all CPUs of an architecture: code for a newer one carries its own target attribute and is
# chosen at run time. No -ffast-math and no contraction: a sum's bits must not depend on the compiler's taste.
FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-Wall"]


class NativeBuildError(Exception):
    """The library could not be built; the message says why."""


def build() -> Path:
    """Compiles every C file of `native/`; replaces the library as a whole, so a running worker keeps its own.

    Raises:
        NativeBuildError: there is no compiler, or it refused.
    """
    compiler = _compiler()
    digest = f'-DRZ_SOURCE_DIGEST="{source_digest(NATIVE)}"'
    sources = sorted(NATIVE.glob("*.c"))
    with tempfile.TemporaryDirectory(dir=NATIVE, prefix=".build-") as directory:
        objects = [Path(directory) / f"{source.stem}.o" for source in sources]
        compiling = [
            [*compiler, *FLAGS, digest, "-c", str(source), "-o", str(made)]
            for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, compiling))
        linked = Path(directory) / LIBRARY.name
        _run([*compiler, "-shared", "-pthread", "-o", str(linked), *map(str, objects), "-lm"])
        linked.replace(LIBRARY)
    return LIBRARY


def source_digest(directory: Path) -> str:
    """Hash of the C sources. The library carries it, so that one of older sources is noticed and not used."""
    digest = hashlib.sha256()
    for path in sorted([*directory.glob("*.c"), *directory.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build_or_explain() -> bool:
    """Builds; says on standard error what it means when it can't. A library of older sources is removed."""
    try:
        library = build()
    except NativeBuildError as error:
        LIBRARY.unlink(missing_ok=True)
        sys.stderr.write(
            f"ryzanstein: the native library was not built ({error}).\n"
            "ryzanstein: CPU workers will use torch and gloo instead, which is slower. Install a C compiler "
            "(gcc or clang) and install again to have it; GPU workers don't need it.\n"
        )
        return False
    sys.stderr.write(f"ryzanstein: built {library}\n")
    return True


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(str(error)) from error
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if "error" in line] or ["it said nothing"]
        raise NativeBuildError(f"{command[0]} ended with status {result.returncode}: {lines[0]}")
    sys.stderr.write(result.stderr)  # warnings


def _compiler() -> list[str]:
    named = os.environ.get("CC", "").split()
    if named:
        return named
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise NativeBuildError("no C compiler found: neither cc nor gcc nor clang")


if TYPE_CHECKING:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
else:
    try:
        from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    except ImportError:  # run by hand: hatchling lives in the build's own environment
        BuildHookInterface = None

if TYPE_CHECKING or BuildHookInterface is not None:

    class NativeBuildHook(BuildHookInterface[Any]):
        """What `pip install` runs, for a wheel and for an editable install alike."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Builds in place. A wheel with the library is for this platform and any Python 3."""
            if self.target_name != "wheel" or not sys.platform.startswith("linux"):
                return
            if not build_or_explain():
                return
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
            build_data["artifacts"].append(f"/{LIBRARY.relative_to(self.root)}")


if __name__ == "__main__":
    sys.exit(0 if build_or_explain() else 1)
