"""The watch on planted changes and on healthy traffic, which scripts/simulate_drift.py makes and says in full."""

import json
import math
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import chi2, ks_2samp

from burnish.config.serving import DriftConfig
from burnish.errors import ConfigError
from burnish.serving.drift import AnswerRecord, DriftFinding, DriftWatch, record_answer
from burnish.stats.drift import dependent_p_value, design_effect, ks_test

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "simulate_drift.py"))
SMALL = DriftConfig(window=100, reference=300)
FEATURES = (
    *("prompt_tokens", "answer_tokens", "finish_reason", "is_refusal"),
    *("repeated_share", "distinct_share", "mean_logprob", "reward"),
)


def traffic(seed: int, **changes: float) -> Iterator[AnswerRecord]:
    source: Iterator[AnswerRecord] = SCRIPT["answers"](SCRIPT["Traffic"](**changes), np.random.default_rng(seed))
    return source


def feed(watch: DriftWatch, source: Iterator[AnswerRecord], count: int) -> None:
    for _ in range(count):
        watch.add(next(source))


def started(seed: int = 0, config: DriftConfig = SMALL) -> tuple[DriftWatch, Iterator[AnswerRecord]]:
    """A watch with its reference, and the healthy traffic from there on."""
    watch, source = DriftWatch(config), traffic(seed)
    feed(watch, source, config.reference)
    return watch, source


def of(findings: list[DriftFinding], feature: str) -> DriftFinding:
    return next(each for each in findings if each.feature == feature)


@pytest.mark.parametrize(
    ("feature", "change", "said"),
    [
        ("prompt_tokens", {"prompt_tokens": 300.0}, "prompts are longer: median "),
        ("prompt_tokens", {"prompt_tokens": 50.0}, "prompts are shorter: median "),
        ("answer_tokens", {"answer_tokens": 100.0}, "answers are longer: median "),
        ("is_refusal", {"refusals": 0.2}, "more answers are refusals: "),
        ("finish_reason", {"cut_off": 0.25}, "more answers end with `length`: "),
        ("reward", {"reward": 0.3}, "rewards are lower: mean "),
        ("repeated_share", {"repeating": 0.5}, "answers repeat themselves more: mean "),
        ("distinct_share", {"distinct": 0.75}, "answers begin with fewer different tokens: mean "),
        ("mean_logprob", {"logprob": -0.7}, "answers are less likely to the model: mean "),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_change_is_found_within_two_windows(
    feature: str, change: dict[str, float], said: str, seed: int
) -> None:
    watch, source = started(seed)
    feed(watch, source, 100)
    assert all(each.phase == "quiet" for each in watch.look(1.0))
    changed, begun = traffic(seed + 100, **change), []
    for now in (2.0, 3.0):
        feed(watch, changed, 100)
        begun += [each for each in watch.look(now) if each.phase == "begins"]
    assert [each.feature for each in begun] == [feature]
    assert begun[0].sentence.startswith(said)
    assert begun[0].p_value is not None and begun[0].p_value <= 0.05


def test_healthy_traffic_is_silent() -> None:
    """Ten servers, 12 windows each: four rows of 30 looks, each of which may have an alarm with a chance of 1/20."""
    for seed in range(10):
        watch, source = started(seed)
        for look in range(12):
            feed(watch, source, 100)
            findings = watch.look(float(look))
            assert [each.feature for each in findings] == list(FEATURES)
            assert not any(each.is_drifting for each in findings), (seed, look, findings)


@pytest.mark.slow
def test_false_alarms_are_no_more_than_alpha() -> None:
    row, control = SCRIPT["false_alarms"](40, config=SMALL)
    assert row.holds, row
    assert control.share > 0.5  # the usual limit of a PSI alarms for nothing


def test_one_alarm_for_an_episode() -> None:
    """It begins once, lasts, and ends with the first window that agrees; a second change is a new one."""
    watch, healthy = started()
    long = traffic(7, answer_tokens=120.0)
    phases = []
    for now, source in enumerate([healthy, long, long, long, healthy, healthy, long]):
        feed(watch, source, 100)
        found = of(watch.look(float(now)), "answer_tokens")
        phases.append((found.phase, found.since))
        assert watch.statistics()["answer_tokens/is_drifting"] == float(found.is_drifting)
    assert phases == [
        *(("quiet", None), ("begins", 1.0), ("lasts", 1.0), ("lasts", 1.0)),
        *(("ends", 1.0), ("quiet", None), ("begins", 6.0)),
    ]


def test_an_alarm_lasts_while_a_window_is_still_unlike() -> None:
    """A change too small to begin an alarm does not end one."""
    small = list(islice(traffic(23, answer_tokens=84.0), 100))
    watch, _ = started()
    feed(watch, iter(small), 100)
    found = of(watch.look(0.0), "answer_tokens")
    assert found.phase == "quiet" and found.p_value is not None and found.p_value > 0.05
    watch, _ = started()
    feed(watch, traffic(8, answer_tokens=120.0), 100)
    assert of(watch.look(0.0), "answer_tokens").phase == "begins"
    feed(watch, iter(small), 100)
    assert of(watch.look(1.0), "answer_tokens").phase == "lasts"


def test_a_look_is_at_new_answers_alone() -> None:
    watch, source = started()
    feed(watch, source, 99)
    assert watch.look(0.0) == [] and watch.findings() == []
    feed(watch, source, 1)
    found = watch.look(1.0)
    assert len(found) == 8 and watch.findings() == found
    assert watch.look(2.0) == [] and watch.findings() == found
    feed(watch, source, 99)
    assert watch.look(3.0) == []
    feed(watch, traffic(1, reward=0.0), 120)  # called late, it sees the last 100
    reward = of(watch.look(4.0), "reward")
    assert reward.phase == "begins" and reward.sentence.endswith(" to 0")


def test_memory_is_that_of_the_reference_and_a_window() -> None:
    watch, source = started()
    feed(watch, source, 1_000)
    assert len(watch._reference) == 300 and len(watch._window) == 100


def test_p_values_are_adjusted_for_looks_and_features() -> None:
    """One feature drifts and seven do not: its p-value is multiplied by 8 features and 30 looks."""
    reference, window = traffic(0), traffic(1, answer_tokens=90.0)
    old, new = ([next(source) for _ in range(n)] for source, n in ((reference, 300), (window, 100)))
    watch = DriftWatch(SMALL)
    for record in (*old, *new):
        watch.add(record)
    found = of(watch.look(0.0), "answer_tokens")
    before, after = ([record.answer_tokens for record in records] for records in (old, new))
    assert found.statistic == pytest.approx(ks_2samp(before, after).statistic)
    plain = ks_test(before, after)
    assert plain is not None
    assert found.p_value == pytest.approx(8 * 30 * dependent_p_value(plain.p_value, design_effect(before)))


def test_answers_like_their_neighbours_count_for_less() -> None:
    """Each answer four times in a row: a plain test would take luck for a change."""
    numbers = ("prompt_tokens", "answer_tokens", "distinct_share", "mean_logprob")
    plain = 0
    for seed in range(5):
        watch = DriftWatch(DriftConfig(window=200, reference=1000))
        feed(watch, (record for record in traffic(seed) for _ in range(4)), 1_200)
        for each in watch.look(0.0):
            if each.feature in numbers:
                assert each.phase == "quiet", each
                old, new = (
                    [getattr(record, each.feature) for record in records]
                    for records in (watch._reference, watch._window)
                )
                found = ks_test(old, new)
                plain += found is not None and found.p_value <= 0.05
    assert plain >= 6  # of 20, where one is expected of independent ones


def test_without_rewards_nothing_is_said_of_them() -> None:
    watch, source = DriftWatch(SMALL), traffic(0)
    for _ in range(400):
        watch.add(replace(next(source), reward=None))
    found = of(watch.look(0.0), "reward")
    assert (found.phase, found.statistic, found.p_value, found.psi) == ("quiet", None, None, None)
    assert found.sentence == "reward: too few to tell"
    assert "reward/p_value" not in watch.statistics() and watch.statistics()["reward/is_drifting"] == 0


def test_what_stands_still_agrees_and_what_leaves_it_drifts() -> None:
    record = next(traffic(0))
    watch = DriftWatch(SMALL)
    for _ in range(400):
        watch.add(record)
    assert all(each.phase == "quiet" and each.p_value == 1 for each in watch.look(0.0))
    for _ in range(100):
        watch.add(replace(record, prompt_tokens=record.prompt_tokens + 1, finish_reason="tool_calls"))
    drifting = {each.feature: each.sentence for each in watch.look(1.0) if each.is_drifting}
    n = record.prompt_tokens
    assert drifting == {
        "prompt_tokens": f"prompts are longer: median {n} to {n + 1} tokens",
        "finish_reason": "more answers end with `tool_calls`: 0.0 % to 100.0 %",
    }


def test_a_change_of_spread_alone_has_words() -> None:
    watch, record = DriftWatch(SMALL), next(traffic(0))
    for tokens in (*[90, 100, 110] * 100, *[10, 190] * 50):
        watch.add(replace(record, prompt_tokens=tokens))
    found = of(watch.look(0.0), "prompt_tokens")
    assert found.is_drifting
    assert (
        found.sentence == "lengths of prompts are spread otherwise: the middle 80 % was 90 to 110, is 10 to 190 tokens"
    )


def test_numbers_for_gauges() -> None:
    watch, source = DriftWatch(SMALL), traffic(0)
    assert watch.statistics() == {"reference_answers": 0, "new_answers": 0}
    feed(watch, source, 300)
    feed(watch, source, 100)
    found = watch.look(0.0)
    numbers = watch.statistics()
    assert numbers["reference_answers"] == 300 and numbers["new_answers"] == 0
    assert {name.partition("/")[0] for name in numbers if "/" in name} == set(FEATURES)
    for each in found:
        assert numbers[f"{each.feature}/psi"] == each.psi and numbers[f"{each.feature}/p_value"] == each.p_value
    # nine degrees, 1/300 + 1/100, and one chance in 600
    assert numbers["mean_logprob/psi_limit"] == pytest.approx((1 / 300 + 1 / 100) * chi2.isf(0.05 / 30, 9))


def test_the_reference_of_an_earlier_server(tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    config = SMALL.model_copy(update={"reference_file": file})
    first, source = started(config=config)
    assert not file.exists()
    assert first.look(0.0) == [] and file.exists()
    later = DriftWatch(config)
    written = file.stat().st_ino
    assert first.look(0.0) == later.look(0.0) == [] and file.stat().st_ino == written  # once
    assert later.statistics()["reference_answers"] == 300
    answers = [next(source) for _ in range(100)]
    for record in answers:
        first.add(record)
        later.add(record)
    assert first.look(1.0) == later.look(1.0) != []
    assert not list(tmp_path.glob(".*"))
    before = file.read_bytes()
    later.save_reference(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == before == file.read_bytes()


def test_loading_forgets_what_was_found(tmp_path: Path) -> None:
    watch, _ = started()
    watch.save_reference(tmp_path / "r.json")
    feed(watch, traffic(1, reward=0.0), 100)
    assert any(each.is_drifting for each in watch.look(0.0))
    feed(watch, traffic(1), 50)
    watch.load_reference(tmp_path / "r.json")
    assert watch.findings() == [] and watch.statistics() == {"reference_answers": 300, "new_answers": 0}
    feed(watch, traffic(1), 100)
    assert {each.phase for each in watch.look(1.0)} == {"quiet"}  # there is no alarm that could end
    with pytest.raises(ValueError, match="0 of 300 answers"):
        DriftWatch(SMALL).save_reference(tmp_path / "r.json")


def _without_key(rows: list[dict[str, Any]]) -> None:
    del rows[3]["prompt_tokens"]


def _with_text(rows: list[dict[str, Any]]) -> None:
    rows[3]["prompt_tokens"] = "12"


def _with_another_key(rows: list[dict[str, Any]]) -> None:
    rows[3]["mood"] = 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_key, r"3\.prompt_tokens: Field required"),
        (_with_text, r"3\.prompt_tokens: Input should be a valid integer"),
        (_with_another_key, r"3\.mood: Unexpected keyword argument"),
        (lambda rows: rows.pop(), "has 299 answers, and drift.reference is 300; give drift.reference=299"),
    ],
)
def test_a_file_that_is_no_reference(
    tmp_path: Path, spoil: Callable[[list[dict[str, Any]]], object], message: str
) -> None:
    file = tmp_path / "reference.json"
    started()[0].save_reference(file)
    rows = json.loads(file.read_text())
    spoil(rows)
    file.write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=message) as caught:
        DriftWatch(SMALL.model_copy(update={"reference_file": file}))
    assert "\n" not in str(caught.value)


def test_what_else_a_file_may_be(tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("[{")
    with pytest.raises(ConfigError, match=r"is no reference \(file: Invalid JSON"):
        DriftWatch(SMALL.model_copy(update={"reference_file": tmp_path / "no.json"}))
    with pytest.raises(ConfigError, match="its folder is not there"):
        DriftWatch(SMALL.model_copy(update={"reference_file": tmp_path / "none" / "r.json"}))
    with pytest.raises(ConfigError, match="cannot be read"):
        DriftWatch(SMALL).load_reference(tmp_path / "gone.json")


def test_settings() -> None:
    with pytest.raises(ValueError, match="window is null"):
        DriftWatch(DriftConfig(window=None))
    with pytest.raises(ValidationError):
        DriftConfig(window=10)
    with pytest.raises(ValidationError):
        DriftConfig(alpha=1.0)


def test_the_record_of_an_answer() -> None:
    """1 2 3 4 5 1 2 3 4: of six 4-grams the last stood there before; of nine tokens five are different."""
    record = record_answer(
        prompt_tokens=7,
        token_ids=[1, 2, 3, 4, 5, 1, 2, 3, 4],
        logprobs=[-1.0, -2.0, -3.0],
        text="I'm sorry, but I can't help with that.",
        finish_reason="stop",
        reward=0.5,
    )
    assert record.repeated_share == pytest.approx(1 / 6)
    assert replace(record, repeated_share=0.0) == AnswerRecord(
        prompt_tokens=7,
        answer_tokens=9,
        finish_reason="stop",
        is_refusal=True,
        repeated_share=0.0,
        distinct_share=5 / 9,
        mean_logprob=-2.0,
        reward=0.5,
    )


def test_the_record_of_an_empty_answer_and_of_a_long_one() -> None:
    empty = record_answer(prompt_tokens=7, token_ids=[], logprobs=[], text="", finish_reason="stop")
    assert (empty.answer_tokens, empty.repeated_share, empty.is_refusal) == (0, 0, False)
    assert (empty.distinct_share, empty.mean_logprob, empty.reward) == (None, None, None)
    long = record_answer(prompt_tokens=7, token_ids=[*range(50), *[1] * 500], logprobs=[], text="", finish_reason="")
    assert long.distinct_share == 1  # of the beginning, so that length does not matter


@pytest.mark.parametrize("field", ["mean_logprob", "reward", "repeated_share", "distinct_share"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_record_has_finite_numbers(field: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is not a finite number"):
        replace(next(traffic(0)), **{field: bad})  # type: ignore[arg-type]


@pytest.mark.slow
def test_page_hinkley_runs_as_long_as_was_promised() -> None:
    """With a standard deviation of a run that is its mean, the mean of 100 is within a third."""
    lengths = SCRIPT["run_lengths"](100, shift=0.0, is_skewed=False, promised=2_000.0)
    assert np.mean(lengths) == pytest.approx(2_000, rel=1 / 3)
    moved = SCRIPT["run_lengths"](20, shift=0.5, is_skewed=False, promised=2_000.0)
    assert np.mean(moved) < 100
