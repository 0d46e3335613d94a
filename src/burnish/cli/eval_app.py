"""`burnish eval` and its arguments; what it does is imported when it is called."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

Settings = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
RunsFolder = Annotated[Path, Parameter(help="Folder that holds the runs.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="As JSON.")]

eval_app = App(name="eval", help="Answer the items of a task with a model, and keep every answer.")


@eval_app.default
def evaluate(
    model: str,
    *settings: Settings,
    task: Annotated[
        str | None, Parameter(help="JSONL file, reasoning-gym:<dataset>, recipe, run, or YAML file.")
    ] = None,
    slices: Annotated[str | None, Parameter(help="Fields by whose values the figures are split, with commas.")] = None,
    contamination_with: Annotated[str | None, Parameter(help="Training data: look for the items in it.")] = None,
    runs_folder: RunsFolder = Path("runs"),
    as_json: AsJson = False,
) -> int:
    """Evaluate a model, a run or a checkpoint on a task; what was answered already is not asked again.

    A recipe or a run stands for the questions it holds out. Any setting: --task.key, --sampling.key, --model.key VALUE.

    Example: burnish eval smollm2-135m --task quickstart

    Parameters
    ----------
    model
        A model's folder or name, a checkpoint, a run, or `last`.
    """
    from burnish.cli.eval import evaluate_model

    asked = {"task": task, "slices": slices, "contamination_with": contamination_with}
    return evaluate_model(model, settings, asked, runs_folder, as_json=as_json)


@eval_app.command(name="show")
def eval_show(store: Path, *, as_json: AsJson = False) -> int:
    """Print the figures of an eval store.

    Parameters
    ----------
    store
        Folder of the store.
    """
    from burnish.cli.eval import show_store

    return show_store(store, as_json=as_json)


@eval_app.command(name="verify")
def eval_verify(
    store: Path,
    *,
    rescore: Annotated[bool, Parameter(negative="", help="Score every stored answer again too.")] = False,
) -> int:
    """Check that an eval store is what was written, and that its scores follow from its answers. Exit status 1 if not.

    Parameters
    ----------
    store
        Folder of the store.
    """
    from burnish.cli.eval import verify_eval

    return verify_eval(store, with_reward=rescore)


@eval_app.command(name="import")
def eval_import(
    file: Path,
    *,
    kind: Annotated[str, Parameter(help="csv, lm-eval, or inspect.")],
    evals_folder: Annotated[Path, Parameter(help="Where stores are made.")] = Path("evals"),
) -> int:
    """Make eval stores of another tool's results.

    Parameters
    ----------
    file
        csv: a column `item` and one column of scores per model. lm-eval: a samples_*.jsonl. inspect: a JSON log.
    """
    from burnish.cli.eval import import_results

    return import_results(file, kind, evals_folder)


def contamination(train: str, evaluation: str, *, as_json: AsJson = False) -> int:
    """Look for the items of an evaluation in training data: exactly, by runs of 13 words, and nearly.

    Parameters
    ----------
    train
        JSONL file that was trained on.
    evaluation
        JSONL file of questions, or the folder of an eval store: then the score without what was found is printed too.
    """
    from burnish.cli.eval import print_contamination

    return print_contamination(train, evaluation, as_json=as_json)
