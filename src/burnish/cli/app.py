"""The commands and their arguments; what they do is imported when they are called."""

import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from burnish.cli.arguments import AsJson, Recipe, Run, RunsFolder, Settings, SettingsFile
from burnish.cli.check_app import check_app
from burnish.cli.compare import compare
from burnish.cli.config_app import config_app
from burnish.cli.deploy import deploy_app
from burnish.cli.eval_app import contamination, eval_app
from burnish.cli.experiment_app import experiment_app
from burnish.cli.feedback import feedback_app
from burnish.cli.model_app import model_app
from burnish.cli.monitor_app import monitor_app
from burnish.cli.power import power_app
from burnish.cli.render_app import render_app
from burnish.cli.ui import ui
from burnish.cli.usage import EXIT_STATUSES, nearest_flag, usage_fault
from burnish.cli.version import version_line
from burnish.cli.watch import watch
from burnish.errors import BurnishError, UnknownSettingError
from burnish.monitoring.console import Waiting

_NO_WIDTH = 10_000
_READER_GONE = 128 + signal.SIGPIPE  # what a shell says of a program that this ended

StopAfter = Annotated[int | None, Parameter(help="Save and stop after this step, as Ctrl-C would.")]

app = App(
    name="burnish",
    help="""Improve a language model, and know that it did.

    Example: burnish train quickstart
    """,
    version=version_line,
    version_format="plaintext",
    help_epilogue=EXIT_STATUSES,
    suppress_keyboard_interrupt=False,  # it would end without a word
)
app.command(model_app)
app.command(deploy_app)
app.command(eval_app)
app.command(feedback_app)
app.command(monitor_app)
app.command(check_app)
app.command(config_app)
app.command(experiment_app)
app.command(render_app)
app.command(power_app)
app.command(watch)
app.command(ui)
app.command(compare)
app.command(contamination)


@app.command
def train(
    recipe: Recipe,
    *settings: Settings,
    file: SettingsFile = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Check everything, load no weights, train nothing.")] = False,
    profile: Annotated[bool, Parameter(negative="", help="Say where the time and memory of a step go.")] = False,
    stop_after: StopAfter = None,
) -> int:
    """Train a recipe; override any setting with --section.key VALUE.

    Example: burnish train quickstart --train.num_steps 10 --seed 3
    """
    with Waiting("starting"):
        from burnish.cli.train import train_recipe

    return train_recipe(recipe, settings, file=file, is_dry_run=dry_run, with_profile=profile, stop_after=stop_after)


@app.command
def memory(
    recipe: Recipe,
    *settings: Settings,
    file: SettingsFile = None,
    device: Annotated[str, Parameter(help="Where it must fit: this, a size such as 24GiB, or a GPU such as h100.")] = (
        "this"
    ),
    as_json: AsJson = False,
) -> int:
    """Say what a recipe will hold in memory, phase by phase, and what would make it fit.

    Exit status 1 if it does not fit. Loads no weights.

    Example: burnish memory quickstart --device 3GiB
    """
    with Waiting("starting"):
        from burnish.cli.memory import print_memory

    return print_memory(recipe, settings, file=file, device=device, as_json=as_json)


@app.command
def doctor(
    *,
    address: Annotated[
        str | None, Parameter(help="A running Ray cluster: look at every node, and between them.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Say what this machine has, what a run will use of it, and what is wrong.

    Example: burnish doctor
    """
    with Waiting("starting"):
        from burnish.cli.doctor import print_doctor

    return print_doctor(address, as_json=as_json)


@app.command
def resume(
    run: Run,
    *settings: Settings,
    runs_folder: RunsFolder = Path("runs"),
    stop_after: StopAfter = None,
    allow_changed: Annotated[
        bool, Parameter(negative="", help="Go on although data, reward, model or tokenizer changed; it is recorded.")
    ] = False,
) -> int:
    """Go on with a run that was interrupted, bit by bit as if it had not been.

    Where it runs may change, with --cluster.key VALUE; the numbers then agree to rounding.

    Example: burnish resume last
    """
    with Waiting("starting"):
        from burnish.cli.train import resume_run

    return resume_run(run, settings, runs_folder, stop_after=stop_after, allow_changed=allow_changed)


@app.command(name="runs")
def list_runs(*, runs_folder: RunsFolder = Path("runs"), as_json: AsJson = False) -> int:
    """List the runs.

    Example: burnish runs
    """
    from burnish.cli.runs import print_runs

    return print_runs(runs_folder, as_json=as_json)


@app.command
def show(
    run: Run,
    *,
    runs_folder: RunsFolder = Path("runs"),
    step: Annotated[int | None, Parameter(help="Step whose rollouts to show; the last by default.")] = None,
    groups: Annotated[int, Parameter(help="Groups to show.")] = 2,
    as_json: AsJson = False,
) -> int:
    """Show a run: its result, its curves, and a few groups of rollouts side by side.

    Example: burnish show last --groups 4
    """
    from burnish.cli.show import print_run

    return print_run(run, runs_folder, step=step, num_groups=groups, as_json=as_json)


@app.command
def rerun(
    run: Run,
    *,
    runs_folder: RunsFolder = Path("runs"),
    steps: Annotated[int | None, Parameter(help="Only the first so many steps.")] = None,
    into: Annotated[Path | None, Parameter(help="Folder for the new run; where the old one is by default.")] = None,
    here: Annotated[bool, Parameter(negative="", help="With the code as it is, in the working directory.")] = False,
    allow_changed: Annotated[
        bool, Parameter(negative="", help="Although data, reward, model or tokenizer changed; it is recorded.")
    ] = False,
    replicates: Annotated[
        str | None, Parameter(help="Runs of other seeds, with commas between: how far apart chance lets runs fall.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Repeat a run with the code, settings, data and seeds it was recorded with, and say whether it gave the same.

    The verdict is bit-equal, within seed noise, or different; then the first step and value that differ are named, and
    the exit status is 1.

    Example: burnish rerun last --steps 5
    """
    with Waiting("starting"):
        from burnish.cli.rerun import rerun_run

    options = {"steps": steps, "here": here, "allow_changed": allow_changed}
    return rerun_run(run, runs_folder, into=into, replicates=replicates, as_json=as_json, **options)


@app.command
def verify(
    run: Run,
    *,
    runs_folder: RunsFolder = Path("runs"),
    steps: Annotated[int, Parameter(help="Steps before the break, and after it.")] = 2,
    repeats: Annotated[int, Parameter(help="Unbroken trainings, all of which must be the same.")] = 2,
    as_json: AsJson = False,
) -> int:
    """Say whether a run's training repeats itself and resumes bit by bit here: train it, break it, compare.

    Exit status 1 if it does not. The run itself is not touched.

    Example: burnish verify last --steps 2
    """
    with Waiting("starting"):
        from burnish.cli.verify import verify_run

    return verify_run(run, runs_folder, steps=steps, repeats=repeats, as_json=as_json)


@app.command(name="diff")
def diff_runs(first: Run, second: Run, *, runs_folder: RunsFolder = Path("runs"), as_json: AsJson = False) -> int:
    """Say in what two runs differ: results, configuration, code, inputs, environment.

    Example: burnish diff plain-seed0 clipped-seed0
    """
    from burnish.cli.diff import print_diff

    return print_diff(first, second, runs_folder, as_json=as_json)


@app.command
def export(
    run: Run,
    *,
    to: Annotated[Path, Parameter(help="A folder that does not exist yet.")],
    runs_folder: RunsFolder = Path("runs"),
) -> int:
    """Write what others need to judge and repeat a run, as plain files: model card, lock file, bills and provenance.

    Example: burnish export last --to published
    """
    with Waiting("starting"):
        from burnish.cli.export import export_run

    return export_run(run, runs_folder, to)


@app.command
def audit(
    run: Run,
    *,
    runs_folder: RunsFolder = Path("runs"),
    gold: Annotated[str | None, Parameter(help="package.module:name of a reward that says what was meant.")] = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, Parameter(help="SVG file to draw the curves to.")] = None,
) -> int:
    """Say whether a run gained what was meant, or only what its reward counts.

    Reads stored answers, loads no model. Exit status 1 if an alarm is raised.

    Example: burnish audit last --gold my_rewards:right --plot audit.svg
    """
    with Waiting("starting"):
        from burnish.cli.audit import print_audit

    return print_audit(run, runs_folder, gold=gold, as_json=as_json, plot=plot)


@app.command
def serve(model: str, *settings: Settings, runs_folder: RunsFolder = Path("runs")) -> int:
    """Serve a model, a run or a checkpoint to OpenAI's clients, until Ctrl-C.

    Any setting can follow: --port 8080, --engine vllm, --limits.KEY VALUE; all of them are listed by:
    burnish config schema serve

    Example: burnish serve smollm2-135m

    Parameters
    ----------
    model
        A model's folder or name, a checkpoint, a run, or `last`.
    """
    from burnish.cli.serve import serve_model

    return serve_model(model, settings, runs_folder)


@app.command
def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print a script with which a shell completes commands, flags and choices at the Tab key.

    Put what fits your shell into the file that it reads when it starts:

    ~/.bashrc: source <(burnish completion bash)

    ~/.zshrc, after compinit: source <(burnish completion zsh)

    ~/.config/fish/config.fish: burnish completion fish | source

    Example: burnish completion bash > ~/.local/share/bash-completion/completions/burnish

    Parameters
    ----------
    shell
        The shell that reads it.
    """
    print(app.generate_completion(shell=shell), end="")
    return 0


def run(arguments: Sequence[str]) -> int:
    """Parse, call, and turn errors into one line and an exit status."""
    if not Console().is_terminal:  # a pipe wants words and whole lines, and no boxes
        app.help_formatter, app.help_format, app.console = "plain", "plaintext", Console(width=_NO_WIDTH)
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # or a fault of writing comes when Python ends
        return int(result or 0)
    except CycloptsError as error:
        return _fail(usage_fault(error), 2)
    except UnknownSettingError as error:
        return _fail(f"{error}{nearest_flag(app, arguments, error.key)}", error.exit_status)
    except BurnishError as error:
        return _fail(str(error), error.exit_status)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():  # `burnish show last | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            return _READER_GONE
        is_the_users = isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError, FileExistsError))
        message = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
        return _fail(message, 2 if is_the_users else 3)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _fail(message: str, status: int) -> int:
    print(f"burnish: {' '.join(message.split())}", file=sys.stderr)
    return status
