"""Reading an evaluation that grows."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from burnish.errors import DataError, UserError
from burnish.evaluation.past_costs import past_costs
from burnish.evaluation.watching import open_growing, paired_so_far, require_same_questions


def make_store(path: Path, ids: Sequence[str] = ("a", "b", "c"), *, samples: int = 1, **settings: str) -> Path:
    path.mkdir(exist_ok=True)
    record = {"format": 1, "label": path.name, "settings": settings, "origin": {}, "samples_per_item": samples}
    (path / "eval.json").write_text(json.dumps({**record, "status": "running"}))
    lines = [json.dumps({"id": item, "prompt": f"what is {item}?", "answer": item}) + "\n" for item in ids]
    (path / "items.jsonl").write_text("".join(lines))
    return path


def add(store: Path, item: str, score: float | None, sample: int = 0, end: str = "\n") -> None:
    with (store / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"id": item, "sample": sample, "score": score, "text": "é"}) + end)


def opened(*stores: Path):
    return [open_growing(str(store), Path("runs")) for store in stores]


def test_pairs_are_a_prefix_in_the_order_of_the_items(tmp_path: Path) -> None:
    """B's answer to the middle item is late: the third waits, whatever it says."""
    first, second = make_store(tmp_path / "x"), make_store(tmp_path / "y")
    a, b = opened(first, second)
    a.refresh()
    assert paired_so_far(a, b).scores_a == ()
    for item, score in (("c", 1), ("a", 0), ("b", 1)):
        add(first, item, score)
    add(second, "c", 0)
    add(second, "a", 1)
    for each in (a, b):
        each.refresh()
    pairs = paired_so_far(a, b)
    assert (pairs.scores_a, pairs.scores_b, pairs.num_waiting, pairs.is_complete) == ((0,), (1,), 1, False)
    add(second, "b", 0)
    b.refresh()
    pairs = paired_so_far(a, b)
    assert (pairs.scores_a, pairs.scores_b, pairs.num_waiting, pairs.is_complete) == ((0, 1, 1), (1, 0, 0), 0, True)


def test_a_half_written_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x")
    (a,) = opened(store)
    line = (json.dumps({"id": "a", "sample": 0, "score": 1.0, "text": "é"}, ensure_ascii=False) + "\n").encode()
    for cut in range(1, len(line)):
        (store / "samples.jsonl").write_bytes(line[:cut])
        a.refresh()
        assert a.item_score("a") is None
    (store / "samples.jsonl").write_bytes(line)
    a.refresh()
    assert a.item_score("a") == 1.0
    (store / "samples.jsonl").write_bytes(b"")  # begun anew
    a.refresh()
    assert a.item_score("a") is None


def test_several_samples_and_answers_without_a_score(tmp_path: Path) -> None:
    first, second = make_store(tmp_path / "x", samples=2), make_store(tmp_path / "y", samples=2)
    a, b = opened(first, second)
    for store in (first, second):
        for item in "abc":
            add(store, item, 1.0, sample=1)
    for item in "ab":
        add(first, item, 0.0)
        add(second, item, None if item == "a" else 1.0)
    for each in (a, b):
        each.refresh()
    assert a.item_score("a") == 0.5 and a.item_score("c") is None and math.isnan(b.item_score("a"))
    pairs = paired_so_far(a, b)
    assert (pairs.scores_a, pairs.scores_b, pairs.num_unscored) == ((0.5,), (1.0,), 1)


def test_a_cluster_is_one_observation_once_it_is_whole(tmp_path: Path) -> None:
    """Items a and c share a passage; b stands alone. c is late, so that b waits."""
    stores = [make_store(tmp_path / "x"), make_store(tmp_path / "y")]
    for store in stores:
        lines = [json.loads(line) for line in (store / "items.jsonl").read_text().splitlines()]
        for line, cluster in zip(lines, ["passage", None, "passage"], strict=True):
            line["cluster"] = cluster
        (store / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        add(store, "a", 1.0)
        add(store, "b", 1.0)
    a, b = opened(*stores)
    a.refresh()
    b.refresh()
    pairs = paired_so_far(a, b)
    assert (pairs.unit, pairs.scores_a, pairs.num_waiting, pairs.num_units) == ("clusters", (), 1, 2)
    add(stores[0], "c", 0.0)
    add(stores[1], "c", 1.0)
    a.refresh()
    b.refresh()
    pairs = paired_so_far(a, b)
    assert (pairs.scores_a, pairs.scores_b, pairs.is_complete) == ((0.5, 1.0), (1.0, 1.0), True)


def test_done_is_seen(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x")
    (a,) = opened(store)
    a.refresh()
    assert not a.is_done
    record = json.loads((store / "eval.json").read_text())
    (store / "eval.json").write_text(json.dumps(record | {"status": "done"}))
    a.refresh()
    assert a.is_done
    with pytest.raises(DataError, match="is not what was written"):  # done, and no hash is kept
        opened(store)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{\n", "no sample in the line at byte 0"),
        ("[1]\n", "no sample in the line"),
        ('{"id": "a"}\n', "no sample in the line"),
        ('{"id": "a", "score": "good"}\n', "no sample in the line"),
        ('{"id": "z", "score": 1}\n', "sample 0 of item 'z' is not of this evaluation"),
        ('{"id": "a", "sample": 1, "score": 1}\n', "sample 1 of item 'a' is not of this evaluation"),
    ],
)
def test_broken_samples(tmp_path: Path, line: str, message: str) -> None:
    store = make_store(tmp_path / "x")
    (store / "samples.jsonl").write_text(line)
    (a,) = opened(store)
    with pytest.raises(DataError, match=message):
        a.refresh()


def test_evaluations_that_cannot_be_compared(tmp_path: Path) -> None:
    plain = make_store(tmp_path / "plain", temperature="1")
    others = {
        "items lacks 'c'": make_store(tmp_path / "items", "ab", temperature="1"),
        "plain lacks 'd'": make_store(tmp_path / "more", "abcd", temperature="1"),
        "has 1 samples per item and samples has 2": make_store(tmp_path / "samples", samples=2, temperature="1"),
        "temperature is '1' in the first and '0' in the second": make_store(tmp_path / "cold", temperature="0"),
        "parser is not set in the first and 'last' in the second": make_store(
            tmp_path / "parser", temperature="1", parser="last"
        ),
    }
    asked = make_store(tmp_path / "asked", temperature="1")
    (asked / "items.jsonl").write_text((asked / "items.jsonl").read_text().replace("what is b", "b"))
    others["1 items are asked differently in plain and asked: first 'b'"] = asked
    for message, other in others.items():
        with pytest.raises(DataError, match=message):
            require_same_questions(*opened(plain, other))
    shuffled = make_store(tmp_path / "shuffled", "cab", temperature="1")
    require_same_questions(*opened(plain, shuffled))


def test_stores_that_are_none(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x", ("a", "a"))
    with pytest.raises(DataError, match="line 2: the id 'a' is there twice"):
        opened(store)
    (store / "items.jsonl").write_text("")
    with pytest.raises(DataError, match="has no items"):
        opened(store)
    (store / "items.jsonl").unlink()
    with pytest.raises(DataError, match="the evaluation has not begun"):
        opened(store)
    for content, why in (
        ('{"format": 1}', "what it says of label, settings, origin, samples_per_item, status is damaged"),
        ("{", "Expecting"),
        ("[]", "no JSON object"),
    ):
        (store / "eval.json").write_text(content)
        with pytest.raises(DataError, match=f"eval.json: not the record of an evaluation .{why}"):
            opened(store)
    with pytest.raises(UserError, match="no run begins with"):
        open_growing("nothing", tmp_path)


def make_run(runs: Path, name: str, scores: dict[int, list[float]], metrics: list[dict[str, float]] = ()) -> Path:
    run = runs / name
    (run / "evaluations").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"created": "2026-01-01T00:00:00Z", "status": "finished"}))
    (run / "config.yaml").write_text("seed: 0")
    for step, values in scores.items():
        lines = [json.dumps({"id": f"q{i}", "score": value, "answer": "1"}) + "\n" for i, value in enumerate(values)]
        (run / "evaluations" / f"step-{step:06d}.jsonl").write_text("".join(lines))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return run


def test_a_run_by_its_last_evaluation_or_a_step(tmp_path: Path) -> None:
    make_run(tmp_path, "one-1", {0: [0, 1], 10: [1, 1]})
    a, b = open_growing("one@0", tmp_path), open_growing("one", tmp_path)
    require_same_questions(a, b)
    for each in (a, b):
        each.refresh()
    pairs = paired_so_far(a, b)
    assert (a.label, b.label) == ("one-1@0", "one-1")
    assert (pairs.scores_a, pairs.scores_b, pairs.is_complete, a.is_done) == ((0, 1), (1, 1), True, True)
    with pytest.raises(UserError, match="was not evaluated after step 5"):
        open_growing("one@5", tmp_path)
    for wrong in ("one@x", "one@-1"):
        with pytest.raises(UserError, match=f"no run begins with '{wrong}'"):
            open_growing(wrong, tmp_path)
    make_run(tmp_path, "two-2", {})
    with pytest.raises(UserError, match="has no evaluation yet"):
        open_growing("two", tmp_path)


def test_costs_of_a_run(tmp_path: Path) -> None:
    metrics = [{"step": 1, "seconds": 10.0}, {"step": 2, "seconds": 12.0, "seconds_evaluate": 3.0}]
    make_run(tmp_path, "one-1", {0: [0, 1], 2: [1, 1]}, metrics)
    costs = past_costs("one", tmp_path)
    assert (costs.training_seconds, costs.answer_seconds, costs.notes) == (22.0, 1.5, ())
    make_run(tmp_path, "old-1", {0: [0, 1], 2: [1, 1]}, [{"step": 1, "seconds": 10.0}])
    costs = past_costs("old", tmp_path)
    assert costs.answer_seconds is None and costs.notes == (
        "old-1 did not time its evaluations: seconds per answer are not known",
    )
    make_run(tmp_path, "new-1", {})
    assert past_costs("new", tmp_path).training_seconds is None


def test_costs_of_a_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x")
    for item in "abc":
        add(store, item, 1.0)
    assert past_costs(str(store), tmp_path).answer_seconds is None
    record = json.loads((store / "eval.json").read_text())
    (store / "eval.json").write_text(json.dumps(record | {"efficiency": {"seconds": 6.0}}))
    assert past_costs(str(store), tmp_path).answer_seconds == 2.0
    assert past_costs(str(store), tmp_path).answer_tokens is None
    (store / "batches.jsonl").write_text('{"tokens": 30}\n{"tokens": 15}\n')
    assert past_costs(str(store), tmp_path).answer_tokens == 15.0
    (store / "batches.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"batches\.jsonl, line 1: not valid JSON"):
        past_costs(str(store), tmp_path)
