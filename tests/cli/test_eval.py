"""`burnish eval` as a user meets it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from burnish.cli.app import run
from burnish.evaluation.store import EvalStore

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BURNISH_MODEL__COMPUTE_DTYPE", "float32")
    (tmp_path / "tiny").symlink_to(tiny_folder)
    rows = [{"prompt": f"What is {i}?", "answer": str(i), "kind": "ab"[i % 2]} for i in range(6)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


SMALL = ("--sampling.max_tokens", "4")


def test_evaluate_show_verify_and_again(command: Command, tmp_path: Path) -> None:
    status, out, err = command("eval", "tiny", "--task", "tasks.jsonl", "--slices", "kind", *SMALL)
    assert status == 0 and "6 items, 1 answer each" in err
    (store,) = Path("evals").iterdir()
    lines = out.splitlines()
    assert lines[0] == "tiny on tasks.jsonl"
    assert lines[1] == "6 items, 1 answer each, greedy, at most 4 tokens, judged by burnish.rewards.answers:last_number"
    assert lines[2].split() == ["measure", "of", "value", "95%", "CI", "n", "method"]
    assert [line.split()[1] for line in lines[3:6]] == ["all", "kind=a", "kind=b"]
    assert "largest gap" in lines[6] and lines[-1] == f"store evals/{store.name}"
    assert "tokens/s, peak memory" in out
    status, again, err = command("eval", "tiny", "--task", "tasks.jsonl", "--slices", "kind", *SMALL)
    assert (status, again) == (0, out) and "nothing to do" in err
    assert command("eval", "show", str(store))[1] == out
    assert command("eval", "verify", str(store), "--rescore")[:2] == (
        0,
        f"{store}: ok: the files are what was written, and the scores follow from the answers, and its reward says the "
        "same again\n",
    )


def test_what_was_asked_is_called_by_the_file_of_held_out_questions(command: Command, tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").write_text(json.dumps({"prompt": "What is 9?", "answer": "9"}) + "\n")
    held_out = ("--task.split", "held_out", "--task.held_out_source", "kept.jsonl", "--task.num_held_out", "1")
    status, out, _ = command("eval", "tiny", "--task", "tasks.jsonl", *held_out, *SMALL)
    assert status == 0 and out.splitlines()[0] == "tiny on kept.jsonl"


def test_a_tampered_store_is_named_and_its_figures_are_not_printed(command: Command) -> None:
    again = ("eval", "tiny", "--task", "tasks.jsonl", *SMALL)
    command(*again)
    (store,) = Path("evals").iterdir()
    path = store / "samples.jsonl"
    path.write_text(path.read_text().replace('"score": 0.0', '"score": 1.0', 1))
    status, out, _ = command("eval", "verify", str(store), "--rescore")
    assert status == 1
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "samples.jsonl is not what was written",
        "scores.jsonl",
        "samples.jsonl",
    ]
    assert "is scores [0.0], and its samples say scores [1.0]" in out and "has score 1.0, and now 0.0" in out
    for arguments in (("eval", "show", str(store)), again):
        status, out, err = command(*arguments)
        assert (status, out) == (2, "")
        assert f"burnish: {store}/samples.jsonl is not what was written" in err
    path.write_text("{\n")
    status, out, _ = command("eval", "verify", str(store), "--rescore")
    assert status == 1 and "cannot be scored again: DataError" in out


def test_an_interrupted_evaluation_says_how_to_go_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    again = ("eval", "tiny", "--task", "tasks.jsonl", *SMALL, "--sampling.max_rows", "2")
    add, left = EvalStore.add, [2]

    def add_or_stop(store: EvalStore, *arguments: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        add(store, *arguments)

    monkeypatch.setattr(EvalStore, "add", add_or_stop)
    status, out, err = command(*again)
    assert (status, out) == (130, "")
    assert "interrupted after 4 answers; the same command goes on from there" in err
    (store,) = Path("evals").iterdir()
    status, _, err = command("eval", "show", str(store))
    assert status == 2 and "the evaluation is not finished; the same `burnish eval` goes on with it" in err
    left[0] = 9
    status, out, err = command(*again)
    assert status == 0 and "goes on after 4 answers" in err and f"store {store}" in out
    assert len(EvalStore.open(store).batches()) == 3


def test_json_stands_alone_on_standard_output(command: Command) -> None:
    _, out, _ = command("eval", "tiny", "--task", "tasks.jsonl", "--json", *SMALL)
    content = json.loads(out)
    assert content["figures"][0]["n"] == 6 and content["counts"]["answers"] == 6
    assert content["efficiency"]["batches"] == 1


def test_a_file_of_settings_and_a_recipe_stand_for_a_task(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"task": {"source": "tasks.jsonl", "num_items": 2}, "name": "mine"})
    )
    assert command("eval", "tiny", "--task", "mine.yaml", *SMALL)[0] == 0
    assert [path.name[:5] for path in (tmp_path / "evals").iterdir()] == ["mine-"]
    recipe = {
        "algorithm": "grpo",
        "task": {"source": "tasks.jsonl", "num_held_out": 3},
        "rollout": {"max_tokens": 5, "num_prompts": 2},
        "evaluation": {"right_at": 0.5},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _, out, _ = command("eval", "tiny", "--task", "recipe.yaml", "--json")
    content = json.loads(out)
    assert content["figures"][0]["n"] == 3
    assert content["settings"]["sampling"]["max_tokens"] == 5 and content["settings"]["scoring"]["right_at"] == 0.5


@pytest.mark.slow
def test_a_run_is_evaluated_on_what_it_holds_out_as_training_did(command: Command, tmp_path: Path) -> None:
    recipe = {
        "algorithm": "grpo",
        "name": "small",
        "model": {"path": "tiny"},
        "task": {"source": "tasks.jsonl", "num_held_out": 3},
        "rollout": {"num_prompts": 2, "group_size": 2, "max_tokens": 4},
        "train": {"num_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert command("train", "recipe.yaml")[0] == 0
    _, out, _ = command("eval", "last", "--task", "last", "--json")
    content = json.loads(out)

    from burnish.evaluation.table import read_table

    of_run, of_store = read_table("last", tmp_path / "runs"), read_table(content["store"], tmp_path / "runs")
    assert sorted(of_run.ids) == sorted(of_store.ids)
    assert of_run.settings == of_store.settings
    assert dict(zip(of_run.ids, of_run.scores_IK[:, 0], strict=True)) == dict(
        zip(of_store.ids, of_store.scores_IK[:, 0], strict=True)
    )
    assert (content["origin"]["step"], content["origin"]["seed"]) == (1, 0)
    assert content["origin"]["run"] == of_run.origin["run"] == content["label"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny"], "task.source: is not set"),
        (["tiny", "--task", "nothing"], "--task nothing: no such file, recipe (code, "),
        (["tiny", "--task", "dpo"], "--task dpo: it trains on examples and has no questions"),
        (["nobody", "--task", "tasks.jsonl"], "no folder 'nobody'"),
        (["tiny", "--task", "tasks.jsonl", "--sampling.max_token", "3"], "did you mean 'sampling.max_tokens'?"),
        (["tiny", "--task", "tasks.jsonl", "--slices", "colour"], "task.slice_fields=colour: item"),
        (["show", "nothing"], "no store begins with 'nothing' in evals: none yet"),
        (["show", "."], "not the record of an evaluation"),
        (
            ["tiny", "--task", "tasks.jsonl", "--contamination-with", "gone.jsonl"],
            "the training data: no file gone.jsonl",
        ),
        (["robust", "nothing"], "one or more of changed ones (task.perturb)"),
        (
            ["import", "tasks.jsonl", "--kind", "xml"],
            'Invalid value "xml" for --kind. Choose from: "csv", "votes", "lm-eval", "inspect".',
        ),
    ],
)
def test_mistakes_are_one_line(command: Command, arguments: list[str], message: str) -> None:
    status, out, err = command("eval", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_contamination_with_the_score_of_what_was_not_found(command: Command, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "what is 3"}) + "\n")
    _, out, _ = command("eval", "tiny", "--task", "tasks.jsonl", "--contamination-with", "train.jsonl", *SMALL)
    assert "of 6 items in 1 training text: 1 exactly, 0 by 13 words in a row" in out
    assert "accuracy of what is not flagged" in out and ", n 5" in out and ", n 1" in out
    (store,) = (tmp_path / "evals").iterdir()
    assert "1 exactly" in command("contamination", "train.jsonl", str(store))[1]
    (tmp_path / "other.jsonl").write_text(json.dumps({"id": "x", "question": "What is 3?"}) + "\n")
    found = json.loads(command("contamination", "train.jsonl", "other.jsonl", "--json")[1])
    assert found["exact"] == ["x"]


def test_outcomes_are_imported(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("item,a,b\n1,1,0\n2,1,1\n")
    status, out, _ = command("eval", "import", "t.csv", "--kind", "csv")
    assert status == 0
    assert [line.split()[2:5] for line in out.splitlines()[1:]] == [["2", "of", "2"], ["1", "of", "2"]]


def sampled_store(
    path: Path, scores: dict[str, list[float | None]], *, parsed: dict[str, str] | None = None, created: str = ""
) -> EvalStore:
    """A store of several answers to each item; `parsed` is the answer to each item's every sample, as letters."""
    config = {"task": {"parser": None if parsed is None else "m:parse", "normalise": "none"}}
    record = {
        "label": "m",
        "task": {"source": "s", "kind": "generate", "num_items": len(scores)},
        "settings": {"scoring": {"reward": {}}},
        "origin": {},
        "samples_per_item": len(next(iter(scores.values()))),
        "status": "running",
        "created": created,
        "config": config,
    }
    items = [{"id": name, "cluster": None, "slices": {}, "messages": [], "answer": "1"} for name in scores]
    store = EvalStore.create(path, record, items)
    lines = [
        {
            "id": name,
            "sample": number,
            "logprob": -float(number),
            "parsed": None if parsed is None else parsed[name][number],
            "score": score,
            "failure": None if score is not None else "lost",
            "finish_reason": "stop",
        }
        for name, row in scores.items()
        for number, score in enumerate(row)
    ]
    store.add(lines, {"items": len(scores)})
    store.seal({})
    return store


def test_several_answers_with_their_vote_and_how_sure_it_may_be(command: Command, tmp_path: Path) -> None:
    scores = {"p": [1.0, 1.0, 0.0, 0.0], "q": [0.0, 0.0, 0.0, 0.0], "r": [1.0, 1.0, 1.0, 1.0]}
    store = sampled_store(tmp_path / "s", scores, parsed={"p": "aabc", "q": "abcd", "r": "aaaa"})
    status, out, _ = command("eval", "show", "s", "--k", "1,2,9", "--best-by", "logprob", "--plot", "r.svg")
    assert status == 0
    rows = [re.split("  +", line) for line in out.splitlines() if "@" in line or "^" in line]
    values = {row[0]: row[2] for row in rows}
    assert values == {  # of 6 pairs of p's answers 1 has none that is right, and 1 has two; r's are all right
        "pass@1": "0.500",
        "pass^1": "0.500",
        "maj@1": "0.500",
        "pass@2": f"{(5 / 6 + 0 + 1) / 3:.3f}",
        "pass^2": f"{(1 / 6 + 0 + 1) / 3:.3f}",
        "maj@2": f"{(1 / 6 + 4 / 6 / 2 + 0 + 1) / 3:.3f}",
        "pass@9": "-",
        "pass^9": "-",
        "maj@9": "-",
        "best@1 by logprob": "0.500",
        "best@2 by logprob": f"{(1 / 6 * 0 + 2 / 6 + 3 / 6 + 0 + 1) / 3:.3f}",  # p's right ones are its likeliest
        "best@9 by logprob": "-",
    }
    assert "needs 9 answers to an item, there are 4" in out
    assert "calibration error  share of the vote" in out and "no vote among answers" not in out
    assert (tmp_path / "r.svg").read_text().startswith("<svg") and "plot r.svg" in out
    content = json.loads(command("eval", "show", "s", "--json", "--k", "9")[1])
    assert content["figures"][1]["value"] is None and content["calibration"]["n"] == 3
    assert store.verify() == []


def test_the_interval_and_its_level_are_chosen(command: Command, tmp_path: Path) -> None:
    sampled_store(tmp_path / "s", {str(i): [1.0] for i in range(10)})
    for interval, low in (("wilson", "0.722"), ("clopper-pearson", "0.692"), ("beta", "0.715")):
        assert f"[{low}, " in command("eval", "show", "s", "--interval", interval)[1]
    out = command("eval", "show", "s", "--level", "0.5")[1]
    assert "50% CI" in out and "[0.956, 1.000]" in out  # 10 / (10 + 0.6745 ** 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--level", "1.5"), "--level 1.5: must lie between 0 and 1"),
        (("--k", "2,x"), "--k: 'x' is no whole number"),
        (("--k", "0"), "k=0: at least one answer must be drawn"),
        (("--best-by", "charm"), "no answer has a number 'charm' to choose by; they have: logprob"),
        (("--plot", "r.svg"), "--plot r.svg: how sure the model was is not known"),
    ],
)
def test_readings_that_cannot_be(command: Command, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    sampled_store(tmp_path / "s", {"p": [1.0, 0.0]})
    status, out, err = command("eval", "show", "s", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err


def test_changed_questions_are_paired_with_the_plain_ones(command: Command, tmp_path: Path) -> None:
    for more in ((), ("--task.perturb", "typos"), ("--task.perturb", "upper_case")):
        assert command("eval", "tiny", "--task", "tasks.jsonl", *SMALL, *more)[0] == 0
    forms = {
        json.loads((path / "eval.json").read_text())["settings"].get("perturb", "plain"): str(path)
        for path in Path("evals").iterdir()
    }
    stores = (forms["plain"], forms["typos"], forms["upper_case"])
    status, out, _ = command("eval", "robust", *stores)
    lines = out.splitlines()
    assert status == 0 and lines[0] == "tiny, 6 items, paired; changed against plain"
    assert [line.split()[0] for line in lines[2:5]] == ["plain", "typos", "upper_case"]
    assert lines[5].startswith("at the worst of its forms an item scores 0.000 [0.000, ")
    found = json.loads(command("eval", "robust", *stores, "--json")[1])
    assert [form["perturb"] for form in found["forms"]] == ["typos", "upper_case"]
    status, out, err = command("eval", "robust", *stores[::-1])
    assert (status, out) == (2, "") and "the first store must hold the plain questions, not upper_case" in err


def test_what_is_given_as_an_argument_wins_over_the_environment(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BURNISH_MODEL__PATH", "nobody")
    monkeypatch.setenv("BURNISH_TASK__SOURCE", "nothing.jsonl")
    monkeypatch.setenv("BURNISH_TRAIN__NUM_STEPS", "3")  # of training
    assert command("eval", "tiny", "--task", "tasks.jsonl", *SMALL)[0] == 0
    monkeypatch.setenv("BURNISH_SAMPLIN__STOP", "3")
    status, _, err = command("eval", "tiny", "--task", "tasks.jsonl", *SMALL)
    assert status == 2 and "unknown setting 'samplin.stop' (from environment)" in err


def test_a_store_by_the_beginning_of_its_name(command: Command, tmp_path: Path) -> None:
    for name, score in (("one-a", 0.0), ("one-b", 0.25), ("two", 1.0)):
        sampled_store(tmp_path / "evals" / name, {"p": [score]}, created=f"2026-01-0{score + 1:.0f}")
    assert "mean score  all  0.250" in command("eval", "show", "one-b")[1]
    assert "accuracy  all  1.000" in command("eval", "show", "last")[1]
    assert command("eval", "verify", "tw")[1].startswith("evals/two: ok")
    assert command("eval", "show", "two", "--evals-folder", "other")[0] == 2
    status, _, err = command("eval", "show", "one")
    assert status == 2 and "several stores begin with 'one' in evals: one-a, one-b" in err


def test_a_store_of_another_version_and_one_whose_record_was_changed(command: Command) -> None:
    again = ("eval", "tiny", "--task", "tasks.jsonl", *SMALL)
    command(*again)
    (store,) = Path("evals").iterdir()
    path = store / "eval.json"
    record = json.loads(path.read_text())
    for changed, message in (
        ({**record, "format": 2}, "format 2 is not 1: another version of burnish wrote it"),
        ({**record, "label": "gpt"}, "eval.json is not what was written"),
        ({key: value for key, value in record.items() if key != "sha256"}, "is not what was written"),
    ):
        path.write_text(json.dumps(changed))
        for arguments in (again, ("eval", "show", str(store))):
            status, out, err = command(*arguments)
            assert (status, out, err.count("\n")) in {(2, "", 1), (2, "", 2)} and message in err


def test_where_nothing_has_a_score(command: Command, tmp_path: Path) -> None:
    sampled_store(tmp_path / "s", {"p": [None], "q": [None]})
    status, out, _ = command("eval", "show", "s")
    assert status == 0 and "no item has a score" in out and "accuracy  all  -" in out
    assert "2 of 2 answers have no score and are left out" in out
    assert json.loads(command("eval", "show", "s", "--json")[1])["figures"][0]["value"] is None


def test_its_settings_are_listed(command: Command) -> None:
    status, out, _ = command("config", "schema", "eval")
    assert status == 0 and "sampling.samples_per_item  (integer, default 1)" in out
