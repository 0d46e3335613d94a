"""What the process has used, and what the machine has left."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from burnish.errors import MachineError


def peak_memory_bytes() -> int:
    """The most that was held: on a GPU what torch allocated there, otherwise the largest resident size of this process.

    Linux counts the latter in KiB, macOS in bytes.
    """
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """What this process holds now; where the system does not say it, the most that it held."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated() > 0:
        return torch.cuda.memory_allocated()
    sizes = _sizes()
    return sizes[1] if sizes else peak_memory_bytes()


def available_bytes(device: torch.device) -> int:
    """What this process can still get: on a GPU what is free there, otherwise the least that the machine, the control
    groups and the limit of the address space leave.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    left = _left_by_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        values = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        left.append(int(values["MemAvailable"].split()[0]) * 1024)
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        sizes = _sizes()
        left.append(max(0, address_space - (sizes[0] if sizes else peak_memory_bytes())))
    return min(left, default=2**63)


def _sizes() -> list[int]:
    """Bytes of this process's address space that are mapped, and that are in memory; empty where nobody says."""
    statm = Path("/proc/self/statm")
    return [int(pages) * resource.getpagesize() for pages in statm.read_text().split()[:2]] if statm.is_file() else []


def held_bytes(device: torch.device) -> int:
    """What this process holds of a device's memory now."""
    return torch.cuda.memory_reserved() if device.type == "cuda" else resident_bytes()


def _left_by_groups(root: Path, membership: Path) -> list[int]:
    """What the control group (version 2) of this process and each one above it leave, where they have a limit."""
    name = re.search(r"^0::/(.*)", membership.read_text(), re.MULTILINE) if membership.is_file() else None
    group = root / (name[1] if name else "")
    left = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        limit, current, stat = folder / "memory.max", folder / "memory.current", folder / "memory.stat"
        if limit.is_file() and current.is_file() and limit.read_text().strip() != "max":
            # pages of files that nobody reads are counted as used, and given back when they are needed
            cached = re.search(r"^inactive_file (\d+)", stat.read_text(), re.MULTILINE) if stat.is_file() else None
            left.append(int(limit.read_text()) - int(current.read_text()) + (int(cached[1]) if cached else 0))
    return left


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Say in one line where memory did not suffice.

    Raises:
        MachineError: it did not.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            f"out of memory while {doing}; `burnish memory` says what would make the recipe fit"
        ) from error


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that memory did not suffice. On the CPU torch raises a plain RuntimeError, and oneDNN one
    that does not name the cause: here it makes a primitive of kinds that it made before.
    """
    said = ("can't allocate memory", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(each in str(error) for each in said)
