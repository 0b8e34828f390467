"""`make gpu-wheels`: fetches, where a registry is, what a GPU machine without one may lack.

    python -m tools.gpu_check.wheels --to .wheels --python-version 3.12

Only wheels for Linux on x86-64; torch, transformers and what comes with them stay out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from .requirements import carried_requirements

#: pip matches each name exactly: from the newest glibc that a wheel may ask for to the oldest.
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)]
_PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def fetch(to: Path, python_version: str) -> list[Path]:
    """Puts the wheels, with all that they need, into `to`, in place of older ones; returns them.

    Raises:
        subprocess.CalledProcessError: pip could not; it has said why.
    """
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
        for platform in _PLATFORMS:
            command += ["--platform", platform]
        subprocess.run([*command, "--dest", directory, *carried_requirements()], check=True)
        to.mkdir(parents=True, exist_ok=True)
        for old in to.glob("*.whl"):
            old.unlink()
        made = []
        for path in sorted(Path(directory).glob("*.whl")):
            made.append(to / path.name)
            made[-1].write_bytes(path.read_bytes())
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=Path(".wheels"))
    parser.add_argument("--python-version", default="3.12", help="of the GPU machine")
    options = parser.parse_args()
    try:
        made = fetch(options.to, options.python_version)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    size = sum(path.stat().st_size for path in made)
    print(f"{len(made)} wheels for Python {options.python_version}, {size / 2**20:.0f} MiB, in {options.to}/")


if __name__ == "__main__":
    main()
