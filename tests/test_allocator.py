"""The allocator keeps the memory of chunks."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CHUNK = 256_000
ROUNDS = 400
PROGRAM = f"""
import resource
from sidecar.allocator import keep_chunks
keep_chunks()
held = [bytes(1000) * (256 * k) for k in (1, 1, 1)]
del held
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    chunk = b"x" * {CHUNK}
    another = b"y" * {CHUNK}
    del chunk, another
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_chunk_costs_no_page_faults() -> None:
    """Blocks of the size of a chunk come and go within the memory that the process has."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    # Two blocks of 256,000 bytes are 126 pages: given back each time, they would be faulted in each time.
    assert int(ran.stdout) < ROUNDS
