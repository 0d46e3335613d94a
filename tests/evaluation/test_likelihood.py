"""Choices and pairs against plain transformers, one sequence at a time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from burnish.config.evaluation import EvalConfig
from burnish.errors import ConfigError, DataError
from burnish.evaluation.choosing import choice_score, measures_of
from burnish.evaluation.runner import evaluate, prepare_eval
from burnish.evaluation.verifying import rescored


@pytest.fixture
def make_config(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def make(rows: Sequence[dict[str, Any]], **task: Any) -> EvalConfig:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = {"path": str(tiny_folder), "compute_dtype": "float32"}
        return EvalConfig.model_validate({"model": model, "task": {"source": "rows.jsonl", **task}})

    return make


def plain_logprob(folder: Path, prompt_ids: Sequence[int], ids: Sequence[int]) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *ids]])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)
    return sum(logprobs[len(prompt_ids) - 1 + i, token].item() for i, token in enumerate(ids))


ROWS = [
    {"prompt": "Sky?", "choices": ["blue", "green and red", "no"], "answer": "A", "kind": "x"},
    {"prompt": "Two?", "choices": ["one", "2"], "answer": "2", "kind": "y"},
    {"prompt": "Third?", "choices": ["a", "b", "c", "dd"], "answer": "3", "kind": "y"},
]


@pytest.mark.parametrize("normalise", ["none", "tokens", "bytes"])
def test_choices_are_compared_by_the_models_own_logprobs(make_config, tiny_folder: Path, normalise: str) -> None:
    store = evaluate(make_config(ROWS, kind="choices", normalise=normalise))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    right = [0, 1, 3]
    assert [item["right"] for item in store.items()] == right
    for item, line, row, answer in zip(store.items(), store.samples(), ROWS, right, strict=True):
        prompt_ids = tokenizer(item["prompt"], add_special_tokens=False)["input_ids"]
        expected = []
        for choice, found in zip(row["choices"], line["compared"], strict=True):
            ids = tokenizer(choice, add_special_tokens=False)["input_ids"]
            logprob = plain_logprob(tiny_folder, prompt_ids, ids)
            assert found["logprob"] == pytest.approx(logprob, abs=1e-4)
            assert (found["tokens"], found["bytes"]) == (len(ids), len(choice.encode()))
            expected.append(logprob / {"none": 1, "tokens": len(ids), "bytes": len(choice)}[normalise])
        assert line["text"] == row["choices"][expected.index(max(expected))]
        assert line["score"] == float(expected.index(max(expected)) == answer)
    assert store.verify() == [] and rescored(store) == []


def test_a_changed_likelihood_is_found(make_config) -> None:
    store = evaluate(make_config(ROWS, kind="choices"))
    lines = store.samples()
    for number, line in enumerate(lines[0]["compared"]):
        line["logprob"] = 0.0 if (number == 0) != (lines[0]["score"] == 1.0) else -1e9
    (store.path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert any("sample 0 has score" in fault for fault in rescored(store))


def test_pairs_count_the_likelier_answer(make_config, tiny_folder: Path) -> None:
    rows = [
        {"prompt": "Hi", "chosen": "Hello there", "rejected": "No"},
        {"prompt": "Hi", "chosen": "No", "rejected": "Hello there"},
        {"prompt": "Bye", "chosen": "See you", "rejected": "zzz"},
    ]
    store = evaluate(make_config(rows, kind="pairs"))
    first, second, _ = store.samples()
    assert first["score"] + second["score"] == 1.0
    assert first["compared"] == second["compared"][::-1]
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = [*tokenizer("Hello there", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert first["compared"][0]["logprob"] == pytest.approx(
        plain_logprob(tiny_folder, prompt_ids, answer_ids), abs=1e-4
    )
    table = store.table()
    assert table.clusters is not None and table.clusters[0] == table.clusters[1] != table.clusters[2]


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([{"prompt": "a", "answer": "1"}], "choices", "needs 'choices'"),
        ([{"prompt": "a", "choices": ["x", "x"], "answer": "x"}], "choices", "a list of different texts"),
        ([{"prompt": "a", "choices": ["x", "y"], "answer": "C"}], "choices", "answer 'C' is none of its 2 choices"),
        ([{"prompt": "a", "chosen": "x", "rejected": "x"}], "pairs", "line 1: the answers are the same: neither"),
        ([{"prompt": "a", "chosen": "x", "rejected": "y"}] * 2, "pairs", "line 2: the pair .* stands there twice"),
        ([{"prompt": "a", "chosen": "x"}], "pairs", "needs 'chosen' and 'rejected'"),
        ([], "pairs", "holds no pairs"),
        ([{"prompt": "a", "chosen": "x" * 600, "rejected": "y"}], "pairs", "exceed the model's context of 512"),
    ],
)
def test_rows_that_cannot_be_compared(make_config, rows: list[Any], kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_eval(make_config(rows, kind=kind))


def test_ties_share_the_score() -> None:
    assert choice_score([1.0, 1.0, 0.0], 0) == 0.5
    assert choice_score([1.0, 1.0, 0.0], 2) == 0.0
    assert measures_of([{"logprob": -6.0, "tokens": 3, "bytes": 12}], "bytes") == [-0.5]
    assert measures_of([{"value": 2.0}, {"value": 3.0}], "none") == [2.0, 3.0]


def test_a_reward_model_judges_pairs_and_nothing_else(make_config, tiny_folder: Path, tmp_path: Path) -> None:
    from burnish.config.schema import ModelConfig
    from burnish.models.load import load_policy

    policy = load_policy(ModelConfig(path=str(tiny_folder), compute_dtype="float32"), seed=0, kind="value")
    torch.nn.init.normal_(policy.model.score.weight, generator=torch.Generator().manual_seed(0))
    policy.model.save_pretrained(tmp_path / "judge")
    policy.tokenizer.save_pretrained(tmp_path / "judge")
    rows = [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": "Hi", "chosen": "No", "rejected": "Hello"},
    ]
    config = make_config(rows, kind="pairs")
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "judge")})})
    first, second = evaluate(config).samples()
    assert first["score"] + second["score"] == 1.0
    assert first["compared"] == second["compared"][::-1] and "value" in first["compared"][0]
    generate = config.model_copy(update={"task": config.task.model_copy(update={"kind": "generate"})})
    with pytest.raises(ConfigError, match="is a reward model: it is evaluated with"):
        prepare_eval(generate)
