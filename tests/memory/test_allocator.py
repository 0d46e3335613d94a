"""How a process that holds tensors must start, where there is glibc."""

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
