"""`--json` of every command that reads: one document, with the keys that docs/command-line.md lists."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run

from .test_command_line import ALL

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"

LOSS = """
from burnish import loss

@loss()
def mine(scored, batch):
    return (-scored.logprobs_S * batch.weights_S).sum()
"""
REWARDS = """
def score(completion, task):
    return sum(token < 100 for token in completion.token_ids) / max(1, len(completion.token_ids))
"""

ACTING = {  # they train, write, serve, or print a file; what they say is for people
    *("train", "resume", "export", "serve", "ui", "completion", "model get", "eval import", "feedback export"),
    *("deploy register", "deploy start", "deploy promote", "deploy rollback", "experiment run"),
    *("monitor rules", "monitor alertmanager", "monitor dashboards", "monitor up"),
    *("render slurm", "render kubernetes", "render serve", "render containerfile"),
}

READING = {
    "audit": "last",
    "check advantage": "grpo",
    "check environment": "burnish.environments.examples:Calculator tasks.jsonl",
    "check gradients": "last --batches 1",
    "check loss": "own_losses:mine",
    "check reward": "own_rewards:score",
    "compare": "plain- last",
    "config check": "recipe.yaml",
    "config diff": "recipe.yaml plain-",
    "config schema": "grpo",
    "config show": "recipe.yaml",
    "contamination": "tasks.jsonl plain-store",
    "deploy status": "sums --url http://127.0.0.1:{port}",
    "diff": "plain- last",
    "doctor": "",
    "eval": "tiny --task tasks.jsonl --name plain-store --sampling.max_tokens 4 --model.compute_dtype float32",
    "eval robust": "plain-store loud-store",
    "eval show": "plain-store",
    "eval verify": "plain-store",
    "experiment plan": "arms.yaml --like last",
    "experiment report": "arms.yaml",
    "experiment status": "arms.yaml",
    "memory": "recipe.yaml",
    "monitor check": "last",
    "monitor metrics": "",
    "monitor runbook": "TrainingSilent",
    "power items": "--effect 0.03",
    "power samples": "--effect 0.03 --items 400 --item-sd 0.2 --sample-sd 0.4",
    "power seeds": "--effect 0.02 --sd 0.01",
    "rerun": "last --here --steps 1",
    "runs": "",
    "show": "last",
    "verify": "last --steps 1",
    "watch": "evals/{plain} evals/{again}",
}
SLOW = {"experiment report", "rerun", "verify"}


def test_each_command_reads_or_acts() -> None:
    leaves = {" ".join(path) for path, each in ALL.items() if each.default_command is not None and path}
    assert leaves == ACTING | set(READING)
    for path in leaves:
        names = {
            name for argument in ALL[tuple(path.split())].assemble_argument_collection() for name in argument.names
        }
        assert ("--json" in names) == (path in READING), path


@pytest.fixture(scope="module")
def project(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two runs, three eval stores and an experiment's plan."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        (folder / "own_losses.py").write_text(LOSS)
        (folder / "own_rewards.py").write_text(REWARDS)
        (folder / "tiny").symlink_to(tiny_folder)
        rows = [{"prompt": f"What is {i}?", "answer": str(i)} for i in range(12)]
        (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tree = {
            "algorithm": "grpo",
            "name": "plain",
            "model": {"path": "tiny", "compute_dtype": "float32"},
            "task": {"source": "tasks.jsonl", "num_held_out": 4, "reward": "own_rewards:score"},
            "rollout": {"num_prompts": 2, "group_size": 2, "max_tokens": 4},
            "train": {"num_steps": 2},
            "evaluation": {"right_at": 0.5},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
        arms = {
            "name": "tried",
            "question": "Does a higher rate learn more?",
            "hypothesis": "Yes.",
            "recipe": "recipe.yaml",
            "arms": {"base": {}, "fast": {"optimizer.learning_rate": 1e-4}},
            "baseline": "base",
            "seeds": 1,
        }
        (folder / "arms.yaml").write_text(yaml.safe_dump(arms))
        for name in ("plain", "other"):
            assert run(["train", "recipe.yaml", "--name", name]) == 0
        asked = ["--task", "tasks.jsonl", "--sampling.max_tokens", "4", "--model.compute_dtype", "float32"]
        for name, flags in (("plain", []), ("loud", ["--task.perturb", "upper_case"]), ("again", ["--seed", "1"])):
            assert run(["eval", "tiny", *asked, "--name", f"{name}-store", *flags]) == 0
        assert run(["experiment", "plan", "arms.yaml"]) == 0
        yield folder


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of what answers as a server's admin port does where nothing is tried; the real one is in tests/serving."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"trial": None, "events": []}).encode())

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def documented() -> dict[str, set[str]]:
    """The keys of each command on the page; of a list, those of what is in it."""
    rows = re.findall(r"^\| `([a-z ]+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return {command: set(re.findall(r"`(\w+)`", keys)) for command, keys in rows}


@pytest.mark.parametrize(
    "command", [pytest.param(each, marks=pytest.mark.slow if each in SLOW else ()) for each in READING]
)
def test_one_document_with_the_documented_keys(
    command: str, project: Path, port: int, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BURNISH_ADMIN_KEY", "key")
    stores = {path.name.partition("-")[0]: path.name for path in (project / "evals").iterdir()}
    words = READING[command].format(port=port, **stores).split()
    if command == "experiment report":
        assert run(["experiment", "run", "arms.yaml", "--max-parallel", "2"]) == 0
    capfd.readouterr()
    status = run([*command.split(), *words, "--json"])
    out, err = capfd.readouterr()
    assert status in (0, 1), err

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(out, parse_constant=refuse)
    entries = content if isinstance(content, list) else [content]
    found = {key for entry in entries for key in entry}
    if command == "config schema":  # whose keys are JSON Schema's
        assert content["type"] == "object"
    else:
        assert found == documented()[command]


@pytest.mark.parametrize(
    "command",
    sorted(set(READING) - {"runs", "doctor", "monitor metrics", "power items", "power seeds", "power samples"}),
)
def test_a_failing_command_says_it_in_one_line_and_prints_no_document(
    command: str, capfd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BURNISH_ADMIN_KEY", "key")
    nothing = {"compare": "a b", "contamination": "a.jsonl b", "deploy status": "m --url nothing", "diff": "a b"}
    nothing |= {"eval robust": "a b", "check environment": "a:b c.jsonl", "config diff": "a b"}
    assert run([*command.split(), *nothing.get(command, "nothing").split(), "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("burnish: ")
