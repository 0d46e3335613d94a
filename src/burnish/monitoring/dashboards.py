"""Grafana dashboards, made from lists of panels. Every query is run in a test against a burnish that answers it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel with its queries, by what their lines are called."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """Panels under a title; `uid` is the file's name too. `variable` is a label that one may choose."""

    uid: str
    title: str
    variable: str
    values_of: str
    panels: Sequence[Panel]


def _train(*names: str) -> dict[str, str]:
    return {"{{run}} " + name: f'burnish_train_{name}{{run=~"$run"}}' for name in names}


def _p(name: str, share: float) -> str:
    return (
        f"histogram_quantile({share}, sum by (model, arm, le) "
        f'(rate({name}_bucket{{model=~"$model",arm!="shadow"}}[$__rate_interval])))'
    )


def _latency(name: str) -> dict[str, str]:
    return {f"{{{{model}}}} {{{{arm}}}} p{100 * share:.0f}": _p(name, share) for share in (0.5, 0.95, 0.99)}


def _rate(name: str, by: str, matchers: str = "") -> str:
    return f'sum by ({by}) (rate({name}{{model=~"$model"{matchers}}}[$__rate_interval]))'


TRAINING = Dashboard(
    uid="burnish-training",
    title="burnish: training",
    variable="run",
    values_of="burnish_train_step",
    panels=(
        Panel(title="Held-out", queries=_train("held_out")),
        Panel(title="Reward", queries=_train("reward_mean", "reward_std")),
        Panel(title="Loss", queries=_train("loss")),
        Panel(title="Entropy", queries=_train("entropy")),
        Panel(title="Gradient norm", queries=_train("grad_norm")),
        Panel(title="Learning rate", queries=_train("learning_rate")),
        Panel(title="Mismatch of sampler and learner", queries=_train("mismatch_mean", "mismatch_max")),
        Panel(title="Conditions that hold", queries={"{{run}} {{condition}}": 'burnish_train_condition{run=~"$run"}'}),
        Panel(title="Time of a step", queries=_train("seconds", "seconds_sample", "seconds_learn"), unit="s"),
        Panel(title="Tokens a second", queries=_train("tokens_per_second")),
        Panel(title="Peak memory", queries=_train("peak_memory_bytes"), unit="bytes"),
        Panel(
            title="Share of the steps that are done",
            queries={"{{run}}": 'burnish_train_step{run=~"$run"} / burnish_train_steps_planned{run=~"$run"}'},
            unit="percentunit",
        ),
    ),
)

ROLLOUTS = Dashboard(
    uid="burnish-rollouts",
    title="burnish: rollouts",
    variable="run",
    values_of="burnish_train_reward_mean",
    panels=(
        Panel(title="Reward", queries=_train("reward_mean", "reward_std")),
        Panel(title="Groups without signal", queries=_train("groups_without_signal"), unit="percentunit"),
        Panel(title="Length of a completion", queries=_train("completion_tokens_mean")),
        Panel(title="Cut off at the limit", queries=_train("truncated_share"), unit="percentunit"),
        Panel(title="Prompts asked", queries=_train("prompts_asked")),
        Panel(title="Rewards that failed", queries=_train("reward_failures")),
        Panel(title="Time to sample", queries=_train("seconds_sample"), unit="s"),
        Panel(title="Importance corrections", queries=_train("importance_mean", "importance_outside")),
    ),
)

SERVING = Dashboard(
    uid="burnish-serving",
    title="burnish: serving",
    variable="model",
    values_of="burnish_serve_weight_version",
    panels=(
        Panel(title="Answers", queries={"{{model}} {{reason}}": _rate("burnish_serve_answers_total", "model, reason")}),
        Panel(
            title="Requests by status",
            queries={
                "{{route}} {{status}}": "sum by (route, status) ("
                + "rate(burnish_serve_http_requests_total[$__rate_interval]))"
            },
        ),
        Panel(title="Time to the first token", queries=_latency("burnish_serve_first_token_seconds"), unit="s"),
        Panel(title="Time of a token", queries=_latency("burnish_serve_token_seconds"), unit="s"),
        Panel(title="Time of an answer", queries=_latency("burnish_serve_answer_seconds"), unit="s"),
        Panel(title="Time in the queue", queries=_latency("burnish_serve_queue_seconds"), unit="s"),
        Panel(
            title="Tokens a second",
            queries={
                "read {{model}}": _rate("burnish_serve_prompt_tokens_total", "model"),
                "written {{model}}": _rate("burnish_serve_answer_tokens_total", "model"),
            },
        ),
        Panel(
            title="Answers in the making and waiting",
            queries={"running": "burnish_serve_running", "waiting": "burnish_serve_waiting"},
        ),
        Panel(
            title="Room in the cache that is taken", queries={"taken": "burnish_serve_cache_share"}, unit="percentunit"
        ),
        Panel(
            title="Tokens of prompts that were known",
            queries={
                "{{model}}": _rate("burnish_serve_cached_tokens_total", "model")
                + " / "
                + _rate("burnish_serve_looked_up_tokens_total", "model")
            },
            unit="percentunit",
        ),
        Panel(title="Steps a second", queries={"steps": "rate(burnish_serve_steps_total[$__rate_interval])"}),
        Panel(title="Length of an answer", queries=_latency("burnish_serve_answer_length")),
    ),
)

CANARY = Dashboard(
    uid="burnish-canary",
    title="burnish: canary",
    variable="model",
    values_of="burnish_serve_weight_version",
    panels=(
        Panel(
            title="Version that answers",
            queries={"{{model}} {{arm}}": 'burnish_serve_weight_version{model=~"$model"}'},
        ),
        Panel(
            title="Share of the canary",
            queries={"{{model}}": 'burnish_serve_canary_share{model=~"$model"}'},
            unit="percentunit",
        ),
        Panel(title="Answers by arm", queries={"{{arm}}": _rate("burnish_serve_answers_total", "arm")}),
        Panel(
            title="Answers that ended by themselves",
            queries={
                "{{arm}}": _rate("burnish_serve_answers_total", "arm", ',reason="stop"')
                + " / "
                + _rate("burnish_serve_answers_total", "arm")
            },
            unit="percentunit",
        ),
        Panel(title="Ratings", queries={"{{arm}} {{rating}}": _rate("burnish_serve_feedback_total", "arm, rating")}),
        Panel(
            title="First token by arm", queries={"{{arm}} p95": _p("burnish_serve_first_token_seconds", 0.95)}, unit="s"
        ),
        Panel(
            title="Served against learnt log-probabilities",
            queries={"{{model}} {{arm}}": 'burnish_serve_mismatch{model=~"$model"}'},
        ),
        Panel(title="Sets of weights in memory", queries={"sets": "burnish_serve_sets_of_weights"}),
    ),
)

DASHBOARDS = (TRAINING, ROLLOUTS, SERVING, CANARY)


def dashboard_json(dashboard: Dashboard) -> str:
    """The dashboard as Grafana imports it, two panels a row; the data source is asked for."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels: list[dict[str, Any]] = []
    for index, panel in enumerate(dashboard.panels):
        targets = [
            {"refId": chr(ord("A") + number), "expr": expr, "legendFormat": legend, "datasource": source}
            for number, (legend, expr) in enumerate(panel.queries.items())
        ]
        panels.append(
            {
                "id": index + 1,
                "type": "timeseries",
                "title": panel.title,
                "datasource": source,
                "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
                "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
                "targets": targets,
            }
        )
    variables = [
        {"name": "source", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": dashboard.variable,
            "type": "query",
            "datasource": source,
            "query": f"label_values({dashboard.values_of}, {dashboard.variable})",
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    tree = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "tags": ["burnish"],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(tree, indent=1) + "\n"
