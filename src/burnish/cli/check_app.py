"""`burnish check` and its arguments; what it does is imported when it is called."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from burnish.cli.arguments import AsJson, Run, RunsFolder
from burnish.monitoring.console import Waiting

check_app = App(
    name="check",
    help="""Try what you wrote, before a run does.

    Example: burnish check loss my_losses:focal
    """,
)


@check_app.command(name="loss")
def check_loss(
    path: str,
    *,
    at_ends: Annotated[bool, Parameter(negative="", help="A reward model's loss: one value a sequence.")] = False,
    as_json: AsJson = False,
) -> int:
    """Try a loss on small random batches and say in plain words what is wrong with it.

    Example: burnish check loss my_losses:focal

    Parameters
    ----------
    path
        package.module:name of a loss.
    """
    with Waiting("starting"):
        from burnish.cli.check import check_own_loss

    return check_own_loss(path, at_ends=at_ends, as_json=as_json)


@check_app.command(name="advantage")
def check_advantage(path: str, *, as_json: AsJson = False) -> int:
    """Try an advantage on hard rewards and say in plain words what is wrong with it.

    Example: burnish check advantage my_advantages:by_rank

    Parameters
    ----------
    path
        package.module:name of a function (rewards_B, group_B) -> advantages_B, or the name of one that ships.
    """
    with Waiting("starting"):
        from burnish.cli.check import check_own_advantage

    return check_own_advantage(path, as_json=as_json)


@check_app.command(name="reward")
def check_reward(
    path: str,
    source: str | None = None,
    *,
    as_json: AsJson = False,
) -> int:
    """Try a reward on right answers, garbage and tricks, and say how a model could game it.

    Exit status 1 if it can.

    Example: burnish check reward my_rewards:score questions.jsonl

    Parameters
    ----------
    path
        package.module:name of a function (completion, task) -> number.
    source
        JSONL file of tasks, or reasoning-gym:<dataset>; a few sums by default.
    """
    with Waiting("starting"):
        from burnish.cli.check import check_own_reward

    return check_own_reward(path, source, as_json=as_json)


@check_app.command(name="environment")
def check_environment(path: str, source: str, *, as_json: AsJson = False) -> int:
    """Try an environment on the reference answers of some tasks, and on garbage, and say what is wrong with it.

    Example: burnish check environment my_games:Chess questions.jsonl

    Parameters
    ----------
    path
        package.module:name of a class with `reset(task)` and `step(said)`.
    source
        JSONL file of tasks, or reasoning-gym:<dataset>.
    """
    with Waiting("starting"):
        from burnish.cli.check import check_own_environment

    return check_own_environment(path, source, as_json=as_json)


@check_app.command(name="gradients")
def check_gradients(
    run: Run,
    *,
    runs_folder: RunsFolder = Path("runs"),
    batches: Annotated[int, Parameter(help="Batches to look at, from the next one on.")] = 4,
    as_json: AsJson = False,
) -> int:
    """Say whether the parts of a run's loss and reward pull the same way, at its newest weights. Trains nothing.

    Example: burnish check gradients last
    """
    with Waiting("starting"):
        from burnish.cli.check import check_run_gradients

    return check_run_gradients(run, runs_folder, num_batches=batches, as_json=as_json)
