import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from burnish.cli.app import run
from burnish.reproducibility.run_folder import RunFolder

GSM8K = Path(__file__).parents[3] / "shared/data/outcomes/gsm8k_gpt3_4systems.csv"


def make_run(folder: Path, name: str, scores: list[float], *, seed: int = 0, **changed: object) -> str:
    """A run with one evaluation; `changed` are settings of its rollout, its reward, or what it asked."""
    made = RunFolder.create(folder, name)
    reward = {"project.rewards:score": changed.pop("reward", "1a2b")}
    record = {"created": f"2026-01-01T00:00:{seed:02d}Z", "status": "done", "measure": "accuracy", "reward": reward}
    made.write_record(record)
    asked = changed.pop("asked", "what is it?")
    config = {
        "seed": seed,
        "rollout": {"max_tokens": 8, "stop": [], **changed},
        "task": {"environment": None},
        "evaluation": {"right_at": 1.0},
    }
    (made.path / "config.yaml").write_text(yaml.safe_dump(config))
    messages = [{"role": "user", "content": asked}]
    items = [{"id": f"q{i}", "score": score, "messages": messages, "answer": "1"} for i, score in enumerate(scores)]
    made.write_step("evaluations", 4, items)
    return made.path.name


@pytest.fixture
def runs(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_two_runs(runs: Path, capsys) -> None:
    a, b = make_run(runs, "base", [0.0] * 12 + [1.0] * 8), make_run(runs, "tuned", [1.0] * 20)
    assert run(["compare", a, b]) == 0
    out = capsys.readouterr().out
    assert "20 items, paired" in out
    assert f"{b} against {a}" in out
    assert "+0.600" in out and "0.000488" in out and "exact McNemar" in out  # 2 / 2^12
    assert "right alone: A 0, B 12 items; mid-p = 0.000244" in out
    assert "verdict: better" in out
    assert "a claim about a method needs several seeds" in out
    assert run(["compare", b, a]) == 0
    assert "verdict: worse" in capsys.readouterr().out


def test_a_gate_is_an_exit_status(runs: Path, capsys) -> None:
    make_run(runs, "base", [0.0] * 12 + [1.0] * 8), make_run(runs, "tuned", [1.0] * 20)
    make_run(runs, "many", [1.0, 0.0] * 200), make_run(runs, "again", [1.0, 0.0] * 200)
    assert run(["compare", "base", "tuned", "--gate", "better"]) == 0
    assert run(["compare", "tuned", "base", "--gate", "better"]) == 1
    assert run(["compare", "many", "again", "--gate", "better"]) == 1
    assert run(["compare", "many", "again", "--gate", "not-worse", "--margin", "0.05"]) == 0
    assert run(["compare", "tuned", "base", "--gate", "not-worse", "--margin", "0.05"]) == 1
    capsys.readouterr()
    assert run(["compare", "many", "again", "--gate", "not-worse"]) == 2
    assert "--gate not-worse needs --margin" in capsys.readouterr().err


def test_undecided_says_what_it_would_take(runs: Path, capsys) -> None:
    make_run(runs, "base", [0.0, 1.0] * 10), make_run(runs, "tuned", [1.0] + [1.0, 0.0, 1.0] + [0.0, 1.0] * 8)
    assert run(["compare", "base", "tuned", "--margin", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "verdict: undecided" in out and "items (with 80% power)" in out


def test_json_has_no_nan(runs: Path, capsys) -> None:
    make_run(runs, "base", [0.5] * 6), make_run(runs, "tuned", [0.5] * 6)
    assert run(["compare", "base", "tuned", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    (claim,) = found["claims"]
    assert (claim["verdict"], claim["p_value"]) == ("undecided", 1.0)
    assert claim["differences"][0]["low"] is None


def test_arms_by_glob_and_commas(runs: Path, capsys) -> None:
    for seed in range(3):
        make_run(runs, f"plain-seed{seed}", [0.0, 1.0] * (8 - seed) + [0.0] * 2 * seed, seed=seed)
        make_run(runs, f"clipped-seed{seed}", [1.0] * 16, seed=seed)
    assert run(["compare", "plain-seed*", "clipped-seed0,clipped-seed1,clipped-seed2"]) == 0
    out = capsys.readouterr().out
    assert "paired t over seeds" in out and "plain-seed*: seed 0 0.500, seed 1 0.438, seed 2 0.375" in out
    assert "plain-seed* has 3 seeds" in out


def test_an_arm_of_two_methods_is_refused(runs: Path, capsys) -> None:
    make_run(runs, "base", [0.0, 1.0] * 8)
    for seed, max_rows in enumerate((8, 8, 16)):
        make_run(runs, f"mixed-seed{seed}", [1.0] * 16, seed=seed, max_rows=max_rows)
    assert run(["compare", "base", "mixed-seed*"]) == 2
    err = capsys.readouterr().err
    assert "differ in rollout.max_rows: the runs of an arm are one method" in err and err.count("\n") == 1


def test_seeds_say_what_to_buy(runs: Path, capsys) -> None:
    rng = np.random.default_rng(0)
    for arm, rate in (("plain", 0.45), ("clipped", 0.5)):
        for seed in range(3):
            right = rng.random(60) < rate + (0.15 if seed == 1 else -0.05)
            make_run(runs, f"{arm}-seed{seed}", right.astype(float).tolist(), seed=seed)
    assert run(["compare", "plain-seed*", "clipped-seed*", "--margin", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "seeds and items  3 x 60" in out and "t over seeds and items" in out
    assert "the error's variance: seeds" in out and "; samples unknown, with one" in out
    assert "twice as many would narrow the interval: seeds to" in out and "first if they cost the same" in out
    assert "verdict: undecided" in out
    assert "seeds of each arm on these items, or about" in out and "equivalence within 0.1, if there is no" in out
    assert "plain-seed* has 3 seeds: so few cannot show whether t holds" in out
    assert run(["compare", "plain-seed1", "clipped-seed*"]) == 0
    assert "plain-seed1" in (out := capsys.readouterr().out) and "is held as a fixed checkpoint, not as a method" in out


def test_no_discordant_item_is_no_certainty(runs: Path, capsys) -> None:
    make_run(runs, "base", [1.0, 0.0] * 20), make_run(runs, "same", [1.0, 0.0] * 20)
    assert run(["compare", "base", "same", "--margin", "0.05"]) == 0
    out = capsys.readouterr().out
    assert "right alone: A 0, B 0 items; mid-p = 1" in out
    assert "verdict: undecided" in out and "no item tells the two apart" in out
    make_run(runs, "many", [1.0, 0.0] * 200), make_run(runs, "again", [1.0, 0.0] * 200)
    assert run(["compare", "many", "again", "--margin", "0.05"]) == 0
    assert "verdict: equivalent" in capsys.readouterr().out


def test_a_real_difference_below_the_margin_says_so(runs: Path, capsys) -> None:
    make_run(runs, "base", [1.0] * 1990 + [0.0] * 10), make_run(runs, "tuned", [1.0] * 2000)
    assert run(["compare", "base", "tuned", "--margin", "0.02"]) == 0
    assert "verdict: better, by less than the margin of 0.02" in capsys.readouterr().out


def test_a_step_that_was_chosen_is_doubted(runs: Path, capsys) -> None:
    base, tuned = make_run(runs, "base", [1.0, 0.0] * 10), make_run(runs, "tuned", [1.0, 0.0] * 10)
    for step in (8, 12):
        RunFolder.find(tuned, runs).write_step(
            "evaluations", step, RunFolder.find(tuned, runs).read_step("evaluations", 4)
        )
    assert run(["compare", base, f"{tuned}@8"]) == 0
    out = capsys.readouterr().out
    assert f"note: {tuned}@8 is not its run's last checkpoint" in out
    assert "(up to about 0.097, as the best of 3 that are equal)" in out  # 0.84628 x 0.5 sqrt(1 / 19)
    assert run(["compare", base, tuned]) == 0
    assert "last checkpoint" not in capsys.readouterr().out


def test_stores_with_answers_without_a_score(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["item,cluster,kind,base,tuned", *(f"q{i},p{i // 2},{'ab'[i % 2]},{i % 2},1" for i in range(20))]
    Path("t.csv").write_text("\n".join([*rows, "q20,p10,a,0,"]) + "\n")
    assert run(["eval", "import", "t.csv", "--kind", "csv"]) == 0
    capsys.readouterr()
    assert run(["compare", "evals/base-*", "evals/tuned-*", "--slices", "kind"]) == 0
    out = capsys.readouterr().out
    assert "20 items in 10 clusters" in out and "sign flips of clusters" in out
    assert "answers without a score are left out (base 0, tuned 1), and with them 1 of 21 items" in out
    assert "with answers without a score counted as wrong, tuned would be +0.476 against base: better" in out
    assert "10 clusters are few" in out
    (of_a,) = [line.split() for line in out.splitlines() if line.startswith("  a ")]
    assert of_a[1:6] == ["10", "items", "0.000", "1.000", "+1.000"] and of_a[-1] == "better"
    (of_b,) = [line.split() for line in out.splitlines() if line.startswith("  b ")]
    assert of_b[-1] == "undecided"


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K} is not here: it holds the outcomes of four systems")
def test_imported_outcomes_of_gsm8k(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["eval", "import", str(GSM8K), "--kind", "csv"]) == 0
    out = capsys.readouterr().out
    assert all(f"{right} of 1319" in out for right in (286, 515, 458, 742))
    both = ["compare", "evals/6b_verification-*", "evals/175b_finetuning-*"]
    assert run([*both, "--json"]) == 0
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    (over_items,) = claim["differences"]
    found = [over_items[key] for key in ("difference", "low", "high")]
    assert found == pytest.approx([-0.0432, -0.0713, -0.0150], abs=5e-5)
    assert over_items["p_value"] == pytest.approx(0.00315, abs=5e-6) and claim["verdict"] == "worse"
    assert run(both) == 0
    out = capsys.readouterr().out
    assert "-0.043      [-0.071, -0.015]  Newcombe paired  0.00315  exact McNemar" in out
    assert "verdict: worse" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base"], "nothing to compare with"),
        (["base", "nothing"], "no run begins with 'nothing'"),
        (["base", "none*"], "matches 'none*'"),
        (["base", ","], "names nothing to compare"),
        (["base", "long"], "sampling.max_tokens is 8 in the first and 9 in the second; evaluate both alike"),
        (["base", "parsed"], "scoring.reward.project.rewards:score is '1a2b' in the first and '3c4d' in the second"),
        (["base", "asked"], "items is"),
        (["base", "other"], "they are not of the same items; base"),
        (["base", "same", "--alpha", "1"], "alpha must lie between 0 and 1"),
        (["base", "same", "--alpha", "nan"], "alpha must lie between 0 and 1"),
        (["base", "same", "--margin", "0"], "the margin must be above 0, and is 0"),
        (["base", "same", "--slices", "subject"], "no slice 'subject'"),
        (["base", "same", "base"], "base is named twice"),
        (["base@3", "base"], "was not evaluated after step 3"),
    ],
)
def test_mistakes_are_one_line(runs: Path, capsys, arguments: list[str], message: str) -> None:
    make_run(runs, "base", [1.0, 0.0])
    make_run(runs, "long", [1.0, 0.0], max_tokens=9)
    make_run(runs, "same", [1.0, 0.0])
    make_run(runs, "parsed", [1.0, 0.0], reward="3c4d")
    make_run(runs, "asked", [1.0, 0.0], asked="Think. What is it?")
    make_run(runs, "other", [1.0, 0.0, 1.0])
    assert run(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
