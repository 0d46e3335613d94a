"""Asks a server of completions as its clients do; a process of its own, so that its work is not the server's.

    python benchmarks/load.py --url URL --prompts FILE [--clients 32] [--requests 96] [--first 0] [--body JSON]

Each client asks its next question when it has its answer, all of them streams. Prints a line `RESULT load {json}`.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_ANSWER_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question got: seconds to its first text and to its end, tokens as the server counts them, and what went
    wrong.
    """

    asked_at: float
    first_seconds: float = float("nan")
    seconds: float = float("nan")
    tokens: int = 0
    fault: str | None = None


def ask(url: str, body: Mapping[str, Any]) -> Answer:
    """Ask for a completion as a stream and read it to its end. Times are by time.monotonic()."""
    began, first, tokens, reason = time.monotonic(), None, 0, None
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_ANSWER_SECONDS)
    try:
        raw = json.dumps({**body, "stream": True}).encode()
        connection.request("POST", "/v1/completions", raw, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return Answer(began, fault=f"{response.status}: {response.read(300)!r}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            said = json.loads(line[6:])
            if "error" in said:
                return Answer(began, fault=str(said["error"])[:300])
            if usage := said.get("usage"):
                tokens = usage["completion_tokens"]
            for choice in said["choices"]:
                reason = choice.get("finish_reason") or reason
                if choice.get("text") and first is None:
                    first = time.monotonic() - began
    except (OSError, http.client.HTTPException) as error:
        return Answer(began, fault=f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    seconds = time.monotonic() - began
    return Answer(began, first or seconds, seconds, tokens, None if reason else "it was cut off")


def load(url: str, bodies: list[Mapping[str, Any]], num_clients: int) -> tuple[float, list[Answer]]:
    """(seconds, answers) of so many clients that share these requests."""
    left: list[Mapping[str, Any]] = list(reversed(bodies))
    answers: list[Answer] = []
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                if not left:
                    return
                body = left.pop()
            found = ask(url, body)
            with lock:
                answers.append(found)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(num_clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began, answers


def write_prompts(model: str, path: Path, *, count: int, lengths: list[int], seed: int) -> None:
    """Different texts of so many tokens each, the lengths in turn; random tokens that read back as the same."""
    from transformers import AutoTokenizer  # seconds to load, which those who only ask need not wait for

    tokenizer, rng = AutoTokenizer.from_pretrained(model), random.Random(seed)
    words = [each for each in range(1000, 8000) if tokenizer.decode([each]).strip().isalpha()]
    texts: list[str] = []
    while len(texts) < count:
        length = lengths[len(texts) % len(lengths)]
        text = tokenizer.decode(tokenizer.encode(tokenizer.decode(rng.choices(words, k=length)))[:length])
        if len(tokenizer.encode(text)) == length:
            texts.append(text)
    path.write_text(json.dumps(texts))


def main() -> None:
    """Read the arguments, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--first", type=int, default=0, help="of the prompts, the number of the first that is asked")
    parser.add_argument("--body", type=json.loads, default={})
    arguments = parser.parse_args()
    prompts = json.loads(arguments.prompts.read_text())
    bodies = [arguments.body | {"prompt": each} for each in prompts[arguments.first :][: arguments.requests]]
    seconds, answers = load(arguments.url, bodies, arguments.clients)
    firsts = sorted(answer.first_seconds for answer in answers if answer.fault is None)
    found = {
        "seconds": seconds,
        "tokens": sum(answer.tokens for answer in answers),
        "tokens_per_second": sum(answer.tokens for answer in answers) / seconds,
        "faults": [answer.fault for answer in answers if answer.fault is not None][:3],
        "fewest_tokens": min(answer.tokens for answer in answers),
        "first_p50": statistics.median(firsts) if firsts else None,
        "first_p95": firsts[int(0.95 * (len(firsts) - 1))] if firsts else None,
        "answers": [asdict(answer) for answer in answers],
    }
    print("RESULT load", json.dumps(found))


if __name__ == "__main__":
    main()
