"""What guards do in a real run of the tiny model when something is planted."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from burnish.algorithms.session import resume, train
from burnish.config.schema import RunConfig
from burnish.errors import BurnishError, ConfigError, NotFiniteError
from burnish.reproducibility.run_folder import RunFolder
from burnish.training.checkpoint import checkpoints, step_of

FAULTY = """
from pathlib import Path

import torch

calls = 0

def loss(scored, batch):
    global calls
    calls += 1
    total = -scored.logprobs_S.sum()
    return total * float("nan") if calls in BAD else total
"""


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def faulty(make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch) -> Callable[..., RunConfig]:
    """A supervised run whose loss is NaN at some of its calls, one for each step."""

    def make(bad: set[int], **guards: object) -> RunConfig:
        name = f"faulty_{'_'.join(map(str, sorted(bad)))}"
        (tmp_path / f"{name}.py").write_text(FAULTY.replace("BAD", repr(bad)))
        monkeypatch.syspath_prepend(str(tmp_path))
        return make_config("sft", loss__own=f"{name}:loss", guards=guards, checkpoint__keep_last=10)

    return make


def events(run: RunFolder, kind: str) -> list[dict]:
    return [event for event in run.events() if event["event"] == kind]


def only_run(config: RunConfig) -> RunFolder:
    (run,) = RunFolder.all(config.runs_folder)
    return run


def test_a_gradient_that_is_no_number_ends_the_run(faulty, quiet: Console) -> None:
    config = faulty({4})
    with pytest.raises(NotFiniteError):
        train(config, quiet)
    run = only_run(config)
    (alert,) = events(run, "alert")
    assert (alert["name"], alert["step"], alert["severity"]) == ("not_finite", 4, "critical")
    assert run.status() == "failed" and step_of(checkpoints(run.checkpoints)[-1]) == 2


def test_back_to_the_last_good_checkpoint_with_a_lower_rate(faulty, quiet: Console) -> None:
    config = faulty({4}, actions={"not_finite": "roll_back"})
    run = train(config, quiet)
    lines = run.metrics()
    assert run.status() == "finished" and [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    (back,) = events(run, "rolled_back")
    assert (back["to_step"], back["at_step"], back["condition"]) == (2, 4, "not_finite")
    rates = [line["learning_rate"] for line in lines]
    plain = [line["learning_rate"] for line in train(faulty(set()), quiet).metrics()]
    assert rates[:2] == plain[:2] and rates[2:] == [rate / 2 for rate in plain[2:]]


def test_never_twice_the_same_and_not_for_ever(faulty, quiet: Console) -> None:
    config = faulty({4, 6, 8}, actions={"not_finite": "roll_back"})
    with pytest.raises(BurnishError, match=r"rolled back 2 times already \(guards.max_rollbacks\)"):
        train(config, quiet)
    run = only_run(config)
    rate = config.optimizer.learning_rate
    assert [event["learning_rate"] for event in events(run, "rolled_back")] == [rate / 2, rate / 4]


def test_without_an_earlier_checkpoint_the_run_ends(faulty, quiet: Console) -> None:
    config = faulty({2}, actions={"not_finite": "roll_back"})
    with pytest.raises(BurnishError, match="no checkpoint from before step 2 is there to go back to"):
        train(config, quiet)


def test_a_run_that_was_rolled_back_resumes_with_the_lower_rate(faulty, quiet: Console) -> None:
    config = faulty({4}, actions={"not_finite": "roll_back"})
    run = train(config, quiet, stop_after=4)
    assert run.status() == "interrupted"
    resume(run, config, quiet)
    whole = train(faulty({4}, actions={"not_finite": "roll_back"}, warning="note"), quiet)  # the same faults once more
    rates = [line["learning_rate"] for line in run.metrics()]
    assert rates[4:] == [config.optimizer.learning_rate / 2] * 2 and len(rates) == 6
    assert whole.status() == "finished"


def planted(monkeypatch, step: int) -> None:
    """Let the metrics say that tokens are stale at a step, whatever they are."""
    from burnish.monitoring.guards import Guards

    look = Guards.look
    monkeypatch.setattr(
        Guards, "look", lambda self, line: look(self, {**line, "staleness_max": 9.0 * (line["step"] == step)})
    )


def test_a_checkpoint_is_saved_at_once(make_config, quiet: Console, monkeypatch) -> None:
    planted(monkeypatch, 3)
    config = make_config(
        "sft", guards={"actions": {"staleness": "checkpoint"}}, checkpoint__every_steps=50, checkpoint__keep_last=9
    )
    run = train(config, quiet)
    assert [step_of(path) for path in checkpoints(run.checkpoints)] == [3, 6]
    assert [(event["name"], event["state"]) for event in events(run, "alert")] == [
        ("staleness", "firing"),
        ("staleness", "resolved"),
    ]


def test_a_run_is_stopped(make_config, quiet: Console, monkeypatch) -> None:
    planted(monkeypatch, 3)
    run = train(make_config("sft", guards={"actions": {"staleness": "stop"}}), quiet)
    assert run.status() == "interrupted" and step_of(checkpoints(run.checkpoints)[-1]) == 3


def test_a_run_waits_for_a_person(make_config, quiet: Console, monkeypatch) -> None:
    planted(monkeypatch, 3)
    config = make_config("sft", guards={"actions": {"staleness": "pause"}, "pause_seconds": 60})

    def let_go_on() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for run in RunFolder.all(config.runs_folder):
                if (run.checkpoints / "step-000003").is_dir():
                    (run.path / "go-on").touch()
                    if any(event["event"] == "went_on" for event in run.events()):
                        return
            time.sleep(0.1)

    helper = threading.Thread(target=let_go_on, daemon=True)
    helper.start()
    run = train(config, quiet)
    helper.join(10)
    assert run.status() == "finished" and len(events(run, "went_on")) == 1


def test_a_pause_has_an_end(make_config, quiet: Console, monkeypatch) -> None:
    planted(monkeypatch, 3)
    run = train(make_config("sft", guards={"actions": {"staleness": "pause"}, "pause_seconds": 0.6}), quiet)
    assert run.status() == "interrupted" and step_of(checkpoints(run.checkpoints)[-1]) == 3


def test_settings_that_cannot_be(make_config, quiet: Console, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no condition 'nothing'"):
        train(make_config("sft", guards={"off": ("nothing",)}), quiet)
    with pytest.raises(ConfigError, match="webhook_file"):
        train(make_config("sft", guards={"webhook_file": tmp_path / "none"}), quiet)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_guards_are_silent_in_a_run_that_learns(make_config, quiet: Console, seed: int) -> None:
    """All but `slow` and `waiting`, which go by the clock of a machine that others use, too."""
    config = make_config(
        "grpo",
        seed=seed,
        train__num_steps=40,
        evaluation__every_steps=10,
        checkpoint__every_steps=40,
        guards={"off": ("slow", "waiting")},
    )
    run = train(config, quiet)
    rewards = [line["reward_mean"] for line in run.metrics()]
    assert sum(rewards[-5:]) > sum(rewards[:5])
    assert [event["message"] for event in events(run, "alert")] == []


def test_what_is_saved_in_doubt_does_not_replace_what_is_good(make_config, quiet: Console, monkeypatch) -> None:
    """Even where one checkpoint is kept: the one from before is what one can go back to."""
    planted(monkeypatch, 5)
    run = train(make_config("sft", guards={"actions": {"staleness": "stop"}}, checkpoint__keep_last=1), quiet)
    assert [step_of(path) for path in checkpoints(run.checkpoints)] == [4, 5]
    resume(run, make_config("sft", guards={"actions": {"staleness": "stop"}}, checkpoint__keep_last=1), quiet)
    assert [step_of(path) for path in checkpoints(run.checkpoints)] == [6]
