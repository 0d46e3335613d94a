"""`burnish power`: of number, difference and power, what you leave out is worked out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from burnish.cli.arguments import AsJson, RunsFolder
from burnish.cli.json_output import print_json
from burnish.errors import UserError

if TYPE_CHECKING:
    from burnish.evaluation.past_costs import PastCosts
    from burnish.stats.power import Design

_FEW_CLUSTERS = 30
_FEW_OUTCOMES = 5

power_app = App(
    name="power",
    help="""How many items, seeds or samples are needed, or what difference a number of them can show.

    Example: burnish power items --effect 0.03
    """,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Aim:
    """What every plan needs."""

    power: Annotated[float, Parameter(help="Chance to find the difference if it is there.")] = 0.8
    alpha: Annotated[float, Parameter(help="Chance to find one that is not there; two-sided.")] = 0.05
    past: Annotated[str | None, Parameter(name="--from", help="A run or an eval store: says what it would cost.")] = (
        None
    )
    runs_folder: RunsFolder = Path("runs")
    as_json: AsJson = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Items that share something."""

    cluster_size: Annotated[float, Parameter(help="Items that share a passage or a template.")] = 1
    icc: Annotated[float | None, Parameter(help="Correlation inside such a cluster, from 0 to 1.")] = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A number, a difference and a power that belong together. `target` is the number that the asked power takes."""

    number: int
    effect: float
    power: float
    target: int | None = None


Number = Annotated[int | None, Parameter(help="Leave out to have it worked out.")]
Effect = Annotated[float | None, Parameter(help="Smallest difference that matters; leave out to have it worked out.")]


@power_app.command
def items(
    *,
    effect: Effect = None,
    items: Number = None,
    design: Annotated[
        Literal["paired", "independent", "fixed"],
        Parameter(help="Both models on the same items, on other items each, or one model against a known number."),
    ] = "paired",
    baseline: Annotated[
        float | None, Parameter(help="Accuracy to start from; 0.5, the worst case, by default.")
    ] = None,
    discordance: Annotated[
        float | None, Parameter(help="Paired: share of items that only one of the two gets right.")
    ] = None,
    clusters: Clusters = Clusters(),
    aim: Aim = Aim(),
) -> int:
    """Plan the items of an evaluation that counts right answers. Give --effect, --items or both.

    Example: burnish power items --effect 0.03 --discordance 0.2
    """
    from burnish.stats.power import Clustered

    if effect is not None and not 0 < effect < 1:
        raise UserError(f"--effect {effect:g}: a difference in accuracy lies between 0 and 1; three points are 0.03")
    notes: list[str] = []
    with _Mended():
        inner, what = _proportions(effect, design, baseline, discordance, notes)
        if clusters.cluster_size != 1 and clusters.icc is None:
            raise UserError("--cluster-size needs --icc: how much the items of a cluster are alike, from 0 to 1")
        if clusters.cluster_size == 1 and clusters.icc is not None:
            raise UserError("--icc would change nothing without --cluster-size")
        clustered = Clustered(design=inner, cluster_size=clusters.cluster_size, icc=clusters.icc or 0.0)
        plan = _solve(clustered if clusters.icc is not None else inner, "items", items, effect, aim)
    if clusters.icc is not None:
        what += f", design effect {clustered.design_effect:.3g}"
        if (num_clusters := math.ceil(plan.number / clusters.cluster_size)) < _FEW_CLUSTERS:
            notes.append(f"{num_clusters} clusters are few: the test will find less than this says")
    if design != "paired" and _rarer(0.5 if baseline is None else baseline, plan) < _FEW_OUTCOMES:
        notes.append("so few right or wrong answers are expected that the normal approximation is rough")
    number = f"{plan.number:,} items" + (" in each arm" if design == "independent" else "")
    answers = plan.number * (1 if design == "fixed" else 2)
    _print(plan, f"{number} ({what})", f"{100 * plan.effect:.3g} points", _answer_cost(answers, aim), (aim, notes))
    return 0


@power_app.command
def seeds(
    *,
    sd: Annotated[float, Parameter(help="Standard deviation of the result over seeds, in the unit of --effect.")],
    effect: Effect = None,
    seeds: Number = None,
    correlation: Annotated[
        float | None, Parameter(help="The arms share their seeds: correlation of their results over them.")
    ] = None,
    aim: Aim = Aim(),
) -> int:
    """Plan the training runs of each of two arms, compared by a t test. Give --effect, --seeds or both.

    Example: burnish power seeds --effect 0.02 --sd 0.015
    """
    from burnish.stats.power import PairedMeans, TwoMeans
    from burnish.stats.seeds import FEW_SEEDS

    if correlation is not None and not -1 <= correlation < 1:
        raise UserError(f"--correlation {correlation:g} must be at least -1 and below 1")
    notes: list[str] = []
    with _Mended():
        if correlation is None:
            design: Design = TwoMeans(sd=sd)
            what = "t test"
        else:
            design = PairedMeans(sd_difference=sd * math.sqrt(2 * (1 - correlation)))
            what = f"the same for both, paired t test, correlation {correlation:g}"
        plan = _solve(design, "seeds", seeds, effect, aim)
    if plan.number < FEW_SEEDS:
        notes.append("with so few seeds everything hangs on normal results and a known standard deviation")
    difference = f"{plan.effect:.3g} ({plan.effect / sd:.3g} standard deviations)"
    cost = _training_cost(2 * plan.number, aim)
    _print(plan, f"{plan.number:,} seeds in each arm ({what})", difference, cost, (aim, notes))
    return 0


@power_app.command
def samples(
    *,
    item_sd: Annotated[
        float, Parameter(help="Standard deviation over items of the difference of the two models' expected scores.")
    ],
    sample_sd: Annotated[float, Parameter(help="Standard deviation of one model's score within an item.")],
    effect: Effect = None,
    items: Number = None,
    samples: Number = None,
    aim: Aim = Aim(),
) -> int:
    """Plan items against samples per item, for two models on the same items. Give two of --effect, --items, --samples.

    Example: burnish power samples --effect 0.03 --items 1500 --item-sd 0.33 --sample-sd 0.41
    """
    from burnish.stats.power import SampledMeans, required_samples

    spread = {"item_sd": item_sd, "sample_sd": sample_sd}
    with _Mended():
        if samples is not None:
            each = samples
        elif items is not None and effect is not None:
            each = required_samples(items, effect, **spread, alpha=aim.alpha, power=aim.power)
        else:
            raise UserError("give two of --effect, --items and --samples; the third is worked out")
        plan = _solve(SampledMeans(**spread, samples=each), "items", items, effect, aim)
    if samples is None:
        plan = replace(plan, target=None)  # the samples were worked out, and the items are what was given
    cost = _answer_cost(2 * plan.number * each, aim)
    number = f"{plan.number:,} items x {each:,} samples of both models"
    _print(plan, number, f"{plan.effect:.3g}", cost, (aim, []), samples=each)
    return 0


class _Mended:
    """What the statistics refuse is the user's to mend."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ValueError):
            raise UserError(str(error)) from error


def _proportions(
    effect: float | None, design: str, baseline: float | None, discordance: float | None, notes: list[str]
) -> tuple["Design", str]:
    """The design, and what to say of it."""
    from burnish.stats.power import OneProportion, PairedProportions, TwoProportions, independent_discordance

    start = 0.5 if baseline is None else baseline
    if not 0 < start < 1:
        raise UserError(f"--baseline {start:g}: an accuracy lies between 0 and 1")
    if effect is not None and start + effect > 1:
        raise UserError(f"--baseline {start:g} and --effect {effect:g} give an accuracy above 1")
    if design != "paired":
        if discordance is not None:
            raise UserError(f"--discordance belongs to --design paired, and would change nothing with {design}")
        if design == "fixed":
            return OneProportion(baseline=start), f"against {start:g}, score test"
        return TwoProportions(baseline=start), f"from {start:g}, z test"
    if discordance is None:
        discordance = independent_discordance(start, effect or 0.0)
        notes.append(
            f"discordance {discordance:.2f} is that of two models that answer independently; related ones disagree "
            "less, and then fewer items are enough: give --discordance, from a pilot"
        )
    elif baseline is not None and not _can_be(start, effect or 0.0, discordance):
        raise UserError(f"--discordance {discordance:g} cannot be at --baseline {start:g} and --effect {effect or 0:g}")
    return PairedProportions(discordance=discordance), f"paired, discordance {discordance:.2f}, exact McNemar test"


def _can_be(baseline: float, effect: float, discordance: float) -> bool:
    """Whether enough items are wrong before to become right, and right before to become wrong."""
    return (discordance + effect) / 2 <= 1 - baseline and (discordance - effect) / 2 <= baseline


def _rarer(baseline: float, plan: Plan) -> float:
    return plan.number * min(baseline, 1 - baseline - plan.effect)


def _solve(design: "Design", unit: str, number: int | None, effect: float | None, aim: Aim) -> Plan:
    from burnish.stats.power import achieved_power, required_number, smallest_effect

    if effect is None:
        if number is None:
            raise UserError(f"give --effect, --{unit}, or both; what is left out is worked out")
        found = smallest_effect(design, number, alpha=aim.alpha, power=aim.power)
        return Plan(number=number, effect=found, power=aim.power)
    target = required_number(design, effect, alpha=aim.alpha, power=aim.power)
    used = target if number is None else number
    power = achieved_power(design, used, effect, alpha=aim.alpha)
    return Plan(number=used, effect=effect, power=power, target=None if number is None else target)


def _answer_cost(answers: int, aim: Aim) -> dict[str, Any]:
    costs = _past(aim)
    found = _cost(costs, answers, "answers", costs.answer_seconds if costs else None)
    if costs is None or costs.answer_tokens is None:
        return found
    tokens = answers * costs.answer_tokens
    return found | {"tokens": tokens, "cost": f"{found['cost']}, {tokens:,.0f} tokens"}


def _training_cost(runs: int, aim: Aim) -> dict[str, Any]:
    costs = _past(aim)
    return _cost(costs, runs, "training runs", costs.training_seconds if costs else None)


def _past(aim: Aim) -> "PastCosts | None":
    if aim.past is None:
        return None
    from burnish.evaluation.past_costs import past_costs

    return past_costs(aim.past, aim.runs_folder)


def _cost(costs: "PastCosts | None", count: int, what: str, each: float | None) -> dict[str, Any]:
    """What is asked for, one after the other, as `costs` had it."""
    if costs is None:
        return {}
    if each is None:
        lines: Sequence[str] = costs.notes or (f"{costs.source} has no {what}: what they cost is not known",)
        return {"seconds": None, "cost": f"cost not known: {'; '.join(lines)}"}
    text = f"{count:,} {what} x {each:.3g} s (as in {costs.source}) = {_duration(count * each)}"
    return {"seconds": count * each, "cost": f"cost: {text}"}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def _print(
    plan: Plan, number: str, difference: str, cost: dict[str, Any], rest: tuple[Aim, list[str]], **more: int
) -> None:
    aim, notes = rest
    statement = f"{number} find a difference of {difference} with {100 * plan.power:.3g}% power at alpha {aim.alpha:g}"
    if plan.target is not None:
        statement += f"; {aim.power:.0%} power takes {plan.target:,}"
    if aim.as_json:
        content = {
            "number": plan.number,
            **more,
            "effect": plan.effect,
            "power": plan.power,
            "alpha": aim.alpha,
            "number_for_asked_power": plan.target or plan.number,
            "statement": statement,
            "notes": notes,
            "seconds": None,
            "cost": None,
            "tokens": None,
            **cost,
        }
        print_json(content)
        return
    print(statement)
    if cost:
        print(cost["cost"])
    for note in notes:
        print(f"note: {note}")
