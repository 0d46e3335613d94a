import subprocess
import sys
from pathlib import Path

import pytest
import torch

from burnish.memory.measure import _left_by_groups, available_bytes, is_out_of_memory, peak_memory_bytes

CODE = """
import resource, torch
from burnish.memory.measure import available_bytes, is_out_of_memory
limit = 64 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert available_bytes(torch.device("cpu")) <= limit
try:
    torch.empty(limit, dtype=torch.uint8)
except RuntimeError as error:
    print(is_out_of_memory(error))
kept = torch.empty(limit // 8, dtype=torch.uint8)  # mapped, and not yet in memory
assert available_bytes(torch.device("cpu")) <= limit - limit // 8
"""


def test_torchs_own_failure_to_allocate_is_known() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA"), True),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_other_errors_are_not(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_is_held_shows_in_the_peak() -> None:
    before = peak_memory_bytes()
    held = torch.ones(100_000_000, dtype=torch.uint8)
    assert peak_memory_bytes() >= before
    assert peak_memory_bytes() > held.nbytes
    assert available_bytes(torch.device("cpu")) > 0


def test_every_control_group_above_counts_without_the_pages_of_files(tmp_path: Path) -> None:
    membership, inner = tmp_path / "cgroup", tmp_path / "root" / "jobs" / "mine"
    membership.write_text("1:cpu:/elsewhere\n0::/jobs/mine\n")
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("1000\n")
    (inner / "memory.current").write_text("900\n")
    (inner / "memory.stat").write_text("anon 500\nactive_file 100\ninactive_file 300\n")
    (inner.parent / "memory.max").write_text("max\n")
    (inner.parent / "memory.current").write_text("5000\n")
    (tmp_path / "root" / "memory.max").write_text("2000\n")
    (tmp_path / "root" / "memory.current").write_text("1900\n")
    assert _left_by_groups(tmp_path / "root", membership) == [400, 100]
    assert _left_by_groups(tmp_path / "root", tmp_path / "none") == [100]


def test_a_model_on_the_cpu_is_held_to_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 2))
    assert available_bytes(torch.device("cuda")) == 1
    assert available_bytes(torch.device("cpu")) > 2
