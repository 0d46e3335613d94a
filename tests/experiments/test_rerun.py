"""A run is repeated from its record: the code as it was, the same bits; and a change is found where it first shows."""

import json
import sys

import pytest

from burnish.cli.app import run as command
from burnish.errors import DataError, UserError
from burnish.experiments.rerun import noise_of_seeds, rerun
from burnish.reproducibility.run_folder import RunFolder

from .conftest import REWARD, git

pytestmark = pytest.mark.slow


def repeat(run: RunFolder, **named):
    said: list[str] = []
    result = rerun(run, into=run.path.parent, say=said.append, **named)
    return result, said


def test_a_changed_and_uncommitted_reward_is_brought_back(project, train_here) -> None:
    """The record's reward is neither the commit's nor today's: an edit and a new module, both gone at the rerun."""
    (project / "project_rewards.py").write_text(
        "from project_half import half\n" + REWARD.replace("return", "return half *")
    )
    (project / "project_half.py").write_text("half = 0.5\n")
    (project / "unrelated.bin").write_bytes(b"\0" * 10)
    run = train_here()
    repository = run.record()["code"]["repository"]
    assert repository["is_changed"] and repository["changed_files"] == [" M project_rewards.py"]
    assert repository["untracked"]["project_half.py"]["kept"] and not repository["untracked"]["unrelated.bin"]["kept"]
    git(project, "checkout", "-q", "project_rewards.py")
    (project / "project_half.py").unlink()
    result, said = repeat(run)
    assert result.verdict == "bit-equal", (result.text(), said)
    assert result.comparison.num_steps == 4 and "weights and optimizer of step 4" in result.comparison.compared
    assert result.run.record()["rerun"]["of"] == run.path.name
    assert result.run.record()["code"]["folder"] != str(project)
    assert not [each for each in said if "exactness" in each]


def test_a_changed_line_names_its_first_step(project, train_here, capfd) -> None:
    run = train_here()
    # the same until question 7 is asked, in a step that the rollouts tell
    asked = {step: {group["task_id"] for group in run.read_step("rollouts", step)} for step in run.steps("rollouts")}
    late = sorted(asked[3] - asked[1] - asked[2])[0]
    changed = REWARD.replace("return", f"return (0.5 if task.id == {late!r} else 1.0) *")
    (project / "project_rewards.py").write_text(changed)
    assert command(["rerun", run.path.name, "--here", "--steps", "3", "--json"]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found["verdict"] == "different"
    assert found["first_difference"]["step"] == 3
    assert found["first_difference"]["key"].startswith("rollouts[") and found["first_difference"]["key"].endswith(
        "reward"
    )
    assert found["remarks"] == ["changed: reward (project_rewards:score)"]


def test_changed_data_is_refused(project, train_here) -> None:
    run = train_here()
    with (project / "tasks.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"cannot be repeated: its tasks \(train\) and prompts changed since"):
        repeat(run)
    assert [each.path for each in RunFolder.all(run.path.parent)] == [run.path]
    result, said = repeat(run, allow_changed=True, steps=1)
    assert result.verdict == "different" and "changed: tasks (train)" in said
    assert "changed: tasks (train)" in result.run.record()["rerun"]["remarks"]


def test_what_cannot_be_repeated(project, train_here) -> None:
    run = train_here(stop_after=2)
    assert run.record()["status"] == "interrupted"
    with pytest.raises(UserError, match=r"--steps 3: run .* has 2 steps"):
        repeat(run, steps=3)
    with pytest.raises(UserError, match="give at least two runs, and each run needs a seed of its own"):
        repeat(run, replicates=[run, run])
    other, another = train_here("--seed", "1"), train_here("--seed", "2", "--optimizer.learning_rate", "0.1")
    with pytest.raises(UserError, match=r"differs from .* in optimizer.learning_rate"):
        repeat(run, replicates=[other, another])
    record = run.record()
    record["code"]["repository"]["diff_left_out"] = "it was too large"
    run.write_record(record)
    with pytest.raises(UserError, match=r"was not kept \(it was too large\); --here"):
        repeat(run)
    record["code"]["repository"] = None
    run.write_record(record)
    with pytest.raises(UserError, match="began outside of a git repository"):
        repeat(run)
    metrics = run.path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 1', '"step":1'))
    with pytest.raises(DataError, match=r"metrics.jsonl was changed since the run ended"):
        repeat(run)


def test_noise_of_seeds_by_hand() -> None:
    """0, 1, 2: standard deviation 1; Student's t with 2 degrees of freedom has its 97.5% quantile at 4.302653."""
    assert noise_of_seeds([0.0, 1.0, 2.0]).half_width == pytest.approx(4.302653 * 2**0.5, rel=1e-6)
    with pytest.raises(ValueError, match="too little"):
        noise_of_seeds([0.0, 1.0])


def test_verify(project, train_here, capfd) -> None:
    run = train_here()
    assert command(["verify", run.path.name, "--steps", "2", "--repeats", "2"]) == 0
    said = capfd.readouterr().out
    assert said.count("bit-equal") == 2 and "stopped after step 2 and resumed" in said
    assert command(["verify", run.path.name, "--steps", "3"]) == 2
    assert "--steps 3: the run has 4 steps" in capfd.readouterr().err
    # a reward that depends on the process is found out
    (project / "project_rewards.py").write_text("import os\n" + REWARD.replace("return", "return os.getpid() *"))
    assert command(["verify", run.path.name, "--steps", "1", "--repeats", "1"]) == 1
    assert "different, first at step 0: evaluations[0].reward" in capfd.readouterr().out


def test_diff(project, train_here, capsys) -> None:
    run = train_here()
    (project / "project_rewards.py").write_text(REWARD.replace("100", "101"))
    sys.modules.pop("project_rewards")
    other = train_here("--optimizer.learning_rate", "0.001")
    assert command(["diff", run.path.name, other.path.name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    assert found["configuration"] == {"optimizer.learning_rate": [0.006, 0.001]}
    assert list(found["inputs"]) == ["reward.project_rewards:score"]
    assert found["environment"] == {} and list(found["code"]) == ["diff sha256"]
    assert command(["diff", run.path.name, other.path.name]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1].startswith("equal: environment")
    assert "held-out figures" in shown and "scoring.reward.project_rewards:score is" in shown
