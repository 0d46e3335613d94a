"""A search over settings by optuna. Its trials are runs of the experiment, beside those that the plan names.

Each proposal depends on the frozen plan and on what came of the trials before it, so a search goes on where it was, and
no state of optuna is kept. `trials.jsonl` has a line for each proposal; all else is read from the run folders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from burnish.config.extras import requires_extra
from burnish.config.loading import resolve
from burnish.errors import ConfigError, UserError
from burnish.experiments.analysis import Analysis
from burnish.experiments.designs import UNTUNED, WINNER
from burnish.experiments.folder import ExperimentFolder
from burnish.experiments.outcomes import HELD_OUT, TRIAL, Outcome, num_items, read_outcome
from burnish.experiments.plan import OWN_KEYS, Plan, PlannedRun, PlannedSweep, as_flag
from burnish.experiments.schema import Searched, level_name
from burnish.reproducibility.files import append_lines
from burnish.reproducibility.run_folder import read_jsonl
from burnish.reproducibility.seeds import seed_for

if TYPE_CHECKING:
    import optuna

REFUSED = "refused"
_NUM_TRIES = 100  # for settings that were not proposed before


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Settings that were tried. `refused` says why they are no configuration; then there is no run."""

    settings: Mapping[str, Any]
    refused: str
    outcome: Outcome

    @property
    def name(self) -> str:
        """What its runs and its file of settings are called."""
        return self.outcome.run.arm

    @property
    def state(self) -> str:
        """As of a run; or that the settings were refused."""
        return REFUSED if self.refused else self.outcome.state

    @property
    def is_settled(self) -> bool:
        """Nothing more will come of it."""
        return bool(self.refused) or self.outcome.is_settled

    @property
    def score(self) -> float | None:
        """On the half of the items that is searched on."""
        return self.outcome.values.get(HELD_OUT)

    @property
    def text(self) -> str:
        """The settings in words."""
        return ", ".join(f"{key}={in_short(value)}" for key, value in self.settings.items())


def in_short(value: Any) -> str:
    """A searched value as it is read; all its digits stand in the trial's file."""
    return f"{value:.4g}" if isinstance(value, float) else level_name(value)


def import_optuna() -> ModuleType:
    """Optuna, which says nothing but warnings."""
    with requires_extra("sweep", "a sweep needs optuna"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def read_trials(folder: ExperimentFolder, plan: Plan) -> list[Trial]:
    """All proposals so far, in their order, with what became of them."""
    if plan.sweep is None:
        return []
    runs, events = folder.run_folders(), folder.events()
    metrics = (HELD_OUT, *(metric.name for metric in plan.secondary))
    trials = []
    for number, line in enumerate(read_jsonl(folder.path / "trials.jsonl")):
        run = PlannedRun(arm=f"{TRIAL}{number:03d}", seed=plan.sweep.seed)
        outcome = read_outcome(run, runs.get(run.name), events, metrics, plan)
        trials.append(Trial(settings=line["settings"], refused=line["refused"], outcome=outcome))
    return trials


def best_trial(trials: Sequence[Trial], plan: Plan) -> Trial | None:
    """The finished trial with the best score, of equals the first; None where none is finished."""
    sign = 1 if plan.primary.better == "higher" else -1
    scored = [(sign * trial.score, trial) for trial in trials if trial.score is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def winner_of(folder: ExperimentFolder, trials: Sequence[Trial]) -> Trial | None:
    """The trial that the search ended with; None while it goes on."""
    name = next((event["trial"] for event in folder.events() if event["event"] == "search ended"), None)
    return next((trial for trial in trials if trial.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The winner by its two numbers: what the search saw, of which it is the best of many, and what fresh seeds and
    items say (NaN while no such run is finished).
    """

    trial: str
    settings: str
    metric: str
    num_trials: int
    seed: int
    num_searched_items: int
    score: float
    num_seeds: int
    num_fresh_items: int
    fresh: float
    fresh_low: float
    fresh_high: float

    def lines(self, level: float) -> list[str]:
        """In words."""
        searched = (
            f"search: {self.trial} ({self.settings}) was the best of {self.num_trials} trials with {self.metric} "
            f"{self.score:.4g}, on {self.num_searched_items} items with seed {self.seed}; as the best of many it is "
            "biased upwards"
        )
        if self.num_seeds == 0:
            return [searched, "trained anew: no run is finished yet"]
        interval = f", {level:.0%} CI [{self.fresh_low:.4g}, {self.fresh_high:.4g}]" if self.num_seeds > 1 else ""
        return [
            searched,
            f"trained anew: {self.metric} {self.fresh:.4g}{interval} over {self.num_seeds} fresh seeds, on "
            f"{self.num_fresh_items} items that the search never looked at: {self.fresh - self.score:+.4g}",
        ]


def search_result(
    folder: ExperimentFolder, plan: Plan, trials: Sequence[Trial], outcomes: Sequence[Outcome], analysis: Analysis
) -> SearchResult | None:
    """The two numbers of a sweep's winner; None while there is none."""
    winner = winner_of(folder, trials)
    if winner is None or winner.outcome.folder is None or winner.score is None:
        return None
    arm = next(arm for arm in analysis.arms if arm.arm == WINNER)
    runs = [each.folder for each in outcomes if each.run.arm == WINNER and each.state == "finished" and each.folder]
    return SearchResult(
        trial=winner.name,
        settings=winner.text,
        metric=plan.primary.name,
        num_trials=len(trials),
        seed=winner.outcome.run.seed,
        num_searched_items=num_items(winner.outcome.folder, "search"),
        score=winner.score,
        num_seeds=len(arm.values),
        num_fresh_items=num_items(runs[0], "fresh") if runs else 0,
        fresh=arm.mean.value,
        fresh_low=arm.mean.low,
        fresh_high=arm.mean.high,
    )


def search(
    folder: ExperimentFolder,
    plan: Plan,
    run: Callable[[Sequence[PlannedRun]], bool],
    *,
    at_once: int,
    retry_failed: bool,
    say: Callable[[str], None],
) -> bool:
    """Propose and `run` trials until there are as many as planned, and write the winner's settings as an arm.

    False if it was stopped before the end.

    Raises:
        UserError: no trial finished, or the search had ended before an amendment made it longer.
    """
    trials, sweep = read_trials(folder, plan), _sweep_of(plan)
    if (winner := winner_of(folder, trials)) is not None:
        if len(trials) < sweep.num_trials and not _is_exhausted(folder):
            raise UserError(
                f"the search ended with {winner.name} after {len(trials)} trials, and its winner is trained anew: "
                f"one of {sweep.num_trials} trials is another experiment"
            )
        return True
    wanted = [each for each in trials if not each.is_settled or (retry_failed and each.state == "failed")]
    is_exhausted = False
    while wanted or (len(trials) < sweep.num_trials and not is_exhausted):
        if wanted and not run([trial.outcome.run for trial in wanted]):
            return False
        trials = read_trials(folder, plan)
        if left := [trial.name for trial in trials if not trial.is_settled]:
            say(f"{', '.join(left)} did not end by itself; `burnish experiment run` goes on")
            return False
        proposals = list(propose(plan, trials, min(at_once, sweep.num_trials - len(trials))))
        is_exhausted = not proposals and len(trials) < sweep.num_trials
        for settings in proposals:
            _add_trial(folder, len(trials), settings)
            trials = read_trials(folder, plan)
        wanted = [trial for trial in trials if not trial.is_settled]
    best = best_trial(trials, plan)
    if best is None:
        raise UserError(
            f"none of {len(trials)} trials finished, so there is no winner; "
            f"{trials[0].name} {trials[0].state}: {trials[0].refused or trials[0].outcome.reason}"
        )
    folder.write_arm(WINNER, _config_of(folder, best.settings))
    folder.add_event("search ended", trial=best.name, is_exhausted=is_exhausted)
    say(f"search ended after {len(trials)} trials with {best.name}: {best.text}; now on fresh seeds and items")
    return True


def propose(plan: Plan, trials: Sequence[Trial], count: int) -> Iterator[dict[str, Any]]:
    """Settings to try next, none of them twice; fewer than `count` where no others are found."""
    study, distributions = _study(plan, trials)
    seen = [dict(trial.settings) for trial in trials]
    for _ in range(_NUM_TRIES):
        if len(seen) - len(trials) == count:
            return
        asked = study.ask(distributions).params
        settings = {key: asked[key] for key in distributions}
        if settings not in seen:
            seen.append(settings)
            yield settings


def _study(plan: Plan, trials: Sequence[Trial]) -> tuple[optuna.Study, dict[str, Any]]:
    """A study that knows the trials so far.

    One that diverged, or took too long, counts as worse than all that finished: "pruned" says so. One that failed for a
    cause of the machine says nothing.
    """
    package, sweep = import_optuna(), _sweep_of(plan)
    states = package.trial.TrialState
    distributions = {key: _distribution(package, searched) for key, searched in sweep.space.items()}
    sampler = package.samplers.TPESampler(
        seed=seed_for(sweep.seed, "proposals", plan.name, len(trials)) % 2**32,
        n_startup_trials=min(10, max(2, sweep.num_trials // 3)),
    )
    direction = "maximize" if plan.primary.better == "higher" else "minimize"
    study = package.create_study(sampler=sampler, direction=direction)
    for trial in trials:
        state = (
            states.COMPLETE if trial.score is not None else states.FAIL if trial.state == "failed" else states.PRUNED
        )
        study.add_trial(
            package.trial.create_trial(
                params=dict(trial.settings), distributions=distributions, value=trial.score, state=state
            )
        )
    return study, distributions


def _distribution(package: ModuleType, searched: Searched) -> Any:
    of = package.distributions
    if searched.choices:
        return of.CategoricalDistribution(searched.choices)
    is_whole = isinstance(searched.low, int) and isinstance(searched.high, int)
    return (of.IntDistribution if is_whole else of.FloatDistribution)(searched.low, searched.high, log=searched.log)


def _add_trial(folder: ExperimentFolder, number: int, settings: Mapping[str, Any]) -> None:
    """Write down a proposal before it is run, and its settings as an arm."""
    refused = ""
    try:
        folder.write_arm(f"{TRIAL}{number:03d}", _config_of(folder, settings))
    except ConfigError as error:
        refused = str(error)
    append_lines(folder.path / "trials.jsonl", {"settings": settings, "refused": refused})


def _config_of(folder: ExperimentFolder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration of the recipe with these settings."""
    from burnish.algorithms.session import schema_for  # brings torch

    recipe = str(folder.path / "arms" / f"{UNTUNED}.yaml")
    flags = [f"--{key}={as_flag(value)}" for key, value in settings.items()]
    config = resolve(schema_for(recipe, flags), recipe, flags=[*flags, "--name=trial"], environment={}).config
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in OWN_KEYS}


def _sweep_of(plan: Plan) -> PlannedSweep:
    if plan.sweep is None:
        raise ValueError("the plan has no sweep")
    return plan.sweep


def _is_exhausted(folder: ExperimentFolder) -> bool:
    return any(event.get("is_exhausted", False) for event in folder.events())
