"""`burnish eval` and its arguments; what it does is imported when it is called."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from burnish.cli.arguments import AsJson, EvalsFolder, RunsFolder, Settings, Store
from burnish.errors import UserError
from burnish.monitoring.console import Waiting

eval_app = App(
    name="eval",
    help="""Answer the items of a task with a model, and keep every answer.

    What was answered already is not asked again; what was interrupted goes on. A recipe or a run stands for the
    questions that it holds out. Any setting can follow: --task.KEY, --sampling.KEY, --model.KEY VALUE; all of them are
    listed by: burnish config schema eval

    Example: burnish eval smollm2-135m --task quickstart
    """,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a store is read."""

    level: Annotated[float, Parameter(help="Level of the intervals.")] = 0.95
    interval: Annotated[
        Literal["wilson", "clopper-pearson", "beta"], Parameter(help="Of a share of right answers.")
    ] = "wilson"
    k: Annotated[
        str | None, Parameter(help="pass@k, pass^k, maj@k for these k, with commas; by default 2, 4, 8 ... samples.")
    ] = None
    best_by: Annotated[
        str | None,
        Parameter(help="Add the score of the best of k by logprob, reward, or a component of the reward."),
    ] = None
    plot: Annotated[Path | None, Parameter(help="Write the reliability plot there, as SVG.")] = None
    evals_folder: EvalsFolder = Path("evals")
    as_json: AsJson = False


@eval_app.default
def evaluate(
    model: str,
    *settings: Settings,
    task: Annotated[str | None, Parameter(help="JSONL file, reasoning-gym:DATASET, recipe, run, or YAML file.")] = None,
    slices: Annotated[str | None, Parameter(help="Fields by whose values the figures are split, with commas.")] = None,
    contamination_with: Annotated[str | None, Parameter(help="Training data: look for the items in it.")] = None,
    runs_folder: RunsFolder = Path("runs"),
    as_json: AsJson = False,
) -> int:
    """Evaluate a model, a run or a checkpoint on a task.

    Parameters
    ----------
    model
        A model's folder or name, a checkpoint, a run, or `last`.
    """
    if settings and not settings[0].startswith("-"):
        close = difflib.get_close_matches(model, ["show", "robust", "verify", "import"], n=1)
        meant = f"; did you mean: burnish eval {close[0]} {settings[0]}" if close else ""
        raise UserError(f"eval {model}: {settings[0]!r} is one word too many{meant}")
    with Waiting("starting"):
        from burnish.cli.eval import evaluate_model

    asked = {"task": task, "slices": slices, "contamination_with": contamination_with}
    return evaluate_model(model, settings, asked, runs_folder, as_json=as_json)


@eval_app.command(name="show")
def eval_show(store: Store, *, shown: Shown = Shown()) -> int:
    """Print the figures of an eval store, computed from its answers.

    Example: burnish eval show last --k 1,4
    """
    from burnish.cli.eval_show import show_store
    from burnish.evaluation.content import Reading
    from burnish.evaluation.store import EvalStore

    ks = None if shown.k is None else [_whole(each) for each in shown.k.split(",") if each.strip()]
    reading = Reading(level=shown.level, interval=shown.interval, ks=ks, best_by=shown.best_by, plot=shown.plot)
    return show_store(EvalStore.find(store, shown.evals_folder), reading, as_json=shown.as_json)


@eval_app.command(name="robust")
def eval_robust(
    *stores: str,
    margin: Annotated[float | None, Parameter(help="Largest loss that does not matter, to find equivalence.")] = None,
    alpha: Annotated[float, Parameter(help="Chance to call a difference that is not there.")] = 0.05,
    evals_folder: EvalsFolder = Path("evals"),
    as_json: AsJson = False,
) -> int:
    """What a model loses when its questions are changed (task.perturb), item by item.

    Example: burnish eval robust evals/plain-1a2b3c evals/typos-4d5e6f evals/shouted-7a8b9c

    Parameters
    ----------
    stores
        The store of the plain questions, then one for each change, all of one model: folders or beginnings of names.
    """
    from burnish.cli.eval_show import show_robustness
    from burnish.evaluation.store import EvalStore

    if len(stores) < 2:
        raise UserError("give the store of the plain questions, and one or more of changed ones (task.perturb)")
    found = [EvalStore.find(store, evals_folder) for store in stores]
    return show_robustness(found, margin=margin, alpha=alpha, as_json=as_json)


@eval_app.command(name="verify")
def eval_verify(
    store: Store,
    *,
    rescore: Annotated[bool, Parameter(negative="", help="Score every stored answer again too.")] = False,
    evals_folder: EvalsFolder = Path("evals"),
    as_json: AsJson = False,
) -> int:
    """Check that an eval store is what was written, and that its scores follow from its answers. Exit status 1 if not.

    Example: burnish eval verify last --rescore
    """
    from burnish.cli.eval_show import verify_eval
    from burnish.evaluation.store import EvalStore

    return verify_eval(EvalStore.find(store, evals_folder), with_reward=rescore, as_json=as_json)


@eval_app.command(name="import")
def eval_import(
    file: Path,
    *,
    kind: Annotated[Literal["csv", "votes", "lm-eval", "inspect"], Parameter(help="What wrote the file.")],
    evals_folder: EvalsFolder = Path("evals"),
) -> int:
    """Make eval stores of another tool's results.

    Example: burnish eval import scores.csv --kind csv

    Parameters
    ----------
    file
        csv: a column `item` and one column of scores per model. votes: the columns item, judge, gold, winner_ab and
        winner_ba, a row for each pair of answers that was judged in both orders. lm-eval: a
        samples_*.jsonl. inspect: a JSON log.
    """
    with Waiting("starting"):
        from burnish.cli.eval import import_results

    return import_results(file, kind, evals_folder)


def contamination(
    train: str, evaluation: str, *, evals_folder: EvalsFolder = Path("evals"), as_json: AsJson = False
) -> int:
    """Look for the items of an evaluation in training data: exactly, by runs of 13 words, and nearly.

    Example: burnish contamination train.jsonl last

    Parameters
    ----------
    train
        JSONL file that was trained on.
    evaluation
        JSONL file of questions; or an eval store (folder, beginning of its name, or `last`): then the score without
        what was found is printed too.
    """
    from burnish.cli.eval_show import print_contamination

    return print_contamination(train, evaluation, evals_folder, as_json=as_json)


def _whole(text: str) -> int:
    if not text.strip().isdecimal():
        raise UserError(f"--k: {text!r} is no whole number; give some with commas, as in 1,4,16")
    return int(text)
