"""Sweeps with the scripted trainer: what is proposed, what is kept, and that the winner is judged on other items."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from burnish.cli.app import run
from burnish.errors import ConfigError, UserError
from burnish.experiments.outcomes import curve, metric_at_end, read_outcomes
from burnish.experiments.plan import make_plan
from burnish.experiments.report import write_report
from burnish.experiments.runner import run_experiment
from burnish.experiments.sweep import propose, read_trials

RATE = {"optimizer.learning_rate": {"low": 1e-6, "high": 1e-3, "log": True}}
ITEMS = 40


@pytest.fixture
def sweep_of(plan_of):
    """The plan of a sweep with these changes of its section, and of the file."""

    def make(sweep: dict[str, Any] | None = None, **changes: Any):
        section = {"space": RATE, "trials": 5, **(sweep or {})}
        return plan_of(**{"arms": None, "baseline": None, "sweep": section, **changes})

    return make


@pytest.fixture
def sweeper(runner_of):
    """A runner whose runs have items in both halves."""
    return lambda plan, behaviour, **options: runner_of(plan, {"*": right(20), **behaviour}, **options)


def right(count: int) -> dict[str, Any]:
    return {"scores": [1.0] * count + [0.0] * (ITEMS - count)}


def trials(runner) -> list:
    return read_trials(runner.folder, runner.plan)


@pytest.mark.parametrize(
    ("sweep", "changes", "message"),
    [
        ({"space": {}}, {}, "sweep.space"),
        ({"trials": 1}, {}, "sweep.trials=1: input should be greater than or equal to 2"),
        ({"space": {"optimizer.learning_rate": {"low": 1}}}, {}, "needs low and high, or choices"),
        ({"space": {"optimizer.learning_rate": {"low": 2, "high": 1}}}, {}, "low=2 must be less than high=1"),
        ({"space": {"optimizer.learning_rate": {"low": 0, "high": 1, "log": True}}}, {}, "needs a low above 0"),
        ({"space": {"optimizer.learning_rate": {"choices": [1], "low": 1}}}, {}, "would be ignored beside choices"),
        ({"space": {"optimizer.learning_rate": {"choices": [1e-4]}}}, {}, "needs two or more different ones"),
        (
            {"space": {"optimizer.learning_rate": {"lwo": 1}}},
            {},
            "unknown key 'sweep.space.optimizer.learning_rate.lwo': did you mean 'low'?",
        ),
        ({"trails": 3}, {}, "unknown key 'sweep.trails': did you mean 'trials'?"),
        ({"seed": 1}, {}, "sweep.seed=1 is among seeds"),
        ({}, {"primary": "loss"}, "so it needs held_out"),
        ({}, {"arms": {"a": {}, "b": {}}}, "give one of arms, factors and sweep, got arms and sweep"),
        ({}, {"baseline": "base"}, "baseline='base' would be ignored"),
        ({}, {"settings": {"optimizer.learning_rate": 1e-5}}, "settings.optimizer.learning_rate would be ignored"),
        ({}, {"budget": {"runs": 10}}, "budget.runs=10, but the plan has 11 runs"),
        ({"space": {"recipe": {"choices": ["grpo", "sft"]}}}, {}, "a search keeps to one recipe"),
        ({"space": {"optimizer.lerning_rate": {"low": 1, "high": 2}}}, {}, "unknown setting 'optimizer.lerning_rate'"),
        ({"space": {"optimizer.learning_rate": {"low": -1, "high": 2}}}, {}, "arm with optimizer.learning_rate=-1"),
    ],
)
def test_what_cannot_be_searched(sweep_of, sweep: dict, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep_of(sweep, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_without_optuna_a_plan_says_what_to_install(sweep_of, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'burnish\[sweep\]'"):
        sweep_of()


def test_the_plan_names_both_arms_and_a_seed_of_the_search(sweep_of) -> None:
    plan = sweep_of(seeds=2)
    assert {run.name for run in plan.runs} == {f"{arm}-seed{seed}" for arm in ("untuned", "winner") for seed in (0, 1)}
    assert (plan.baseline, plan.others, plan.sweep.seed) == ("untuned", ("winner",), 2)
    assert sweep_of(seeds=[1, 2]).sweep.seed == 0


def test_a_search_and_its_winner(sweep_of, sweeper) -> None:
    # the third trial has the most right of all items, whichever half they are in
    behaviour = {f"trial-{n:03d}-seed2": right(count) for n, count in enumerate([10, 20, 40, 10, 0])}
    said = []
    runner = sweeper(sweep_of(seeds=2), behaviour, say=said.append)
    assert run_experiment(runner)
    rates = [trial.settings["optimizer.learning_rate"] for trial in trials(runner)]
    assert len(set(rates)) == 5 and all(1e-6 <= rate <= 1e-3 for rate in rates)
    winner = (runner.folder.path / "arms" / "winner.yaml").read_text()
    assert winner == (runner.folder.path / "arms" / "trial-002.yaml").read_text() and str(rates[2]) in winner
    assert any("search ended after 5 trials with trial-002: optimizer.learning_rate=" in line for line in said)
    started = [event["run"] for event in runner.folder.events() if event["event"] == "started"]
    assert started == [*(f"trial-{n:03d}-seed2" for n in range(5)), *(run.name for run in runner.plan.runs)]
    assert run_experiment(runner)  # and nothing is done twice
    assert len([event for event in runner.folder.events() if event["event"] == "started"]) == len(started)


def test_no_item_of_the_search_judges_the_winner(sweep_of, sweeper) -> None:
    scores = [float(index % 3 == 0) for index in range(ITEMS)]
    runner = sweeper(sweep_of(seeds=1), {"trial-000-seed1": {"scores": scores}, "winner-seed0": {"scores": scores}})
    run_experiment(runner)
    folder = runner.folder.run_folders()["winner-seed0"]
    halves: dict[str, set[str]] = {"search": set(), "fresh": set()}
    for index in range(ITEMS):  # an item is in a half if its score alone moves the half's mean
        path = folder.path / "evaluations" / "step-000004.jsonl"
        kept = path.read_text()
        before = {half: metric_at_end(folder, "held_out", half) for half in halves}
        lines = [json.loads(line) for line in kept.splitlines()]
        lines[index]["score"] += 1.0
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for half, ids in halves.items():
            if metric_at_end(folder, "held_out", half) != before[half]:
                ids.add(str(index))
        path.write_text(kept)
    assert not halves["search"] & halves["fresh"] and len(halves["search"] | halves["fresh"]) == ITEMS
    assert min(map(len, halves.values())) >= 10
    (trial, *_), outcomes = trials(runner), read_outcomes(runner.folder, runner.plan)
    winner = next(each for each in outcomes if each.run.arm == "winner")
    for half, value in (("search", trial.score), ("fresh", winner.values["held_out"])):
        assert value == pytest.approx(sum(scores[int(i)] for i in halves[half]) / len(halves[half]))
    assert curve(folder, "held_out", "fresh")[4] == winner.values["held_out"]


def test_proposals_follow_from_the_trials_before(sweep_of, sweeper) -> None:
    behaviour = {f"trial-{n:03d}-seed3": right(4 * n) for n in range(8)}
    runner = sweeper(sweep_of({"trials": 8}), behaviour)
    run_experiment(runner)
    done = trials(runner)
    for number in range(8):
        assert list(propose(runner.plan, done[:number], 1)) == [done[number].settings]
    others = sweep_of({"trials": 8, "seed": 9})
    assert next(propose(others, [], 1)) != done[0].settings


def test_a_killed_search_goes_on_to_the_same_trials(sweep_of, sweeper) -> None:
    behaviour = {f"trial-{n:03d}-seed3": right(4 * n) for n in range(5)}
    broken = {**behaviour, "trial-002-seed3": {**right(8), "dies": True}}
    runner = sweeper(sweep_of(), broken)
    assert not run_experiment(runner)
    assert [trial.state for trial in trials(runner)] == ["finished", "finished", "unfinished"]
    assert run_experiment(runner)
    done = trials(runner)
    assert [trial.state for trial in done] == ["finished"] * 5
    for number in range(5):
        assert list(propose(runner.plan, done[:number], 1)) == [done[number].settings]


def test_lost_trials_stay_and_cannot_win(sweep_of, sweeper) -> None:
    behaviour = {
        "trial-000-seed3": {"failure": "the gradient's norm is nan: lower optimizer.learning_rate"},
        "trial-001-seed3": {"says": "no space left"},
        "trial-003-seed3": right(30),
        "trial-004-seed3": right(10),
        "trial-002-seed3": right(10),
    }
    runner = sweeper(sweep_of(), behaviour)
    assert run_experiment(runner)
    found = [(trial.state, trial.outcome.reason) for trial in trials(runner)]
    assert found[:2] == [
        ("diverged", "the gradient's norm is nan: lower optimizer.learning_rate"),
        ("failed", "no space left"),
    ]
    write_report(runner.folder)
    text = (runner.folder.path / "report.md").read_text()
    assert re.search(r"\| trial-000 \| [\d.e-]+ \| diverged \| - \|.*gradient's norm is nan", text)
    assert "trial-003 (optimizer.learning_rate=" in text


def test_settings_that_are_no_configuration_stay_as_refused(sweep_of, sweeper) -> None:
    # an overlong buffer must be smaller than the 24 tokens of this recipe: 24 alone is fine as an end of max_tokens
    space = {"rollout.max_tokens": {"choices": [8, 32]}, "rollout.overlong_buffer": {"choices": [4, 12]}}
    runner = sweeper(sweep_of({"space": space, "trials": 6}), {})
    assert run_experiment(runner)
    done = trials(runner)
    assert len(done) == 4  # all there are
    assert [trial.state for trial in done].count("refused") == 1
    (refused,) = [trial for trial in done if trial.state == "refused"]
    assert refused.settings == {"rollout.max_tokens": 8, "rollout.overlong_buffer": 12}
    assert "rollout.overlong_buffer=12 must be less than rollout.max_tokens=8" in refused.refused
    assert run_experiment(runner)  # an exhausted space is an end too


def test_no_trial_finishes(sweep_of, sweeper) -> None:
    behaviour = {f"trial-{n:03d}-seed3": {"says": "no space left"} for n in range(5)}
    with pytest.raises(UserError, match="none of 5 trials finished, so there is no winner; trial-000 failed: no space"):
        run_experiment(sweeper(sweep_of(), behaviour))


def test_several_trials_at_once(sweep_of, sweeper) -> None:
    runner = sweeper(sweep_of({"trials": 6}), {}, max_parallel=3)
    assert run_experiment(runner)
    events = [event["event"] for event in runner.folder.events()]
    assert events[:3] == ["started"] * 3 and len(trials(runner)) == 6


def test_a_search_that_ended_is_not_made_longer(sweep_of, sweeper) -> None:
    runner = sweeper(sweep_of(), {})
    run_experiment(runner)
    runner.folder.write_plan(sweep_of({"trials": 9}), reason="more")
    runner.plan = runner.folder.plan()
    with pytest.raises(UserError, match="the search ended with trial-000 after 5 trials"):
        run_experiment(runner)


def test_both_numbers_are_shown(sweep_of, sweeper) -> None:
    lucky = {f"trial-{n:03d}-seed3": right(count) for n, count in enumerate([10, 20, 40, 10, 0])}
    anew = {f"winner-seed{seed}": right(count) for seed, count in enumerate([24, 20, 30])}
    untuned = {f"untuned-seed{seed}": right(count) for seed, count in enumerate([8, 10, 6])}
    runner = sweeper(sweep_of(), {**lucky, **anew, **untuned})
    run_experiment(runner)
    path = write_report(runner.folder)
    text, html = (runner.folder.path / "report.md").read_text(), path.read_text()
    told = json.loads((runner.folder.path / "report.json").read_text())
    result = told["search"]["result"]
    values = told["analysis"]["arms"][1]["values"]
    assert result["score"] == 1.0 and result["fresh"] == pytest.approx(sum(values.values()) / 3)
    assert result["num_searched_items"] + result["num_fresh_items"] == ITEMS
    assert "was the best of 5 trials with held_out 1, on" in text and "it is biased upwards" in text
    assert re.search(r"trained anew: held_out 0\.\d+, 95% CI \[.*\] over 3 fresh seeds, on \d+ items that the", text)
    assert "winner: held_out +0." in text and "trained anew: held_out" in html
    assert html.count("<svg") == 6 and "count nowhere" not in text
    assert len(told["search"]["trials"]) == 5


def test_the_commands_show_the_search(sweep_of, sweeper, capsys, monkeypatch) -> None:
    runner = sweeper(sweep_of(), {"trial-001-seed3": {"says": "no space left"}})
    run_experiment(runner)
    where = ["--experiments-folder", str(runner.folder.path.parent)]
    assert run(["experiment", "status", "tried", *where]) == 0
    out = capsys.readouterr().out
    assert "4 finished, 1 failed" in out and re.search(r"trial-001 +\S+ +failed", out)
    assert run(["experiment", "status", "tried", "--json", *where]) == 0
    assert len(json.loads(capsys.readouterr().out)["trials"]) == 5


def test_a_longer_search_planned_late_is_exploratory(sweep_of, sweeper) -> None:
    runner = sweeper(sweep_of(), {"trial-001-seed3": {"dies": True}})
    run_experiment(runner)
    runner.folder.write_plan(sweep_of({"trials": 6}), reason="more")
    runner.plan = runner.folder.plan()
    assert run_experiment(runner)
    write_report(runner.folder)
    text = (runner.folder.path / "report.md").read_text()
    assert "every figure is exploratory" in text and "- sweep.num_trials: 5 -> 6" in text


def test_every_end_of_the_space_is_looked_at(load) -> None:
    seen = []
    space = {**RATE, "rollout.curriculum": {"choices": ["uniform", "middle"]}}
    file = load(arms=None, baseline=None, sweep={"space": space, "trials": 3})
    make_plan(file, environment={}, check=lambda config: seen.append(config))
    assert {config.optimizer.learning_rate for config in seen} >= {1e-6, 1e-3}
    assert {config.rollout.curriculum for config in seen} == {"uniform", "middle"}


def test_a_half_without_items_is_said(sweep_of, sweeper, tmp_path: Path) -> None:
    runner = sweeper(sweep_of(), {f"trial-{n:03d}-seed3": {"scores": [1.0]} for n in range(5)})
    with pytest.raises(UserError, match=r"no held-out item falls into the half of the (search|fresh) runs: hold out"):
        run_experiment(runner)
