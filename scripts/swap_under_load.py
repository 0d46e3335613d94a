"""Exchange the weights of a server again and again while clients ask, and count what is lost or mixed up: nothing.

    python scripts/swap_under_load.py                                   # smollm2-135m, 120 seconds
    python scripts/swap_under_load.py --model FOLDER --seconds 10 --every 1

A real server on the model, clients in processes of their own with greedy requests, and every few seconds the other of
two sets of weights: the model, and the same with noise, which gives other answers. Before, each set said its answers to
every prompt in quiet, one at a time. An answer is *mixed* if it is not the one that the weights which it names gave in
quiet, *failed* if there is none. Prints a line; exit status 1 if one is failed or mixed, or if no exchange was made.

In float32: what else is computed in the same step moves the last bits of a logit, and in bfloat16 two likeliest tokens
are equal often enough that greedy answers differ by it (docs/log.md has how many).
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

KEY, ADMIN_KEY = "user-key-under-load", "admin-key-under-load"
LEAST_EXCHANGES = 2
NOISE = 0.1  # standard deviations of each tensor
START_SECONDS, ANSWER_SECONDS = 300.0, 300.0
MAX_TOKENS = 24
PROMPTS = [f"{what} {number}?" for what in ("What is 7 plus", "Tell me of the year") for number in (3, 11, 19, 1984)]


@dataclass(frozen=True)
class Answer:
    """What came back: `version` as the answer names it, or why there is none."""

    prompt: int
    version: int = 0
    text: str = ""
    failure: str = ""


@dataclass(frozen=True)
class Addresses:
    """Where the server is asked, and told."""

    port: int
    admin_port: int


def post(port: int, path: str, body: dict[str, object], key: str) -> tuple[dict[str, object], int]:
    """(the answer's body, the version that its header names)."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return json.load(answer), int(answer.headers.get("X-Weight-Version", 0))


def ask(port: int, prompt: int) -> Answer:
    """A greedy answer."""
    body = {"model": "served", "prompt": PROMPTS[prompt], "max_tokens": MAX_TOKENS, "temperature": 0}
    try:
        found, version = post(port, "/v1/completions", body, KEY)
        return Answer(prompt, version, found["choices"][0]["text"])  # type: ignore[index]
    except (OSError, ValueError, LookupError) as error:
        said = error.read().decode()[:200] if isinstance(error, urllib.error.HTTPError) else ""
        return Answer(prompt, failure=f"{error} {said}".strip())


def client(number: int, port: int, is_over: Event, answers: "multiprocessing.Queue[list[Answer]]") -> None:
    """Ask one prompt after the other until it is over."""
    draw, found = random.Random(number), []
    while not is_over.is_set():
        found.append(ask(port, draw.randrange(len(PROMPTS))))
    answers.put(found)


def make_weights(model: str, folder: Path) -> None:
    """`one`, a copy of a model, and `two`, the same with noise."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from burnish.models.load import inspect_model

    source = inspect_model(model).source
    loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    draw = torch.Generator().manual_seed(0)
    for name in ("one", "two"):
        loaded.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for each in loaded.parameters():
                each += torch.randn(each.shape, generator=draw) * (NOISE * each.std(correction=0))


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def served(folder: Path, settings: list[str]) -> Iterator[Addresses]:
    """A server on `one` with further settings, until the context ends."""
    found = Addresses(free_port(), free_port())
    (folder / "keys").write_text(f"user load {KEY}\nadmin root {ADMIN_KEY}\n")
    command = [sys.executable, "-m", "burnish", "serve", str(folder / "one"), "--name", "served"]
    command += ["--port", str(found.port), "--keys_file", str(folder / "keys"), *settings]
    command += ["--admin.port", str(found.admin_port), "--admin.weights_folder", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{found.port}/readyz", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"the server did not start: {(folder / 'log').read_text()}") from None
                time.sleep(0.1)
        yield found
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    finally:
        process.kill()
        process.wait()


def exchange(addresses: Addresses, name: str) -> int:
    """Let `one` or `two` answer; their version."""
    found, _ = post(addresses.admin_port, "/admin/models/served/weights", {"path": name}, ADMIN_KEY)
    return int(found["version"])  # type: ignore[call-overload]


def under_load(addresses: Addresses, seconds: float, every: float, clients: int) -> tuple[list[Answer], dict[int, str]]:
    """(answers, name of the weights of each version) of clients who ask while the weights are exchanged."""
    context = multiprocessing.get_context("spawn")
    queue, is_over = context.Queue(), context.Event()
    begin = time.time()
    until = begin + seconds
    asked = [(number, addresses.port, is_over, queue) for number in range(clients)]
    processes = [context.Process(target=client, args=each, daemon=True) for each in asked]
    for each in processes:
        each.start()
    names = {exchange(addresses, "one"): "one"}
    while time.time() < until - every or len(names) - 1 < LEAST_EXCHANGES:
        time.sleep(max(0.0, begin + every * len(names) - time.time()))
        name = "two" if len(names) % 2 else "one"
        names[exchange(addresses, name)] = name
    time.sleep(every)
    is_over.set()
    answers = [answer for _ in processes for answer in queue.get(timeout=ANSWER_SECONDS)]
    for each in processes:
        each.join(30)
    return answers, names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="folder or name")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long clients ask, at least")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two exchanges, at least")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument(
        "--vllm-python", help="the interpreter of an environment with vLLM, which then makes the tokens"
    )
    options = parser.parse_args()
    settings = ["--model.compute_dtype", options.dtype]
    if options.vllm_python is not None:
        settings += ["--engine", "vllm", "--engine.vllm_python", options.vllm_python]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_weights(options.model, folder)
        with served(folder, settings) as addresses:
            quiet = {}
            for name in ("one", "two"):
                version = exchange(addresses, name)
                answers = [ask(addresses.port, prompt) for prompt in range(len(PROMPTS))]
                if {answer.version for answer in answers} != {version}:
                    raise SystemExit(f"in quiet, version {version} did not answer: {answers}")
                quiet[name] = [answer.text for answer in answers]
            begin = time.monotonic()
            answers, names = under_load(addresses, options.seconds, options.every, options.clients)
            seconds = time.monotonic() - begin
    failed = [answer for answer in answers if answer.failure]
    given = [answer for answer in answers if not answer.failure]
    # version 3, the second set asked in quiet, still answers until the first exchange under load
    names.setdefault(min(names) - 1, "two")
    mixed = [a for a in given if a.version not in names or a.text != quiet[names[a.version]][a.prompt]]
    told_apart = sum(one != two for one, two in zip(quiet["one"], quiet["two"], strict=True))
    by_version = dict(sorted(Counter(answer.version for answer in given).items()))
    print(
        f"{len(answers)} answers by {options.clients} clients in {seconds:.0f} s, {options.dtype}, "
        f"{os.cpu_count()} cores: {len(failed)} failed, {len(mixed)} mixed, {len(names) - 1} exchanges; "
        f"{told_apart} of {len(PROMPTS)} prompts tell the weights apart; by version {by_version}"
    )
    for each in (failed + mixed)[:3]:
        print(each, file=sys.stderr)
    return 1 if failed or mixed or len(names) - 1 < LEAST_EXCHANGES or not told_apart else 0


if __name__ == "__main__":
    sys.exit(main())
