"""What the process has used, and what the machine has left."""

import resource
import sys
from pathlib import Path

import torch


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
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.is_file() else peak_memory_bytes()


def available_bytes() -> int:
    """What this process can still get: on a GPU what is free there, otherwise the least that the machine, the control
    group and the limit of the address space leave.
    """
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    left = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        values = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        left.append(int(values["MemAvailable"].split()[0]) * 1024)
    limit, current = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and current.is_file() and limit.read_text().strip() != "max":
        left.append(int(limit.read_text()) - int(current.read_text()))
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        left.append(address_space)
    return min(left, default=2**63)


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that memory did not suffice. On the CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
