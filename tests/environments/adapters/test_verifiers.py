import json
from pathlib import Path

import pytest

from burnish.config.schema import TaskConfig
from burnish.data.tasks import load_tasks
from burnish.environments.adapters.verifiers import taskset_reward, taskset_rows, write_rows
from burnish.errors import ConfigError
from burnish.records import Message, Task
from burnish.rewards.check import as_completion
from burnish.rewards.scoring import Score, ScoreFailure, score_all

vf = pytest.importorskip("verifiers.v1", reason="verifiers is not installed: pip install 'burnish[verifiers]'")


class SumData(vf.TaskData):
    total: int = 0


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=2.0)
    async def right(self, task, trace) -> float:
        return float(trace.last_reply == str(task.total))

    @vf.reward(weight=0.5)
    async def short(self, trace) -> float:
        return float(len(trace.last_reply) < 4)


class Sums(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self):
        for i in range(5):
            yield SumTask(SumData(prompt=f"{i}+1?", system_prompt="Add.", total=i + 1))


class Endless(Sums):
    INFINITE = True


class BoxTask(SumTask):
    @vf.reward
    async def tests_pass(self, runtime) -> float:
        return 1.0


class Boxes(vf.Taskset[BoxTask, vf.TasksetConfig]):
    def load(self):
        yield BoxTask(SumData(prompt="do it"))


def test_rows_become_tasks_that_the_taskset_scores(tmp_path: Path) -> None:
    taskset = Sums(vf.TasksetConfig())
    write_rows(taskset, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["messages"][1]["content"] for row in rows][:2] == ["0+1?", "1+1?"]
    split = load_tasks(TaskConfig(source=str(tmp_path / "rows.jsonl"), num_held_out=1))
    tasks = [*split.train, *split.held_out]
    assert len(tasks) == 5 and tasks[0].messages[0] == Message(role="system", content="Add.")
    reward = taskset_reward(taskset)
    right = [str(int(task.messages[1].content[0]) + 1) for task in tasks]
    pairs = [(as_completion(text), task) for text, task in zip(right, tasks, strict=True)]
    assert score_all(reward, pairs, timeout_seconds=5) == [Score(2.5, {"right": 2.0, "short": 0.5})] * 5
    wrong = [(as_completion("12345"), task) for task in tasks]
    assert score_all(reward, wrong, timeout_seconds=5) == [Score(0.0, {"right": 0.0, "short": 0.0})] * 5


def test_a_task_of_another_source_has_no_score() -> None:
    task = Task(id="t", messages=(Message(role="user", content="?"),), answer="")
    (score,) = score_all(taskset_reward(Sums(vf.TasksetConfig())), [(as_completion("1"), task)], timeout_seconds=5)
    assert isinstance(score, ScoreFailure) and "not of Sums" in score.reason


def test_what_needs_more_than_an_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a runtime for tests_pass"):
        taskset_rows(Boxes(vf.TasksetConfig()))
    with pytest.raises(ConfigError, match="Endless has no end"):
        taskset_rows(Endless(vf.TasksetConfig()))
    assert len(taskset_rows(Endless(vf.TasksetConfig()), limit=3)) == 3


class StagedTask(SumTask):
    async def finalize(self, trace, runtime) -> None:
        """Sets what a reward reads."""


class Staged(Sums):
    def load(self):
        yield StagedTask(SumData(prompt="do it"))


class SilentTask(vf.Task[SumData]):
    @vf.reward
    async def nothing(self) -> None:
        return None


class Silent(vf.Taskset[SilentTask, vf.TasksetConfig]):
    def load(self):
        yield SilentTask(SumData(prompt="do it"))


def test_stages_and_rewards_that_say_nothing_are_no_silent_zero() -> None:
    with pytest.raises(ConfigError, match="needs its stage finalize"):
        taskset_rows(Staged(vf.TasksetConfig()))
    taskset = Silent(vf.TasksetConfig())
    (row,) = taskset_rows(taskset)
    task = Task(id="t", messages=(Message(role="user", content="?"),), answer="", extra=row)
    (score,) = score_all(taskset_reward(taskset), [(as_completion("1"), task)], timeout_seconds=5)
    assert isinstance(score, ScoreFailure)
