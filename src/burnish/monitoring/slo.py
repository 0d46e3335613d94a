"""From a promise to alerts: how fast the budget of bad answers burns, over two windows at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from burnish.config.schema import Section
from burnish.errors import ConfigError
from burnish.monitoring.conditions import Severity
from burnish.monitoring.reading import checked, read_yaml
from burnish.monitoring.rules import Rule


class Objective(Section):
    """A promise: so many percent of what `total` counts over `days` is not counted by `bad`.

    Both are PromQL in which WINDOW stands for a time, such as sum(rate(errors_total[WINDOW])).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
    percent: Annotated[float, Field(gt=0, lt=100)]
    days: Annotated[float, Field(ge=1)] = 30.0
    bad: Annotated[str, Field(pattern="WINDOW")]
    total: Annotated[str, Field(pattern="WINDOW")]
    least_events: Annotated[float, Field(gt=0)] = 50.0
    """Events in the long window below which nobody is called: one of two failed answers is half of all."""


_ANSWERS = 'sum(rate(burnish_serve_answers_total{arm!="shadow",reason!="cancelled"}[WINDOW]))'
_FIRST = "burnish_serve_first_token_seconds"
DEFAULT_OBJECTIVES = (
    Objective(
        name="Answers",
        percent=99.5,
        bad='sum(rate(burnish_serve_answers_total{arm!="shadow",reason=~"failed|late"}[WINDOW]))',
        total=_ANSWERS,
    ),
    Objective(
        name="FirstToken",
        percent=95.0,
        bad=f'sum(rate({_FIRST}_count{{arm!="shadow"}}[WINDOW])) - '
        f'sum(rate({_FIRST}_bucket{{arm!="shadow",le="2.5"}}[WINDOW]))',
        total=f'sum(rate({_FIRST}_count{{arm!="shadow"}}[WINDOW]))',
    ),
)


@dataclass(frozen=True, slots=True)
class _Burn:
    """Called when `share` of the budget is gone within the long window, and still going in the short one."""

    share: float
    long: str
    long_hours: float
    short: str
    wait: str
    severity: Severity
    suffix: str


# The Site Reliability Workbook (Beyer et al. 2018), chapter 5, table 5-8.
_BURNS = (
    _Burn(0.02, "1h", 1, "5m", "2m", "critical", "Fast"),
    _Burn(0.05, "6h", 6, "30m", "15m", "critical", "Steady"),
    _Burn(0.10, "1d", 24, "2h", "1h", "warning", "Slow"),
    _Burn(0.10, "3d", 72, "6h", "3h", "warning", "Creeping"),
)


def read_objectives(file: Path) -> list[Objective]:
    """The objectives of a YAML file, a list.

    Raises:
        ConfigError: it holds none, or one that cannot be.
    """
    tree = read_yaml(file)
    if not isinstance(tree, list) or not tree:
        raise ConfigError(f"{file}: needs a list of objectives, each with name, percent, bad and total")
    found = [checked(Objective, each, f"{file}: objective {number}") for number, each in enumerate(tree, 1)]
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"{file}: two objectives have one name")
    return found


def burn_rules(objective: Objective) -> list[Rule]:
    """Four alerts: the faster the budget burns, the sooner and the louder."""
    return [_burn_rule(objective, each) for each in _BURNS]


def _burn_rule(objective: Objective, burn: _Burn) -> Rule:
    budget = 1 - objective.percent / 100
    rate = max(1.0, burn.share * objective.days * 24 / burn.long_hours)  # slower, and the budget lasts

    def ratio(window: str) -> str:
        bad, total = (each.replace("WINDOW", window) for each in (objective.bad, objective.total))
        return f"({bad}) / ({total}) > {min(rate * budget, 0.99):.6g}"

    total = objective.total.replace("WINDOW", burn.long)
    events = f"({total}) * {burn.long_hours * 3600:g} > {objective.least_events:g}"
    return Rule(
        name=f"Slo{objective.name}{burn.suffix}",
        severity=burn.severity,
        expr=f"({ratio(burn.long)}) and ({ratio(burn.short)}) and ({events})",
        summary=f"{objective.name}: {100 * burn.share:.0f} % of {objective.days:g} days' budget gone in {burn.long}",
        group="burnish-slo",
        wait=burn.wait,
        **_examples(objective.name, burn),
    )


def _examples(name: str, burn: _Burn) -> dict[str, Any]:
    """Traffic of which 30 % is bad, and of which nothing is; for the two objectives that we know."""
    series = 'model="m",arm="stable",instance="s:1",job="burnish-serve"'
    if name == "FirstToken":
        count, quick = f"{_FIRST}_count{{{series}}}", f'{_FIRST}_bucket{{le="2.5",{series}}}'
        bad, good = {count: "0+10x110", quick: "0+1x110"}, {count: "0+10x110", quick: "0+10x110"}
    else:
        stop, failed = (f'burnish_serve_answers_total{{reason="{each}",{series}}}' for each in ("stop", "failed"))
        bad, good = {stop: "0+7x110", failed: "0+3x110"}, {stop: "0+10x110", failed: "0x110"}
    minutes = int(burn.long_hours)  # sixty values in the long window
    return {"fires": bad, "quiet": good, "labels": {}, "interval": f"{minutes}m", "at": f"{100 * minutes}m"}
