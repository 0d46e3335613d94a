"""Programs that mean harm, run for real: each ends as a failure, soon, and leaves nothing behind."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from burnish.errors import ConfigError
from burnish.rewards import confine
from burnish.rewards.sandbox import Limits, SandboxResult, run_python, start_python

QUICK = Limits(wall_seconds=20.0, cpu_seconds=1)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _folder_of_sandboxes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("sandboxes")))
    try:
        run_python("")
    except ConfigError as error:
        pytest.skip(str(error))


def left_behind() -> list[str]:
    """Folders of this test's sandboxes, and processes that live in one."""
    folders = [str(path) for path in Path(tempfile.gettempdir()).glob("burnish-*")]
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            folder = os.readlink(process / "cwd")
        except OSError:  # it ended meanwhile, or is another user's
            continue
        if folder.startswith(tempfile.gettempdir()):
            processes.append(str(process))
    return folders + processes


def run(code: str, limits: Limits = QUICK) -> SandboxResult:
    began = time.monotonic()
    result = run_python(code, limits=limits)
    assert time.monotonic() - began < 10
    assert left_behind() == []
    return result


def test_a_program_that_works() -> None:
    result = run_python("import sys\nprint(input())\nprint('warning', file=sys.stderr)", stdin="a line\n")
    assert result == SandboxResult(exit_status=0, stdout="a line\n", stderr="warning\n", stopped=None)
    assert result.ok
    assert left_behind() == []


def test_numpy_is_there() -> None:
    assert run("import numpy\nprint(numpy.ones((9, 9)).dot(numpy.ones(9)).sum())").stdout == "81.0\n"


def test_the_hash_seed_is_fixed() -> None:
    code = "print({'a', 'b', 'c', 'd', 'e', 'f', 'g'}, hash('a'))"
    assert run(code) == run(code)


def test_threads_and_asyncio_work() -> None:
    code = """
import asyncio, threading
threading.stack_size(256 << 20)  # as programs of competitions do, to recurse deeply
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
asyncio.run(asyncio.sleep(0))
"""
    assert run(code).stdout == "thread\n"


ENDS = {
    "a syntax error": ("def (", "SyntaxError"),
    "a fork bomb": ("import os\nwhile True: os.fork()", "PermissionError"),
    "a fork bomb of the C library": (
        "import ctypes\nif ctypes.CDLL(None).fork() == -1: raise PermissionError",
        "PermissionError",
    ),
    "another program": ("import subprocess\nsubprocess.run(['/bin/true'])", "PermissionError"),
    "a pool of processes": ("import multiprocessing\nmultiprocessing.Pool(2)", "Error"),
    "a daemon": ("import os\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: input()", "PermissionError"),
    "10 GB of memory": ("x = bytearray(10 << 30)", "MemoryError"),
    "10 GB of memory in pieces": ("x = []\nwhile True: x.append(bytes(1 << 20))", "MemoryError"),
    "memory in a file": ("import os\nos.memfd_create('x')", "PermissionError"),
    "memory that stays": (
        "import ctypes\nif ctypes.CDLL(None).shmget(0, 4096, 0o1600) == -1: raise PermissionError",
        "PermissionError",
    ),
    "a file of 10 GB": ("f = open('x', 'wb')\nfor _ in range(10240): f.write(bytes(1 << 20))", "File too large"),
    "a sparse file": ("open('x', 'wb').truncate(10 << 30)", "File too large"),
    "endless output": ("while True: print('x' * 100_000)", "File too large"),
    "endless raw output": ("import os\nwhile True: os.write(1, bytes(100_000))", "File too large"),
    "many open files": ("f = [open('/dev/null') for _ in range(1000)]", "Too many open files"),
    "a connection": ("import socket\nsocket.create_connection(('127.0.0.1', 80))", "PermissionError"),
    "a local socket": ("import socket\nsocket.socket(socket.AF_UNIX)", "PermissionError"),
    "a datagram": ("import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", "PermissionError"),
    "a folder elsewhere": ("import os\nos.mkdir('/tmp/burnish-was-here')", "PermissionError"),
    "a new folder": ("import os\nos.mkdir('folder')", "PermissionError"),
    "a link": ("import os\nos.symlink('/etc/passwd', 'link')", "PermissionError"),
    "reading a file of the machine": ("print(open('/etc/passwd').read())", "PermissionError"),
    "listing a folder": ("import os\nprint(os.listdir('/'))", "PermissionError"),
    "looking at processes": ("print(open('/proc/self/environ').read())", "PermissionError"),
    "root's rights": ("import os\nos.chroot('/usr')", "PermissionError"),
    "a user of its own": (
        "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise PermissionError",
        "PermissionError",
    ),
    "priorities of others": ("import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)", "PermissionError"),
    "limits of others": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "PermissionError",
    ),
    "a system call newer than the filter": (
        "import ctypes\nctypes.CDLL(None, use_errno=True).syscall(466)\nraise OSError(ctypes.get_errno(), 'x')",
        "Errno 38",
    ),
    "living longer than the parent": (
        "import ctypes\nif ctypes.CDLL(None).prctl(1, 0, 0, 0, 0): raise PermissionError",
        "PermissionError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_harm_ends_as_an_error(name: str) -> None:
    code, error = ENDS[name]
    result = run(code)
    assert result.exit_status == 1
    assert not result.ok
    assert error in result.stderr
    assert len(result.stdout) <= QUICK.file_bytes
    assert not Path("/tmp/burnish-was-here").exists()


# Signal 0 asks for the permission alone: should the filter fail, the machine survives this test.
@pytest.mark.parametrize(
    "code",
    [
        "os.kill(os.getppid(), 0)",
        "os.kill(-1, 0)",
        "os.killpg(os.getpgid(os.getppid()), 0)",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
        "r, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "r, w = os.pipe()\nfcntl.fcntl(r, 10, 9)",
        "r, w = os.pipe()\nfcntl.ioctl(r, 0x8901, struct.pack('i', os.getppid()))",
        "ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0) and exit('PermissionError')",
    ],
)
def test_no_signal_reaches_another_process(code: str) -> None:
    result = run(f"import ctypes, fcntl, os, signal, struct\n{code}")
    assert result.exit_status == 1
    assert "PermissionError" in result.stderr or "Errno 25" in result.stderr


def test_endless_loop_is_ended_by_processor_time() -> None:
    result = run("while True: pass")
    assert (result.exit_status, result.stopped) == (-9, None)


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(100)",
        "import os, signal, sys, time\nsys.stdin.close()\nos.close(1)\nos.close(2)\n"
        "for number in (1, 2, 3, 14, 15, 24): signal.signal(number, signal.SIG_IGN)\ntime.sleep(100)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_waiting_is_ended_by_the_deadline(code: str) -> None:
    result = run(code, Limits(wall_seconds=0.3))
    assert (result.exit_status, result.stopped, result.ok) == (-9, "deadline", False)


def test_a_bomb_of_threads() -> None:
    code = "from threading import *\nstack_size(32768)\nwhile True: Thread(target=Event().wait).start()"
    assert run(code).stopped == "threads"


def test_a_bomb_of_files() -> None:
    assert run("i = 0\nwhile True:\n  open(str(i), 'w').close()\n  i += 1").stopped == "files"


@pytest.mark.parametrize(
    "harm",
    [
        "os.remove({file!r})",
        "open({file!r}, 'a')",
        "os.truncate({file!r}, 0)",
        "os.rename({file!r}, 'mine')",
        "os.link({file!r}, 'mine')",
        "os.chmod({file!r}, 0)",
        "os.chown({file!r}, -1, -1)",
        "os.utime({file!r})",
        "os.setxattr({file!r}, 'user.x', b'x')",
        "shutil.rmtree({folder!r})",
        "open({folder!r} + '/new', 'w')",
        "open({file!r})",
        "os.listdir({folder!r})",
    ],
)
def test_files_elsewhere_stay_as_they_are(tmp_path: Path, harm: str) -> None:
    file = tmp_path / "precious"
    file.write_text("precious")
    before = file.stat()
    result = run("import os, shutil\n" + harm.format(file=str(file), folder=str(tmp_path)))
    assert result.exit_status == 1
    assert "PermissionError" in result.stderr or "cross-device" in result.stderr
    assert file.read_text() == "precious"
    after = file.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, before.st_nlink)
    assert list(tmp_path.iterdir()) == [file]


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    result = run("import os\nprint(sorted(os.environ), os.listdir('.'))")
    assert "SECRET_TOKEN" not in result.stdout
    assert "['main.py']" in result.stdout


def test_no_descriptor_of_the_parent_is_open() -> None:
    with tempfile.TemporaryFile() as file:
        os.set_inheritable(file.fileno(), True)
        code = "import os\nfor fd in range(3, 64):\n  try: os.fstat(fd)\n  except OSError: continue\n  print(fd)"
        assert run(code).stdout == ""


def test_leaving_early_ends_the_process() -> None:
    with start_python({"main.py": "import time\ntime.sleep(100)"}, limits=QUICK):
        assert left_behind() != []
    assert left_behind() == []


def test_the_process_ends_with_its_parent() -> None:
    parent = (
        "from burnish.rewards.sandbox import Limits, start_python\n"
        "import os, signal, time\n"
        "with start_python({'main.py': 'import time; time.sleep(100)'}, limits=Limits()):\n"
        "    time.sleep(0.5)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], timeout=30, env=environment())
    assert done.returncode == -9
    deadline = time.monotonic() + 5
    while processes := [path for path in left_behind() if path.startswith("/proc")]:
        assert time.monotonic() < deadline, processes
        time.sleep(0.01)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "TMPDIR": tempfile.gettempdir()}


WITHOUT_LANDLOCK = """
import ctypes, json, struct
from burnish.errors import ConfigError
from burnish.rewards import confine
from burnish.rewards.sandbox import run_python
# A machine without Landlock, made by a filter that denies its first call as an older kernel does.
program = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (6, 0, 0, 0x00050000 | 38), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)), 0, 0) == 0
try:
    run_python("print(1)")
except ConfigError as error:
    print(error)
print(run_python("print(open('/etc/passwd').read() != '')", require_confinement=False).stdout)
print(run_python("import socket; socket.socket()", require_confinement=False).stderr)
"""


def test_a_machine_without_landlock_refuses_unless_told_otherwise() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANDLOCK], capture_output=True, text=True, timeout=30, env=environment()
    )
    refusal, could_read, socket = done.stdout.split("\n", 2)
    assert "on this machine: Landlock" in refusal
    assert "code_tests_unconfined" in refusal
    assert could_read == "True"
    assert "PermissionError" in socket  # what the machine does have is used


def test_python_that_does_not_start_is_no_wrong_answer() -> None:
    code = (
        "import sys\nfrom burnish.rewards import sandbox\nsandbox._SYSTEM = ()\n"
        "sys.base_prefix = sys.prefix = '/nowhere'\nsandbox.run_python('')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=environment())
    assert f"cannot be confined on this machine: {sys.executable}: Permission denied" in done.stderr


@pytest.mark.parametrize(
    ("machine", "header"), [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")]
)
def test_numbers_of_system_calls_are_those_of_the_kernel(machine: str, header: str) -> None:
    path = Path("/usr/include") / header
    if not path.is_file():
        pytest.skip(f"the kernel's header {path} is not on this machine")
    numbers = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "#define" and words[1].startswith("__NR"):
            name = words[1].removeprefix("__NR3264_").removeprefix("__NR_")
            numbers |= {name: int(words[2])} if words[2].isdigit() else {}
    column = list(confine._ARCHITECTURES).index(machine)
    assert len(numbers) > 250
    for name, values in confine.CALLS.items():
        if values[column] is None:
            assert name not in numbers
        else:
            assert numbers.get(name, values[column]) == values[column]  # an older header lacks the newest


def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="x86_64 and aarch64"):
        confine._filter_calls()


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    read, write = os.pipe()
    settings = {
        "status_fd": write,
        "limits": {},
        "readable": [],
        "folder": str(tmp_path / "nothing"),
        "environment": {},
    }
    settings |= {"arguments": ["/nowhere/python"], "require_confinement": True}
    done = subprocess.run([sys.executable, confine.__file__, json.dumps(settings)], pass_fds=[write], timeout=30)
    os.close(write)
    assert done.returncode == 127
    assert os.read(read, 100) != b""
    os.close(read)
