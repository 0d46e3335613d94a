"""`burnish eval` as a user meets it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run

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
    assert status == 0 and "6 items, 1 answers each" in err
    (store,) = Path("evals").iterdir()
    lines = out.splitlines()
    assert lines[0] == "tiny on tasks.jsonl"
    assert lines[1].split() == ["measure", "of", "value", "95%", "CI", "n", "method"]
    assert [line.split()[1] for line in lines[2:5]] == ["all", "kind=a", "kind=b"]
    assert "largest gap" in lines[5] and lines[-1] == f"store evals/{store.name}"
    assert "tokens/s, peak memory" in out
    status, again, err = command("eval", "tiny", "--task", "tasks.jsonl", "--slices", "kind", *SMALL)
    assert (status, again) == (0, out) and "nothing to do" in err
    assert command("eval", "show", str(store))[1] == out
    assert command("eval", "verify", str(store), "--rescore")[:2] == (
        0,
        f"{store}: ok: the files are what was written, and the scores follow from the answers\n",
    )
    path = store / "samples.jsonl"
    path.write_text(path.read_text().replace('"score": 0.0', '"score": 1.0'))
    status, out, _ = command("eval", "verify", str(store))
    assert status == 1 and out.startswith("samples.jsonl is not what was written")


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
        (["show", "nothing"], "not the record of an evaluation"),
        (["import", "tasks.jsonl", "--kind", "xml"], "--kind xml: is not known; give one of csv, lm-eval, inspect"),
    ],
)
def test_mistakes_are_one_line(command: Command, arguments: list[str], message: str) -> None:
    status, out, err = command("eval", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_contamination_with_the_score_of_what_was_not_found(command: Command, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "what is 3"}) + "\n")
    _, out, _ = command("eval", "tiny", "--task", "tasks.jsonl", "--contamination-with", "train.jsonl", *SMALL)
    assert "of 6 items in 1 training texts: 1 exactly, 0 by 13 words in a row" in out
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
