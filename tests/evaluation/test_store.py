from pathlib import Path

import pytest

from burnish.errors import DataError
from burnish.evaluation.store import EvalStore, score_lines

ITEM = {"cluster": None, "slices": {}}
RECORD = {"label": "m", "settings": {}, "origin": {}, "samples_per_item": 1, "status": "running"}


def lines(*scores: tuple[str, int, float | None]) -> list[dict]:
    return [{"id": name, "sample": number, "score": score} for name, number, score in scores]


def make(path: Path, names: str = "abcd") -> EvalStore:
    return EvalStore.create(path, RECORD, [{"id": name, **ITEM} for name in names])


def test_scores_stand_in_the_order_of_samples_whatever_the_order_of_lines() -> None:
    items = [{"id": "a", **ITEM}, {"id": "b", **ITEM}]
    found = score_lines(items, lines(("b", 1, 0.5), ("a", 0, 1.0), ("b", 0, None), ("a", 1, 0.0)))
    assert [line["scores"] for line in found] == [[1.0, 0.0], [None, 0.5]]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (lines(("c", 0, 1.0)), "'c' is no item"),
        (lines(("a", 0, 1.0), ("a", 0, 1.0)), "sample 0 of item 'a' stands there twice"),
        (lines(("a", 0, 1.0)), "item 'b' has 0 samples, others have 1"),
        (lines(("a", 0, 1.0), ("b", 1, 1.0)), "item 'b' has 1 samples, others have 1"),
    ],
)
def test_samples_that_do_not_fit_the_items(samples: list[dict], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_lines([{"id": "a", **ITEM}, {"id": "b", **ITEM}], samples)


def test_only_whole_batches_stay(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    store.add(lines(("a", 0, 1.0), ("b", 0, 0.0)), {"items": 2})
    with (store.path / "samples.jsonl").open("a") as file:
        file.write('{"id": "c", "sample": 0, "score": 1.0}\n{"id": "d", "sam')
    assert store.keep_whole_batches() == 2
    assert [line["id"] for line in store.samples()] == ["a", "b"]
    assert (store.path / "samples.jsonl").read_text().endswith('"score": 0.0}\n')


def test_a_batch_whose_answers_were_lost_goes_too(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    store.add(lines(("a", 0, 1.0), ("b", 0, 0.0)), {"items": 2})
    store.add(lines(("c", 0, 1.0), ("d", 0, 0.0)), {"items": 2})
    text = (store.path / "samples.jsonl").read_text().splitlines(keepends=True)
    (store.path / "samples.jsonl").write_text("".join(text[:3]))
    assert store.keep_whole_batches() == 2 and len(store.batches()) == 1


def test_answers_to_other_items_are_refused(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    store.add(lines(("b", 0, 1.0)), {"items": 1})
    with pytest.raises(DataError, match="holds 'b' where 'a' belongs"):
        store.keep_whole_batches()


def test_there_is_nothing_to_verify_before_the_end(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the evaluation is not finished"):
        make(tmp_path / "s").verify()
    with pytest.raises(DataError, match="not the record of an evaluation"):
        EvalStore.open(tmp_path / "nothing")


def test_a_line_that_lost_its_fields_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    store = make(tmp_path / "s", "a")
    store.add(lines(("a", 0, 1.0)), {"items": 1})
    store.seal({})
    for broken, fault in (("{}\n", "not as it was written"), ("{\n", "not valid JSON")):
        (store.path / "items.jsonl").write_text(broken)
        faults = store.verify()
        assert faults[0].startswith("items.jsonl is not what was written") and fault in faults[-1]
