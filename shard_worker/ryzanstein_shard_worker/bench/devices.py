"""Which device a measurement is made on."""

from __future__ import annotations

from ryzanstein.program import EXIT_USAGE, ProgramError


def choose_device(name: str, ranks: int) -> str:
    """ "cpu" or "cuda"; "auto" is the GPUs if there is one for each rank.

    Raises:
        ProgramError: it is neither, or there are not enough of them.
    """
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if found >= ranks else "cpu"
    if name not in ("cpu", "cuda"):
        raise ProgramError(f"--device: {name!r} is not one of auto, cpu, cuda", exit_code=EXIT_USAGE)
    if name == "cuda" and found < ranks:
        raise ProgramError(
            f"--device: {ranks} ranks need a GPU each; torch finds {found}", exit_code=EXIT_USAGE
        )
    return name
