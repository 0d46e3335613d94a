"""A rendered script, run by a real Slurm of two nodes: munged, slurmctld and two slurmd on this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("slurmctld") is None, reason="Slurm is not here, or not root"),
]
CONFIG = """ClusterName=burnish
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout=300
NodeName=one NodeHostname={host} Port={first} CPUs=4 State=UNKNOWN
NodeName=two NodeHostname={host} Port={second} CPUs=4 State=UNKNOWN
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""
SECONDS = 60


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def until(is_so: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)


@contextmanager
def daemon(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which sbatch speaks to it."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    (folder / "state").mkdir()
    port, first, second = free_ports(3)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=socket.gethostname(), folder=folder, port=port, first=first, second=second))
    environment = {**os.environ, "SLURM_CONF": str(config), "OMP_WAIT_POLICY": "passive"}
    munge = [f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"]
    munge += [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed", "--foreground", "--force"]
    with ExitStack() as stack:
        stack.enter_context(daemon(["munged", *munge], environment))
        until(lambda: (folder / "munge.socket").exists(), "munged")
        stack.enter_context(daemon(["slurmctld", "-D"], environment))
        for node in ("one", "two"):
            stack.enter_context(daemon(["slurmd", "-D", "-N", node], environment))
        until(lambda: "idle" in ask(environment, "sinfo", "--noheader", "--format=%D %t"), "two idle nodes")
        yield environment


def ask(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout


def submit(environment: dict[str, str], folder: Path, model: Path, *settings: str) -> str:
    """Render, hand in; the job's number."""
    recipe = ["sft", "--model.path", str(model), "--model.compute_dtype", "float32", "--model.num_threads", "1"]
    recipe += ["--data.source", str(folder / "rows.jsonl"), "--data.num_held_out", "4", *settings]
    rows = [{"prompt": f"{n}?", "completion": f"{n} and {n + 1}."} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ["--nodes", "2", "--cpus", "2", "--setup", f"export PATH={Path(sys.executable).parent}:$PATH"]
    render = [sys.executable, "-m", "burnish", "render", "slurm", *recipe, *where, "--cluster.learners", "2"]
    script = subprocess.run(render, env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    (folder / "job.sh").write_text(script.stdout)
    told = subprocess.run(
        ["sbatch", "--parsable", "job.sh"], env=environment, cwd=folder, capture_output=True, text=True, timeout=30
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def output_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*.out"))


def is_over(environment: dict[str, str], number: str) -> bool:
    return not ask(environment, "squeue", "--noheader", "--jobs", number).strip()


def processes_of(number: str) -> list[int]:
    """Those that a job started, by their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SLURM_JOB_ID={number}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def test_a_rendered_script_trains_on_two_nodes(slurm: dict[str, str], tiny_folder: Path, tmp_path: Path) -> None:
    number = submit(slurm, tmp_path, tiny_folder, "--train.num_steps", "3")
    until(lambda: is_over(slurm, number), "the job to end", 240)
    assert "trained model: " in output_of(tmp_path), output_of(tmp_path)
    (run,) = (tmp_path / "runs" / f"slurm-{number}").iterdir()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    until(lambda: not processes_of(number), "the job's processes to be gone", 30)


def test_a_job_that_is_told_to_end_saves(slurm: dict[str, str], tiny_folder: Path, tmp_path: Path) -> None:
    number = submit(slurm, tmp_path, tiny_folder, "--train.num_steps", "5000", "--checkpoint.every_steps", "5000")
    until(lambda: "step 3/5000" in output_of(tmp_path), "the third step", 240)
    ask(slurm, "scancel", "--signal=TERM", "--batch", number)
    until(lambda: is_over(slurm, number), "the job to save and end", 120)
    assert re.search(r"stopped after step \d+; go on with: burnish resume", output_of(tmp_path)), output_of(tmp_path)
    (run,) = (tmp_path / "runs" / f"slurm-{number}").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert list((run / "checkpoints").glob("step-*"))
