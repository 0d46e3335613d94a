"""Install a wheel of burnish where nothing else is, and use it: version, help, settings, a training, a server.

    python3.12 scripts/try_wheel.py dist/burnish-0.1.0-py3-none-any.whl --constraints requirements.lock

The environment is made by the Python that runs this, and removed at the end. pip sees your settings and its cache; what
is tried then has an empty home, empty caches and no path to a checkout. `--reuse FOLDER` takes the other packages from
a folder of packages (site-packages) instead of installing them: quick, and no proof that the dependencies suffice.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

_INSTALL_SECONDS = 3600
_COMMAND_SECONDS = 300
_START_SECONDS = 300
_TINY = "from burnish import make_tiny_model; from pathlib import Path; print(make_tiny_model(Path('tiny')))"


class Tried:
    """An environment with burnish in it, and an empty home beside it."""

    def __init__(self, scratch: Path) -> None:
        self.bin = scratch / "env" / "bin"
        self.work = scratch / "work"
        self.work.mkdir()
        self._environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
            "LANG": "C.UTF-8",
        }
        for folder in ("home", "tmp"):
            (scratch / folder).mkdir()

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """A command of the environment."""
        print("$", *(word if len(word) < 60 else "..." for word in command), flush=True)
        return subprocess.Popen(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.work,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, says: str, status: int = 0) -> None:
        """Run a command and look for the pattern `says` in what it prints."""
        process = self.start(*command)
        try:
            out, error = process.communicate(timeout=_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            sys.exit(f"try_wheel: {command[:3]} took longer than {_COMMAND_SECONDS} s: {process.communicate()}")
        if process.returncode != status or not re.search(says, out + error):
            sys.exit(f"try_wheel: exit status {process.returncode}, wanted {status} and {says!r}:\n{out}{error}")
        found = next(line for line in (out + error).splitlines() if re.search(says, line))
        print("   ", found.strip()[:150], flush=True)


def use(tried: Tried, version: str, *, has_extras: bool) -> None:
    """What burnish does without an extra."""
    tried.run("burnish", "--version", says=re.escape(version))
    tried.run("burnish", "--help", says=r"train\b.*Train a recipe")
    tried.run("burnish", "config", "show", "quickstart", says=r"train\.num_steps")
    tried.run("burnish", "doctor", says=re.escape(version))
    tried.run("python", "-c", _TINY, says="tiny")
    rows = [{"prompt": f"say {i}", "completion": f"word {i}", "answer": str(i)} for i in range(12)]
    (tried.work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = ["--model.path=tiny", "--model.compute_dtype=float32", "--train.num_steps=2", "--checkpoint.every_steps=2"]
    data = ["--data.source=rows.jsonl", "--data.num_held_out=4"]
    tried.run("burnish", "train", "sft", *data, *model, says="held-out log-likelihood")
    task = ["--task.source=rows.jsonl", "--task.num_held_out=4", "--task.reward=burnish.rewards.answers:exact_match"]
    tried.run("burnish", "train", "grpo", *task, "--rollout.max_tokens=8", *model, says="held-out accuracy")
    tried.run("burnish", "runs", says="finished")
    if not has_extras:
        tried.run("burnish", "serve", "tiny", says=r"pip install 'burnish\[serve\]'$", status=2)


def serve(tried: Tried) -> None:
    """Ask a server for an answer, and end it."""
    process = tried.start("burnish", "serve", "tiny", "--port", "0", "--model.compute_dtype", "float32")
    try:
        address = _address(process)
        body = json.dumps({"model": "tiny", "prompt": "say", "max_tokens": 4, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/v1/completions", body, headers)
        here = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever pip went through
        with here.open(request, timeout=60) as answer:
            print("   ", answer.status, json.load(answer)["usage"], flush=True)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        if process.returncode:
            sys.exit(f"try_wheel: the server ended with status {process.returncode}")
    finally:
        process.kill()


def _address(process: "subprocess.Popen[str]") -> str:
    """Where it listens, as it says itself."""
    said, end = "", threading.Timer(_START_SECONDS, process.kill)
    end.start()
    for line in process.stderr or ():
        said += line
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            end.cancel()
            return found[0]
    end.cancel()
    sys.exit(f"try_wheel: the server did not start within {_START_SECONDS} s:\n{said}")


def install(python: Path, *what: str) -> None:
    """Install into the environment of `python`, with pip as the user has set it up."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    print("$ pip install", *what, flush=True)
    subprocess.run(command, check=True, timeout=_INSTALL_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--constraints", type=Path, help="versions for pip to keep to")
    parser.add_argument("--reuse", type=Path, help="a folder of packages to use instead of installing them")
    arguments = parser.parse_args()
    wheel, version = arguments.wheel.resolve(), arguments.wheel.name.split("-")[1]
    versions = ["-c", str(arguments.constraints.resolve())] if arguments.constraints else []
    with tempfile.TemporaryDirectory(prefix="burnish-wheel-") as scratch:
        tried = Tried(Path(scratch))
        subprocess.run([sys.executable, "-m", "venv", str(tried.bin.parent)], check=True, timeout=120)
        python = tried.bin / "python"
        if arguments.reuse is None:
            install(python, str(wheel), *versions)
        else:
            install(python, "--no-deps", str(wheel))
            (packages,) = tried.bin.parent.glob("lib/python*/site-packages")
            (packages / "reuse.pth").write_text(f"{arguments.reuse.resolve()}\n", encoding="utf-8")
        where = "import burnish; print(burnish.__file__)"
        tried.run("python", "-c", where, says=re.escape(str(tried.bin.parent)))
        use(tried, version, has_extras=arguments.reuse is not None)
        if arguments.reuse is None:
            install(python, f"{wheel}[serve]", *versions)
        serve(tried)
    print(f"ok: burnish {version} from its wheel, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
