import json
from pathlib import Path

import pytest
import yaml

from burnish.cli.app import run
from burnish.reproducibility.run_folder import RunFolder

GSM8K = Path(__file__).parents[3] / "shared/data/outcomes/gsm8k_gpt3_4systems.csv"


def make_run(folder: Path, name: str, scores: list[float], *, seed: int = 0, temperature: float = 0.0) -> str:
    made = RunFolder.create(folder, name)
    made.write_record(
        {"created": f"2026-01-01T00:00:{seed:02d}Z", "status": "done", "measure": "accuracy", "reward": {}}
    )
    config = {
        "seed": seed,
        "rollout": {"max_tokens": 8 + int(temperature), "stop": []},
        "task": {"environment": None},
        "evaluation": {"right_at": 1.0},
    }
    (made.path / "config.yaml").write_text(yaml.safe_dump(config))
    items = [{"id": f"q{i}", "score": score, "messages": [], "answer": "1"} for i, score in enumerate(scores)]
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
    assert claim["evidence"][0]["low"] is None


def test_arms_by_glob_and_commas(runs: Path, capsys) -> None:
    for seed in range(3):
        make_run(runs, f"plain-seed{seed}", [0.0, 1.0] * (8 - seed) + [0.0] * 2 * seed, seed=seed)
        make_run(runs, f"clipped-seed{seed}", [1.0] * 16, seed=seed)
    assert run(["compare", "plain-seed*", "clipped-seed0,clipped-seed1,clipped-seed2"]) == 0
    out = capsys.readouterr().out
    assert "paired t over seeds" in out and "plain-seed*: seed 0 0.500, seed 1 0.438, seed 2 0.375" in out
    assert "plain-seed* has 3 seeds" in out


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K} is not here: it holds the outcomes of four systems")
def test_imported_outcomes_of_gsm8k(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["eval", "import", str(GSM8K), "--kind", "csv"]) == 0
    out = capsys.readouterr().out
    assert all(f"{right} of 1319" in out for right in (286, 515, 458, 742))
    both = ["compare", "evals/6b_verification-*", "evals/175b_finetuning-*"]
    assert run([*both, "--json"]) == 0
    (claim,) = json.loads(capsys.readouterr().out)["claims"]
    (over_items,) = claim["evidence"]
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
        (["base", "hot"], "sampling.max_tokens is 8 in the first and 9 in the second"),
        (["base", "other"], "they are not of the same items"),
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
    make_run(runs, "hot", [1.0, 0.0], temperature=1.0)
    make_run(runs, "same", [1.0, 0.0])
    make_run(runs, "other", [1.0, 0.0, 1.0])
    assert run(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
