"""What the check needs, from pyproject.toml, and which part of it travels as wheels."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

#: Extras whose requirements the check needs; `dev` would add linters.
EXTRAS = ("coordinator", "worker", "test")

#: What the interpreter of a GPU machine has already, with what only these need: large, or built for its CUDA.
OF_THE_INTERPRETER = frozenset({"torch", "transformers", "tokenizers", "safetensors", "numpy"})


def build_requirements() -> list[str]:
    """What building the package itself takes."""
    return list(_pyproject()["build-system"]["requires"])


def carried_requirements() -> list[str]:
    """Requirements that may be missing on a GPU machine without a registry, in the order of pyproject.toml."""
    project = _pyproject()["project"]
    listed = list(project["dependencies"])
    for extra in EXTRAS:
        listed += project["optional-dependencies"][extra]
    chosen = [line for line in listed if name_of(line) not in OF_THE_INTERPRETER | {"ryzanstein"}]
    return [*build_requirements(), *chosen]


def name_of(requirement: str) -> str:
    """The distribution's normalised name: "nvidia-ml-py" of "nvidia_ml_py>=12.560"."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]).lower()


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
