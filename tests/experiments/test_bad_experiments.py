"""What goes wrong in practice: each has a clear message or a place in the report, and nothing is lost."""

import json
import re
import shutil

import pytest
import yaml

from burnish.cli.app import run
from burnish.errors import DataError, UserError
from burnish.experiments.outcomes import read_outcomes, unlike
from burnish.experiments.report import write_report
from burnish.experiments.runner import run_experiment

ARMS = {"base": {}, "fast": {"optimizer.learning_rate": 1e-4}, "wild": {"optimizer.learning_rate": 1e-1}}
NAN = {"failure": "the gradient's norm is nan: lower optimizer.learning_rate"}


def scored(*counts: int) -> list[dict]:
    return [{"scores": [1.0] * count + [0.0] * (8 - count)} for count in counts]


def of_arms(**arms: list[dict]) -> dict[str, dict]:
    return {f"{arm}-seed{seed}": each for arm, behaviours in arms.items() for seed, each in enumerate(behaviours)}


def texts(folder) -> str:
    write_report(folder)
    return (folder.path / "report.md").read_text()


def test_an_arm_of_which_every_run_diverged(plan_of, runner_of) -> None:
    behaviour = of_arms(base=scored(2, 3, 2), fast=scored(4, 6, 5), wild=[NAN] * 3)
    runner = runner_of(plan_of(arms=ARMS), behaviour)
    assert run_experiment(runner)
    text = texts(runner.folder)
    (line,) = re.findall(r"^- wild: .*", text, re.MULTILINE)
    assert "0 seeds: undecided (no seed is finished on both sides; of the seeds that finished; lost: " in line
    assert all(f"wild-seed{seed} (diverged)" in line for seed in range(3)) and "nan" not in line
    assert "| wild | 0/3 | - |" in text and text.count("| diverged |") == 3
    assert re.search(r"- fast: held_out \+0\.33.*, 3 seeds: (better|undecided)", text)  # the others are judged as ever


def test_a_baseline_of_which_every_run_diverged(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), of_arms(base=[NAN] * 3, fast=scored(4, 6, 5)))
    run_experiment(runner)
    text = texts(runner.folder)
    assert "0 seeds: undecided (no seed is finished on both sides" in text and "| fast | 3/3 | 0.625 |" in text


def test_an_arm_of_which_no_run_was_started(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(arms=ARMS), of_arms(base=scored(2, 3, 2), fast=scored(4, 6, 5)))
    with runner.folder.locked():
        runner.folder.freeze()
        for arm in runner.plan.arms:
            runner.folder.write_arm(arm.name, arm.config)
        runner.run([each for each in runner.plan.runs if each.arm != "wild"])
    text = texts(runner.folder)
    assert "3 of 9 runs are still missing: this is not the planned look yet" in text
    (line,) = re.findall(r"^- wild: .*", text, re.MULTILINE)
    assert "undecided (no seed is finished on both sides)" in line and "nan" not in line
    assert len(re.findall(r"\| wild-seed\d \| planned \|", text)) == 3


def test_nothing_finished_at_all(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {"*": NAN})
    run_experiment(runner)
    text = texts(runner.folder)
    assert "undecided" in text and text.count("| diverged |") == 6 and "nan," not in text


def test_one_seed_is_no_claim(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(seeds=1), of_arms(base=scored(1), fast=scored(8)))
    run_experiment(runner)
    text = texts(runner.folder)
    assert "fast: held_out +0.875, 1 seeds: undecided (one seed shows no spread)" in text
    assert "one seed: no claim about a method can be made" in text


def test_a_plan_edited_after_freezing(plan_of, runner_of, capsys) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    path = runner.folder.path / "plan.json"
    path.write_text(path.read_text().replace('"alpha": 0.05', '"alpha": 0.2'))
    for command in (["status", "tried"], ["report", "tried"]):
        assert run(["experiment", *command, "--experiments-folder", str(runner.folder.path.parent)]) == 2
        told = capsys.readouterr().err
        assert "is not the one that was frozen (its hash differs); restore the file" in told
        assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "recorded by another version of burnish: run.json has format 99"),
        (None, "run.json"),
    ],
)
def test_a_run_whose_record_cannot_be_read(plan_of, runner_of, capsys, change: dict | None, message: str) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/run.json")
    record = json.loads(path.read_text())
    path.write_text("{" if change is None else json.dumps(record | change))
    for command in (["status", "tried"], ["report", "tried"]):
        assert run(["experiment", *command, "--experiments-folder", str(runner.folder.path.parent)]) == 2
        told = capsys.readouterr().err
        assert message in told and "fast-seed1" in told and told.count("\n") == 1, told


def test_a_record_that_says_nothing_of_its_status(plan_of, runner_of, capsys) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/run.json")
    path.write_text("{}")
    assert run(["experiment", "status", "tried", "--experiments-folder", str(runner.folder.path.parent)]) == 2
    assert "fast-seed1" in capsys.readouterr().err


def test_a_half_written_event_is_no_end(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    path = runner.folder.path / "events.jsonl"
    path.write_text(path.read_text() + '{"time": "2026-11-')
    shutil.rmtree(next(runner.folder.runs.glob("fast-seed1-*")))  # one is trained anew, so more is written behind it
    assert run_experiment(runner)
    assert {event["event"] for event in runner.folder.events()} == {"started", "ended"}
    write_report(runner.folder)


def test_another_plan_does_not_count_the_runs_of_the_first(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    file = runner.folder.path / "plan.json"
    frozen = file.read_text()
    file.write_text(json.dumps(json.loads(frozen) | {"frozen": None}))
    with pytest.raises(UserError, match=r"is frozen since 20.*, and its plan would change: alpha: 0\.05 -> 0\.2"):
        runner.folder.write_plan(plan_of(alpha=0.2))
    file.unlink()
    with pytest.raises(UserError, match=r"runs were begun under another plan \(\w{12}\) than plan.json has"):
        runner.folder.write_plan(plan_of(alpha=0.2))
    file.write_text(frozen)
    write_report(runner.folder)


def test_a_run_with_other_settings_than_its_arm_is_not_counted(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/config.yaml")
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"optimizer": config["optimizer"] | {"learning_rate": 0.5}}))
    with pytest.raises(
        UserError, match=r"fast-seed1-\w+: was trained with optimizer.learning_rate=0.5, but arm fast is"
    ):
        read_outcomes(runner.folder, runner.folder.plan())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code": {"package": {"sha256": "other"}}}, "2 versions of burnish's code"),
        ({"environment": {"packages": {"torch": "9"}}}, "machine or packages differ in packages.torch"),
        ({"environment": {"variables": {"SLURM_JOB_ID": "9"}}}, None),
        ({"reward": {"score": "other"}}, "runs of arm fast are not alike: 2 versions of its reward"),
    ],
)
def test_runs_that_are_not_alike(plan_of, runner_of, change, said) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = list(unlike(read_outcomes(runner.folder, runner.folder.plan())))
    assert found == [] if said is None else len(found) == 1 and found[0].endswith(said)


def test_scores_changed_after_the_run(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/evaluations/step-000004.jsonl")
    path.write_text(path.read_text().replace("1.0", "9.0"))
    with pytest.raises(DataError, match=r"fast-seed1-\w+/evaluations/step-000004.jsonl was changed since the run"):
        write_report(runner.folder)


def test_a_half_written_evaluation(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/evaluations/step-000004.jsonl")
    path.write_text('{"id": "0", "sco')
    with pytest.raises(UserError, match=r"fast-seed1-\w+"):
        write_report(runner.folder)


def test_an_evaluation_that_is_gone(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    for path in runner.folder.runs.glob("fast-seed1-*/evaluations/step-000004.jsonl"):
        path.unlink()
    with pytest.raises(DataError, match=r"step-000004.jsonl was removed since the run ended"):
        write_report(runner.folder)


def test_a_damaged_run_is_not_trained_anew_in_silence(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/run.json")
    path.write_text("{")
    with pytest.raises(UserError, match=r"fast-seed1-\w+/run.json is damaged: restore it, or move the run away"):
        run_experiment(runner)
    assert len(list(runner.folder.runs.glob("fast-seed1-*"))) == 1
