"""A run as Prometheus sees it: from its first step to its last."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from burnish.algorithms.session import train
from burnish.errors import NotFiniteError
from burnish.monitoring.catalogue import STEP_METRICS
from burnish.reproducibility.run_folder import RunFolder
from tests.monitoring.processes import free_port, series, text_of

from .conftest import ALGORITHMS

OWN = ("loss.", "critic.")
"""Metrics that are told as burnish_train_own, whose names no catalogue can know, or which are another model's."""


@contextmanager
def scraped(port: int, when: Callable[[], bool] = lambda: True) -> Iterator[list[dict]]:
    """What scrapes of a port found while the context lasted, from when somebody looks."""
    found: list[dict] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            if when() and (text := text_of(f"http://127.0.0.1:{port}/metrics")) is not None:
                found.append(series(text))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join(30)


def steps(found: list[dict]) -> list[float]:
    return [each["burnish_train_step"][0][1] for each in found if "burnish_train_step" in each]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_metric_of_a_run_is_in_the_catalogue(
    make_config, quiet: Console, algorithm: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the reward is
    lines = train(make_config(algorithm), quiet).metrics()
    numbers = {
        name
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert {name for name in numbers - STEP_METRICS.keys() if not name.startswith(OWN)} == set()
    assert len(numbers & STEP_METRICS.keys()) > 8


def test_a_run_is_seen_to_its_last_step(make_config, quiet: Console) -> None:
    port = free_port()
    config = make_config("sft", metrics={"port": port, "linger_seconds": 60})
    began = time.monotonic()
    with scraped(port) as found:
        run = train(config, quiet)
        took = time.monotonic() - began
    assert took < 55  # it waited for a scrape, not for the time
    seen = steps(found)
    assert seen == sorted(seen) and seen[-1] == 6 == config.train.num_steps and seen[0] < 6
    assert found[-1]["burnish_train_steps_planned"][0] == ((("run", run.path.name),), 6.0)
    assert found[-1]["burnish_train_loss"][0][1] == run.metrics()[-1]["loss"]
    assert text_of(f"http://127.0.0.1:{port}/metrics") is None  # the port is free again
    assert run.status() == "finished"


def test_who_comes_when_the_run_is_over_is_in_time(make_config, quiet: Console) -> None:
    port = free_port()
    config = make_config("sft", metrics={"port": port, "linger_seconds": 60})

    over_since: list[float] = []

    def is_long_over() -> bool:
        if any(run.status() == "finished" for run in RunFolder.all(config.runs_folder)):
            over_since.append(time.monotonic())
        return bool(over_since) and time.monotonic() - over_since[0] > 1.5  # to close the port takes half a second

    with scraped(port, is_long_over) as found:
        train(config, quiet)
    assert steps(found) and set(steps(found)) == {6}


def test_nobody_need_look(make_config, quiet: Console) -> None:
    asked = make_config("sft", metrics={"port": free_port(), "linger_seconds": 0.2})
    assert train(asked, quiet).status() == "finished"


def test_a_run_that_is_stopped_waits_for_nobody(make_config, quiet: Console) -> None:
    config = make_config("sft", metrics={"port": free_port(), "linger_seconds": 600})
    began = time.monotonic()
    assert train(config, quiet, stop_after=3).status() == "interrupted"
    assert time.monotonic() - began < 60


FAULTY = """
def loss(scored, batch):
    return -scored.logprobs_S.sum() * float("nan")
"""


def test_a_gradient_that_is_no_number_is_seen_before_the_run_is_gone(
    make_config, quiet: Console, tmp_path, monkeypatch
) -> None:
    (tmp_path / "scraped_nan.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    port = free_port()
    config = make_config("sft", loss__own="scraped_nan:loss", metrics={"port": port, "linger_seconds": 60})
    with scraped(port) as found, pytest.raises(NotFiniteError):
        train(config, quiet)
    holds = {dict(labels)["condition"]: value for labels, value in found[-1]["burnish_train_condition"]}
    assert holds == {"not_finite": 1.0}
