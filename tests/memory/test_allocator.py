"""What glibc does with the memory of tensors: how a process must start, and that it then holds less."""

import os
import platform
import subprocess
import sys

import pytest

from burnish.memory.allocator import environment_for_tensors

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc than glibc is left as it is")

NO_CACHE, NO_BINS = "glibc.malloc.tcache_count=0", "glibc.malloc.mxfast=0"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"{NO_CACHE}:{NO_BINS}"),
        ("glibc.malloc.hugetlb=1", f"glibc.malloc.hugetlb=1:{NO_CACHE}:{NO_BINS}"),
        ("glibc.malloc.tcache_count=9", f"glibc.malloc.tcache_count=9:{NO_BINS}"),  # the user's choice
    ],
)
def test_what_is_chosen_already_stays(monkeypatch, before: str, after: str) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", before)
    assert environment_for_tensors() == {"GLIBC_TUNABLES": after}


def test_a_command_begins_again_once_with_the_same_arguments(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom burnish.memory.allocator import restart_for_tensors\nprint('begins', flush=True)\n"
        "restart_for_tensors()\nprint(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.flags.utf8_mode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8", script, "a b", "--c"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["begins", "begins", f"{NO_CACHE}:{NO_BINS} ['a b', '--c'] 1"]


HOLDS = """
import ctypes
import torch
from burnish.memory.allocator import allocator

class Info(ctypes.Structure):
    _fields_ = [(f"n{i}", ctypes.c_size_t) for i in range(10)]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
allocator.choose(returns_freed=False)
before = libc.mallinfo2().n0
weight, down, up = torch.ones(512, 512), torch.ones(512, 16), torch.ones(16, 512)
y = torch.ones(512, 512, requires_grad=True)

def adapted(x):
    return x @ weight + x @ down @ up * 2.0

for _ in range(40):  # small objects of autograd come between tensors that are freed
    gate = adapted(y)
    y = torch.nn.functional.silu(gate) * adapted(y)
print(libc.mallinfo2().n0 - before)
"""


@pytest.mark.slow
def test_holes_of_tensors_take_tensors() -> None:
    def heap_bytes(environment: dict[str, str]) -> int:
        command = [sys.executable, "-c", HOLDS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
        return int(done.stdout)

    plain = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    assert heap_bytes(plain | environment_for_tensors()) < 0.6 * heap_bytes(plain)
