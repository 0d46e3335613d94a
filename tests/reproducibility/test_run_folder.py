import json
from pathlib import Path

import pytest

from burnish.cli.app import run as command
from burnish.errors import DataError, UserError
from burnish.reproducibility.run_folder import RunFolder


def make(tmp_path: Path, name: str, created: str) -> RunFolder:
    run = RunFolder.create(tmp_path, name)
    run.write_record({"created": created, "status": "running"})
    return run


def test_find_by_path_name_beginning_and_last(tmp_path: Path) -> None:
    first, second = make(tmp_path, "a", "2026-01-02"), make(tmp_path, "b", "2026-01-01")
    assert RunFolder.find(str(first.path), tmp_path).path == first.path
    assert RunFolder.find(second.path.name, tmp_path).path == second.path
    assert RunFolder.find("b-", tmp_path).path == second.path
    assert RunFolder.find("last", tmp_path).path == first.path
    with pytest.raises(UserError, match="no run begins with 'c'"):
        RunFolder.find("c", tmp_path)
    make(tmp_path, "a", "2026-01-03")
    with pytest.raises(UserError, match="several runs begin with 'a-'"):
        RunFolder.find("a-", tmp_path)


def test_rewind_forgets_later_steps_and_half_written_files(tmp_path: Path) -> None:
    run = make(tmp_path, "a", "2026")
    for step in (1, 2, 3):
        run.add_metrics({"step": step})
        run.write_step("rollouts", step, [{"x": step}])
    run.write_step("evaluations", 0, [])
    run.write_step("evaluations", 3, [])
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # cut off by a kill
    (run.path / "rollouts" / ".step-000004.jsonl.99.tmp").write_text("x")
    (run.path / "checkpoints" / ".step-000004.99.tmp").mkdir()
    (run.path / "checkpoints" / ".step-000004.99.tmp" / "model.safetensors").write_text("x")
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    run.rewind(2)
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert (run.steps("rollouts"), run.steps("evaluations")) == ([1, 2], [0])
    assert not list(run.path.rglob(".*.tmp"))


def test_damaged_files_are_one_line(tmp_path: Path, capsys) -> None:
    run = make(tmp_path, "a", "2026")
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    (run.path / "config.yaml").write_text("seed: 1\n")
    for arguments in (
        ["show", str(run.path)],
        ["power", "seeds", "--effect", "1", "--sd", "1", "--from", str(run.path)],
    ):
        assert command(arguments) == 2
        err = capsys.readouterr().err
        assert "metrics.jsonl, line 2: not valid JSON" in err and err.count("\n") == 1
    for damaged in ("[]", "{"):
        (run.path / "run.json").write_text(damaged)
        with pytest.raises(DataError, match=r"run\.json: not the record of a run"):
            run.record()
    assert RunFolder.all(tmp_path) == []


def test_rollouts_are_trimmed_oldest_first(tmp_path: Path) -> None:
    run = make(tmp_path, "a", "2026")
    for step in range(1, 6):
        run.write_step("rollouts", step, [{"text": "x" * 1000}])
    run.trim_rollouts(2500)
    assert run.steps("rollouts") == [4, 5]
    run.trim_rollouts(1)
    assert run.steps("rollouts") == [5]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = make(tmp_path, "a", "2026")
    with run.locked(), pytest.raises(UserError, match="being trained by another process"), run.locked():
        pass
    assert run.status() == "died"
    with run.locked():
        assert run.status() == "running"
    run.update_record(status="interrupted")
    assert run.status() == "interrupted"


def test_events_and_record(tmp_path: Path) -> None:
    run = make(tmp_path, "a", "2026")
    run.add_event("saved", step=3)
    event = json.loads((run.path / "events.jsonl").read_text())
    assert (event["event"], event["step"]) == ("saved", 3)
    run.update_record(status="finished")
    assert run.record() == {"created": "2026", "status": "finished"}


def test_foreign_folders_are_not_runs(tmp_path: Path) -> None:
    run = make(tmp_path, "a", "2026")
    for name, text in (("x", "{}"), ("y", "{"), ("z", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    assert [each.path for each in RunFolder.all(tmp_path)] == [run.path]
