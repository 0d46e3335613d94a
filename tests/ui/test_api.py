"""What the page is told, on run folders that the commands made."""

import json
import shutil
from pathlib import Path

import pytest
from scipy.stats import t, ttest_1samp
from starlette.testclient import TestClient

from burnish.cli.app import run as command
from burnish.reproducibility.run_folder import RunFolder
from burnish.ui.curves import mean_with_band

from .conftest import Project, client_of


def test_the_table_is_what_the_command_lists(project: Project, client: TestClient, capsys) -> None:
    assert command(["runs", "--runs-folder", str(project.runs_folder), "--json"]) == 0
    listed = {each["run"]: each for each in json.loads(capsys.readouterr().out)}
    rows = client.get("/api/runs").json()["runs"]
    assert [row["created"] for row in rows] == sorted((row["created"] for row in rows), reverse=True)
    assert {row["name"] for row in rows} == set(listed)
    for row in rows:
        known = listed[row["name"]]
        assert (row["status"], row["step"], row["reward"]) == ("finished", 3, known["reward_mean"])
        assert [row["held_out_before"], row["held_out"]] == known["held_out"]
        assert (row["algorithm"], row["reason"]) == ("grpo", None)


def test_a_run(project: Project, client: TestClient) -> None:
    run = project.runs[0]
    found = client.get(f"/api/runs/{run.path.name}").json()
    assert (found["seed"], found["num_steps"], found["measure"], found["faults"]) == ("1", 3, "accuracy", [])
    assert found["rollout_steps"] == [1, 2, 3] and found["evaluated_steps"] == [0, 1, 2, 3]
    numbers = {name for line in run.metrics() for name, value in line.items() if isinstance(value, int | float)}
    assert set(found["metrics"]) == numbers - {"step"} and "rollouts_sha256" not in found["metrics"]
    assert {"key": "task.reward", "value": "ui_reward:score"} in found["settings"]


def test_every_metric_is_drawn_as_it_stands_in_the_file(project: Project, client: TestClient) -> None:
    run = project.runs[0]
    names = [name for name in client.get(f"/api/runs/{run.path.name}").json()["metrics"] if name != "held_out"]
    found = client.get(f"/api/runs/{run.path.name}/curves", params={"metric": names}).json()["curves"]
    assert [curve["metric"] for curve in found] == names
    for curve in found:
        points = [(line["step"], line[curve["metric"]]) for line in run.metrics() if curve["metric"] in line]
        assert list(zip(curve["steps"], curve["values"], strict=True)) == points


def test_held_out_points_have_the_interval_of_their_items(project: Project, client: TestClient) -> None:
    run = project.runs[0]
    (curve,) = client.get(f"/api/runs/{run.path.name}/curves?metric=held_out").json()["curves"]
    assert curve["steps"] == [0, 1, 2, 3] and curve["interval"] == "95 % interval over 4 items (Wilson)"
    shares = [sum(item["score"] for item in run.read_step("evaluations", step)) / 4 for step in range(4)]
    assert curve["values"] == shares
    z2 = 1.959963984540054**2
    for share, low in zip(shares, curve["low"], strict=True):
        if share == 1:  # Wilson's lower end of n of n
            assert low == pytest.approx(4 / (4 + z2))


def test_runs_that_differ_by_seed_alone_are_one_method(project: Project, client: TestClient) -> None:
    first, second, other = project.runs
    seeds = client.get(f"/api/runs/{first.path.name}/replicates").json()
    assert [(each["name"], each["seed"]) for each in seeds] == [(first.path.name, "1"), (second.path.name, "2")]
    assert [each["name"] for each in client.get(f"/api/runs/{other.path.name}/replicates").json()] == [other.path.name]
    asked = {"metric": "reward_mean", "with_replicates": True, "band": "range"}
    found = client.get(f"/api/runs/{first.path.name}/curves", params=asked).json()
    assert found["runs"] == [first.path.name, second.path.name]
    (curve,) = found["curves"]
    pairs = [(a["reward_mean"], b["reward_mean"]) for a, b in zip(first.metrics(), second.metrics(), strict=True)]
    assert curve["values"] == pytest.approx([sum(pair) / 2 for pair in pairs])
    assert list(zip(curve["low"], curve["high"], strict=True)) == [(min(pair), max(pair)) for pair in pairs]
    assert curve["interval"] == "lowest to highest over 2 seeds"


def test_a_seed_counts_once(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.runs_folder, tmp_path / "runs")
    first, second, _ = project.runs
    for name, created in (("older", "2020-01-01"), ("newer", "2099-01-01")):
        shutil.copytree(second.path, tmp_path / "runs" / name)
        RunFolder(tmp_path / "runs" / name).update_record(created=created)
    client = client_of(tmp_path / "runs")

    def names(run: str) -> list[str]:
        return [each["name"] for each in client.get(f"/api/runs/{run}/replicates").json()]

    assert names(first.path.name) == ["newer", first.path.name]
    assert names("older") == ["older", first.path.name] and names(second.path.name) == [
        first.path.name,
        second.path.name,
    ]


def test_the_band_of_a_mean() -> None:
    series = [{1: 1.0, 2: 5.0}, {1: 2.0, 2: 5.0}, {1: 6.0, 2: 5.0, 3: 9.0}]
    lowest = mean_with_band("x", series, "range")
    assert (lowest.steps, lowest.values, lowest.num_runs) == ([1, 2, 3], [3, 5, 9], [3, 3, 1])
    assert (lowest.low, lowest.high) == ([1, 5, 9], [6, 5, 9])
    found = mean_with_band("x", series, "t")
    low, high = ttest_1samp([1, 2, 6], 0).confidence_interval(0.95)
    assert (found.low[0], found.high[0]) == (pytest.approx(low), pytest.approx(high))
    assert float(t.ppf(0.975, 2)) == pytest.approx(4.303, abs=1e-3)
    assert found.low[1:] == found.high[1:] == [None, None]  # no spread, and one run: nothing is known of the error
    assert found.interval == "95 % t interval of the mean over 3 seeds"


def test_completions_of_a_group(project: Project, client: TestClient) -> None:
    run = project.runs[0]
    step = client.get(f"/api/runs/{run.path.name}/rollouts/2").json()
    lines = run.read_step("rollouts", 2)
    assert [group["number"] for group in step["groups"]] == list(range(len(lines))) == [0, 1]
    rewards = [rollout["reward"] for rollout in lines[1]["rollouts"]]
    row = step["groups"][1]
    assert (row["reward_min"], row["reward_max"]) == (min(rewards), max(rewards))
    assert row["question"] == lines[1]["messages"][-1]["content"] and row["num_completions"] == 3
    group = client.get(f"/api/runs/{run.path.name}/rollouts/2/1").json()
    assert (group["prompt"], group["answer"]) == (lines[1]["prompt"], lines[1]["answer"])
    for shown, stored in zip(group["completions"], lines[1]["rollouts"], strict=True):
        assert (shown["reward"], shown["advantage"]) == (stored["reward"], stored["advantage"])
        assert set(shown["parts"]) == {"vowels", "short"} and sum(shown["parts"].values()) == shown["reward"]
        assert shown["length_tokens"] == len(stored["token_ids"])
        assert shown["truncated"] == (stored["finish_reason"] == "length")


def test_alerts_and_events(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs", "a")
    run.write_record({"created": "2026-01-01", "status": "running"})
    run.add_event("started", step=0)
    for severity in ("info", "warning", "critical", "never heard of"):
        run.add_event("alert", name="kl", severity=severity, message=f"KL is {severity}", step=3, state="firing")
    run.add_event("lost", step=4, reason="generator 1 is gone")
    run.add_event("prompts_chosen", step=5, choices=[{"id": "x" * 3000}])
    found = client_of(tmp_path / "runs").get(f"/api/runs/{run.path.name}/events").json()
    assert found["num_earlier"] == 0
    chosen, lost, *alerts, started = found["events"]
    assert (started["event"], started["severity"], started["message"]) == ("started", "info", "")
    severities = [alert["severity"] for alert in alerts]
    assert severities == ["critical", "critical", "warning", "info"]
    assert alerts[1] == {
        "time": alerts[1]["time"],
        "event": "alert",
        "severity": "critical",
        "step": 3,
        "name": "kl",
        "state": "firing",
        "message": "KL is critical",
    }
    assert (lost["severity"], lost["step"], lost["message"]) == ("critical", 4, "generator 1 is gone")
    assert len(chosen["message"]) < 600
    with (run.path / "events.jsonl").open("a") as file:
        file.writelines(json.dumps({"event": "saved", "step": number}) + "\n" for number in range(600))
    found = client_of(tmp_path / "runs").get(f"/api/runs/{run.path.name}/events").json()
    assert (len(found["events"]), found["num_earlier"], found["events"][0]["step"]) == (500, 107, 599)


def test_evaluations_are_what_the_commands_say(project: Project, client: TestClient, capsys) -> None:
    stores = client.get("/api/evaluations").json()["stores"]
    assert {(store["label"].split("-")[0], store["status"]) for store in stores} == {
        ("tiny", "done"),
        ("seed1", "done"),
    }
    for store in stores:
        assert command(["eval", "show", str(project.evals_folder / store["name"]), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        detail = client.get(f"/api/evaluations/{store['name']}").json()
        assert detail["figures"] == said["figures"] and store["figure"] == said["figures"][0]
        assert detail["asked"].startswith("12 items, 1 answer each, greedy")


def test_a_comparison_is_what_the_command_says(project: Project, client: TestClient, capsys) -> None:
    a, b = (store["name"] for store in client.get("/api/evaluations").json()["stores"])
    assert command(["compare", *(str(project.evals_folder / name) for name in (a, b)), "--margin", "0.4"]) == 0
    said = capsys.readouterr().out
    found = client.get("/api/comparison", params={"a": a, "b": b, "margin": 0.4}).json()
    verdict, *takes = found["claim"]["verdict"]
    assert f"  verdict: {verdict}\n" in said and all(f"    {line}\n" in said for line in takes)
    assert found["num_items"] == 12 and all(f"note: {note}\n" in said for note in found["notes"])
    assert f"{found['claim']['p_value']:.3g}  {found['claim']['test']}" in said
    for arm in found["arms"]:
        assert f"{arm['mean']:.3f}" in said and arm["label"] in said


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/runs/nothing", 404, "there is no run 'nothing'"),
        ("/api/runs/..", 404, ""),
        ("/api/runs/%2e%2e%2f%2e%2e%2fetc", 404, ""),
        ("/api/runs/..%5c..", 404, "there is no run"),
        ("/api/runs/%00", 404, "there is no run"),
        ("/api/runs/RUN/rollouts/99", 404, "stores no rollouts of step 99"),
        ("/api/runs/RUN/rollouts/1/99", 404, "has 2 groups, and none of number 99"),
        ("/api/runs/RUN/rollouts/1/-1", 404, "none of number -1"),
        ("/api/runs/RUN/rollouts/one", 400, "step: "),
        ("/api/runs/RUN/curves", 400, "metric: "),
        ("/api/runs/RUN/curves?metric=nothing", 404, "has no metric 'nothing'"),
        ("/api/runs/RUN/curves?metric=loss&band=wide", 400, "band: "),
        ("/api/evaluations/..%2fruns", 404, ""),
        ("/api/comparison?a=x&b=y", 404, "there is no eval store 'x'"),
        ("/api/comparison?a=x", 400, "b: "),
        ("/api/comparison?a=STORE&b=STORE", 400, "is named twice"),
        ("/api/nothing", 404, ""),
        ("/static/../app.py", 404, ""),
        ("/static/%2e%2e/app.py", 404, ""),
        ("/static/..%2fapp.py", 404, ""),
    ],
)
def test_mistakes_are_one_line_of_json(
    project: Project, client: TestClient, path: str, status: int, message: str
) -> None:
    store = client.get("/api/evaluations").json()["stores"][0]["name"]
    answer = client.get(path.replace("RUN", project.runs[0].path.name).replace("STORE", store))
    assert answer.status_code == status
    assert set(answer.json()) == {"error"} and message in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_nothing_can_be_changed(project: Project, client: TestClient) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.runs_folder.parent.rglob("*")}
    for path in client.get("/api/openapi.json").json()["paths"]:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client.request(method, path.replace("{name}", project.runs[0].path.name)).status_code in (404, 405)
    run = project.runs[0].path.name
    for path in ("", "/replicates", "/curves?metric=held_out", "/rollouts/1", "/rollouts/1/0", "/events"):
        assert client.get(f"/api/runs/{run}{path}").status_code == 200
    assert {path: path.stat().st_mtime_ns for path in project.runs_folder.parent.rglob("*")} == before


def test_only_this_machine_is_answered(client: TestClient) -> None:
    for host in ("evil.example", "evil.example:7878", "127.0.0.1.evil.example", ""):
        answer = client.get("/api/runs", headers={"Host": host})
        assert answer.status_code == 400 and "is not this machine" in answer.json()["error"]
    assert client.get("/api/runs", headers={"Host": "localhost:9999"}).status_code == 200


def test_the_policy_lets_nothing_in_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/static/app.js", "/api/runs", "/api/nothing"):
        headers = client.get(path).headers
        policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
        assert policy["require-trusted-types-for"] == "'script'" and policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"


def test_a_new_file_is_seen(project: Project, tmp_path: Path) -> None:
    shutil.copytree(project.runs_folder, tmp_path / "runs")
    client, run = client_of(tmp_path / "runs"), RunFolder.all(tmp_path / "runs")[0]
    asked = f"/api/runs/{run.path.name}/curves?metric=loss&metric=held_out"
    client.get(asked), client.get("/api/runs")
    run.add_metrics({"step": 4, "loss": 0.25, "reward_mean": 7.0})
    run.write_step("evaluations", 4, [{"id": "a", "score": 1.0}, {"id": "b", "score": 0.0}])
    run.update_record(status="running")
    loss, held_out = client.get(asked).json()["curves"]
    assert (loss["steps"][-1], loss["values"][-1]) == (4, 0.25)
    assert (held_out["steps"][-1], held_out["values"][-1]) == (4, 0.5)
    with run.locked():
        (row,) = (row for row in client.get("/api/runs").json()["runs"] if row["name"] == run.path.name)
        assert (row["status"], row["step"], row["reward"], row["held_out"]) == ("running", 4, 7.0, 0.5)
    (row,) = (row for row in client.get("/api/runs").json()["runs"] if row["name"] == run.path.name)
    assert row["status"] == "died"


@pytest.mark.slow
def test_a_thousand_runs(project: Project, tmp_path: Path) -> None:
    """How long that takes is in the changelog; here, that all of them are there, and each with its own figures."""
    model = project.runs[0]
    kept, settings = json.loads((model.path / "summary.json").read_text()), (model.path / "config.yaml").read_text()
    for number in range(1000):
        folder = tmp_path / "runs" / f"run-{number:04d}"
        folder.mkdir(parents=True)
        shutil.copy(model.path / "run.json", folder / "run.json")
        (folder / "summary.json").write_text(json.dumps({**kept, "step": number}))
        (folder / "config.yaml").write_text(settings.replace("seed: 1\n", f"seed: {number}\n"))
    client = client_of(tmp_path / "runs")
    rows = client.get("/api/runs").json()["runs"]
    assert sorted((row["name"], row["step"]) for row in rows) == [(f"run-{i:04d}", i) for i in range(1000)]
    assert len(client.get("/api/runs/run-0000/replicates").json()) == 1000
