"""What a scrape gets, by Prometheus' own parser, and who has had it."""

import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from burnish.errors import MachineError
from burnish.monitoring.catalogue import SERVING, STEP_METRICS, TRAINING, Spec, catalogue_page
from burnish.monitoring.exporter import Exporter
from burnish.monitoring.training_metrics import TrainingMetrics

from .processes import free_port, series

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def fed(specs: tuple[Spec, ...]) -> Exporter:
    """Every metric with values of its own, two sets of labels where it has labels."""
    exporter = Exporter(specs)
    for number, spec in enumerate(specs, 1):
        for place in "ab" if spec.labels else "a":
            labels = [f"{label} {place}" for label in spec.labels]
            match spec.kind:
                case "gauge":
                    exporter.set(spec.name, number, *labels)
                case "counter":
                    exporter.count(spec.name, number, *labels)
                case "histogram":
                    for value in (spec.buckets[0], spec.buckets[1], 1e9):
                        exporter.observe(spec.name, value, *labels)
    return exporter


@pytest.mark.parametrize("specs", [TRAINING, SERVING], ids=["training", "serving"])
def test_a_scrape_has_every_metric_of_the_catalogue(specs: tuple[Spec, ...]) -> None:
    families = {each.name: each for each in text_string_to_metric_families(fed(specs).text().decode())}
    for spec in specs:
        family = families[spec.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (spec.kind, spec.meaning)
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels == set(spec.labels)
        if spec.kind == "histogram":
            bounds = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
            assert sorted(set(bounds)) == [*spec.buckets, float("inf")]
    aliases = {spec.alias.removesuffix("_total") for spec in specs if spec.alias}
    assert set(families) == {spec.name.removesuffix("_total") for spec in specs} | aliases


def test_vllms_names_have_the_same_numbers() -> None:
    found = series(fed(SERVING).text().decode())
    renamed = {"model": "model_name", "reason": "finished_reason"}
    with_alias = [spec for spec in SERVING if spec.alias]
    assert len(with_alias) >= 15
    for spec in with_alias:
        ends = ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",)
        for end in ends:
            ours = {
                frozenset((renamed.get(n, n), v) for n, v in labels): value for labels, value in found[spec.name + end]
            }
            theirs = {frozenset(labels): value for labels, value in found[str(spec.alias) + end]}
            assert theirs == ours and ours


def test_the_page_of_the_documentation_is_the_catalogue() -> None:
    assert PAGE.read_text(encoding="utf-8") == catalogue_page(), "burnish monitor metrics docs/metrics.md writes it"


def test_names_keep_prometheus_rules() -> None:
    names = [spec.name for spec in (*TRAINING, *SERVING)]
    assert len(set(names)) == len(names)
    for spec in (*TRAINING, *SERVING):
        assert spec.name.endswith("_total") == (spec.kind == "counter")
        assert bool(spec.buckets) == (spec.kind == "histogram") and list(spec.buckets) == sorted(spec.buckets)
        assert not {"user", "key", "owner", "request"} & set(spec.labels)


def test_a_step_is_told_under_its_run() -> None:
    told = TrainingMetrics("sums-1", algorithm="grpo", model="tiny", num_steps=9)
    line = {"step": 4, "loss": float("nan"), "mine": 0.5, "done": True, "rollouts_sha256": "ab"}
    told.step(line, {"slow": True, "mismatch": False}, 60.0)
    found = series(told.exporter.text().decode())
    assert found["burnish_train_step"] == [((("run", "sums-1"),), 4.0)]
    ((_, loss),) = found["burnish_train_loss"]
    assert loss != loss
    assert found["burnish_train_own"] == [((("name", "mine"), ("run", "sums-1")), 0.5)]  # no truth, no text
    assert dict(found["burnish_train_condition"]) == {
        (("condition", "slow"), ("run", "sums-1")): 1.0,
        (("condition", "mismatch"), ("run", "sums-1")): 0.0,
    }
    assert abs(found["burnish_train_step_timestamp_seconds"][0][1] - time.time()) < 60


def test_what_is_in_no_step_is_not_told() -> None:
    told = TrainingMetrics("sums-1", algorithm="sft", model="tiny", num_steps=9)
    told.step({"step": 1, "loss": 2.0}, {}, 60.0)
    found = series(told.exporter.text().decode())
    assert "burnish_train_reward_mean" not in found and set(STEP_METRICS) >= {"reward_mean", "loss"}


@pytest.fixture
def served() -> Iterator[tuple[Exporter, str]]:
    exporter, port = Exporter(TRAINING), free_port()
    stop = exporter.serve(port, "127.0.0.1")
    yield exporter, f"http://127.0.0.1:{port}/metrics"
    stop()


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def waited(exporter: Exporter, seconds: float, should_stop=lambda: False) -> tuple[threading.Thread, list[bool]]:
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(exporter.wait_for_scrape(seconds, should_stop)))
    thread.start()
    return thread, seen


def test_the_next_scrape_is_waited_for(served: tuple[Exporter, str]) -> None:
    exporter, url = served
    scrape(url)  # one before does not count
    assert not exporter.wait_for_scrape(0.1, lambda: False)
    thread, seen = waited(exporter, 30)
    assert "burnish_train_loss" in scrape(url)
    thread.join(30)
    assert seen == [True]


def test_a_scrape_that_began_before_does_not_count(served: tuple[Exporter, str], monkeypatch) -> None:
    """It may have the numbers of before."""
    exporter, url = served
    begun, goes_on = threading.Event(), threading.Event()
    collect = exporter.registry.collect

    def slow() -> object:
        begun.set()
        goes_on.wait(30)
        return collect()

    monkeypatch.setattr(exporter.registry, "collect", slow)
    early = threading.Thread(target=scrape, args=(url,))
    early.start()
    assert begun.wait(30)
    thread, seen = waited(exporter, 1.0)
    time.sleep(0.2)  # it waits by now
    goes_on.set()
    early.join(30)
    thread.join(30)
    assert seen == [False]


def test_waiting_ends_when_it_is_told_to(served: tuple[Exporter, str]) -> None:
    exporter, _ = served
    stop = threading.Event()
    thread, seen = waited(exporter, 60, stop.is_set)
    stop.set()
    thread.join(30)
    assert seen == [False]


def test_a_port_that_is_taken(served: tuple[Exporter, str]) -> None:
    port = int(served[1].rpartition(":")[2].split("/")[0])
    with pytest.raises(MachineError, match=f"metrics.port={port}: cannot listen"):
        Exporter(TRAINING).serve(port, "127.0.0.1")
