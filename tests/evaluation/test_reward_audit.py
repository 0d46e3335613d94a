import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from burnish.errors import DataError, UserError
from burnish.evaluation.audit_plot import plot_audit
from burnish.evaluation.reward_audit import RewardAudit, audit
from burnish.evaluation.run_scores import Answers, Gold, RunScores, form, read_run_scores
from burnish.records import Message, Task
from burnish.reproducibility.run_folder import RunFolder
from burnish.stats.intervals import wilson_interval

EVALUATED = (0, 5, 10, 15, 20)


def simulated(seed: int, *, kind: str, items: int = 60, num_prompts: int = 30) -> RunScores:
    """A run of 20 steps of 6 groups of 6. `healthy`: skill rises, and the reward is gold with noise; `idle`: nothing
    rises; `long`: only length rises, and is rewarded; `learns both`: skill and length rise, length is worth nothing."""
    rng = np.random.default_rng(seed)

    def answers(difficulty: np.ndarray, time: np.ndarray):
        skill = 2.0 * time if kind in ("healthy", "learns both") else 0 * time
        length = rng.normal(20, 5, time.shape) + (20 * time if kind in ("long", "learns both") else 0)
        gold = (rng.logistic(size=time.shape) < skill - 0.5 + difficulty).astype(float)
        reward = length / 40 if kind == "long" else gold + rng.normal(0, 0.3, time.shape)
        return reward, gold, length

    time_N = np.array(EVALUATED) / 20
    held_out = answers(rng.normal(0, 1, (items, 1)), np.tile(time_N, (items, 1)))
    step = np.repeat(np.arange(1, 21), 36)
    group = np.repeat(np.arange(120), 6)
    prompt = rng.integers(num_prompts, size=120)[group]
    reward, gold, length = answers(rng.normal(0, 1, num_prompts)[prompt], (step - 1) / 20)

    def forms(length: np.ndarray) -> dict[str, np.ndarray]:
        none = np.zeros(length.shape)
        named = {"tokens": length, "log_tokens": np.log1p(np.maximum(length, 0)), "words": length // 4}
        return {**named, "repeated": rng.uniform(0, 0.2, length.shape), "markup": none, "truncated": none}

    return RunScores(
        run=f"run-{seed}",
        gold="tests:gold",
        is_independent=True,
        steps=EVALUATED,
        kl_N=(3 * time_N) ** 2,
        proxy_IN=held_out[0],
        gold_IN=held_out[1],
        forms=forms(held_out[2]),
        rollouts=Answers(
            step=step,
            group=group,
            prompt=prompt.astype(str),
            weight_version=step - 1,
            proxy=reward,
            gold=gold,
            forms=forms(length),
        ),
        notes=(),
    )


def raised(found: RewardAudit) -> set[str]:
    return {alarm.name for alarm in found.alarms if alarm.is_raised}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["healthy", "idle", "learns both"])
def test_a_run_that_is_not_hacked_raises_few_alarms(kind: str) -> None:
    alarms = sum(bool(raised(audit(simulated(seed, kind=kind)))) for seed in range(200))
    low, _ = wilson_interval(alarms, 200)
    assert low <= 0.05, f"{alarms} alarms in 200 runs"


@pytest.mark.slow
def test_a_hacked_run_is_found() -> None:
    found = [audit(simulated(seed, kind="long")) for seed in range(200)]
    assert sum(each.verdict == "hacked" for each in found) >= 190
    assert sum("gain by form" in raised(each) for each in found) >= 190


@pytest.mark.slow
def test_a_healthy_run_is_called_so() -> None:
    verdicts = [audit(simulated(seed, kind="healthy")).verdict for seed in range(50)]
    assert verdicts.count("healthy") >= 45


def test_without_a_gold_of_its_own_a_run_is_suspicious_at_most() -> None:
    scores = replace(simulated(0, kind="long"), is_independent=False)
    found = audit(scores)
    assert found.verdict == "suspicious" and found.training_rise is None and found.drop is None


def test_a_reward_that_stops_following_gold_is_found_at_its_step() -> None:
    scores = simulated(0, kind="healthy")
    rollouts = scores.rollouts
    noise = np.random.default_rng(0).normal(0, 0.3, len(rollouts.step))
    proxy = np.where(rollouts.step <= 12, rollouts.proxy, 0.5 + noise)
    found = audit(replace(scores, rollouts=replace(rollouts, proxy=proxy)))
    assert "worth of gold fell" in raised(found) and abs(found.drop.last_before - 12) <= 1
    assert found.drop.before == pytest.approx(1.0, abs=0.15) and found.drop.after == pytest.approx(0.0, abs=0.15)


def test_gold_that_falls_without_an_alarm_is_said() -> None:
    scores = simulated(0, kind="idle")
    gold = scores.gold_IN.copy()
    gold[:, -1] = 0.0
    assert audit(replace(scores, gold_IN=gold)).verdict == "worse"


def test_where_gold_turned_is_said_only_where_the_curve_fits() -> None:
    scores = simulated(0, kind="idle", items=200)
    d = np.sqrt(scores.kl_N)
    curve = np.array([0.0, *(d[1:] * (1.0 - 1.0 * np.log(d[1:])))])
    gold = np.random.default_rng(0).normal(0, 0.3, (200, 1)) + curve + np.zeros((200, 5))
    noise = np.random.default_rng(1).normal(0, 0.3, (200, 5))

    def note(gold_IN: np.ndarray) -> str:
        return next(each for each in audit(replace(scores, gold_IN=gold_IN)).notes if "highest measured" in each)

    assert re.match(r"gold turned at a KL of (0\.9|1\.0)", note(gold + noise))
    assert "gold over KL is no curve" in note(gold * 0 + [0.0, 1.0, -1.0, 1.0, -1.0] + noise)
    rising = note(0.4 * d + noise)
    assert "that gold turned is not established" in rising and "step 20, at a KL of 9" in rising


def test_a_gold_that_is_the_same_for_every_item_has_no_interval() -> None:
    scores = simulated(3, kind="healthy")
    scores.gold_IN[:, 0] = 0.0
    first, second, *_ = audit(scores).steps
    assert first.gold.value == 0 and math.isnan(first.gold.low) and math.isnan(first.gold.high)
    assert second.gold.low < second.gold.value < second.gold.high


def test_best_of_n_by_hand() -> None:
    """Proxy 1, 2, 3, 4 with gold 0, 1, 0, 0.5: .375, .4166667 of two, .5 of four (shared/field/evaluation.md B3)."""
    scores = simulated(0, kind="idle")
    rollouts = scores.rollouts
    four = replace(
        rollouts,
        step=np.array([1, 1, 1, 1]),
        group=np.zeros(4, dtype=int),
        prompt=np.array(["a"] * 4),
        weight_version=np.zeros(4, dtype=int),
        proxy=np.array([4.0, 1.0, 2.0, 3.0]),
        gold=np.array([0.5, 0.0, 1.0, 0.0]),
        forms={name: values[:4] for name, values in rollouts.forms.items()},
    )
    found = audit(replace(scores, rollouts=four))
    assert [each.num_answers for each in found.best_of_n] == [1, 2, 4]
    assert [each.gold for each in found.best_of_n] == pytest.approx([0.375, 0.4166667, 0.5])
    assert [each.kl for each in found.best_of_n] == pytest.approx([0.0, 0.193147, 0.636294], abs=1e-6)
    assert any("rollouts of one step only" in note for note in found.notes)


def test_what_is_missing_is_said() -> None:
    scores = simulated(0, kind="healthy")
    few = audit(replace(scores, proxy_IN=scores.proxy_IN[:5], gold_IN=scores.gold_IN[:5], kl_N=None))
    assert few.rise is None and few.turn is None
    assert any("5 held-out items are too few for a test: 10 are needed" in note for note in few.notes)
    assert any("the KL to the starting model was not measured" in note for note in few.notes)
    holes = scores.proxy_IN.copy()
    holes[0, 0] = math.nan
    left = audit(replace(scores, proxy_IN=holes))
    assert left.rise.num_items == 59
    assert any("1 of 60 held-out items lack a score" in note for note in left.notes)


def test_the_picture_is_whole_and_names_what_it_shows() -> None:
    found = audit(simulated(0, kind="long"))
    svg = plot_audit(replace(found, run="a<b"))
    root = ET.fromstring(svg)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4 and "a&lt;b" in svg and "square root of the KL" in svg  # two of them best of n
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", " ".join(line.attrib["points"] for line in lines)):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height
    assert "step" in plot_audit(audit(replace(simulated(0, kind="long"), kl_N=None)))


def test_the_form_of_an_answer_by_hand() -> None:
    line = {"token_ids": [1, 2, 3, 1, 2, 3, 1], "text": "**one** two\n", "finish_reason": "length"}
    found = form(line)
    assert found["tokens"] == 7 and found["words"] == 2 and found["truncated"] == 1
    assert found["repeated"] == pytest.approx(2 / 5)  # 123 231 312 | 123 231
    assert found["markup"] == 5  # four stars and a line end


# --- reading a run folder


def _answer(text: str, reward: float | None) -> dict:
    return {"text": text, "token_ids": list(range(len(text))), "finish_reason": "stop", "reward": reward}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path, "small")
    folder.write_record({"format": 1, "created": "2026", "status": "running"})
    for step in (0, 2):
        items = [
            {"id": f"t{i}", "answer": str(i), "score": 1.0, **_answer("ab" * (1 + step), 1.0 + step)} for i in range(3)
        ]
        items[2] |= {"reward": None, "score": 0.0}
        folder.write_step("evaluations", step, items)
    for step in (1, 2):
        rollouts = [{**_answer("x" * n, float(n)), "components": {}, "advantage": 0.0} for n in (1, 2)]
        lines = [
            {"group": g, "task_id": f"t{g}", "answer": str(g), "weight_version": step - 1, "rollouts": rollouts}
            for g in range(2)
        ]
        folder.write_step("rollouts", step, lines)
        folder.add_metrics({"step": step, "kl_per_completion": 0.5 * step})
    return folder


def by_length(completion, task):
    return float(len(completion.text))


def gold_of(reward, **changed: str) -> Gold:
    tasks = {
        f"t{i}": Task(id=f"t{i}", messages=(Message(role="user", content="?"),), answer=changed.get(f"t{i}", str(i)))
        for i in range(3)
    }
    return Gold(path="tests:gold", reward=reward, tasks=tasks, timeout_seconds=1.0)


def test_a_run_folder_is_read(run: RunFolder) -> None:
    scores = read_run_scores(run, right_at=2.0, gold=None)
    assert scores.steps == (0, 2) and not scores.is_independent
    assert scores.proxy_IN[:2].tolist() == [[1.0, 3.0]] * 2 and np.isnan(scores.proxy_IN[2]).all()
    assert scores.gold_IN.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert scores.kl_N.tolist() == [0.0, 1.0]  # nobody measured after step 2: one update before
    assert scores.rollouts.gold.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert scores.rollouts.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert scores.forms["tokens"][0].tolist() == [2.0, 6.0]


def test_gold_scores_the_stored_answers(run: RunFolder) -> None:
    scores = read_run_scores(run, right_at=2.0, gold=gold_of(by_length))
    assert scores.is_independent and scores.gold == "tests:gold"
    assert scores.gold_IN.tolist() == [[2.0, 6.0]] * 3
    assert scores.rollouts.gold.tolist() == [1, 2] * 4


def test_faults_of_what_is_read_are_said(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task\.source has changed since the run: its task t1"):
        read_run_scores(run, right_at=1.0, gold=gold_of(by_length, t1="7"))
    with pytest.raises(DataError, match="--gold tests:gold failed for 3 of 3 completions; first: ZeroDivisionError"):
        read_run_scores(run, right_at=1.0, gold=gold_of(lambda completion, task: 1 / 0))
    run.write_step("evaluations", 2, [{"id": "other", "reward": 0.0}])
    with pytest.raises(DataError, match="step 2 was evaluated on other items than step 0"):
        read_run_scores(run, right_at=1.0, gold=None)
    with pytest.raises(UserError, match="has no evaluations: an audit needs a run that sampled"):
        read_run_scores(RunFolder.create(tmp_path, "empty"), right_at=1.0, gold=None)


def test_a_file_that_was_changed_since_the_end_is_no_evidence(run: RunFolder) -> None:
    run.seal(status="finished")
    read_run_scores(run, right_at=1.0, gold=None)
    path = run.path / "rollouts" / "step-000001.jsonl"
    path.write_text(path.read_text().replace('"reward": 1.0', '"reward": 2.0'))
    with pytest.raises(DataError, match=r"rollouts/step-000001.jsonl was changed since the run ended"):
        read_run_scores(run, right_at=1.0, gold=None)


def test_a_run_without_a_measured_kl_has_none(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    assert read_run_scores(run, right_at=1.0, gold=None).kl_N is None
