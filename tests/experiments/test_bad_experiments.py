"""What goes wrong in practice: each has a clear message or a place in the report, and nothing is lost."""

import json
import re

import pytest

from burnish.cli.app import run
from burnish.errors import DataError, UserError
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


def test_a_plan_made_anew_beside_old_runs(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (runner.folder.path / "plan.json").unlink()
    other = plan_of(arms={"base": {}, "fast": {"optimizer.learning_rate": 1e-3}}, alpha=0.2)
    with pytest.raises(UserError, match=r"runs were begun under another plan \(\w+-seed0 at 20.*restore the file"):
        runner.folder.write_plan(other)


def test_a_plan_thawed_by_hand_stays_frozen(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    path = runner.folder.path / "plan.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"frozen": None}))
    with pytest.raises(UserError, match=r"is frozen since 20.*alpha: 0.05 -> 0.2"):
        runner.folder.write_plan(plan_of(alpha=0.2))
    runner.folder.freeze()
    started = next(event["time"] for event in runner.folder.events())
    assert json.loads(path.read_text())["frozen"] == started


def test_another_plan_in_the_place_of_the_frozen_one(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (runner.folder.path / "events.jsonl").rename(runner.folder.path / "kept")
    (runner.folder.path / "plan.json").unlink()
    runner.folder.write_plan(plan_of(alpha=0.2))
    (runner.folder.path / "kept").rename(runner.folder.path / "events.jsonl")
    for read in (runner.folder.versions, runner.folder.freeze, lambda: write_report(runner.folder)):
        with pytest.raises(UserError, match="runs were begun under another plan"):
            read()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("learning_rate: 0.0001", "learning_rate: 0.001"), "optimizer.learning_rate=0.001, and the plan has 0.0001"),
        (("seed: 1", "seed: 5"), "seed=5, and the plan has 1"),
        (("micro_batch_tokens: ", "micro_batch_tokenz: "), "train.micro_batch_tokens=.absent., and the plan has"),
    ],
)
def test_a_run_of_other_settings_is_no_run_of_the_plan(plan_of, runner_of, setting, message: str) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/config.yaml")
    text = path.read_text()
    assert setting[0] in text
    path.write_text(text.replace(*setting))
    for read in (write_report, lambda folder: run_experiment(runner)):
        with pytest.raises(UserError, match=rf"fast-seed1-\w+ was trained with {message}.*: it is no run of this plan"):
            read(runner.folder)


def test_what_a_run_found_for_itself_and_where_it_ran_is_no_other_setting(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/config.yaml")
    text = path.read_text()
    assert "compute_dtype: auto" in text and "kind: local" in text
    path.write_text(text.replace("compute_dtype: auto", "compute_dtype: bfloat16").replace("kind: local", "kind: ray"))
    write_report(runner.folder)


def test_a_run_without_its_settings(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/config.yaml")
    path.unlink()
    with pytest.raises(UserError, match=r"fast-seed1-\w+ is damaged, it has no config.yaml"):
        write_report(runner.folder)


def test_amendments_leave_runs_of_earlier_versions(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    amended = plan_of(seeds=4)
    runner.folder.write_plan(amended, reason="one more seed")
    runner.plan = amended
    assert run_experiment(runner)
    assert len({event["plan"] for event in runner.folder.events() if event["event"] == "started"}) == 2
    assert "amended after the first run" in texts(runner.folder)


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
    runner = runner_of(plan_of(), {"fast-seed2": {"dies": True}})
    run_experiment(runner)
    path = runner.folder.path / "events.jsonl"
    before = path.read_text()
    path.write_text(before + '{"time": "2026-11-')
    assert run_experiment(runner)
    assert path.read_text().startswith(before) and len(runner.folder.events()) == 14
    write_report(runner.folder)


def test_scores_changed_after_the_run(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (path,) = runner.folder.runs.glob("fast-seed1-*/evaluations/step-000004.jsonl")
    path.write_text(path.read_text().replace("1.0", "9.0"))
    with pytest.raises(DataError, match=r"fast-seed1-\w+/evaluations/step-000004.jsonl was changed since the run"):
        write_report(runner.folder)


RECORD = {
    "code": {"package": {"sha256": "a"}},
    "environment": {"kernel": "6.1", "num_threads": 2, "variables": {"SLURM_JOB_ID": "1"}},
    "model": {"sha256": {"model.safetensors": "a"}},
    "reward": {"mine:score": "a"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": {"package": {"sha256": "b"}}}, "2 versions of burnish's code"),
        ({"environment": RECORD["environment"] | {"num_threads": 4}}, "machine or packages differ in num_threads"),
        ({"environment": {"kernel": "6.2", "num_threads": 2, "variables": {"SLURM_JOB_ID": "2"}}}, None),
        ({"reward": {"mine:score": "b"}}, "2 versions of what the same settings read as reward"),
        ({"model": {"sha256": {"model.safetensors": "b"}}}, "2 versions of what the same settings read as model"),
    ],
)
def test_runs_that_are_not_alike(plan_of, runner_of, change: dict, message: str | None) -> None:
    runner = runner_of(plan_of(), {"*": {"record": RECORD}, "fast-seed1": {"record": RECORD | change}})
    run_experiment(runner)
    found = re.findall(r"the runs are not alike: (.*)", texts(runner.folder))
    assert found == ([] if message is None else [message])


def test_arms_that_read_something_else_are_alike(plan_of, runner_of) -> None:
    arms = {"base": {}, "other": {"task.reward": "mine:score"}}
    other = {"record": RECORD | {"reward": {"mine:score": "b"}}}
    runner = runner_of(plan_of(arms=arms), {"*": {"record": RECORD}} | {f"other-seed{n}": other for n in range(3)})
    run_experiment(runner)
    assert "not alike" not in texts(runner.folder)


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
