"""Prometheus alert rules, each with an example in which it fires and one in which it stays quiet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from burnish.monitoring.conditions import CONDITIONS, Condition, Severity
from burnish.monitoring.runbooks import section_of

TRAIN_JOB, SERVE_JOB = "burnish-train", "burnish-serve"
DEFAULT_RUNBOOKS = "http://127.0.0.1:7878/runbooks"

Series = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An alert. `fires` and `quiet` are series in promtool's notation, a value each `interval`, and `labels` what the
    alert has where it fires, `at` so late.
    """

    name: str
    severity: Severity
    expr: str
    summary: str
    wait: str = "0m"
    group: str
    fires: Series
    quiet: Series
    labels: Mapping[str, str] = field(default_factory=dict)
    at: str = "16m"
    interval: str = "15s"

    def as_yaml(self, runbooks: str) -> dict[str, Any]:
        """The rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.wait,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook_url": f"{runbooks}#{section_of(self.name)}"},
        }


def training_rules() -> list[Rule]:
    """One for each condition of the guards, and for a trainer that is gone or silent."""
    run = 'run="a",instance="t:1",job="burnish-train"'
    gone = (
        f'up{{job="{TRAIN_JOB}"}} == 0 and on (instance) (last_over_time(burnish_train_step[1h]) < '
        "last_over_time(burnish_train_steps_planned[1h]))"
    )
    labels = {"run": "a", "instance": "t:1", "job": TRAIN_JOB}
    up = f'up{{job="{TRAIN_JOB}",instance="t:1"}}'
    planned, step = f"burnish_train_steps_planned{{{run}}}", f"burnish_train_step{{{run}}}"
    ended, allowed = f"burnish_train_step_timestamp_seconds{{{run}}}", f"burnish_train_step_allowed_seconds{{{run}}}"
    return [
        *(_of_condition(each, run, labels) for each in CONDITIONS),
        Rule(
            name="TrainingSilent",
            severity="critical",
            expr="time() - burnish_train_step_timestamp_seconds > burnish_train_step_allowed_seconds",
            summary="run {{ $labels.run }}: no step has ended for several times their usual time",
            group="burnish-training",
            wait="1m",
            fires={ended: "0x200", allowed: "60x200"},
            quiet={ended: "0+15x200", allowed: "60x200"},
            labels=labels,
        ),
        Rule(
            name="TrainingDown",
            severity="critical",
            expr=gone,
            summary="{{ $labels.instance }}: the trainer is gone before its last step",
            group="burnish-training",
            wait="2m",
            fires={up: "1x20 0x100", step: "1+1x20", planned: "100x20"},
            quiet={up: "1x20 0x100", step: "80+1x20", planned: "100x20"},
            labels={"instance": "t:1", "job": TRAIN_JOB},
        ),
    ]


def _of_condition(condition: Condition, run: str, labels: Mapping[str, str]) -> Rule:
    series = f'burnish_train_condition{{condition="{condition.name}",{run}}}'
    return Rule(
        name="Training" + "".join(word.capitalize() for word in condition.name.split("_")),
        severity=condition.severity,
        expr=f'burnish_train_condition{{condition="{condition.name}"}} == 1',
        summary=f"run {{{{ $labels.run }}}}: {condition.summary}",
        group="burnish-training",
        fires={series: "0x10 1x200"},
        quiet={series: "0x200"},
        labels={**labels, "condition": condition.name},
    )


def rules_yaml(rules: Sequence[Rule], runbooks: str = DEFAULT_RUNBOOKS) -> str:
    """A file of rules."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for rule in rules:
        groups.setdefault(rule.group, []).append(rule.as_yaml(runbooks))
    tree = {"groups": [{"name": name, "rules": found} for name, found in groups.items()]}
    return yaml.safe_dump(tree, sort_keys=False, width=1000)


def tests_yaml(rules: Sequence[Rule], rules_file: str, runbooks: str = DEFAULT_RUNBOOKS) -> dict[str, str]:
    """`promtool test rules` for every rule: an example in which it fires, and one in which nothing does. A file for
    each interval, because promtool evaluates every rule as often as that, however long the example.
    """
    intervals = sorted({rule.interval for rule in rules})
    return {each: _tests([rule for rule in rules if rule.interval == each], rules_file, runbooks) for each in intervals}


def _tests(rules: Sequence[Rule], rules_file: str, runbooks: str) -> str:
    cases = []
    for rule in rules:
        fired = {
            "exp_labels": {"severity": rule.severity, **rule.labels},
            "exp_annotations": {
                "summary": _filled(rule.summary, rule.labels),
                "runbook_url": f"{runbooks}#{section_of(rule.name)}",
            },
        }
        for series, expected in ((rule.fires, [fired]), (rule.quiet, [])):
            cases.append(
                {
                    "interval": rule.interval,
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "alert_rule_test": [{"eval_time": rule.at, "alertname": rule.name, "exp_alerts": expected}],
                }
            )
    tree = {"rule_files": [rules_file], "evaluation_interval": rules[0].interval, "tests": cases}
    return yaml.safe_dump(tree, sort_keys=False, width=1000)


def _filled(text: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        text = text.replace(f"{{{{ $labels.{name} }}}}", value)
    return text
