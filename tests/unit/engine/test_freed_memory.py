"""A step's memory is kept for the next one while a group serves, and given back before a shard is loaded."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")

#: In a process of its own: where a piece comes from hangs on all that was allocated before.
_SCRIPT = """
import json, resource, torch
from ryzanstein_shard_worker.freed_memory import give_freed_memory_back, keep_freed_memory

torch.set_num_threads(1)

def pages_touched_first(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(8 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
pages_touched_first(30)  # until a hole of the size is found
kept = pages_touched_first(5)
give_freed_memory_back()
print(json.dumps([kept, pages_touched_first(1)]))
"""


def test_pieces_are_the_same_memory_while_it_is_kept_and_new_pages_after_it_was_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    kept, given_back = json.loads(done.stdout)
    assert kept < 100
    assert given_back > 500
