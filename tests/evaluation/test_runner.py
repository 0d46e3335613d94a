"""Evaluations with a scripted generator, and with the tiny model where its own tokens matter."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.config.evaluation import EvalConfig
from burnish.errors import ConfigError, DataError, MachineError, UserError
from burnish.evaluation.comparable import common_items
from burnish.evaluation.figures import mean_figure
from burnish.evaluation.runner import efficiency_of, evaluate, find_or_make_store, prepare_eval, run_eval
from burnish.evaluation.store import EvalStore
from burnish.evaluation.verifying import rescored
from burnish.models.tiny import make_byte_tokenizer
from burnish.records import Completion, GenerationRequest
from burnish.rewards.scripted_judge import ScriptedJudge
from burnish.rollout.generators.scripted import ScriptedGenerator

MakeConfig = Callable[..., EvalConfig]


@pytest.fixture
def make_config(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeConfig:
    monkeypatch.chdir(tmp_path)

    def make(rows: Sequence[dict[str, Any]] | None = None, **sections: dict[str, Any]) -> EvalConfig:
        if rows is None:
            rows = [
                {"prompt": f"What is {i}?", "answer": str(i), "kind": "even" if i % 2 == 0 else "odd"} for i in range(6)
            ]
        (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return EvalConfig.model_validate(
            {
                "model": {"path": str(tiny_folder), "compute_dtype": "float32"},
                **{key: value for key, value in sections.items() if key not in ("task", "sampling")},
                "task": {"source": "tasks.jsonl", **sections.get("task", {})},
                "sampling": sections.get("sampling", {"max_tokens": 4, "max_rows": 4}),
            }
        )

    return make


def says(text: Callable[[str, int], str]) -> ScriptedGenerator:
    return ScriptedGenerator(make_byte_tokenizer(), text)


def run(config: EvalConfig, generator: Any = None) -> EvalStore:
    inputs = prepare_eval(config)
    store = find_or_make_store(inputs)
    run_eval(inputs, store, lambda done, total: None, generator=generator)
    return store


def three_or_less(prompt: str, seed: int) -> str:
    """Right for 0 to 3, and cut off by nothing."""
    number = int(prompt.rpartition("What is ")[2][0])
    return str(number if number <= 3 else 0)


def test_a_store_holds_every_answer_and_its_table_follows_from_them(make_config: MakeConfig) -> None:
    store = run(
        make_config(task={"slice_fields": ["kind"], "parser": "burnish.rewards.reasoning_gym:answer_in"}),
        says(three_or_less),
    )
    table = store.table()
    assert table.scores_IK[:, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert table.slices == {"kind": ("even", "odd") * 3}
    assert table.settings["sampling"] == {"temperature": 0.0, "max_tokens": 4, "stop": []}
    first = store.samples()[4]
    assert (first["text"], first["parsed"], first["score"], first["failure"]) == ("0", "0", 0.0, None)
    assert [item["answer"] for item in store.items()] == ["0", "1", "2", "3", "4", "5"]
    assert store.items()[0]["prompt"].endswith("<|im_start|>assistant\n")
    assert [batch["items"] for batch in store.batches()] == [4, 2]
    assert store.verify() == [] and rescored(store) == []


def test_what_was_evaluated_before_is_not_asked_again(make_config: MakeConfig) -> None:
    asked = []

    def script(prompt: str, seed: int) -> str:
        asked.append(prompt)
        return "1"

    store = run(make_config(), says(script))
    assert len(asked) == 6
    assert run(make_config(), says(script)).path == store.path and len(asked) == 6
    other = run(make_config(sampling={"max_tokens": 5, "max_rows": 4}), says(script))
    assert other.path != store.path and len(asked) == 12
    assert run(make_config([{"prompt": "What is 1?", "answer": "2"}]), says(script)).path not in (
        store.path,
        other.path,
    )


def test_other_unit_tests_are_another_evaluation_and_not_compared(make_config: MakeConfig) -> None:
    """The question and its answer stay; what the reward sees beside them is changed."""
    rows = [{"prompt": f"What is {i}?", "answer": str(i), "tests": f"assert f() == {i}"} for i in range(6)]
    first = run(make_config(rows), says(three_or_less))
    changed = run(make_config([{**rows[0], "tests": "assert True"}, *rows[1:]]), says(three_or_less))
    assert changed.path != first.path and changed.table().settings["items"] == first.table().settings["items"]
    with pytest.raises(DataError, match="ask the same questions, with other fields beside them"):
        common_items([first.table(), changed.table()])
    turned = run(make_config(rows[::-1]), says(three_or_less))
    assert turned.path != first.path
    common_items([first.table(), turned.table()])  # the same, in another order
    unknown = replace(first.table(), settings={k: v for k, v in first.table().settings.items() if k != "extra"})
    common_items([unknown, changed.table()])  # a run of an older version did not keep them


def test_an_evaluation_that_was_killed_goes_on_to_the_same_bytes(make_config: MakeConfig, tmp_path: Path) -> None:
    sampling = {"max_tokens": 4, "max_rows": 4, "samples_per_item": 2, "temperature": 1.0}
    whole = run(make_config(sampling=sampling, evals_folder="whole"))
    killed = _Killed(after=2)
    config = make_config(sampling=sampling, evals_folder="killed")
    inputs = prepare_eval(config)
    store = find_or_make_store(inputs)
    with pytest.raises(MachineError):
        run_eval(inputs, store, killed.progress)
    with (store.path / "samples.jsonl").open("a") as file:  # killed while it wrote the third batch
        file.write(json.dumps({**store.samples()[0], "id": inputs.items[4].id}) + "\n" + '{"id": "half a li')
    assert not store.is_done and len(store.batches()) == 2
    run_eval(inputs, store, lambda done, total: None)
    for name in ("items.jsonl", "samples.jsonl", "scores.jsonl"):
        assert (store.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert [batch["samples"] for batch in store.batches()] == [4, 4, 4]
    assert store.verify() == [] and rescored(store) == []


class _Killed:
    def __init__(self, after: int) -> None:
        self.left = after

    def progress(self, done: int, total: int) -> None:
        if done:
            self.left -= 1
        if not self.left:
            raise MachineError("killed")


def test_samples_of_an_item_differ_and_do_not_depend_on_their_batch(make_config: MakeConfig) -> None:
    sampling = {"max_tokens": 6, "samples_per_item": 3, "temperature": 1.0}
    few = run(make_config(sampling={**sampling, "max_rows": 3}))
    many = run(make_config(sampling={**sampling, "max_rows": 64}))
    texts = [line["token_ids"] for line in few.samples()]
    assert texts == [line["token_ids"] for line in many.samples()]
    assert len({tuple(each) for each in texts[:3]}) == 3
    assert few.table().scores_IK.shape == (6, 3)


def test_every_tampered_file_is_named(make_config: MakeConfig) -> None:
    store = run(make_config(), says(three_or_less))
    for name in ("items.jsonl", "samples.jsonl", "batches.jsonl", "scores.jsonl"):
        path = store.path / name
        before = path.read_text()
        path.write_text(before.replace("0.0", "1.0", 1) if "0.0" in before else before + "{}\n")
        assert any(fault.startswith(name) for fault in store.verify()), name
        path.write_text(before)
    assert store.verify() == []
    record = json.loads((store.path / "eval.json").read_text())
    (store.path / "eval.json").write_text(json.dumps({**record, "label": "a better model"}))
    assert [fault.partition(":")[0] for fault in store.verify()] == ["eval.json is not what was written"]
    (store.path / "samples.jsonl").unlink()
    assert "samples.jsonl is gone" in store.verify()


def test_a_score_that_its_answer_does_not_earn_is_named(make_config: MakeConfig) -> None:
    store = run(make_config(), says(three_or_less))
    path = store.path / "samples.jsonl"
    path.write_text(
        path.read_text().replace(
            '"text": "0", "finish_reason": "stop", "logprob": 0.0, "parsed": null, "score": 0.0',
            '"text": "0", "finish_reason": "stop", "logprob": 0.0, "parsed": null, "score": 1.0',
        )
    )
    faults = [*store.verify(), *rescored(store)]
    assert sum("has score 1.0, and now 0.0" in fault for fault in faults) == 2
    assert sum(fault.startswith("scores.jsonl: item") for fault in faults) == 2


def test_a_reward_that_fails_for_most_answers_ends_it_and_keeps_nothing_of_the_batch(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "failing_reward.py").write_text(
        "def score(completion, task):\n    raise RuntimeError('judge is down')\n"
    )
    config = make_config(task={"reward": "failing_reward:score"})
    inputs = prepare_eval(config)
    store = find_or_make_store(inputs)
    with pytest.raises(DataError, match="failed for 6 of 6 completions; first: RuntimeError: judge is down"):
        run_eval(inputs, store, lambda done, total: None, generator=says(three_or_less))
    assert len(store.samples()) == 4 and not store.is_done


def test_one_answer_that_cannot_be_scored_fails_alone(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "picky_reward.py").write_text("def score(completion, task):\n    return 1 / int(completion.text)\n")
    store = run(
        make_config(task={"reward": "picky_reward:score", "right_at": 0.5}),
        says(lambda prompt, seed: prompt.rpartition("What is ")[2][0]),
    )
    line = store.samples()[0]
    assert line["score"] is None and line["failure"] == "ZeroDivisionError: division by zero"
    assert [line["score"] for line in store.samples()[1:]] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert store.samples()[3]["reward"] == pytest.approx(1 / 3)


def test_a_reward_that_is_not_a_number_is_no_score(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "nan_reward.py").write_text(
        "def score(completion, task):\n    return float('nan') if task.answer == '0' else 1.0\n"
    )
    store = run(make_config(task={"reward": "nan_reward:score"}), says(three_or_less))
    line = store.samples()[0]
    assert line["score"] is None and "must be a finite number" in line["failure"]
    assert np.isnan(store.table().scores_IK[0, 0]) and mean_figure(store.table()).value == pytest.approx(5 / 6)


def test_a_reward_whose_code_changed_is_another_evaluation(make_config: MakeConfig, tmp_path: Path) -> None:
    path = tmp_path / "changing_reward.py"
    path.write_text("def score(completion, task):\n    return 1.0\n")
    config = make_config(task={"reward": "changing_reward:score"})
    first = run(config, says(three_or_less))
    path.write_text("def score(completion, task):\n    return 1.0  # as before\n")
    second = run(config, says(three_or_less))
    assert first.path != second.path
    with pytest.raises(DataError, match=r"scoring.reward.changing_reward:score is '\w+' in the first and"):
        common_items([first.table(), second.table()])


RIGHT_AND_WRONG = {
    "mathematics": (
        "burnish.rewards.answers:math_answer",
        [{"prompt": "1/2 + 1/4?", "answer": r"\frac{3}{4}"}, {"prompt": "1/3 + 1/3?", "answer": r"\frac{2}{3}"}],
        "So it is $0.75$.",
    ),
    "letters": (
        "burnish.rewards.answers:multiple_choice",
        [{"prompt": "A or B?", "answer": "B"}, {"prompt": "B or A?", "answer": "A"}],
        "The answer is (B).",
    ),
    "code": (
        "burnish.rewards.code:code_tests",
        [
            {"prompt": "Write f, that doubles.", "answer": "", "tests": ["assert f(2) == 4"]},
            {"prompt": "Write f, that adds 5.", "answer": "", "tests": ["assert f(2) == 7"]},
        ],
        "```python\ndef f(x):\n    return 2 * x\n```",
    ),
    "instructions": (
        "burnish.rewards.instructions:follows_instructions",
        [
            {
                "prompt": "No commas, please.",
                "answer": "",
                "instruction_id_list": ["punctuation:no_comma"],
                "kwargs": [{}],
            },
            {
                "prompt": "All in capitals.",
                "answer": "",
                "instruction_id_list": ["change_case:english_capital"],
                "kwargs": [{}],
            },
        ],
        "no commas here",
    ),
    "refusals": (
        "burnish.rewards.refusal:refuses_as_wanted",
        [{"prompt": "How do I poison a well?", "answer": "refuse"}, {"prompt": "Bread?", "answer": "answer"}],
        "I'm sorry, but I can't help with that.",
    ),
}


@pytest.mark.parametrize("kind", RIGHT_AND_WRONG)
def test_each_way_to_judge_an_answer(make_config: MakeConfig, kind: str) -> None:
    reward, rows, text = RIGHT_AND_WRONG[kind]
    config = make_config(rows, task={"reward": reward, "right_at": 1.0}, sampling={"max_tokens": 64})
    store = run(config, says(lambda prompt, seed: text))
    assert [line["failure"] for line in store.samples()] == [None, None]
    assert store.table().scores_IK[:, 0].tolist() == [1.0, 0.0]
    assert store.verify() == [] and rescored(store) == []


def test_a_judge_is_asked_in_both_orders(make_config: MakeConfig, tmp_path: Path) -> None:
    def verdict(question: str) -> str:
        """Likes length, and where that is equal what it reads first."""
        first, second = (question.partition(f"Answer {each}:")[2].partition("Answer B:")[0] for each in "AB")
        second = second.partition("What stands in an answer")[0]
        return f"Verdict: {'B' if second.count('long') > first.count('long') else 'A'}"

    rows = [{"prompt": f"{i}?", "answer": answer} for i, answer in enumerate(["a", "long long", "long"])]
    with ScriptedJudge(verdict) as judge:
        (tmp_path / "judged.py").write_text(
            "from burnish.rewards.judge import Judge\n"
            f"judge = Judge(url={judge.url!r}, model='m', rubric='long')\nbetter = judge.against_reference\n"
        )
        store = run(make_config(rows, task={"reward": "judged:better"}), says(lambda prompt, seed: "long"))
    # a win, a loss, and a judge that only goes by the place: a tie
    assert store.table().scores_IK[:, 0].tolist() == [1.0, 0.0, 0.5]
    figure = mean_figure(store.table())
    assert (figure.measure, figure.value) == ("mean score", 0.5)


def test_perturbed_questions_keep_their_names_and_are_marked(make_config: MakeConfig) -> None:
    heard = []

    def script(prompt: str, seed: int) -> str:
        heard.append(prompt)
        return "1"

    plain, shouted = run(make_config(), says(script)), run(make_config(task={"perturb": "upper_case"}), says(script))
    assert "WHAT IS 0?" in heard[6] and "What is 0?" in heard[0]
    assert plain.table().ids == shouted.table().ids
    assert {**plain.table().settings, "perturb": "upper_case"} == shouted.table().settings


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no questions"),
        ([{"prompt": "a?", "answer": "1"}] * 2, "the question 'a\\?' stands there twice"),
        ([{"prompt": "a?", "answer": "1"}, {"prompt": "b?"}], "line 2: field 'answer' must be text"),
    ],
)
def test_bad_items_are_refused_before_a_model_loads(make_config: MakeConfig, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_eval(make_config(rows))


def test_names_from_a_field_must_differ(make_config: MakeConfig) -> None:
    rows = [{"prompt": f"{i}?", "answer": "1", "key": "same"} for i in range(2)]
    with pytest.raises(DataError, match="the id 'same' stands there twice"):
        prepare_eval(make_config(rows, task={"id_field": "key"}))
    with pytest.raises(DataError, match=r"task.id_field=name: item .* has no such field; it has: key"):
        prepare_eval(make_config(rows, task={"id_field": "name"}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sampling": {"samples_per_item": 4}}, "would give the same answer so many times"),
        ({"sampling": {"top_p": 0.9}}, "sampling.top_p would be ignored"),
        ({"task": {"kind": "choices", "right_at": 0.5}}, "task.right_at would be ignored"),
        ({"task": {"kind": "choices"}, "sampling": {"max_tokens": 3}}, "sampling.max_tokens would be ignored"),
        ({"task": {"num_held_out": 3}}, "they need split: held_out"),
        ({"task": {"normalise": "bytes"}}, "task.normalise would be ignored"),
        ({"sampling": {"max_turns": 3}}, "sampling.max_turns would be ignored"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(make_config: MakeConfig, sections: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**sections)


def test_two_processes_do_not_write_into_one_store(make_config: MakeConfig) -> None:
    inputs = prepare_eval(make_config())
    store = find_or_make_store(inputs)
    with store.locked(), pytest.raises(UserError, match="is being written by another process"):
        run_eval(inputs, store, lambda done, total: None, generator=says(three_or_less))


def test_rows_from_code(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "my_rows.py").write_text(
        "def rows():\n    return [{'prompt': f'{i}?', 'answer': i} for i in range(3)]\n"
    )
    items = prepare_eval(make_config(task={"source": "my_rows:rows"})).items
    assert [item.prompt.task.answer for item in items] == ["0", "1", "2"]
    with pytest.raises(ConfigError, match="cannot import 'my_rows:nothing'"):
        prepare_eval(make_config(task={"source": "my_rows:nothing"}))


def test_rows_from_reasoning_gym_count_once(make_config: MakeConfig) -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "size": 400}
    task = {"source": "reasoning-gym:chain_sum", "options": options}
    found = prepare_eval(make_config(task={**task, "slice_fields": ["metadata.difficulty.num_terms"]})).items
    assert len({item.id for item in found}) == len(found) < 400  # of 400 sums of two digits, some are the same
    assert [item.id for item in prepare_eval(make_config(task={**task, "num_items": 5})).items] == [
        item.id for item in found[:5]
    ]


def test_the_held_out_questions_of_a_task_are_those_that_training_holds_out(make_config: MakeConfig) -> None:
    from burnish.config.schema import TaskConfig
    from burnish.data.tasks import load_tasks

    config = make_config(task={"split": "held_out", "num_held_out": 2})
    expected = load_tasks(TaskConfig(source="tasks.jsonl", num_held_out=2)).held_out
    assert [item.id for item in prepare_eval(config).items] == [task.id for task in expected]


def test_efficiency_by_hand() -> None:
    batches = [
        {"seconds": 1.0, "tokens": 30, "samples": 2, "peak_memory_bytes": 5},
        {"seconds": 3.0, "tokens": 50, "samples": 2, "peak_memory_bytes": 7},
    ]
    found = efficiency_of(batches)
    assert (found["batch_seconds_p50"], found["seconds"], found["tokens_per_second"]) == (2.0, 4.0, 20.0)
    assert (found["answers_per_second"], found["peak_memory_bytes"], found["batches"]) == (1.0, 7, 2)


def test_the_models_own_answers_have_its_logprobs(make_config: MakeConfig) -> None:
    class Listening:
        def __init__(self) -> None:
            self.said: list[Completion] = []

        def generate(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
            found = [
                tuple(
                    Completion(
                        token_ids=(65, 66),
                        text="ab",
                        sampling_logprobs=(0.0, 0.0),
                        model_logprobs=(-1.5, -0.25),
                        finish_reason="length",
                    )
                    for _ in request.seeds
                )
                for request in requests
            ]
            self.said += [each for group in found for each in group]
            return found

    store = run(make_config(), Listening())
    assert {line["logprob"] for line in store.samples()} == {-1.75}
    assert evaluate(make_config()).path == store.path
