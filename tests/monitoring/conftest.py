"""What is watched: a server and a run, real and tiny, and `burnish monitor up` beside them."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from .processes import free_port, post, query, running, text_of, until

USER, ADMIN, MONITOR = "user-key-0123456789", "admin-key-0123456789", "monitor-key-0123456789"
START_SECONDS = 120

# a run whose tokens are stale, its metrics say, while a file is there
PLANTED = """
import sys
from pathlib import Path

from burnish.cli.app import run
from burnish.monitoring.guards import Guards

look = Guards.look
Guards.look = lambda self, line: look(self, {**line, "staleness_max": 9.0 * Path("stale").exists()})
sys.exit(run(sys.argv[1:]))
"""
REWARD = """
def share(completion, task):
    return sum(token < 100 for token in completion.token_ids) / len(completion.token_ids)
"""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Ports and folders; `told` is what came to the webhook."""

    folder: Path
    serve_port: int
    admin_port: int
    train_port: int
    prometheus: str
    told: list[dict[str, Any]]

    def ask(self, number: int) -> Any:
        """The server's answer to a question."""
        said = [{"role": "user", "content": f"question {number}"}]
        body = {"model": "tiny", "messages": said, "max_tokens": 8, "seed": number}
        return post(f"http://127.0.0.1:{self.serve_port}/v1/chat/completions", body, USER)

    def query(self, expr: str) -> list[dict[str, Any]]:
        """What Prometheus says."""
        return query(self.prometheus, expr)

    def alert(self, name: str, status: str) -> dict[str, Any] | None:
        """The newest message of this kind about an alert."""
        alerts = [alert for message in self.told for alert in message["alerts"]]
        return next((a for a in alerts[::-1] if (a["labels"]["alertname"], a["status"]) == (name, status)), None)

    def logs(self) -> str:
        """What all of them said."""
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in self.folder.rglob("*.log"))


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and the messages that it has had."""
    told: list[dict[str, Any]] = []

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/told", told
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def serve(folder: Path, model: Path, port: int, admin_port: int) -> list[str]:
    """The command of the server."""
    return [
        *("serve", str(model), "--name", "tiny", "--port", str(port), "--model.compute_dtype", "float32"),
        *("--keys_file", str(folder / "keys"), "--store.url", str(folder / "answers.db")),
        *("--admin.port", str(admin_port), "--admin.weights_folder", str(folder / "weights")),
        *("--deploy.is_automatic", "false"),
    ]


def recipe(folder: Path, model: Path, port: int) -> Path:
    """A GRPO run that goes on for as long as a test needs."""
    rows = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(12)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "watched_reward.py").write_text(REWARD)
    tree = {
        "algorithm": "grpo",
        "model": {"path": str(model), "compute_dtype": "float32"},
        "task": {"source": "tasks.jsonl", "num_held_out": 4, "reward": "watched_reward:share"},
        "rollout": {"num_prompts": 2, "group_size": 4, "max_tokens": 6},
        "train": {"num_steps": 100_000},
        "evaluation": {"every_steps": 5},
        "checkpoint": {"every_steps": 100_000},
        "metrics": {"port": port},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


@contextmanager
def watched(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Watched, Any]]:
    """All of it, once Prometheus has seen both. Yields the server's process too."""
    monkeypatch.chdir(folder)
    (folder / "keys").write_text(f"user ann {USER}\nadmin root {ADMIN}\nmonitor prom {MONITOR}\n")
    (folder / "monitor_key").write_text(MONITOR + "\n")
    (folder / "planted.py").write_text(PLANTED)
    shutil.copytree(model, folder / "weights" / "new")
    serve_port, admin_port, train_port, prometheus_port, alertmanager_port = (free_port() for _ in range(5))
    with ExitStack() as stack:
        url, told = stack.enter_context(webhook())
        receivers = {"webhook": {"url": url}, "wait_seconds": 0, "change_seconds": 1}
        (folder / "receivers.yaml").write_text(yaml.safe_dump(receivers))
        server = stack.enter_context(running(folder / "serve.log", *serve(folder, model, serve_port, admin_port)))
        train = ("train", str(recipe(folder, model, train_port)))
        stack.enter_context(running(folder / "train.log", *train, script=folder / "planted.py"))
        up = ["monitor", "up", "--train", f"127.0.0.1:{train_port}", "--serve", f"127.0.0.1:{serve_port}"]
        up += ["--receivers", "receivers.yaml", "--key-file", "monitor_key", "--scrape-seconds", "1"]
        up += ["--port", str(prometheus_port), "--alertmanager-port", str(alertmanager_port)]
        stack.enter_context(running(folder / "up.log", *up))
        made = Watched(
            folder=folder,
            serve_port=serve_port,
            admin_port=admin_port,
            train_port=train_port,
            prometheus=f"http://127.0.0.1:{prometheus_port}",
            told=told,
        )
        until(lambda: text_of(f"{made.prometheus}/-/ready"), START_SECONDS, made.logs)
        seen = "count(up == 1) == 2 and on () burnish_train_step > 1"
        until(lambda: made.query(seen), START_SECONDS, made.logs)
        yield made, server
