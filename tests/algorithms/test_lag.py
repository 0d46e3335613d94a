"""Steps that are sampled ahead: exactly as far as they should be, and not lost when a run stops."""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from burnish.algorithms import hooks
from burnish.algorithms.asking import within
from burnish.algorithms.hooks import Hooks
from burnish.algorithms.session import resume, train
from burnish.cli.app import run as command
from burnish.config.loading import to_yaml
from burnish.errors import ConfigError, MachineError
from burnish.monitoring.console import Progress
from burnish.reproducibility.run_folder import RunFolder
from burnish.training.checkpoint import checkpoints

from .test_resume import interrupted, outcome


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def versions(run: RunFolder) -> list[set[int]]:
    """The versions of the weights that each step's rollouts were sampled with."""
    return [{group["weight_version"] for group in run.read_step("rollouts", step)} for step in run.steps("rollouts")]


@pytest.mark.parametrize("lag", [0, 1, 2, 10])
def test_a_step_learns_from_weights_of_the_lag_before(tiny_config: Any, quiet: Any, lag: int) -> None:
    run = train(tiny_config(rollout__lag=lag), quiet)
    assert versions(run) == [{max(0, step - lag)} for step in range(6)]
    for measured in ("staleness_mean", "staleness_max"):
        assert [line[measured] for line in run.metrics()] == [min(lag, step) for step in range(6)]


def test_staleness_counts_optimizer_steps(tiny_config: Any, quiet: Any) -> None:
    run = train(tiny_config(rollout__lag=1, train__minibatches_per_step=3), quiet)
    assert [line["staleness_max"] for line in run.metrics()] == [0] + [3] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout__update_weights": "during"}, r"ignored with rollout\.lag=0"),
        ({"rollout__update_weights": "during", "rollout__lag": 1}, r"ignored: in one process .*cluster\.kind to ray"),
    ],
)
def test_what_could_not_change_while_it_samples(tiny_config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


def test_lag_changes_what_is_learnt_but_not_what_is_asked(tiny_config: Any, quiet: Any) -> None:
    runs = [train(tiny_config(rollout__lag=lag), quiet) for lag in (0, 1)]
    asked = [[group["task_id"] for step in range(1, 7) for group in run.read_step("rollouts", step)] for run in runs]
    assert asked[0] == asked[1]
    assert outcome(runs[0]).parameters != outcome(runs[1]).parameters


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("curriculum", ["uniform", "middle"])
def test_what_was_sampled_ahead_is_in_the_checkpoint(
    tiny_config: Any, quiet: Any, monkeypatch: pytest.MonkeyPatch, step: int, curriculum: str
) -> None:
    config = tiny_config(rollout__lag=2, rollout__curriculum=curriculum, evaluation__right_at=0.4)
    run = interrupted(config, quiet, monkeypatch, step)
    (checkpoint,) = checkpoints(run.checkpoints)
    assert len(json.loads((checkpoint / "state.json").read_text())["ahead"]) == min(2, 6 - step)
    resume(run, config, quiet)
    assert outcome(run) == outcome(train(config, quiet))


def test_without_it_another_run_would_come_out(tiny_config: Any, quiet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(rollout__lag=2)
    run = interrupted(config, quiet, monkeypatch, 3)
    (checkpoint,) = checkpoints(run.checkpoints)
    state = json.loads((checkpoint / "state.json").read_text()) | {"ahead": []}
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["sha256"]["state.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    resume(run, config, quiet)
    assert outcome(run).tokens != outcome(train(config, quiet)).tokens


def test_samples_that_do_not_come_end_the_run() -> None:
    with pytest.raises(MachineError, match=r"waited 0 s for the samples of step 3, in vain: cluster.timeout_seconds"):
        within(0.01, Future(), 3)


def test_a_run_saves_and_stops_before_its_deadline(tiny_config: Any, quiet: Any) -> None:
    config = tiny_config(train__save_before_deadline=5.0)  # less than what comes after a last save is given
    run = train(config, quiet)
    assert run.record()["status"] == "interrupted"
    assert [path.name for path in checkpoints(run.checkpoints)] == ["step-000001"]
    assert "left until train.save_before_deadline: saving, and stopping here" in quiet.file.getvalue()
    unbroken = train(tiny_config(train__save_before_deadline=3600.0), quiet)
    assert unbroken.record()["status"] == "finished"


@pytest.mark.parametrize(
    ("seconds", "stops"),
    [
        (10 + 1.5 * 4 + 1, {}),  # one step of 4 s, and what comes after a save
        (10 + 1.5 * 4 + 7, {"first_save_seconds": 8.0}),
        (10 + 1.5 * 4 + 17, {"lag": 3}),
    ],
)
def test_what_a_first_save_and_samples_ahead_may_take_is_kept_free(
    seconds: float, stops: dict[str, Any], quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks.time, "monotonic", lambda: 100.0)
    for changes, is_stopped in (({}, False), (stops, bool(stops))):
        given = Hooks(
            run=None, progress=Progress(quiet, num_steps=9, columns=()), num_steps=9, checkpoint=None, evaluate_every=9,
            evaluate=None, save=None, deadline=100.0 + seconds, **changes,
        )  # fmt: skip
        given._stop_in_time(4.0)
        assert given.should_stop is is_stopped


def test_only_where_a_run_runs_may_change(tiny_config: Any, quiet: Any, tmp_path: Path, monkeypatch, capsys) -> None:
    config = tiny_config()
    run = interrupted(config, quiet, monkeypatch, 3)
    assert config.runs_folder == tmp_path / "runs"
    (run.path / "config.yaml").write_text(to_yaml(config))
    assert command(["resume", run.path.name, "--train.num_steps", "9"]) == 2
    assert "--train.num_steps: a run is resumed with its own settings" in capsys.readouterr().err
    assert command(["resume", run.path.name, "--cluster.kind", "local"]) == 0
    assert RunFolder(run.path).record()["status"] == "finished"
