"""The plan of an experiment: every run with its whole configuration, the order, and how the result will be judged."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import Field

from burnish.config.loading import resolve
from burnish.config.schema import RunConfig, Strict
from burnish.errors import ConfigError
from burnish.experiments.designs import FULL_ARM, UNTUNED, WINNER, Arm, arms_of
from burnish.experiments.schema import Budget, ExperimentFile, Metric, Searched
from burnish.reproducibility.seeds import seed_for

RECIPE = "recipe"  # the key by which an arm, or a factor, changes the recipe itself
OWN_KEYS = ("seed", "name", "runs_folder")  # of a run's settings, those that the experiment gives


class PlannedArm(Strict):
    """What one arm trains with: `config` is all settings but those that the experiment gives to each run. It is empty
    for the winner of a sweep, which the search finds.
    """

    name: str
    levels: dict[str, str]
    config: dict[str, Any]


class PlannedRun(Strict):
    """One training."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Beginning of the run folder's name."""
        return f"{self.arm}-seed{self.seed}"


class PlannedSweep(Strict):
    """The search of a sweep: it proposes `num_trials` settings, and trains each with `seed`."""

    space: dict[str, Searched]
    num_trials: int
    seed: int


class Plan(Strict):
    """All that was decided before the first run."""

    name: str
    question: str
    hypothesis: str
    arms: tuple[PlannedArm, ...]
    baseline: str | None
    factors: dict[str, tuple[str, ...]]
    """The levels of each factor; empty where arms were listed, and for an ablation."""
    generators: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]
    """In the order in which they start."""
    primary: Metric
    secondary: tuple[Metric, ...]
    alpha: float
    power: float
    margin: float | None
    budget: Budget
    stopping: str = Field(pattern="^(fixed|sequential)$")
    sweep: PlannedSweep | None = None

    def arm(self, name: str) -> PlannedArm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def others(self) -> tuple[str, ...]:
        """The arms that are compared with the baseline; none where factors are what is judged."""
        return () if self.baseline is None else tuple(arm.name for arm in self.arms if arm.name != self.baseline)


def make_plan(
    file: ExperimentFile,
    *,
    environment: Mapping[str, str] = os.environ,
    check: Callable[[RunConfig], object] | None = None,
) -> Plan:
    """Resolve every arm and order the runs. `check` looks at what each arm reads (`prepare` of a session by default).

    Raises:
        UserError: an arm cannot be trained, two arms are the same, or the plan does not fit into the budget.
    """
    arms = arms_of(file)
    configs = {arm.name: _config(file, arm, environment, check) for arm in arms}
    for first, second in combinations(configs, 2):
        if configs[first] == configs[second]:
            raise ConfigError(f"arms {first} and {second} have the same settings: one of them changes nothing")
    sweep = _sweep(file, environment, check)
    if sweep is not None:
        arms.append(Arm(name=WINNER, levels={}, settings={}))
        configs[WINNER] = {}
    seeds = file.all_seeds
    runs = tuple(ordered_runs(file.name, [arm.name for arm in arms], seeds))
    num_runs = len(runs) + (sweep.num_trials if sweep is not None else 0)
    if file.budget.runs is not None and num_runs > file.budget.runs:
        raise ConfigError(f"budget.runs={file.budget.runs}, but the plan has {num_runs} runs: leave out arms or seeds")
    is_factorial = bool(file.factors) and file.design != "ablation"
    return Plan(
        name=file.name,
        question=file.question,
        hypothesis=file.hypothesis,
        arms=tuple(PlannedArm(name=arm.name, levels=dict(arm.levels), config=configs[arm.name]) for arm in arms),
        baseline=UNTUNED if sweep is not None else FULL_ARM if file.design == "ablation" else file.baseline,
        factors={name: factor.names for name, factor in file.factors.items()} if is_factorial else {},
        generators=file.generators,
        seeds=seeds,
        runs=runs,
        primary=file.primary,
        secondary=file.secondary,
        alpha=file.alpha,
        power=file.power,
        margin=file.margin,
        budget=file.budget,
        stopping=file.stopping,
        sweep=sweep,
    )


def ordered_runs(experiment: str, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[PlannedRun]:
    """Seed by seed; within each, the arms in an order drawn for this experiment and seed.

    What drifts with time (a warmer machine, a fuller disk) then meets every arm alike.
    """
    for seed in seeds:
        rng = np.random.default_rng(seed_for(0, "order of an experiment", experiment, seed))
        for index in rng.permutation(len(arms)):
            yield PlannedRun(arm=arms[index], seed=seed)


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plan_sha256(plan: Mapping[str, Any]) -> str:
    """Hash of a plan as plain JSON values."""
    return hashlib.sha256(canonical_json(plan).encode()).hexdigest()


def differences(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """What changed between two plans as plain JSON values, one line for each key."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys([*before, *after]):
            yield from differences(before.get(name), after.get(name), f"{key}.{name}" if key else str(name))
    elif key == "arms" and isinstance(before, list) and isinstance(after, list):
        was, now = ({arm["name"]: arm for arm in arms} for arms in (before, after))
        yield from differences(was, now, key)
    elif before != after and key != "runs":  # which follow from arms and seeds
        yield f"{key}: {_shown(before)} -> {_shown(after)}"


def _sweep(
    file: ExperimentFile, environment: Mapping[str, str], check: Callable[[RunConfig], object] | None
) -> PlannedSweep | None:
    """The search, once every end of its space has been tried on the configuration."""
    if file.sweep is None:
        return None
    from burnish.experiments.sweep import import_optuna

    import_optuna()
    for key, searched in file.sweep.space.items():
        if key == RECIPE:
            raise ConfigError("sweep.space.recipe: a search keeps to one recipe; compare recipes as arms")
        for value in searched.ends:
            _config(
                file, Arm(name=f"with {key}={as_flag(value)}", levels={}, settings={key: value}), environment, check
            )
    return PlannedSweep(space=file.sweep.space, num_trials=file.sweep.trials, seed=file.search_seed)


def _config(
    file: ExperimentFile, arm: Arm, environment: Mapping[str, str], check: Callable[[RunConfig], object] | None
) -> dict[str, Any]:
    """The whole configuration of an arm as plain JSON values."""
    from burnish.algorithms.session import prepare, schema_for  # brings torch

    settings = {**file.settings, **arm.settings}
    recipe = settings.pop(RECIPE, file.recipe)
    if own := next((key for key in OWN_KEYS if key in settings), None):
        raise ConfigError(f"arm {arm.name}: {own} is given by the experiment to each run: leave it out")
    try:
        flags = [f"--{key}={as_flag(value)}" for key, value in settings.items()]
        given = [*flags, "--name=planned", f"--seed={file.all_seeds[0]}"]
        config = resolve(schema_for(recipe, flags), recipe, flags=given, environment=environment).config
        (check or prepare)(config)
    except ConfigError as error:
        raise ConfigError(f"arm {arm.name}: {error}") from error
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in OWN_KEYS}


def as_flag(value: Any) -> str:
    """A setting's value as it is given on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
