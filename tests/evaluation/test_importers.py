import json
from pathlib import Path

import numpy as np
import pytest

from burnish.errors import DataError
from burnish.evaluation.importers import import_csv, import_inspect, import_lm_eval, import_votes
from burnish.evaluation.position import PositionBias, position_bias

SHARED = Path(__file__).parents[3] / "shared"
OUTCOMES = SHARED / "data" / "outcomes" / "gsm8k_gpt3_4systems.csv"
VOTES = OUTCOMES.with_name("llmbar_judge_votes.csv")
# Votes for the right answer with it first and second, both, and pairs with one winner: LLMBar's own statistics.json of
# these cells. It counts two votes that could not be read (the last column) as one winner.
LLMBAR = [
    ("GPT-4 Vanilla", "Natural", (95, 96, 93, 95), 0),
    ("PaLM2 Vanilla_NoRules", "Natural", (77, 87, 74, 84), 3),
    ("ChatGPT CoT", "Natural", (70, 78, 56, 64), 0),
    ("Falcon CoT", "Neighbor", (77, 57, 11, 21), 0),
    ("PaLM2 Vanilla_NoRules", "GPTInst", (60, 63, 50, 68), 2),
]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.skipif(not OUTCOMES.is_file(), reason="the data of shared/data is not here")
def test_the_published_outcomes(tmp_path: Path) -> None:
    stores = import_csv(OUTCOMES, tmp_path)
    right = {store.table().label: int(store.table().scores_IK.sum()) for store in stores}
    assert right == {"6b_finetuning": 286, "6b_verification": 515, "175b_finetuning": 458, "175b_verification": 742}
    assert {len(store.table().ids) for store in stores} == {1319}
    assert all(store.verify() == [] for store in stores)
    assert [store.path for store in import_csv(OUTCOMES, tmp_path)] == [store.path for store in stores]


@pytest.mark.skipif(not VOTES.is_file(), reason="the data of shared/data is not here")
def test_the_published_votes(tmp_path: Path) -> None:
    stores = {store.table().label: store for store in import_votes(VOTES, tmp_path)}
    assert len(stores) == 24 and {len(store.table().ids) for store in stores.values()} == {419}
    for judge, subset, (first, second, both, same), unread in LLMBAR:
        table = stores[judge].table()
        scores_I2 = table.scores_IK[np.array(table.slices["subset"]) == subset]
        right = [*(scores_I2 == 1).sum(axis=0), (scores_I2 == 1).all(axis=1).sum()]
        assert right == [first, second, both], (judge, subset)
        cell = [line for line in stores[judge].samples() if line["id"].startswith(f"{subset}/")]
        assert position_bias(cell).num_same == same - unread
    found = [position_bias(store.samples()) for store in stores.values()]
    assert (sum(each.num_first for each in found), sum(each.num_second for each in found)) == (3387, 411)
    assert sum(10056 // 24 - each.num_pairs for each in found) == 39  # pairs with a vote that could not be read


def test_votes_and_their_place(tmp_path: Path) -> None:
    lines = ["a,1,J,1,1", "b,2,J,1,2", "c,1,J,1,2", "d,2,J,2,1", "e,1,J,,1", "a,1,K,2,2"]
    text = "\n".join(["item,gold,judge,winner_ab,winner_ba", *lines])
    first, second = import_votes(write(tmp_path / "votes.csv", text), tmp_path / "evals")
    assert (first.table().label, second.table().label) == ("J", "K")
    np.testing.assert_array_equal(first.table().scores_IK, [[1, 1], [0, 1], [1, 0], [1, 0], [np.nan, 1]])
    expected = PositionBias(num_pairs=4, num_same=1, num_first=2, num_second=1, p_value=1.0)  # 2 of 3: 2 * (3 + 1) / 8
    assert position_bias(first.samples()) == expected
    assert position_bias(second.samples()).p_value == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,judge\na,J\n", "has no column gold, winner_ab, winner_ba"),
        ("item,gold,judge,winner_ab,winner_ba\na,1,J,A,1\n", "line 2: winner_ab is 'A'; it must be 1 or 2"),
        ("item,gold,judge,winner_ab,winner_ba\na,,J,1,1\n", "line 2: gold is empty"),
        ("item,gold,judge,winner_ab,winner_ba\na,1,J,1,1\na,1,J,1,1\n", "item 'a' stands there twice"),
    ],
)
def test_votes_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_votes(write(tmp_path / "votes.csv", text), tmp_path / "evals")
    assert not (tmp_path / "evals").exists()


def test_a_table_with_clusters_slices_samples_and_a_gap(tmp_path: Path) -> None:
    text = "item,cluster,kind,m1,m2\na,p,x,1,0.5\na,p,x,0,1\nb,p,y,1,\nb,p,y,1,0\n"
    first, second = import_csv(write(tmp_path / "t.csv", text), tmp_path / "evals")
    assert first.table().scores_IK.tolist() == [[1, 0], [1, 1]]
    np.testing.assert_array_equal(second.table().scores_IK, [[0.5, 1], [np.nan, 0]])
    assert first.table().clusters == ("p", "p") and first.table().slices == {"kind": ("x", "y")}
    assert first.table().settings == second.table().settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a head line"),
        ("name,m\na,1\n", "a column 'item'"),
        ("item,m\na,yes\n", "no column has numbers only"),
        ("item,m\na,1,2\n", "line 2: has more or fewer cells"),
        ("item,m\na,1\na,0\nb,1\n", r"t.csv: item 'b' has 1 samples, others have 2"),
        ("item,m\na,1\nb,inf\n", "column 'm': inf is no score"),
        ("item,m\na,\nb,nan\n", "m: no item has a score"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_csv(write(tmp_path / "t.csv", text), tmp_path / "evals")
    assert not (tmp_path / "evals").exists()


def test_nan_is_no_score_and_no_slice(tmp_path: Path) -> None:
    (store,) = import_csv(write(tmp_path / "t.csv", "item,m\na,1\nb,nan\nc,NaN\n"), tmp_path / "evals")
    np.testing.assert_array_equal(store.table().scores_IK[:, 0], [1, np.nan, np.nan])
    assert store.table().slices == {}
    assert [line["failure"] for line in store.samples()] == [None, *["no score in the file"] * 2]
    assert store.verify() == []


def lm_eval_line(doc: int, name: str, **metrics: object) -> str:
    line = {
        "doc_id": doc,
        "doc": {"question": f"{doc}?"},
        "target": "7",
        "resps": [["The answer is 7"]],
        "filtered_resps": ["7"],
        "filter": name,
        "metrics": list(metrics),
        "prompt_hash": f"p{doc}",
        "target_hash": "t",
        **metrics,
    }
    return json.dumps(line) + "\n"


def test_logs_of_lm_eval_by_filter_and_metric(tmp_path: Path) -> None:
    (tmp_path / "my__model").mkdir()
    text = "".join(
        lm_eval_line(doc, name, exact_match=float(doc == 1 or name == "flexible"), pair=[1, 2])
        for doc in range(3)
        for name in ("strict", "flexible")
    )
    file = write(tmp_path / "my__model" / "samples_gsm8k_2026-01-02T03-04-05.678.jsonl", text)
    strict, flexible = import_lm_eval(file, tmp_path / "evals")
    assert strict.table().scores_IK[:, 0].tolist() == [0, 1, 0] and flexible.table().scores_IK.sum() == 3
    assert strict.table().label == "my__model" and strict.samples()[0]["text"] == "7"
    scoring = strict.table().settings["scoring"]
    assert (scoring["task"], scoring["filter"], scoring["metric"]) == ("gsm8k", "strict", "exact_match")
    with pytest.raises(DataError, match="not a sample of lm-eval"):
        import_lm_eval(write(tmp_path / "x.jsonl", "{}\n"), tmp_path / "evals")
    twice = lm_eval_line(0, "none", exact_match=1.0) * 2
    with pytest.raises(DataError, match=r"z.jsonl: item '0' stands there twice"):
        import_lm_eval(write(tmp_path / "z.jsonl", twice), tmp_path / "evals")
    unscored = lm_eval_line(0, "none", f1=float("nan")) + lm_eval_line(1, "none", f1=0.5)
    (store,) = import_lm_eval(write(tmp_path / "n.jsonl", unscored), tmp_path / "evals")
    np.testing.assert_array_equal(store.table().scores_IK[:, 0], [np.nan, 0.5])
    with pytest.raises(DataError, match="no metric of it is a number"):
        import_lm_eval(write(tmp_path / "y.jsonl", lm_eval_line(0, "none", pair=[1])), tmp_path / "evals")


def test_logs_of_inspect_by_scorer_and_epoch(tmp_path: Path) -> None:
    def row(name: int, epoch: int, value: object) -> dict:
        return {
            "id": name,
            "epoch": epoch,
            "input": f"{name}?",
            "target": "7",
            "output": {"completion": "It is 7"},
            "scores": {"match": {"value": value, "answer": "7"}},
        }

    log = {
        "status": "success",
        "eval": {"model": "openai/x", "task": "sums"},
        "samples": [row(1, 1, "C"), row(2, 1, "I"), row(1, 2, "P"), row(2, 2, 0.25)],
    }
    unscored = {**log, "samples": [row(1, 1, "C"), row(2, 1, float("nan"))]}
    (store,) = import_inspect(write(tmp_path / "nan.json", json.dumps(unscored)), tmp_path / "evals")
    np.testing.assert_array_equal(store.table().scores_IK[:, 0], [1.0, np.nan])
    (store,) = import_inspect(write(tmp_path / "log.json", json.dumps(log)), tmp_path / "evals")
    assert store.table().scores_IK.tolist() == [[1.0, 0.5], [0.0, 0.25]]
    assert store.table().label == "openai/x" and store.samples()[0]["parsed"] == "7"
    assert store.items()[0]["messages"] == [{"role": "user", "content": "1?"}]
    for changed, message in (
        ({**log, "status": "error"}, "ended with status 'error'"),
        ({**log, "samples": [row(1, 1, "maybe")]}, "score 'maybe' is neither a number"),
        ({**log, "samples": [{**row(1, 1, "C"), "scores": {}}]}, "no sample has a score"),
        ({}, "not a JSON log of inspect"),
    ):
        with pytest.raises(DataError, match=message):
            import_inspect(write(tmp_path / "log.json", json.dumps(changed)), tmp_path / "evals")
