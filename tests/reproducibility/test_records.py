"""What a record says of code and environment, what it leaves out, and who must be told when something differs."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.errors import DataError, UserError
from burnish.reproducibility import code_state
from burnish.reproducibility.code_state import read_code
from burnish.reproducibility.environment import (
    Difference,
    environment_differences,
    environment_record,
    installed_packages,
)
from burnish.reproducibility.first_difference import compare_runs
from burnish.reproducibility.record import source_hash
from burnish.reproducibility.redaction import REDACTED, holds_secret, redacted, redacted_arguments
from burnish.reproducibility.run_folder import RunFolder
from burnish.reproducibility.work_tree import code_as_recorded

KEY = "sk-" + "a1B2" * 6


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "repository"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    (folder / "picture.bin").write_bytes(bytes(range(256)))
    git(folder, "init", "-q", "-b", "trunk")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.chdir(folder)
    return folder


def finished_run(folder: Path, code: dict | None = None) -> RunFolder:
    run = RunFolder.create(folder, "a")
    run.write_record({"format": 1, "created": "2026", "status": "running", "code": code})
    (run.path / "config.yaml").write_text("task: {source: sub/rows.jsonl}\n")
    return run


# --- code ---


def test_what_differs_from_the_commit_is_kept_and_brought_back(repository: Path, tmp_path: Path) -> None:
    (repository / "a.py").write_text("a = 2\n")
    (repository / "picture.bin").write_bytes(bytes(range(255, -1, -1)))
    (repository / "sub" / "new.py").write_text("b = 3\n")
    (repository / "sub" / "rows.jsonl").write_text("{}\n")
    (repository / "runs" / "x").mkdir(parents=True)
    (repository / "runs" / "x" / "config.yaml").write_text("x: 1\n")
    code = read_code(Path("runs"))
    found = code.record["repository"]
    assert (found["branch"], found["folder"], len(found["commit"])) == ("trunk", ".", 40)
    assert found["changed_files"] == [" M a.py", " M picture.bin"]
    assert {name: entry["kept"] for name, entry in found["untracked"].items()} == {
        "sub/new.py": True,
        "sub/rows.jsonl": False,
    }
    run = finished_run(tmp_path / "runs", code.record)
    code.write(run.path)
    git(repository, "checkout", "-q", ".")
    (repository / "sub" / "new.py").unlink()
    with code_as_recorded(run.path, code.record) as place:
        assert place.folder != repository
        assert (place.folder / "a.py").read_text() == "a = 2\n"
        assert (place.folder / "picture.bin").read_bytes() == bytes(range(255, -1, -1))
        assert (place.folder / "sub" / "new.py").read_text() == "b = 3\n"
        assert (place.folder / "sub" / "rows.jsonl").resolve() == repository / "sub" / "rows.jsonl"
        kept = place.folder
    assert not kept.exists()
    assert (repository / "a.py").read_text() == "a = 1\n"
    (run.path / "code.diff").write_bytes(b"")
    with (
        pytest.raises(DataError, match=r"code.diff is missing or is not what the run's record says"),
        code_as_recorded(run.path, code.record),
    ):
        pass


def test_secrets_and_large_changes_are_not_kept(repository: Path, monkeypatch) -> None:
    (repository / "a.py").write_text(f"key = {KEY!r}\n")
    (repository / "b.py").write_text(f"key = {KEY!r}\n")
    code = read_code(Path("runs"))
    assert code.record["repository"]["diff_left_out"] == "it holds what looks like a password, key or token"
    assert not [name for name in code.files if name.startswith("code")] and KEY not in json.dumps(code.record)
    (repository / "a.py").write_text("a = 5\n" * 100)
    monkeypatch.setattr(code_state, "MAX_DIFF_BYTES", 100)
    assert "bytes, and 100 are kept at most" in read_code(Path("runs")).record["repository"]["diff_left_out"]


def test_outside_of_a_repository(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = read_code(Path("runs"))
    assert code.record["repository"] is None
    with (
        pytest.raises(UserError, match="began outside of a git repository"),
        code_as_recorded(finished_run(tmp_path / "runs").path, code.record),
    ):
        pass


def test_the_hash_of_a_reward_covers_what_it_imports(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "hashed_helper.py").write_text("x = 1\n")
    (tmp_path / "hashed_reward.py").write_text(
        "import json\nimport numpy\nfrom hashed_helper import x\n\ndef score(): ...\n"
    )
    before = source_hash("hashed_reward:score", "task.reward")
    assert before == source_hash("hashed_reward:score", "task.reward")
    (tmp_path / "hashed_helper.py").write_text("x = 2\n")
    assert source_hash("hashed_reward:score", "task.reward") != before
    for name in ("hashed_helper", "hashed_reward"):
        del sys.modules[name]


@pytest.mark.parametrize("line", ["from .helper import x", "from . import helper", "from .. import other"])
def test_a_reward_is_hashed_with_what_it_imports_of_its_package(tmp_path: Path, monkeypatch, line: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / "hashed_package" / "inner"
    inner.mkdir(parents=True)
    for path in (inner / "__init__.py", inner.parent / "__init__.py"):
        path.write_text("")
    (inner / "reward.py").write_text(f"{line}\n\ndef score(): ...\n")
    changed = inner.parent / "other.py" if "other" in line else inner / "helper.py"
    changed.write_text("x = 1\n")
    before = source_hash("hashed_package.inner.reward:score", "task.reward")
    changed.write_text("x = 2\n")
    assert source_hash("hashed_package.inner.reward:score", "task.reward") != before
    for name in [name for name in sys.modules if name.startswith("hashed_package")]:
        del sys.modules[name]


# --- secrets ---


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "--judge.api_key", "DB_PASSWORD", "aws-secret"])
def test_secret_names(name: str) -> None:
    assert redacted(name, "value") == REDACTED


@pytest.mark.parametrize(
    "name", ["--rollout.max_tokens", "TOKENIZERS_PARALLELISM", "train.micro_batch_tokens", "KEYBOARD"]
)
def test_names_that_only_look_so(name: str) -> None:
    assert redacted(name, "8") == "8"


def test_secret_values_and_arguments() -> None:
    assert redacted("URL", "https://me:pass@host/x") == f"https://{REDACTED}@host/x"
    assert redacted("A", f"x {KEY} y") == f"x {REDACTED} y"
    assert holds_secret("-----BEGIN RSA PRIVATE KEY-----") and not holds_secret("sk-short, hf_short, https://host/x")
    shown = redacted_arguments(["train", "--judge.api_key", "abc", "--task.source=x", "--hub-token=abc", "--seed", "3"])
    assert shown == ["train", "--judge.api_key", REDACTED, "--task.source=x", f"--hub-token={REDACTED}", "--seed", "3"]


# --- environment ---


def test_environment_record(monkeypatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-w0rd")
    monkeypatch.setenv("BURNISH_JUDGE__API_KEY", "s3cr3t-w0rd")
    record = environment_record(2)
    import torch

    assert record["torch"]["version"] == torch.__version__
    assert record["packages"]["torch"] == importlib.metadata.version("torch")  # without +cu130 in the public index's
    assert record["variables"]["OMP_WAIT_POLICY"] == "passive"
    assert record["variables"]["BURNISH_JUDGE__API_KEY"] == REDACTED and "s3cr3t-w0rd" not in json.dumps(record)
    assert environment_differences(record, environment_record(2)) == []


def test_what_costs_exactness_comes_first() -> None:
    before = {"kernel": "1", "num_threads": 2, "packages": {"rich": "1", "torch": "2.13", "gone": "1"}}
    before["torch"], before["variables"] = {"capability": "AVX2", "gpu_ids": []}, {"LANG": "C"}
    after = {"kernel": "2", "num_threads": 2, "packages": {"rich": "2", "torch": "2.14"}}
    after["torch"], after["variables"] = {"capability": "AVX512", "gpu_ids": ["1"]}, {"LANG": "C", "ATEN_X": "1"}
    found = environment_differences(before, after)
    assert [each.key for each in found if each.breaks_exactness] == [
        "packages.torch",
        "torch.capability",
        "variables.ATEN_X",
    ]
    assert [each.key for each in found[3:]] == ["kernel", "packages.rich", "packages.gone", "torch.gpu_ids"]
    assert str(found[0]) == "packages.torch 2.13 -> 2.14"
    assert found[5] == Difference("packages.gone", "1", None, False)


# --- the run folder ---


def test_a_record_of_another_version(tmp_path: Path, capsys) -> None:
    from burnish.cli.app import run as command

    run = finished_run(tmp_path)
    run.write_record({"format": 7, "created": "2026"})
    with pytest.raises(UserError, match=r"run.json has format 7, and this version reads 1"):
        run.record()
    assert command(["runs", "--runs-folder", str(tmp_path)]) == 0
    assert "of another version" in capsys.readouterr().out
    run.write_record({"created": "2026", "status": "finished"})
    with pytest.raises(UserError, match="format before 1"):
        run.whole_record()


def test_a_sealed_run_tells_when_it_was_changed(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.add_metrics({"step": 1, "reward_mean": 0.5, "seconds": 2.0, "tokens": 10})
    run.add_metrics({"step": 2, "reward_mean": 0.7, "seconds": 1.5, "tokens": 20})
    run.write_step("evaluations", 0, [{"id": "x", "score": 0.0}, {"id": "y", "score": 1.0}])
    run.write_step("evaluations", 2, [{"id": "x", "score": 1.0}, {"id": "y", "score": 1.0}])
    run.write_step("rollouts", 1, [{"group": 0}])
    run.seal(status="finished")
    assert run.record()["cost"] == {"seconds": 3.5, "tokens": 30, "peak_memory_bytes": 0}
    expected = {"created": "2026", "status": "finished", "step": 2, "reward_mean": 0.7, "held_out": [0.5, 1.0]}
    assert run.kept_summary() == expected
    run.require_unchanged()
    (run.path / "rollouts" / "step-000001.jsonl").unlink()  # to make room
    run.require_unchanged()
    (run.path / "evaluations" / "step-000002.jsonl").unlink()
    with pytest.raises(DataError, match=r"step-000002.jsonl was removed"):
        run.require_unchanged()
    run.update_record(status="running")
    assert run.kept_summary() is None


def test_the_first_difference_is_the_first(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path), finished_run(tmp_path)]
    for run, loss in zip(runs, (0.1 + 0.2, 0.3), strict=True):
        for step in (1, 2, 3):
            ids = [1, 2, 3 if step < 3 else int(loss * 1e17) % 7]
            run.write_step("rollouts", step, [{"group": 0, "rollouts": [{"token_ids": ids}]}])
            run.add_metrics({"step": step, "seconds": loss, "reward_mean": 1.0, "loss": loss if step == 2 else 0.0})
    found = compare_runs(*runs)
    assert found.difference is not None
    assert (found.difference.step, found.difference.key) == (2, "metrics.loss")
    assert (0.1 + 0.2).hex() in str(found.difference) and (0.3).hex() in str(found.difference)
    assert compare_runs(*runs, num_steps=1).are_equal
    assert compare_runs(runs[0], runs[0]).compared[-1].startswith("no weights")
    runs[1].rewind(1)
    for num_steps in (None, 2, 3):
        for pair in (runs, runs[::-1]):
            longer = compare_runs(*pair, num_steps=num_steps).difference
            assert longer is not None and (longer.step, longer.key) == (2, "the number of steps")
    assert compare_runs(*runs, num_steps=1).are_equal
    assert not compare_runs(runs[0], runs[0], num_steps=4).are_equal  # nothing says that step 4 repeats itself


@pytest.mark.parametrize("step", [0, 2])
def test_an_evaluation_that_one_run_lacks_is_a_difference(tmp_path: Path, step: int) -> None:
    runs = [finished_run(tmp_path), finished_run(tmp_path)]
    for run in runs:
        for each in (1, 2):
            run.add_metrics({"step": each, "loss": 0.5})
            run.write_step("rollouts", each, [{"group": 0, "rollouts": []}])
    (runs[1].path / "rollouts" / "step-000001.jsonl").unlink()  # to make room
    assert compare_runs(*runs).are_equal
    runs[0].write_step("evaluations", step, [{"id": "x", "score": 1.0}])
    for num_steps in (None, 2):
        found = compare_runs(*runs, num_steps=num_steps).difference
        assert found is not None and str(found) == f"step {step}: evaluations is 1 items and (absent)"


def test_other_weights_are_found(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path), finished_run(tmp_path)]
    for run, weights in zip(runs, (b"one", b"two"), strict=True):
        run.add_metrics({"step": 1, "loss": 0.5})
        folder = run.checkpoints / "step-000001"
        folder.mkdir()
        for name, content in (("manifest.json", b"{}"), ("state.json", b"{}"), ("model.safetensors", weights)):
            (folder / name).write_bytes(content)
    found = compare_runs(*runs)
    assert found.difference is not None and found.difference.key == "sha256 of model.safetensors"
    assert found.checkpoint == 1


def test_what_a_package_carries_inside_itself_is_not_installed(tmp_path, monkeypatch) -> None:
    for folder, name in (("site-packages", "outer"), ("site-packages/outer/carried", "inner")):
        info = tmp_path / folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(tmp_path / folder)
    packages = installed_packages()
    assert packages["outer"] == "1.0" and "inner" not in packages
