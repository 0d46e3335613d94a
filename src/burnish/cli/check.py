"""`burnish check loss | advantage | reward | environment`."""

from burnish.config.schema import TaskConfig
from burnish.data.tasks import load_tasks
from burnish.environments.base import load_environment
from burnish.environments.check import check_environment
from burnish.losses.advantages import ADVANTAGES, load_advantage
from burnish.losses.check_advantage import check_advantage
from burnish.losses.loss import load_loss
from burnish.rewards.check import check_reward
from burnish.rewards.scoring import load_reward
from burnish.training.check_loss import check_loss

_TASKS = 20


def check_own_loss(path: str, *, at_ends: bool) -> int:
    """Print what is wrong with a loss; exit status 1 where something is."""
    return _print(path, check_loss(load_loss(path, "loss"), at_ends=at_ends))


def check_own_advantage(path: str) -> int:
    """Print what is wrong with an advantage; exit status 1 where something is."""
    advantage = ADVANTAGES[path] if path in ADVANTAGES else load_advantage(path, "advantage")
    return _print(path, check_advantage(advantage))


def check_own_reward(path: str, source: str) -> int:
    """Print what is wrong with a reward on the tasks of a source; exit status 1 where something is."""
    tasks = load_tasks(TaskConfig(source=source, num_held_out=1)).train[:_TASKS]
    return _print(path, check_reward(load_reward(path), tasks))


def check_own_environment(path: str, source: str) -> int:
    """Print what is wrong with an environment on the tasks of a source; exit status 1 where something is."""
    tasks = load_tasks(TaskConfig(source=source, num_held_out=1)).train[:_TASKS]
    return _print(path, check_environment(load_environment(path), tasks))


def _print(what: str, findings: list[str]) -> int:
    for finding in findings:
        print(f"{what}: {finding}")
    if not findings:
        print(f"{what}: nothing found")
    return 1 if findings else 0
