"""Folders that are damaged, and files that mean harm: told as they are, and no other run suffers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from burnish.reproducibility.run_folder import RunFolder
from burnish.ui.reading import names_in

from .conftest import Project, client_of

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"
RECORD = {"created": "2026-01-01T00:00:00Z", "status": "finished"}


def make(folder: Path, name: str = "a", **record: object) -> RunFolder:
    run = RunFolder.create(folder, name)
    run.write_record({**RECORD, **record})
    (run.path / "config.yaml").write_text("algorithm: grpo\nseed: 1\n")
    return run


def _no_record(run: RunFolder) -> None:
    (run.path / "run.json").unlink()


def _half_a_record(run: RunFolder) -> None:
    (run.path / "run.json").write_text('{"created": "2026')


def _other_format(run: RunFolder) -> None:
    run.update_record(format=99)


def _damaged_line(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')


def _no_score(run: RunFolder) -> None:
    run.write_step("evaluations", 1, [{"id": "q"}])


def _odd_name(run: RunFolder) -> None:
    (run.path / "evaluations" / "step-last.jsonl").write_text("")


def _deep(run: RunFolder) -> None:
    (run.path / "run.json").write_text("[" * 100_000)


def _a_folder(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").unlink(missing_ok=True)
    (run.path / "run.json").unlink()
    (run.path / "run.json").mkdir()


def _wrong_type(run: RunFolder) -> None:
    (run.path / "summary.json").write_text(json.dumps({**RECORD, "step": "x", "reward_mean": [], "held_out": []}))


def _no_text(run: RunFolder) -> None:
    (run.path / "config.yaml").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_no_record, "run.json: No such file"),
        (_half_a_record, "run.json: not the record of a run"),
        (_other_format, "recorded by another version of burnish"),
        (_damaged_line, "metrics.jsonl, line 2: not valid JSON"),
        (_no_score, "'score' is missing"),
        (_odd_name, "invalid literal for int()"),
        (_deep, "nested too deeply"),
        (_a_folder, "run.json: Is a directory"),
        (_wrong_type, "step: Input should be a valid integer"),
        (_no_text, "can't decode byte"),
    ],
)
def test_a_broken_run_says_why_and_hurts_no_other(
    tmp_path: Path, damage: Callable[[RunFolder], None], reason: str
) -> None:
    whole, broken = make(tmp_path / "runs", "whole"), make(tmp_path / "runs", "broken")
    damage(broken)
    client = client_of(tmp_path / "runs")
    rows = {row["name"]: row for row in client.get("/api/runs").json()["runs"]}
    assert rows[whole.path.name]["reason"] is None
    assert rows[broken.path.name]["status"] == "broken" and reason in rows[broken.path.name]["reason"]
    detail = client.get(f"/api/runs/{broken.path.name}")
    assert detail.status_code == 200 and any(reason in fault for fault in detail.json()["faults"])
    assert len(set(detail.json()["faults"])) == len(detail.json()["faults"])
    for path in ("curves?metric=held_out", "curves?metric=loss", "events", "replicates", "rollouts/1", "rollouts/1/0"):
        answer = client.get(f"/api/runs/{broken.path.name}/{path}")
        assert answer.status_code == 200 or (answer.status_code in (400, 404) and "\n" not in answer.json()["error"])


def test_what_a_process_is_writing_is_no_damage(tmp_path: Path) -> None:
    run = make(tmp_path / "runs", status="running")
    run.add_metrics({"step": 1, "loss": 0.5})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    client = client_of(tmp_path / "runs")
    assert client.get("/api/runs").json()["runs"][0]["reason"] is None
    (curve,) = client.get(f"/api/runs/{run.path.name}/curves?metric=loss").json()["curves"]
    assert (curve["steps"], curve["values"]) == ([1], [0.5])


def test_what_is_no_run_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "runs" / "notes").mkdir(parents=True)
    (tmp_path / "runs" / ".hidden").mkdir()
    (tmp_path / "runs" / "file").write_text("x")
    client = client_of(tmp_path / "runs")
    assert client.get("/api/runs").json()["runs"] == []
    assert client.get("/api/runs/.hidden").status_code == client.get("/api/runs/file").status_code == 404
    assert client_of(tmp_path / "nowhere").get("/api/runs").json()["runs"] == []


def test_numbers_that_json_cannot_say_are_null(tmp_path: Path) -> None:
    run = make(tmp_path / "runs")
    lines = '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1e999}\n{"step": 3, "loss": 2.5, "flag": true}\n'
    (run.path / "metrics.jsonl").write_text(lines + '{"step": 4, "loss": 1' + "0" * 400 + "}\n")
    client = client_of(tmp_path / "runs")
    (curve,) = client.get(f"/api/runs/{run.path.name}/curves?metric=loss").json()["curves"]
    assert curve["values"] == [None, None, 2.5, None]
    assert client.get(f"/api/runs/{run.path.name}").json()["metrics"] == ["loss"]


def test_text_comes_as_it_is_and_as_json_alone(tmp_path: Path) -> None:
    """Markup stays text (the browser's test shows that it does there, too); half a character is replaced."""
    run = make(tmp_path / "runs", failure=MARKUP, settings={MARKUP: MARKUP}, model={"source": MARKUP})
    text = MARKUP + "\x00\u202e"
    rollout = {"text": text, "token_ids": [1], "finish_reason": "stop", "reward": 1.0, "advantage": 0.0}
    line = {"task_id": MARKUP, "messages": [{"role": MARKUP, "content": text}], "prompt": text, "answer": MARKUP}
    run.write_step("rollouts", 1, [{**line, "rollouts": [{**rollout, "components": {MARKUP: 1.0}}]}])
    half = '{"event": "alert", "name": "\\ud800", "severity": "\\udfff", "message": "\\ud83d!", "time": 5}\n'
    (run.path / "events.jsonl").write_text(half)
    client = client_of(tmp_path / "runs")
    for path in ("", "/rollouts/1", "/rollouts/1/0", "/events"):
        answer = client.get(f"/api/runs/{run.path.name}{path}")
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    group = client.get(f"/api/runs/{run.path.name}/rollouts/1/0").json()
    assert group["completions"][0]["text"] == group["prompt"] == text
    assert client.get(f"/api/runs/{run.path.name}/events").json()["events"][0]["message"] == "?!"


def test_a_link_in_a_name_leads_nowhere(tmp_path: Path) -> None:
    make(tmp_path / "secret", "a")
    make(tmp_path / "runs", "b")
    (name,) = names_in(tmp_path / "secret")
    client = client_of(tmp_path / "runs")
    for path in (
        f"../secret/{name}",
        f"..%2fsecret%2f{name}",
        f"%2e%2e/secret/{name}",
        str(tmp_path / "secret" / name),
    ):
        assert client.get(f"/api/runs/{path}").status_code == 404


def test_a_damaged_store_says_why(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.evals_folder, tmp_path / "evals")
    first, second = sorted((tmp_path / "evals").iterdir())
    samples = first / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"score": 0.0', '"score": 1.0', 1))
    (tmp_path / "evals" / "half").mkdir()
    (tmp_path / "evals" / "half" / "eval.json").write_text("{")
    client = client_of(tmp_path / "runs", tmp_path / "evals")
    stores = {store["name"]: store for store in client.get("/api/evaluations").json()["stores"]}
    assert "is not what was written" in stores[first.name]["reason"] and stores[first.name]["figure"] is None
    assert "not the record of an evaluation" in stores["half"]["reason"]
    assert stores[second.name]["reason"] is None and stores[second.name]["figure"]["n"] == 12
    for path in (f"evaluations/{first.name}", f"comparison?a={first.name}&b={second.name}", "evaluations/half"):
        answer = client.get(f"/api/{path}")
        assert answer.status_code == 400 and answer.json()["error"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=8), each, max_size=3),
    max_leaves=6,
)
KEYS = (
    "step",
    "event",
    "time",
    "task_id",
    "messages",
    "prompt",
    "answer",
    "rollouts",
    "score",
    "id",
    "created",
    "status",
)


@pytest.fixture(scope="module")
def anything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TestClient]:
    """A run of which every file is about to be overwritten."""
    folder = tmp_path_factory.mktemp("anything") / "runs" / "any"
    for part in ("rollouts", "evaluations"):
        (folder / part).mkdir(parents=True)
    return folder, client_of(folder.parent)


@settings(max_examples=25, deadline=None)
@given(lines=st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6), max_size=3), record=JSON)
def test_whatever_stands_in_the_files_is_answered_with_json(
    anything: tuple[Path, TestClient], lines: list[object], record: object
) -> None:
    folder, client = anything
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for name in ("metrics.jsonl", "events.jsonl", "rollouts/step-000001.jsonl", "evaluations/step-000001.jsonl"):
        (folder / name).write_text(text)
    for name in ("run.json", "summary.json", "config.yaml"):
        (folder / name).write_text(json.dumps(record))
    assert client.get("/api/runs").status_code == client.get("/api/runs/any").status_code == 200
    for path in ("events", "rollouts/1", "rollouts/1/0", "replicates", "curves?metric=held_out", "curves?metric=score"):
        answer = client.get(f"/api/runs/any/{path}")
        assert answer.status_code in (200, 400, 404)
        answer.json()
