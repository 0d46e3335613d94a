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


def serving_rules() -> list[Rule]:
    """What a server can suffer from, beside the burn rates that slo.py makes."""
    here = 'instance="s:1",job="burnish-serve"'
    model = f'model="m",arm="stable",{here}'
    at = {"instance": "s:1", "job": SERVE_JOB}
    by_model = {"model": "m"}

    def rule(name: str, severity: Severity, expr: str, summary: str, **rest: Any) -> Rule:
        return Rule(name=name, severity=severity, expr=expr, summary=summary, group="burnish-serving", **rest)

    def bucket(name: str, le: str) -> str:
        return f'{name}_bucket{{le="{le}",{model}}}'

    def slow(name: str, is_slow: bool) -> Series:
        return {
            bucket(name, "0.25"): "0x200" if is_slow else "0+10x200",
            bucket(name, "10.0"): "0+10x200",
            bucket(name, "+Inf"): "0+10x200",
        }

    def p95(name: str, seconds: str) -> str:
        quantile = f"histogram_quantile(0.95, sum by (model, le) (rate({name}_bucket[5m])))"
        return f"{quantile} > {seconds} and sum by (model) (rate({name}_count[5m])) > 0.01"

    def counted(name: str) -> Series:
        return {f"{name}_count{{{model}}}": "0+10x200"}

    first, token, queue = (
        "burnish_serve_first_token_seconds",
        "burnish_serve_token_seconds",
        "burnish_serve_queue_seconds",
    )
    running, steps = f"burnish_serve_running{{{here}}}", f"burnish_serve_steps_total{{{here}}}"
    refused = "burnish_serve_refused_total"
    requests = f'burnish_serve_http_requests_total{{route="/v1/completions",status="200",{here}}}'
    versions = [
        f'burnish_serve_weight_version{{model="m",arm="stable",instance="{each}",job="{SERVE_JOB}"}}' for each in "ab"
    ]
    drift = f'burnish_serve_drift{{model="m",feature="answer_tokens",{here}}}'
    return [
        rule(
            "ServingDown",
            "critical",
            f'up{{job="{SERVE_JOB}"}} == 0',
            "{{ $labels.instance }}: the server does not answer",
            wait="1m",
            fires={f"up{{{here}}}": "1x10 0x200"},
            quiet={f"up{{{here}}}": "1x200"},
            labels=at,
        ),
        rule(
            "ServingNotReady",
            "critical",
            "burnish_serve_ready == 0",
            "{{ $labels.instance }}: the server takes no requests",
            wait="2m",
            fires={f"burnish_serve_ready{{{here}}}": "0x200"},
            quiet={f"burnish_serve_ready{{{here}}}": "1x200"},
            labels=at,
        ),
        rule(
            "ServingStalled",
            "critical",
            "burnish_serve_running > 0 and rate(burnish_serve_steps_total[1m]) == 0",
            "{{ $labels.instance }}: answers are in the making and no step is made",
            wait="1m",
            fires={running: "3x200", steps: "9x200"},
            quiet={running: "3x200", steps: "0+9x200"},
            labels=at,
        ),
        rule(
            "ServingSlowFirstToken",
            "warning",
            p95(first, "5"),
            "{{ $labels.model }}: 5 % of answers wait more than 5 s for their first token",
            wait="5m",
            fires={**slow(first, True), **counted(first)},
            quiet={**slow(first, False), **counted(first)},
            labels=by_model,
        ),
        rule(
            "ServingSlowTokens",
            "warning",
            p95(token, "0.5"),
            "{{ $labels.model }}: 5 % of answers come slower than two tokens a second",
            wait="5m",
            fires={**slow(token, True), **counted(token)},
            quiet={**slow(token, False), **counted(token)},
            labels=by_model,
        ),
        rule(
            "ServingQueueOld",
            "warning",
            p95(queue, "5"),
            "{{ $labels.model }}: 5 % of answers wait more than 5 s for their turn",
            wait="5m",
            fires={**slow(queue, True), **counted(queue)},
            quiet={**slow(queue, False), **counted(queue)},
            labels=by_model,
        ),
        rule(
            "ServingQueueDeep",
            "warning",
            "burnish_serve_waiting > 2 * burnish_serve_running and burnish_serve_running > 0",
            "{{ $labels.instance }}: twice as many answers wait as are made",
            wait="5m",
            fires={f"burnish_serve_waiting{{{here}}}": "70x200", running: "32x200"},
            quiet={f"burnish_serve_waiting{{{here}}}": "3x200", running: "32x200"},
            labels=at,
        ),
        rule(
            "ServingCacheFull",
            "warning",
            "burnish_serve_cache_share > 0.95 and burnish_serve_waiting > 0",
            "{{ $labels.instance }}: answers wait for room in the cache",
            wait="5m",
            fires={f"burnish_serve_cache_share{{{here}}}": "0.99x200", f"burnish_serve_waiting{{{here}}}": "5x200"},
            quiet={f"burnish_serve_cache_share{{{here}}}": "0.99x200", f"burnish_serve_waiting{{{here}}}": "0x200"},
            labels=at,
        ),
        rule(
            "ServingRefusals",
            "warning",
            f'sum by (instance) (rate({refused}{{reason=~"busy|too_many"}}[5m])) > 0.05 * '
            "sum by (instance) (rate(burnish_serve_http_requests_total[5m]))",
            "{{ $labels.instance }}: more than 5 % of requests are refused: there are too many",
            wait="5m",
            fires={f'{refused}{{reason="busy",{here}}}': "0+2x200", requests: "0+10x200"},
            quiet={f'{refused}{{reason="invalid",{here}}}': "0+2x200", requests: "0+10x200"},
            labels={"instance": "s:1"},
        ),
        rule(
            "ServingVersionSkew",
            "warning",
            'max by (model) (burnish_serve_weight_version{arm="stable"}) != '
            'min by (model) (burnish_serve_weight_version{arm="stable"})',
            "{{ $labels.model }}: servers answer with different weights",
            wait="10m",
            fires={versions[0]: "3x200", versions[1]: "4x200"},
            quiet={versions[0]: "4x200", versions[1]: "4x200"},
            labels=by_model,
        ),
        rule(
            "ServingSwapStuck",
            "warning",
            "burnish_serve_swaps_in_flight > 0",
            "{{ $labels.instance }}: weights have been loading for ten minutes",
            wait="10m",
            fires={f"burnish_serve_swaps_in_flight{{{here}}}": "1x200"},
            quiet={f"burnish_serve_swaps_in_flight{{{here}}}": "0x20 1x10 0x200"},
            labels=at,
        ),
        rule(
            "ServingSwapRefused",
            "warning",
            'increase(burnish_serve_swaps_total{result="refused"}[15m]) > 0',
            "{{ $labels.instance }}: weights could not be exchanged; the old ones go on",
            fires={f'burnish_serve_swaps_total{{result="refused",{here}}}': "0x20 1x100"},
            quiet={f'burnish_serve_swaps_total{{result="refused",{here}}}': "1x200"},
            labels={**at, "result": "refused"},
        ),
        rule(
            "ServingRolledBack",
            "warning",
            "increase(burnish_serve_rollbacks_total[1h]) > 0",
            "{{ $labels.model }}: a canary was rolled back",
            fires={f'burnish_serve_rollbacks_total{{model="m",{here}}}': "0x20 1x100"},
            quiet={f'burnish_serve_rollbacks_total{{model="m",{here}}}': "2x200"},
            labels={**at, "model": "m"},
        ),
        rule(
            "ServingMismatch",
            "critical",
            "burnish_serve_mismatch > 0.15",
            "{{ $labels.model }}: what is served has other probabilities than what was trained",
            fires={f'burnish_serve_mismatch{{model="m",{here}}}': "0.6x200"},
            quiet={f'burnish_serve_mismatch{{model="m",{here}}}': "0.04x200"},
            labels={**at, "model": "m"},
        ),
        rule(
            "ServingDrift",
            "warning",
            "burnish_serve_drift == 1",
            "{{ $labels.model }}: {{ $labels.feature }} is not what it was",
            fires={drift: "0x20 1x200"},
            quiet={drift: "0x200"},
            labels={**at, "model": "m", "feature": "answer_tokens"},
        ),
        rule(
            "ServingUnstored",
            "warning",
            "increase(burnish_serve_unstored_total[15m]) > 0",
            "{{ $labels.instance }}: answers could not be written to the store",
            fires={f"burnish_serve_unstored_total{{{here}}}": "0x20 5x100"},
            quiet={f"burnish_serve_unstored_total{{{here}}}": "5x200"},
            labels=at,
        ),
        rule(
            "ServingCertificateEnds",
            "warning",
            "burnish_serve_certificate_expiry_timestamp_seconds > 0 and "
            "burnish_serve_certificate_expiry_timestamp_seconds - time() < 14 * 86400",
            "{{ $labels.instance }}: the certificate ends within 14 days",
            fires={f"burnish_serve_certificate_expiry_timestamp_seconds{{{here}}}": "864000x200"},
            quiet={f"burnish_serve_certificate_expiry_timestamp_seconds{{{here}}}": "8640000x200"},
            labels=at,
        ),
        rule(
            "ServingRestarts",
            "warning",
            "changes(burnish_serve_start_timestamp_seconds[30m]) > 2",
            "{{ $labels.instance }}: the server started three times in half an hour",
            fires={f"burnish_serve_start_timestamp_seconds{{{here}}}": "1x20 2x20 3x20 4x140"},
            quiet={f"burnish_serve_start_timestamp_seconds{{{here}}}": "1x100 2x100"},
            labels=at,
            at="20m",
        ),
    ]


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
