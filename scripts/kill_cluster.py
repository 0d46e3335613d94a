"""Random `kill -9` of a cluster's processes: does every run end, in time, with the same bits?

    python scripts/kill_cluster.py [--kills 20] [--steps 30] [--seed 0] [--learners 2] [--generators 2]

A run of the tiny model on Ray that nobody hurts, then others in which, at a random moment, a learner, a generator, the
raylet (a node) or the command itself is killed. What stops is resumed. Printed for each: the victim, the step, seconds
until the run healed or stopped, how often it was resumed, whether weights and tokens are those of the first run, and
how many processes were left 90 s after the end, of the command that was killed and of the last one.
"""

import argparse
import atexit
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from burnish.models.tiny import make_tiny_model
from burnish.reproducibility.files import sha256_of_file

LIMIT_SECONDS = 60.0
GONE_SECONDS = 90.0  # agents of a Ray that is gone wait for its head for 60 s, and end
MARK = "KILL_CLUSTER_RUN"  # in the environment of every process of a run
VICTIMS = {
    "learner": r"^ray::LearnerWorker",
    "generator": r"^ray::GeneratorWorker",
    "node": r"raylet/raylet ",
    "controller": r"-m burnish (train|resume)",
}


def main() -> None:
    """Run, hurt, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"kills": 20, "steps": 30, "seed": 0, "learners": 2, "generators": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_tiny_model(folder / "model")
        expected = outcome(run_through(folder / "unhurt", model, arguments, victim=None, draw=draw).run)
        print(
            "| victim | killed after step | healed or stopped after, s | resumed | same bits | left over | said |\n"
            "|---|---|---|---|---|---|---|"
        )
        failures = 0
        for number in range(arguments.kills):
            victim = list(VICTIMS)[number % len(VICTIMS)]
            end = run_through(folder / str(number), model, arguments, victim=victim, draw=draw)
            is_same = outcome(end.run) == expected
            failures += not is_same or end.seconds > LIMIT_SECONDS or end.left_over > 0
            print(
                f"| {victim} | {end.step} | {end.seconds:.1f} | {end.resumed} | {'yes' if is_same else 'NO'} | "
                f"{end.left_over} | {end.said} |",
                flush=True,
            )
        good = arguments.kills - failures
        print(f"\n{good} of {arguments.kills} stopped or healed in a minute, ended with the same bits and left nothing")
    sys.exit(failures > 0)


@dataclass(frozen=True, slots=True)
class End:
    """The run's folder, the step of the kill, seconds until it healed or stopped, how often it was resumed, how
    many processes outlived it, and what a command that stopped said last.
    """

    run: Path
    step: int
    seconds: float
    resumed: int
    left_over: int
    said: str


def run_through(
    folder: Path, model: Path, arguments: argparse.Namespace, *, victim: str | None, draw: random.Random
) -> End:
    """Train to the end, and kill one process on the way."""
    folder.mkdir()
    settings = {"model.path": model, "model.num_threads": 1, "model.compute_dtype": "float32", "runs_folder": folder}
    settings |= {"task.source": "reasoning-gym:chain_sum", "task.options": '{"size": 200}', "task.num_held_out": 4}
    settings |= {"rollout.max_tokens": 12, "rollout.num_prompts": 4, "rollout.group_size": 4, "rollout.lag": 1}
    settings |= {"train.num_steps": arguments.steps, "checkpoint.every_steps": 5, "loss.entropy_coefficient": 0.01}
    settings |= {"cluster.kind": "ray", "cluster.learners": arguments.learners}
    settings |= {"cluster.generators": arguments.generators, "cluster.timeout_seconds": 120}
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    at_step, step, seconds, resumed = draw.randrange(1, arguments.steps - 1), 0, 0.0, 0
    process = start(folder, ["train", "grpo", *flags])
    if victim is not None:
        run = wait_for_step(folder, at_step, process)
        time.sleep(draw.random() * 0.5)
        step, killed = last_step(run), time.monotonic()
        while not (found := find(VICTIMS[victim], process.pid)):
            if process.poll() is not None or time.monotonic() - killed > LIMIT_SECONDS:
                raise SystemExit(f"no {victim} to kill after step {step}: {(folder / 'output').read_text()[-2000:]}")
            time.sleep(0.01)
        os.kill(draw.choice(found), signal.SIGKILL)
        while process.poll() is None and not (last_step(run) >= step + 2 and was_noticed(run, victim)):
            time.sleep(0.05)
            if time.monotonic() - killed > 300:
                raise SystemExit(f"{victim} killed after step {step}: nothing happened for 300 s")
        seconds = time.monotonic() - killed
    left_over, said = 0, ""
    while process.wait(timeout=600) != 0 and resumed < 3:
        said = (folder / "output").read_text(errors="replace").strip().rpartition("\n")[2]
        left_over += count_left_over(folder)
        resumed += 1
        process = start(folder, ["resume", "last", "--runs-folder", str(folder)])
    (run,) = folder.glob("*/run.json")
    return End(run.parent, step, seconds, resumed, left_over + count_left_over(folder), said)


def start(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """A command in the background; it ends when this script does."""
    with (folder / "output").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "burnish", *words],
            stdout=output,
            stderr=output,
            env={**os.environ, MARK: str(folder), "SPT_NOENV": "1"},  # or Ray writes its titles over it
        )
    atexit.register(process.kill)
    return process


def count_left_over(folder: Path) -> int:
    """Processes that a run began and that are there GONE_SECONDS after its end."""
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        left = 0
        for path in Path("/proc").glob("[0-9]*"):
            try:
                left += f"{MARK}={folder}".encode() in (path / "environ").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[bytes]) -> Path:
    """The run, when it has logged a step."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for path in folder.glob("*/metrics.jsonl"):
            if last_step(path.parent) >= step:
                return path.parent
        time.sleep(0.05)
    raise SystemExit(f"step {step} did not come: {(folder / 'output').read_text()[-2000:]}")


def find(pattern: str, ancestor: int) -> list[int]:
    """Processes that descend from one, or are it, by what they are called with."""
    parents: dict[int, int] = {}
    called: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            called[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue

    def descends(pid: int) -> bool:
        return pid == ancestor or (pid in parents and descends(parents[pid]))

    return [pid for pid, words in called.items() if re.search(pattern, words) and descends(pid)]


def last_step(run: Path) -> int:
    """The step logged last."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def was_noticed(run: Path, victim: str) -> bool:
    """Whether the run says that a learner or a generator was started anew; what else is killed ends the command."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return victim not in ("learner", "generator") or any(line["restarts"] for line in lines)


def outcome(run: Path) -> tuple[str, str, str]:
    """Weights, optimizer, and the tokens of every step: each prompt once, none lost, none doubled."""
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    hashes = [json.loads(line)["rollouts_sha256"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (
        sha256_of_file(checkpoint / "model.safetensors"),
        sha256_of_file(checkpoint / "optimizer.safetensors"),
        json.dumps(hashes),
    )


if __name__ == "__main__":
    main()
