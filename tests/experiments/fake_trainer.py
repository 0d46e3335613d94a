"""Called as burnish is, `train FILE --name=... --seed=... --runs_folder=...` or `resume RUN`, it writes a run folder.

The file FAKE_BEHAVIOUR says for each run's name, and for * what holds for all: `scores`, the held-out score of each
item after training; `metrics`, more of the last step; `failure`, why it fails; `says`, its last words before it ends
with status 2; `waits`, seconds it takes unless it is asked to stop; `stubborn`, it does not stop; `dies`, it is killed
at its first start.
"""

import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 4


def main() -> int:
    command, what, *flags = sys.argv[1:]
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    if command == "resume":
        run = Path(what)
        name = run.name.rpartition("-")[0]
    else:
        assert Path(what).is_file()
        name = given["name"]
        run = Path(given["runs_folder"]) / f"{name}-{os.getpid() % 0xFFFFFF:06x}"
    behaviours = json.loads(Path(os.environ["FAKE_BEHAVIOUR"]).read_text())
    behaviour = {**behaviours.get("*", {}), **behaviours.get(name, {})}
    if "says" in behaviour:
        sys.stderr.write(f"burnish: {behaviour['says']}\n")
        return 2
    (run / "evaluations").mkdir(parents=True, exist_ok=True)
    if command == "train":
        (run / "config.yaml").write_text(Path(what).read_text())
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return train(run, command, behaviour)


def train(run: Path, command: str, behaviour: dict) -> int:
    stopped = []
    ignored = behaviour.get("stubborn", False)
    signal.signal(signal.SIGTERM, lambda number, frame: None if ignored else stopped.append(number))
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"created": now, "status": "running", "seed": 0, "commands": [command]}
    if command == "resume":
        record = json.loads((run / "run.json").read_text())
        record["commands"].append(command)
    write(run, record)
    evaluate(run, 0, [0.0] * len(behaviour.get("scores", [0.0])))
    if behaviour.get("dies") and command == "train":
        os.kill(os.getpid(), signal.SIGKILL)
    ends = time.monotonic() + behaviour.get("waits", 0.0)
    while time.monotonic() < ends and not stopped:
        time.sleep(0.01)
    if stopped:
        write(run, {**record, "status": "interrupted"})
        return 130
    if "failure" in behaviour:
        write(run, {**record, "status": "failed", "failure": behaviour["failure"]})
        return 3
    scores = behaviour.get("scores", [1.0])
    lines = [{"step": step, "loss": 1 / step} for step in range(1, STEPS + 1)]
    lines[-1] |= {"held_out": sum(scores) / len(scores), **behaviour.get("metrics", {})}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(run, STEPS, scores)
    files = [run / "metrics.jsonl", *(run / "evaluations").glob("*")]
    outputs = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    write(run, {**record, "status": "finished", "finished": now, "outputs": outputs})
    return 0


def write(run: Path, record: dict) -> None:
    (run / "run.json.tmp").write_text(json.dumps(record))
    (run / "run.json.tmp").rename(run / "run.json")


def evaluate(run: Path, step: int, scores: list) -> None:
    lines = [json.dumps({"id": str(index), "score": score}) for index, score in enumerate(scores)]
    (run / "evaluations" / f"step-{step:06d}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
