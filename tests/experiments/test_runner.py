"""The runner with a scripted trainer: order, resumption, deadlines, interruption, what stays in the table."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from burnish.errors import UserError
from burnish.experiments.outcomes import read_outcomes
from burnish.experiments.runner import child_environment, run_experiment


def states(runner) -> dict[str, str]:
    return {each.run.name: each.state for each in read_outcomes(runner.folder, runner.plan)}


def commands(runner, run: str) -> list[str]:
    """What the trainer was called with for a run, from the first call on."""
    return [event["command"] for event in runner.folder.events() if event["event"] == "started" and event["run"] == run]


def test_every_run_in_the_planned_order(plan_of, runner_of) -> None:
    said = []
    runner = runner_of(plan_of(), {"fast-seed1": {"scores": [1.0, 0.0, 0.0, 0.0]}}, say=said.append)
    assert run_experiment(runner)
    started = [event["run"] for event in runner.folder.events() if event["event"] == "started"]
    assert started == [run.name for run in runner.plan.runs]
    outcomes = {each.run.name: each for each in read_outcomes(runner.folder, runner.plan)}
    assert outcomes["fast-seed1"].values == {"held_out": 0.25} and outcomes["base-seed0"].values == {"held_out": 1.0}
    assert said[-1].startswith("6/6 ") and "left about 0:00:00" in said[-1]


def test_a_second_call_runs_nothing(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    assert run_experiment(runner) and run_experiment(runner)
    assert sum(event["event"] == "started" for event in runner.folder.events()) == 6


def test_a_killed_run_is_resumed(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {"fast-seed2": {"dies": True}})
    run_experiment(runner)
    assert states(runner)["fast-seed2"] == "unfinished"
    run_experiment(runner)
    assert set(states(runner).values()) == {"finished"}
    assert commands(runner, "fast-seed2") == ["train", "resume"] and commands(runner, "base-seed2") == ["train"]


def test_a_run_that_cannot_begin_is_lost_with_its_last_words(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {"fast-seed1": {"says": "task.source: no such file"}})
    run_experiment(runner)
    outcome = next(each for each in read_outcomes(runner.folder, runner.plan) if each.run.name == "fast-seed1")
    assert (outcome.state, outcome.reason) == ("failed", "task.source: no such file")


def test_diverged_and_failed_runs_stay_and_are_not_repeated(plan_of, runner_of) -> None:
    behaviour = {
        "fast-seed0": {"failure": "the gradient's norm is nan: lower optimizer.learning_rate"},
        "fast-seed1": {"failure": "cannot write model: no space left"},
        "fast-seed2": {"metrics": {"loss": float("nan")}},
    }
    runner = runner_of(plan_of(secondary=["loss"]), behaviour)
    run_experiment(runner)
    found = states(runner)
    assert [found[f"fast-seed{seed}"] for seed in range(3)] == ["diverged", "failed", "diverged"]
    run_experiment(runner)
    assert commands(runner, "fast-seed1") == ["train"]
    runner.retry_failed = True
    run_experiment(runner)
    assert commands(runner, "fast-seed1") == ["train", "resume"] and commands(runner, "fast-seed0") == ["train"]


def test_several_at_once(plan_of, runner_of) -> None:
    behaviour = {f"{arm}-seed{seed}": {"waits": 0.6} for arm in ("base", "fast") for seed in range(3)}
    runner = runner_of(plan_of(), behaviour, max_parallel=3)
    run_experiment(runner)
    running, most = 0, 0
    for event in runner.folder.events():
        running += {"started": 1, "ended": -1}[event["event"]]
        most = max(most, running)
    assert most == 3 and set(states(runner).values()) == {"finished"}


def test_a_run_over_its_time_is_stopped_and_lost(plan_of, runner_of) -> None:
    plan = plan_of(budget={"hours_per_run": 0.5 / 3600})
    runner = runner_of(plan, {"base-seed0": {"waits": 60}})
    run_experiment(runner)
    outcome = next(each for each in read_outcomes(runner.folder, plan) if each.run.name == "base-seed0")
    assert outcome.state == "over budget" and 0.5 <= outcome.seconds < 20
    run_experiment(runner)
    assert commands(runner, "base-seed0") == ["train"]


def test_a_run_that_does_not_stop_is_killed(plan_of, runner_of) -> None:
    plan = plan_of(budget={"hours_per_run": 0.5 / 3600})
    runner = runner_of(plan, {"base-seed0": {"waits": 60, "stubborn": True}}, grace_seconds=0.2)
    began = time.monotonic()
    run_experiment(runner)
    assert time.monotonic() - began < 30
    assert states(runner)["base-seed0"] == "over budget"


def test_the_budget_of_hours_stops_everything(plan_of, runner_of) -> None:
    behaviour = {run.name: {"waits": 60} for run in plan_of().runs}
    runner = runner_of(plan_of(budget={"hours": 0.5 / 3600}), behaviour)
    assert not run_experiment(runner)
    assert sorted(states(runner).values()) == ["planned"] * 5 + ["unfinished"]
    with pytest.raises(UserError, match="h are spent, 6 runs are missing"):
        run_experiment(runner)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_children_save_and_stop(plan_of, runner_of, number: int) -> None:
    runner = runner_of(plan_of(), {run.name: {"waits": 60} for run in plan_of().runs}, max_parallel=2)

    def interrupt() -> None:
        while sum(each == "running" for each in states(runner).values()) < 2:
            time.sleep(0.02)
        time.sleep(0.2)  # for the children to be ready for a signal
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(number)
    assert not run_experiment(runner)
    thread.join()
    assert signal.getsignal(number) == before
    assert sorted(states(runner).values()) == ["planned"] * 4 + ["unfinished"] * 2
    records = [json.loads(path.read_text()) for path in runner.folder.runs.glob("*/run.json")]
    assert [record["status"] for record in records] == ["interrupted"] * 2
    for event in runner.folder.events():
        if event["event"] == "started":
            with pytest.raises(ProcessLookupError):
                os.kill(event["pid"], 0)


def test_a_second_signal_kills(plan_of, runner_of) -> None:
    behaviour = {run.name: {"waits": 60, "stubborn": True} for run in plan_of().runs}
    runner = runner_of(plan_of(), behaviour)

    def interrupt() -> None:
        while "running" not in states(runner).values():
            time.sleep(0.02)
        for _ in range(2):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    assert not run_experiment(runner)
    thread.join()
    assert time.monotonic() - began < 15
    assert sorted(states(runner).values()) == ["planned"] * 5 + ["unfinished"]


def test_one_process_runs_an_experiment(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    with runner.folder.locked(), pytest.raises(UserError, match="is being run by another process"):
        run_experiment(runner)


def test_settings_in_the_environment_do_not_reach_a_run() -> None:
    environment = {"BURNISH_TRAIN__NUM_STEPS": "5", "BURNISH_CACHE": "/cache", "PATH": "/bin"}
    assert child_environment(environment) == {"BURNISH_CACHE": "/cache", "PATH": "/bin"}


def test_what_a_run_printed_is_kept(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {"fast-seed1": {"says": "no such file"}})
    run_experiment(runner)
    assert "no such file" in (Path(runner.folder.path) / "logs" / "fast-seed1.log").read_text()


def test_two_folders_of_one_planned_run_are_refused(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(), {})
    run_experiment(runner)
    (run,) = runner.folder.runs.glob("base-seed0-*")
    copy = run.with_name("base-seed0-abcdef")
    copy.mkdir()
    (copy / "run.json").write_text((run / "run.json").read_text())
    with pytest.raises(UserError, match="are one planned run"):
        read_outcomes(runner.folder, runner.plan)


def test_a_sequential_experiment_stops_a_decided_arm(plan_of, runner_of) -> None:
    # differences 1, 0.75, 1, 1: t = 11 after three seeds, and 15 after four, which are enough of six for p < 0.05
    plan = plan_of(seeds=6, stopping="sequential")
    behaviour = {f"base-seed{seed}": {"scores": [0, 0, 0, int(seed == 1)]} for seed in range(6)}
    runner = runner_of(plan, behaviour)
    run_experiment(runner)
    found = states(runner)
    for arm in ("base", "fast"):
        assert [found[f"{arm}-seed{seed}"] for seed in range(6)] == ["finished"] * 4 + ["stopped early"] * 2


def test_a_sequential_experiment_without_a_difference_runs_to_its_end(plan_of, runner_of) -> None:
    runner = runner_of(plan_of(seeds=9, stopping="sequential"), {})
    run_experiment(runner)
    assert set(states(runner).values()) == {"finished"}
