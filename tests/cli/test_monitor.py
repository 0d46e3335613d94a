"""`burnish monitor`, what it prints and with which status; tests/monitoring starts Prometheus with it."""

import json
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run
from burnish.monitoring.catalogue import catalogue_page
from burnish.monitoring.rules import DEFAULT_RUNBOOKS
from burnish.monitoring.runbooks import sections
from burnish.reproducibility.run_folder import RunFolder


@pytest.fixture
def finished(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys) -> RunFolder:
    """A run of twenty steps."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"say {i}", "completion": f"word {i}"}) + "\n" for i in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(rows))
    given = ["--data.source", "data.jsonl", "--data.num_held_out", "4", "--data.batch_size", "3"]
    given += ["--model.path", str(tiny_folder), "--model.compute_dtype", "float32", "--train.num_steps", "20"]
    assert run(["train", "sft", *given, "--guards.off", '["slow"]']) == 0
    capsys.readouterr()
    return RunFolder.find("last", tmp_path / "runs")


def test_a_run_that_went_well_is_looked_at_again(finished: RunFolder, capsys) -> None:
    assert run(["monitor", "check", "last"]) == 0
    assert capsys.readouterr().out == f"{finished.path.relative_to(Path.cwd())}: 20 steps, 0 alerts\n"


def test_what_todays_guards_would_have_said(finished: RunFolder, capsys) -> None:
    """A gradient ten times as large in steps 15 to 17: one alert after the third, over after three more."""
    lines = finished.metrics()
    for line in lines[14:17]:
        line["grad_norm"] *= 10
    (finished.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["monitor", "check", finished.path.name]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 17: warning: grad_spike since step 15: the gradient's norm")
    assert second == "step 20: over: grad_spike" and last.endswith("20 steps, 1 alerts")


def test_a_run_that_is_not_there(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["monitor", "check", "nothing"]) == 2
    assert capsys.readouterr().err == "burnish: no run begins with 'nothing' in runs: none yet\n"


def test_rules_are_printed_or_written(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["monitor", "rules", "--runbooks", "https://wiki.example/burnish"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    rules = [rule for group in printed["groups"] for rule in group["rules"]]
    urls = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules}
    assert urls["ServingDown"] == "https://wiki.example/burnish#ServingDown"
    assert urls["SloAnswersFast"] == "https://wiki.example/burnish#Slo"
    assert run(["monitor", "rules", "rules.yml"]) == 0
    assert f"{len(rules)} rules in rules.yml" in capsys.readouterr().out
    assert f"{DEFAULT_RUNBOOKS}#ServingDown" in (tmp_path / "rules.yml").read_text()


def test_tests_need_a_file_of_rules(capsys, tmp_path: Path) -> None:
    assert run(["monitor", "rules", "--tests", str(tmp_path / "tests")]) == 2
    assert capsys.readouterr().err == "burnish: --tests needs a file of rules, OUT, to test\n"


def test_a_runbook(capsys) -> None:
    assert run(["monitor", "runbook", "SloAnswersFast"]) == 0
    assert capsys.readouterr().out.strip() == sections()["Slo"]
    assert run(["monitor", "runbook", "Nothing"]) == 2
    assert "Nothing: has no runbook; there is TrainingNotFinite, " in capsys.readouterr().err


def test_the_meanings_of_the_metrics(capsys, tmp_path: Path) -> None:
    assert run(["monitor", "metrics"]) == 0
    assert capsys.readouterr().out == catalogue_page()
    assert run(["monitor", "metrics", str(tmp_path / "metrics.md")]) == 0
    assert (tmp_path / "metrics.md").read_text() == catalogue_page()


@pytest.mark.parametrize("name", ["eval", "receivers", "serve"])
def test_settings_that_are_no_algorithms_are_listed_too(capsys, name: str) -> None:
    assert run(["config", "schema", name]) == 0
    assert capsys.readouterr().out.count("\n") > 20
