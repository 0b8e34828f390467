"""Real checkpoints for the tests of loading and splitting."""

from __future__ import annotations

from hypothesis import settings

from tests.checkpoints import checkpoints  # noqa: F401 - a fixture

# A busy machine is no defect: an example may take as long as it takes.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
