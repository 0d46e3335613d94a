"""The adapter against plain transformers. Where lm-eval is not installed, what needs only its base class runs on a
stand-in for that, and the rest is skipped.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from burnish.config.schema import ModelConfig
from burnish.errors import ConfigError
from burnish.evaluation.importers import import_lm_eval

if TYPE_CHECKING:
    from burnish.evaluation.lm_eval import BurnishLM

IS_INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not IS_INSTALLED, reason="lm-eval is not installed")
ADAPTER = "burnish.evaluation.lm_eval"


@pytest.fixture
def model(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["BurnishLM"]:
    if not IS_INSTALLED:
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setattr(sys.modules["lm_eval.api.model"], "TemplateLM", object, raising=False)
    adapter = importlib.import_module(ADAPTER)
    yield adapter.BurnishLM(str(tiny_folder), config=ModelConfig(path=str(tiny_folder), compute_dtype="float32"))
    if not IS_INSTALLED:
        del sys.modules[ADAPTER]


@pytest.mark.skipif(IS_INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_one_line_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"needs lm-eval .*: pip install 'burnish\[lm-eval\]'"):
        importlib.import_module(ADAPTER)


def request(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def plain(folder: Path, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = reference(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1].double()
    targets = torch.tensor(continuation)
    logprobs = torch.log_softmax(logits, -1).gather(1, targets[:, None])
    return float(logprobs.sum()), bool((logits.argmax(-1) == targets).all())


@needs_lm_eval
def test_likelihoods_are_those_of_transformers(model: "BurnishLM", tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    pairs = [("The sky is", " blue"), ("2 + 2 = ", "4"), ("", "alone"), ("x" * 300, "y" * 100)]
    found = model.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (logprob, is_greedy) in zip(pairs, found, strict=True):
        # lm-eval moves the spaces at the end of the context; the tokens are bytes, so the whole is the same
        moved = len(context) - len(context.rstrip())
        context, continuation = context[: len(context) - moved], context[len(context) - moved :] + continuation
        ids = tokenizer(context, add_special_tokens=False)["input_ids"] or [tokenizer.bos_token_id]
        expected = plain(tiny_folder, ids, tokenizer(continuation, add_special_tokens=False)["input_ids"])
        assert logprob == pytest.approx(expected[0], abs=2e-3 if len(continuation) > 50 else 1e-4)
        assert is_greedy == expected[1]


def test_a_greedy_continuation_is_known_as_such(model: "BurnishLM") -> None:
    prompt = model.tok_encode("abc")
    ids: list[int] = []
    for _ in range(3):
        reference = AutoModelForCausalLM.from_pretrained(model.policy.source, dtype=torch.float32)
        with torch.no_grad():
            ids.append(int(reference(torch.tensor([[*prompt, *ids]])).logits[0, -1].argmax()))
    other = [ids[0], (ids[1] + 1) % 259, ids[2]]
    (_, is_greedy), (_, is_other) = model._loglikelihood_tokens([(("", ""), prompt, ids), (("", ""), prompt, other)])
    assert is_greedy and not is_other


def test_a_context_that_is_too_long_loses_its_beginning(model: "BurnishLM", tiny_folder: Path) -> None:
    context, continuation = list(range(3, 250)) * 3, [65, 66]
    ((logprob, _),) = model._loglikelihood_tokens([(("", ""), context, continuation)])
    assert logprob == pytest.approx(plain(tiny_folder, context[-510:], continuation)[0], abs=1e-3)


def test_whole_texts_in_windows(model: "BurnishLM", tiny_folder: Path) -> None:
    text = "abcdefghij" * 80
    ids = model.tok_encode(text, add_special_tokens=False)
    first, second = ids[:511], ids[511:]
    expected = plain(tiny_folder, [model.prefix_token_id], first)[0] + plain(tiny_folder, [first[-1]], second)[0]
    (found,) = model.loglikelihood_rolling([request(text)])
    assert found == pytest.approx(expected, abs=2e-2)


def test_generation_stops_where_it_is_told_to(model: "BurnishLM") -> None:
    settings = {"until": [], "max_gen_toks": 12}
    (whole,) = model.generate_until([request("Say: ", settings)])
    stop = whole[3:5]
    (cut,) = model.generate_until([request("Say: ", {"until": [stop], "max_gen_toks": 12})])
    assert cut == whole[: whole.index(stop)]
    sampled = model.generate_until([request("Say: ", {**settings, "do_sample": True, "temperature": 1.0})] * 3)
    assert len(set(sampled)) > 1
    with pytest.raises(ConfigError, match="generation_kwargs beams: not known"):
        model.generate_until([request("x", {"beams": 3})])
    with pytest.raises(ConfigError, match="leaves no room"):
        model.generate_until([request("x", {"max_gen_toks": 512})])


@needs_lm_eval
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)
def test_a_task_of_lm_eval_from_a_local_file(
    model: "BurnishLM", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    rows = [{"question": f"{i} + 1?", "choices": [str(i), str(i + 1), "none"], "answer": 1} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    result = lm_eval.simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
    accuracy = result["results"]["sums"]["acc,none"]
    tracker = EvaluationTracker(output_path=str(tmp_path / "logs"))
    tracker.general_config_tracker.model_name_sanitized = "tiny"
    tracker.date_id = "2026-01-02T03-04-05.678"  # what it sets when it saves the results, just before
    tracker.save_results_samples("sums", result["samples"]["sums"])
    (log,) = (tmp_path / "logs").rglob("samples_*.jsonl")
    (store,) = import_lm_eval(log, tmp_path / "evals")
    assert store.table().scores_IK.mean() == pytest.approx(accuracy)
    choices = [
        [
            model.loglikelihood([request(row["question"], f" {each}")], disable_tqdm=True)[0][0]
            for each in row["choices"]
        ]
        for row in rows
    ]
    assert accuracy == sum(each.index(max(each)) == 1 for each in choices) / len(rows)
