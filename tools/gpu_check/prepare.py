"""Makes an environment around an interpreter that has torch for this machine's GPU, without fetching what is there.

    python -m tools.gpu_check.prepare --venv .venv-gpu --wheels .wheels [--device cpu]

The environment sees the interpreter's own packages, also when that one is a virtual environment itself; what they lack
comes from the folder of wheels, or from pip's registry where there is no such folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from .requirements import EXTRAS, ROOT, build_requirements

_PTH = "packages_of_the_interpreter.pth"


class PrepareError(Exception):
    """The check can't run here; the message says why and what to do."""


def check_interpreter(device: str) -> str:
    """What this interpreter offers, in words. `device`: "cuda" or "cpu".

    Raises:
        PrepareError: it has no torch, or torch sees no GPU.
    """
    if importlib.util.find_spec("torch") is None:
        raise PrepareError(
            f"{sys.executable} has no torch: name an interpreter whose torch uses the GPU, make gpu-check PYTHON=..."
        )
    import torch

    if device == "cpu":
        return f"torch {torch.__version__}, rehearsing on the CPU"
    if not torch.backends.cuda.is_built():
        raise PrepareError(
            f"torch {torch.__version__} of {sys.executable} was built without CUDA: name an interpreter whose torch "
            "uses the GPU, make gpu-check PYTHON=..."
        )
    if not torch.cuda.is_available():
        raise PrepareError(
            f"no NVIDIA GPU: torch {torch.__version__} finds none here. Does nvidia-smi? "
            "GPU_DEVICE=cpu rehearses the check without one"
        )
    return f"torch {torch.__version__} on {torch.cuda.get_device_name(0)}"


def make_environment(directory: Path) -> Path:
    """A virtual environment that sees what this interpreter sees; returns its interpreter."""
    has_pip = importlib.util.find_spec("pip") is not None
    nested = sys.prefix != sys.base_prefix
    venv.create(
        directory,
        clear=True,
        symlinks=True,
        with_pip=not has_pip,
        system_site_packages=not nested or _sees_system(),
    )
    # A virtual environment made from another one sees the packages of neither's parent but the system's.
    paths = {*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(paths) if Path(path).is_dir()]
    python = directory / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run(
        [python, "-c", query], check=True, capture_output=True, text=True
    ).stdout.strip()
    (Path(packages) / _PTH).write_text("\n".join(lines) + "\n")
    return python


def install(python: Path, wheels: Path) -> None:
    """Installs this checkout, and what it needs and the environment lacks.

    Raises:
        PrepareError: something is missing and can't be had.
    """
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-warn-script-location",
    ]
    offline = any(wheels.glob("*.whl"))
    if offline:
        pip += ["--no-index", "--find-links", str(wheels)]
    extras = ",".join(EXTRAS)
    for what in (build_requirements(), ["--no-build-isolation", "--editable", f"{ROOT}[{extras}]"]):
        if subprocess.run([*pip, *what], check=False).returncode:
            source = f"the wheels in {wheels}/" if offline else "pip's registry"
            raise PrepareError(
                f"the interpreter's packages and {source} don't hold all that is needed (pip said what, above): run "
                "'make gpu-wheels' where a registry is, bring the folder along and name it, WHEELS=..."
            )


def _sees_system() -> bool:
    """Whether the virtual environment that this is sees the packages of its own parent."""
    config = (Path(sys.prefix) / "pyvenv.cfg").read_text().lower()
    return "include-system-site-packages = true" in config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, default=Path(".venv-gpu"))
    parser.add_argument("--wheels", type=Path, default=Path(".wheels"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    try:
        print(check_interpreter(options.device), flush=True)
        install(make_environment(options.venv), options.wheels)
    except PrepareError as error:
        sys.exit(f"gpu-check: {error}")


if __name__ == "__main__":
    main()
