"""`burnish eval` itself, and its `import`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from burnish.cli.columns import print_columns
from burnish.cli.eval_show import interval_text, print_store
from burnish.cli.models import environment_for, model_path
from burnish.config.evaluation import EvalConfig, EvalTaskConfig
from burnish.config.loading import read_recipe, resolve_layers, shipped_recipes
from burnish.errors import ConfigError, UserError
from burnish.evaluation.contamination import find_contamination, store_items, train_texts
from burnish.evaluation.content import Reading, counted
from burnish.evaluation.figures import mean_figure
from burnish.evaluation.importers import import_csv, import_inspect, import_lm_eval, import_votes
from burnish.evaluation.runner import EvalInputs, find_or_make_store, prepare_eval, run_eval
from burnish.evaluation.store import EvalStore
from burnish.monitoring.console import Waiting, say_aside
from burnish.reproducibility.run_folder import RunFolder

_ROLLOUT_KEYS = ("max_tokens", "stop", "max_turns")


def evaluate_model(
    model: str, settings: Sequence[str], asked: Mapping[str, str | None], runs_folder: Path, *, as_json: bool
) -> int:
    """Resolve the settings, answer what is left, print the figures."""
    flags = [f"--model.path={model_path(model, runs_folder)}"]
    layers = []
    if (task := asked["task"]) is not None and _is_source(task):
        flags.append(f"--task.source={task}")
    elif task is not None:
        layers.append((f"task {task}", _task_layer(task, runs_folder)))
    if (slices := asked["slices"]) is not None:
        flags.append(f"--task.slice_fields={json.dumps([name for name in slices.split(',') if name])}")
    config = resolve_layers(
        EvalConfig, layers, flags=[*flags, *settings], environment=environment_for(EvalConfig)
    ).config
    with Waiting("reading the items") as wait:
        inputs = prepare_eval(config)
        store = find_or_make_store(inputs)
        train = asked["contamination_with"]
        found = None if train is None else find_contamination(train_texts(train, wait.told), store_items(store))
    if store.is_done:
        say_aside(f"{store.path}: nothing to do, this was evaluated before")
    elif not _answered(inputs, store):
        return 130
    return print_store(store, Reading(), found, as_json=as_json)


def _answered(inputs: EvalInputs, store: EvalStore) -> bool:
    """Answer what is left; False if that was interrupted."""
    items, answers = counted(len(inputs.items), "item"), counted(inputs.samples_per_item, "answer")
    say_aside(f"{store.path}: {items}, {answers} each")
    so_far: int | None = None

    def progress(done: int, total: int) -> None:
        nonlocal so_far
        if done and so_far is None:
            wait.say(f"goes on after {done:,} answers")
        so_far = done
        wait.count(done, total, "answers")

    try:
        with Waiting("answering") as wait:
            run_eval(inputs, store, progress)
    except KeyboardInterrupt:
        say_aside(f"{store.path}: interrupted after {so_far or 0:,} answers; the same command goes on from there")
        return False
    return True


def import_results(file: Path, kind: str, evals_folder: Path) -> int:
    """Make stores of another tool's results and print their figures."""
    importers = {"csv": import_csv, "votes": import_votes, "lm-eval": import_lm_eval, "inspect": import_inspect}
    rows = [("store", "items", "", "mean", "95% CI")]
    with Waiting(f"importing {file}"):
        stores = importers[kind](file, evals_folder)
    for store in stores:
        table = store.table()
        figure = mean_figure(table)
        answers = f"{np.nansum(table.scores_IK):g} of {np.isfinite(table.scores_IK).sum()}"
        rows.append((str(store.path), str(figure.n), answers, f"{figure.value:.3f}", interval_text(figure)))
    print_columns(rows)
    return 0


def _is_source(task: str) -> bool:
    """Whether `--task` is a file of questions, or what makes them; else it is a recipe, a YAML file, or a run."""
    is_settings = task in shipped_recipes() or task.endswith((".yaml", ".yml"))
    return not is_settings and (":" in task or Path(task).is_file())


def _task_layer(task: str, runs_folder: Path) -> dict[str, Any]:
    """The settings that `--task` stands for: those of a YAML file, or the held-out questions of a recipe or run."""
    if task in shipped_recipes():
        return _held_out_of(read_recipe(task), task)
    if task.endswith((".yaml", ".yml")):
        tree = read_recipe(task)
        return _held_out_of(tree, task) if "algorithm" in tree else tree
    try:
        run = RunFolder.find(task, runs_folder)
    except UserError as error:
        known = ", ".join(name for name in shipped_recipes() if "task" in read_recipe(name))
        raise ConfigError(
            f"--task {task}: no such file, recipe ({known}) or run; a generated data set is reasoning-gym:<name>"
        ) from error
    return _held_out_of(read_recipe(str(run.path / "config.yaml")), task)


def _held_out_of(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A recipe's questions, asked and scored as the run itself does: greedily, right from a reward on."""
    if "task" not in tree:
        raise ConfigError(f"--task {name}: it trains on examples and has no questions; give a file of them")
    known = EvalTaskConfig.model_fields
    own = {key: value for key, value in tree["task"].items() if key in known}
    right_at = (tree.get("evaluation") or {}).get("right_at", 1.0)
    rollout = tree.get("rollout") or {}
    kept = {key: rollout[key] for key in _ROLLOUT_KEYS if key in rollout}
    if own.get("environment") is None:
        kept.pop("max_turns", None)
    return {"task": {**own, "split": "held_out", "right_at": right_at}, "sampling": kept}
