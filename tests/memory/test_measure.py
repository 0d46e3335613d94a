import subprocess
import sys

import pytest
import torch

from burnish.memory.measure import available_bytes, is_out_of_memory, peak_memory_bytes

CODE = """
import resource, torch
from burnish.memory.measure import available_bytes, is_out_of_memory
limit = 64 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert available_bytes() <= limit
try:
    torch.empty(limit, dtype=torch.uint8)
except RuntimeError as error:
    print(is_out_of_memory(error))
"""


def test_torchs_own_failure_to_allocate_is_known() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [(torch.OutOfMemoryError("CUDA"), True), (MemoryError(), True), (RuntimeError("shapes differ"), False)],
)
def test_other_errors_are_not(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_is_held_shows_in_the_peak() -> None:
    before = peak_memory_bytes()
    held = torch.ones(100_000_000, dtype=torch.uint8)
    assert peak_memory_bytes() >= before
    assert peak_memory_bytes() > held.nbytes
    assert available_bytes() > 0
