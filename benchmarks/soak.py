"""burnish's server for as long as it takes: constant load below its limit, and told to stop in the middle of it.

    python benchmarks/soak.py [--minutes 30] [--share 0.8] [--seed 0] [--clients 32] [--model FOLDER]

What it can do is measured first, by clients that never rest. Then requests come at random (Poisson), `--share` of as
many as it managed, whether or not earlier ones are answered, with prompts and answers of different lengths. Each ten
seconds its memory is noted. At the end it gets SIGTERM while answers are under way: all must be given. The last line is
the verdict: growth of memory in the last three quarters (Theil and Sen's slope with its 95 % interval), the 99th
percentile of the time to an answer in the first and in the last minute, errors, and the answers at the end.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from load import Answer, ask, load, write_prompts
from scipy.stats import theilslopes
from serving import Peer, running

from burnish.models.load import find_model

_EVERY_SECONDS = 10.0
_LENGTHS = [16, 32, 64, 128, 256]  # of prompts
_ANSWER_TOKENS = (16, 128)
_NUM_PROMPTS = 400
_END_SECONDS = 180
_MB = 2**20


class Soak:
    """The load on a server, and what is seen meanwhile."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], bodies: list[dict[str, Any]]) -> None:
        self.url, self.process, self.bodies = url, process, bodies
        self.answers: list[Answer] = []
        self.memory: list[tuple[float, float]] = []  # (minutes, MB)
        self.asking: list[threading.Thread] = []
        self._lock = threading.Lock()

    def run(self, rate: float, seconds: float, rng: random.Random) -> float:
        """Ask `rate` requests a second for so long; returns when it began."""
        began = time.monotonic()
        next_at, look_at = began, began
        while (now := time.monotonic()) < began + seconds:
            if now >= look_at:
                self.memory.append(((now - began) / 60, resident_mb(self.process.pid)))
                look_at += _EVERY_SECONDS
            if now >= next_at:
                self._start(rng.choice(self.bodies))
                next_at += rng.expovariate(rate)
            time.sleep(max(0.0, min(next_at, look_at, began + seconds) - time.monotonic()))
        return began

    def stop(self, bodies: list[dict[str, Any]]) -> tuple[int, int]:
        """Tell it to stop with these and others under way. Returns (those that were, those that were answered)."""
        for body in bodies:
            self._start(body)
        time.sleep(1.0)  # so that they have arrived
        self.asking = [each for each in self.asking if each.is_alive()]
        before, under_way = len(self.answers), len(self.asking)
        self.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + _END_SECONDS
        for thread in self.asking:
            thread.join(max(0.0, until - time.monotonic()))
        self.process.wait(_END_SECONDS)
        return under_way, sum(answer.fault is None for answer in self.answers[before:])

    def _start(self, body: dict[str, Any]) -> None:
        def answered() -> None:
            found = ask(self.url, body)
            with self._lock:
                self.answers.append(found)

        self.asking = [each for each in self.asking if each.is_alive()]
        self.asking.append(threading.Thread(target=answered, daemon=True))
        self.asking[-1].start()


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / _MB
    return float("nan")


def p99_by_minute(answers: list[Answer], began: float, seconds: float) -> list[float]:
    """The 99th percentile of the seconds to an answer, of those asked in each whole minute of so many seconds."""
    minutes: dict[int, list[float]] = {}
    for answer in answers:
        if answer.fault is None and (minute := int((answer.asked_at - began) / 60)) < int(seconds / 60):
            minutes.setdefault(minute, []).append(answer.seconds)
    return [float(np.percentile(minutes[minute], 99)) for minute in sorted(minutes)]


def verdict(soak: Soak, p99: list[float], under_way: int, given: int) -> str:
    """All of it in a line."""
    late = [each for each in soak.memory if each[0] >= soak.memory[-1][0] / 4]
    minutes, sizes = zip(*late, strict=True)
    slope, _, low, high = (60 * each for each in theilslopes(sizes, minutes, 0.95))
    whole = float(np.percentile([answer.seconds for answer in soak.answers if answer.fault is None], 99))
    errors = sum(answer.fault is not None for answer in soak.answers)
    return (
        f"memory {slope:+.1f} MB/h [{low:+.1f}, {high:+.1f}] at {sizes[-1]:.0f} MB; p99 {p99[0]:.2f} s in the first "
        f"minute, {p99[-1]:.2f} s in the last, {p99[-1] / p99[0]:.2f}x; {whole:.2f} s in all, {whole / p99[0]:.2f}x; "
        f"{errors} errors in {len(soak.answers):,} answers; at SIGTERM {given} of {under_way} under way were answered, "
        f"exit {soak.process.returncode}"
    )


def main() -> None:
    """Read the arguments, load the server, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--model")
    parser.add_argument("--port", type=int, default=18_600)
    arguments = parser.parse_args()
    if arguments.minutes < 1:
        parser.error("--minutes: at least 1, whose 99th percentile the others are held against")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server stays
    model, rng = str(arguments.model or find_model("smollm2-135m")), random.Random(arguments.seed)
    command = [sys.executable, "-m", "burnish", "serve", model, "--name", "m", "--port", str(arguments.port)]
    peer = Peer(name="burnish", command=command, ready="/readyz", body={})
    with tempfile.TemporaryDirectory() as folder:
        write_prompts(model, Path(folder) / "prompts", count=_NUM_PROMPTS, lengths=_LENGTHS, seed=arguments.seed)
        shared = {"model": "m", "ignore_eos": True, "stream_options": {"include_usage": True}}
        bodies = [
            {**shared, "prompt": text, "max_tokens": rng.randint(*_ANSWER_TOKENS), "seed": rng.getrandbits(32)}
            for text in json.loads((Path(folder) / "prompts").read_text())
        ]
        with running(peer, arguments.port, Path(folder) / "log") as process:
            url = f"http://127.0.0.1:{arguments.port}"
            seconds, answers = load(url, bodies[: 4 * arguments.clients], arguments.clients)
            rate = arguments.share * len(answers) / seconds
            print(
                f"{len(answers) / seconds:.2f} requests/s at most; {rate:.2f} for {arguments.minutes:g} min", flush=True
            )
            soak = Soak(url, process, bodies)
            began = soak.run(rate, 60 * arguments.minutes, rng)
            under_way, given = soak.stop(rng.sample(bodies, arguments.clients // 2))
    p99 = p99_by_minute(soak.answers, began, 60 * arguments.minutes)
    for place, value in enumerate(p99):
        size = max((each for minute, each in soak.memory if int(minute) == place), default=float("nan"))
        print(f"minute {place}: p99 {value:.2f} s, {size:.0f} MB")
    for faults in {answer.fault for answer in soak.answers if answer.fault is not None}:
        print(f"fault: {faults}")
    print(verdict(soak, p99, under_way, given))


if __name__ == "__main__":
    main()
