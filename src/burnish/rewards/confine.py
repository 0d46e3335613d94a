"""A small program that takes rights away from its own process and then becomes another program (Linux).

    python confine.py '{"arguments": [...], "environment": {...}, "limits": {...}, "readable": [...], ...}'

`sandbox.py` starts it and states what is guaranteed. It runs in a fresh interpreter, so that nothing happens between
fork and exec of a process with threads, and imports only the standard library. What it could not do it writes to the
descriptor `status_fd`, which closes by itself when the other program begins.

Three mechanisms of the kernel, none of which needs root, a namespace or a setting of the machine:

- rlimits bound processor time, memory, file size and open files;
- Landlock (Linux 5.13) bounds the files that can be opened;
- a seccomp filter denies what neither covers: sockets, other processes, signals to them, changes of a file's mode.
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)

# prctl(2), capset(2)
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

# landlock(7); the system calls have one number on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG = (1 << bit for bit in (0, 1, 2, 3, 5, 8))
_RIGHTS_OF_VERSION_1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_RIGHTS_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE

# seccomp(2): classic BPF over `struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}`
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_FIRST_UNKNOWN_CALL = 452  # newer calls, and the x32 ones above 2**30, answer as on an older kernel

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# System calls by number on x86_64 and aarch64; None where the architecture has no such call.
CALLS: dict[str, tuple[int | None, int | None]] = {
    # looked at: some arguments are harmless
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "prctl": (157, 167),
    # the network, and io_uring, which makes calls that no filter sees
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # other processes: to start, signal, read or slow one
    "fork": (57, None),
    "vfork": (58, None),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # what would outlive the process, or escape the limit of memory
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # changes to files that Landlock does not cover
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "open_by_handle_at": (304, 265),
    # ways to more rights
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}
_LOOKED_AT = ("clone", "clone3", "kill", "tgkill", "prlimit64", "fcntl", "ioctl", "prctl")

_CLONE_THREAD = 0x00010000
_FCNTL_TO_OTHERS = (8, 10, 15, 1024)  # F_SETOWN, F_SETSIG, F_SETOWN_EX send signals; F_SETLEASE holds up who writes
_HARMLESS_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX


def main(settings: Mapping[str, Any]) -> None:
    """Confine this process as `settings` say (`sandbox._settings` writes them) and become the other program."""
    status_fd = settings["status_fd"]
    os.set_inheritable(status_fd, False)
    try:
        _limit(settings["limits"])
        if sys.platform == "linux":
            _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "die with the parent")
            _give_up_privileges()
            _confine(settings)
        elif settings["require_confinement"]:
            raise OSError(0, f"{sys.platform} has neither Landlock nor seccomp")
        os.execve(settings["arguments"][0], settings["arguments"], settings["environment"])
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        os.write(status_fd, f"{place}{error.strerror}".encode())
    os._exit(127)


def _confine(settings: Mapping[str, Any]) -> None:
    accepted = () if settings["require_confinement"] else (OSError,)
    with contextlib.suppress(*accepted):
        _restrict_files(settings["readable"], settings["folder"])
    with contextlib.suppress(*accepted):
        _filter_calls()


def _limit(limits: Mapping[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (bounded, bounded))


def _give_up_privileges() -> None:
    """No capability, now or after exec. Root is then one owner of files among others, and set-uid bits do nothing."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    for capability in range(_LAST_CAPABILITY + 1):
        _LIBC.prctl(
            _PR_CAPBSET_DROP, capability, 0, 0, 0
        )  # fails without rights to drop, where there is nothing to drop
    header = struct.pack("II", _CAPABILITY_VERSION_3, 0)
    _check(_LIBC.capset(header, bytes(24)), "drop capabilities")


def _restrict_files(readable: Sequence[str], folder: str) -> None:
    """Let the process open `readable` for reading and running, plain files of `folder` for writing too: no more."""
    version = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    _check(version, "Landlock, which bounds the files that can be opened (Linux 5.13, switched on)")
    newer = (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (_IOCTL_DEV if version >= 5 else 0)
    handled = _RIGHTS_OF_VERSION_1 | newer
    ruleset = _check(_LIBC.syscall(_LANDLOCK_CREATE_RULESET, struct.pack("Q", handled), 8, 0), "Landlock rule set")
    rights = dict.fromkeys(readable, _EXECUTE | _READ_FILE | _READ_DIR)
    rights["/dev/null"] = _READ_FILE | _WRITE_FILE | _TRUNCATE
    # No folders, links or pipes: so that what is left can be counted and removed simply.
    rights[folder] = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE
    for path, allowed in rights.items():
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        granted = allowed & handled & (-1 if os.path.isdir(path) else _RIGHTS_OF_A_FILE)
        rule = struct.pack("=Qi", granted, descriptor)
        _check(_LIBC.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0), f"Landlock rule for {path}")
        os.close(descriptor)
    _check(_LIBC.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _filter_calls() -> None:
    """Let the kernel deny the calls of `CALLS`."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(0, f"a seccomp filter for {machine}: there is one for {' and '.join(_ARCHITECTURES)}")
    program = _program(machine)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0), "seccomp filter")


def _program(machine: str) -> list[tuple[int, int, int, int]]:
    column = list(_ARCHITECTURES).index(machine)
    number = {name: call for name, numbers in CALLS.items() if (call := numbers[column]) is not None}
    denied = _ERRNO | errno.EPERM
    program = [
        (_LOAD, 0, 0, 4),
        (_IF_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_IF_AT_LEAST, 0, 1, _FIRST_UNKNOWN_CALL),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_IF_EQUAL, 0, 1, number["clone3"]),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),  # its flags lie in memory; the C library goes back to clone
    ]
    own = (os.getpid(),)
    program += _on_argument(number["clone"], 0, _IF_ANY_BIT, (_CLONE_THREAD,), (_ALLOW, denied))
    program += _on_argument(number["kill"], 0, _IF_EQUAL, own, (_ALLOW, denied))
    program += _on_argument(number["tgkill"], 0, _IF_EQUAL, own, (_ALLOW, denied))
    program += _on_argument(number["prlimit64"], 0, _IF_EQUAL, (0, *own), (_ALLOW, denied))
    program += _on_argument(number["fcntl"], 1, _IF_EQUAL, _FCNTL_TO_OTHERS, (denied, _ALLOW))
    program += _on_argument(number["ioctl"], 1, _IF_EQUAL, _HARMLESS_IOCTLS, (_ALLOW, _ERRNO | errno.ENOTTY))
    program += _on_argument(number["prctl"], 0, _IF_EQUAL, (_PR_SET_PDEATHSIG,), (denied, _ALLOW))
    for name, call in number.items():
        if name not in _LOOKED_AT:
            program += [(_IF_EQUAL, 0, 1, call), (_RETURN, 0, 0, denied)]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _on_argument(
    call: int, argument: int, test: int, values: Sequence[int], answers: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """For this call: the first answer if the test holds for one of the values, else the second."""
    size = len(values)
    tests = [(test, size - index, 0, value) for index, value in enumerate(values)]
    ends = [(_RETURN, 0, 0, answers[1]), (_RETURN, 0, 0, answers[0])]
    # An argument's low half comes first: both architectures are little-endian, and these arguments have 32 bits.
    return [(_IF_EQUAL, 0, size + 3, call), (_LOAD, 0, 0, 16 + 8 * argument), *tests, *ends]


def _check(result: int, purpose: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{purpose}: {os.strerror(code)}")
    return result


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
