"""`burnish experiment` and its arguments; what it does is imported when it is called."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from burnish.cli.arguments import AsJson
from burnish.monitoring.console import Waiting

ExperimentsFolder = Annotated[Path, Parameter(help="Folder that holds the experiments.")]
Amend = Annotated[str | None, Parameter(help="Why the plan changes after the first run; the report shows it.")]

experiment_app = App(
    name="experiment",
    help="""Plan, run and judge an experiment of several arms and seeds.

    Example: burnish experiment plan arms.yaml
    """,
)


@experiment_app.command
def plan(
    file: Path,
    *,
    like: Annotated[tuple[str, ...], Parameter(help="Past runs of about this cost, for an estimate.")] = (),
    amend: Amend = None,
    experiments_folder: ExperimentsFolder = Path("experiments"),
    runs_folder: Annotated[Path, Parameter(help="Folder that holds the past runs.")] = Path("runs"),
    as_json: AsJson = False,
) -> int:
    """Check every arm, and print the runs, the smallest difference they will find, and what they cost. Trains nothing.

    Example: burnish experiment plan arms.yaml --like last

    Parameters
    ----------
    file
        YAML file of the experiment.
    """
    with Waiting("starting"):
        from burnish.cli.experiment import print_plan

    folders = {"experiments_folder": experiments_folder, "runs_folder": runs_folder}
    return print_plan(file, like, amend=amend, as_json=as_json, **folders)


@experiment_app.command
def run(
    file: Path,
    *,
    max_parallel: Annotated[int | None, Parameter(help="Runs at once; the file's by default.")] = None,
    retry_failed: Annotated[bool, Parameter(negative="", help="Go on with runs that failed; diverged ones stay.")] = (
        False
    ),
    amend: Amend = None,
    experiments_folder: ExperimentsFolder = Path("experiments"),
) -> int:
    """Freeze the plan and run what is missing of it; what died or was interrupted goes on.

    Example: burnish experiment run arms.yaml

    Parameters
    ----------
    file
        YAML file of the experiment.
    """
    with Waiting("starting"):
        from burnish.cli.experiment import run_file

    return run_file(
        file,
        max_parallel=max_parallel,
        retry_failed=retry_failed,
        amend=amend,
        experiments_folder=experiments_folder,
    )


@experiment_app.command
def status(
    experiment: str, *, as_json: AsJson = False, experiments_folder: ExperimentsFolder = Path("experiments")
) -> int:
    """Say what became of each run.

    Example: burnish experiment status arms.yaml

    Parameters
    ----------
    experiment
        The experiment's file, folder or name.
    """
    with Waiting("starting"):
        from burnish.cli.experiment import print_status

    return print_status(experiment, experiments_folder, as_json=as_json)


@experiment_app.command
def report(
    experiment: str,
    *,
    also: Annotated[tuple[str, ...], Parameter(help="Metrics that were not planned, shown as exploratory.")] = (),
    experiments_folder: ExperimentsFolder = Path("experiments"),
    as_json: AsJson = False,
) -> int:
    """Judge what was planned, and write the report as Markdown, HTML and JSON into the experiment's folder.

    Example: burnish experiment report arms.yaml

    Parameters
    ----------
    experiment
        The experiment's file, folder or name.
    """
    with Waiting("starting"):
        from burnish.cli.experiment import print_report

    return print_report(experiment, experiments_folder, also=also, as_json=as_json)
