import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from burnish.errors import DataError, UserError
from burnish.evaluation.sealed import SEALED, hashes_of
from burnish.evaluation.store import EvalStore
from burnish.evaluation.table import items_sha256, read_table, table_of_run, table_of_store
from burnish.reproducibility.run_folder import RunFolder

RECORD = {
    "label": "m",
    "task": {"source": "s"},
    "settings": {"items": "x"},
    "origin": {"seed": 3},
    "samples_per_item": 2,
    "status": "running",
}


def item(name: str, cluster: str | None = None, **slices: str) -> dict:
    return {"id": name, "cluster": cluster, "slices": slices, "messages": [], "answer": "1"}


def sample(name: str, number: int, score: float | None) -> dict:
    return {"id": name, "sample": number, "score": score, "failure": None}


def make_store(path: Path, items: list[dict], samples: list[dict]) -> EvalStore:
    store = EvalStore.create(path, RECORD, items)
    store.add(samples, {"items": len(items)})
    store.seal({})
    return store


def make_run(runs_folder: Path, steps: dict[int, list[float]]) -> RunFolder:
    run = RunFolder.create(runs_folder, "r")
    run.write_record({"created": "2026-01-01T00:00:00Z", "status": "finished", "reward": {"a:b": "hash"}, "model": {}})
    config = {
        "seed": 5,
        "task": {"environment": None},
        "rollout": {"max_tokens": 8, "stop": [], "max_turns": 8},
        "evaluation": {"right_at": 1.0},
    }
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    for step, scores in steps.items():
        run.write_step("evaluations", step, [{**item(str(i)), "score": score} for i, score in enumerate(scores)])
    return run


def test_a_store_is_a_table(tmp_path: Path) -> None:
    items = [item("a", "p", kind="x"), item("b", "p", kind="y")]
    samples = [sample("a", 0, 1.0), sample("a", 1, None), sample("b", 0, 0.0), sample("b", 1, 1.0)]
    store = make_store(tmp_path / "s", items, samples)
    table = read_table(str(store.path), tmp_path)
    np.testing.assert_array_equal(table.scores_IK, [[1.0, np.nan], [0.0, 1.0]])
    assert (table.ids, table.clusters, table.slices) == (("a", "b"), ("p", "p"), {"kind": ("x", "y")})
    assert (table.settings, table.origin, table.label) == ({"items": "x"}, {"seed": 3}, "m")
    assert store.verify() == []


def test_a_run_is_a_table_after_its_last_or_any_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path, {0: [0.0, 1.0], 5: [1.0, 0.0], 10: [1.0, 1.0]})
    last, first = read_table("last", tmp_path), read_table(f"{run.path.name}@0", tmp_path)
    assert last.scores_IK.tolist() == [[1.0], [1.0]] and first.scores_IK.tolist() == [[0.0], [1.0]]
    assert (last.origin["seed"], last.origin["step"], last.origin["was_selected_on"]) == (5, 10, False)
    assert first.label.endswith("@0") and not first.origin["was_selected_on"]  # where every run begins
    middle = read_table(f"{run.path.name}@5", tmp_path)
    assert middle.origin["was_selected_on"] and middle.origin["selected_among"] == 3
    assert first.settings == last.settings
    assert last.settings["sampling"] == {"temperature": 0.0, "max_tokens": 8, "stop": []}
    with pytest.raises(UserError, match="was not evaluated after step 7; it was after 0, 5, 10"):
        read_table(f"{run.path.name}@7", tmp_path)
    with pytest.raises(UserError, match="has no evaluation yet"):
        table_of_run(make_run(tmp_path / "other", {}))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no items"),
        ([{**item("a"), "scores": [1]}, {**item("a"), "scores": [0]}], "item 'a' stands there twice"),
        ([{**item("a"), "scores": [1]}, {**item("b"), "scores": [0, 1]}], "some items have more samples"),
        ([{**item("a", "p"), "scores": [1]}, {**item("b"), "scores": [0]}], "some items have a cluster"),
    ],
)
def test_faulty_scores_are_refused(tmp_path: Path, lines: list[dict], message: str) -> None:
    for name in SEALED:
        (tmp_path / name).touch()
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"format": 1, **RECORD, "status": "done"}
    (tmp_path / "eval.json").write_text(json.dumps({**record, "sha256": hashes_of(tmp_path, record)}))
    with pytest.raises(DataError, match=message):
        table_of_store(tmp_path)


@pytest.mark.parametrize("damage", ["tampered", "half a line", "gone"])
def test_scores_that_are_not_what_was_written_are_no_table(tmp_path: Path, damage: str) -> None:
    samples = [sample("a", 0, 1.0), sample("b", 0, 0.0)]
    store = make_store(tmp_path / "s", [item("a"), item("b")], samples)
    path = store.path / "scores.jsonl"
    text = path.read_text()
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(text.replace("[0.0]", "[1.0]") if damage == "tampered" else text[:-9])
    with pytest.raises(DataError, match=r"scores.jsonl is .*; `burnish eval verify .* says more"):
        read_table(str(store.path), tmp_path)


@pytest.mark.parametrize("name", ["items.jsonl", "samples.jsonl", "batches.jsonl", "eval.json"])
def test_no_figure_of_a_store_with_any_changed_file(tmp_path: Path, name: str) -> None:
    path = make_store(tmp_path / "s", [item("a")], [sample("a", 0, 1.0)]).path
    if name == "eval.json":
        record = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**record, "label": "gpt"}))
    else:
        (path / name).write_text((path / name).read_text() + "{}\n")
    with pytest.raises(DataError, match=f"{name} is not what was written"):
        read_table(str(path), tmp_path)


def test_no_figure_of_a_run_that_was_changed_since_it_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path, {0: [0.0, 1.0], 5: [0.0, 1.0]})
    last = run.path / "evaluations" / "step-000005.jsonl"
    table_of_run(run)  # nothing is sealed
    run.seal()
    table_of_run(run)
    text = last.read_text()
    last.write_text(text.replace("0.0", "1.0"))
    with pytest.raises(DataError, match=r"step-000005.jsonl was changed since the run ended"):
        table_of_run(run)
    table_of_run(run, 0)
    run.update_record(status="running")  # resumed: other hashes come at its end
    table_of_run(run)
    run.update_record(status="finished")
    last.write_text(text)
    run.write_step("evaluations", 9, [{**item("0"), "score": 1.0}, {**item("1"), "score": 1.0}])
    with pytest.raises(DataError, match=r"step-000009.jsonl was added since the run ended"):
        table_of_run(run)
    (run.path / "evaluations" / "step-000009.jsonl").unlink()
    (run.path / "config.yaml").write_text((run.path / "config.yaml").read_text().replace("seed: 5", "seed: 6"))
    with pytest.raises(DataError, match=r"config.yaml was changed"):
        table_of_run(run)


def test_a_damaged_evaluation_names_its_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, {0: [0.0, 1.0]})
    path = run.path / "evaluations" / "step-000000.jsonl"
    path.write_text(path.read_text() + "{\n[]\n")
    with pytest.raises(DataError, match=r"step-000000.jsonl, line 3: not valid JSON"):
        table_of_run(run)
    path.write_text("[]\n")
    with pytest.raises(DataError, match=r"step-000000.jsonl, line 1: not a JSON object"):
        table_of_run(run)


def test_other_versions_and_unfinished_stores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    for content, message in (
        ("{", "not the record of an evaluation"),
        (json.dumps({"format": 2}), "format 2 is not 1: another version"),
        (json.dumps({"format": 1, **RECORD}), "the evaluation is not finished"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            table_of_store(tmp_path)


def test_the_fingerprint_of_items_knows_questions_and_answers_but_no_order() -> None:
    a, b = item("a"), item("b")
    assert items_sha256([a, b]) == items_sha256([b, a])
    assert len({items_sha256([a]), items_sha256([{**a, "answer": "2"}]), items_sha256([{**a, "messages": [1]}])}) == 3
