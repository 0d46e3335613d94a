"""What a server can suffer from, as alert rules, beside the burn rates that slo.py makes."""

from __future__ import annotations

from typing import Any

from burnish.monitoring.conditions import Severity
from burnish.monitoring.rules import SERVE_JOB, Rule, Series

_HERE = 'instance="s:1",job="burnish-serve"'
_MODEL = f'model="m",arm="stable",{_HERE}'
_AT = {"instance": "s:1", "job": SERVE_JOB}
_BY_MODEL = {"model": "m"}


def _rule(name: str, severity: Severity, expr: str, summary: str, **rest: Any) -> Rule:
    return Rule(name=name, severity=severity, expr=expr, summary=summary, group="burnish-serving", **rest)


def _bucket(name: str, le: str) -> str:
    return f'{name}_bucket{{le="{le}",{_MODEL}}}'


def _slow(name: str, is_slow: bool) -> Series:
    return {
        _bucket(name, "0.25"): "0x200" if is_slow else "0+10x200",
        _bucket(name, "10.0"): "0+10x200",
        _bucket(name, "+Inf"): "0+10x200",
    }


def _p95(name: str, seconds: str) -> str:
    quantile = f"histogram_quantile(0.95, sum by (model, le) (rate({name}_bucket[5m])))"
    return f"{quantile} > {seconds} and sum by (model) (rate({name}_count[5m])) > 0.01"


def _counted(name: str) -> Series:
    return {f"{name}_count{{{_MODEL}}}": "0+10x200"}


_FIRST, _TOKEN, _QUEUE = (
    "burnish_serve_first_token_seconds",
    "burnish_serve_token_seconds",
    "burnish_serve_queue_seconds",
)
_RUNNING, _STEPS = f"burnish_serve_running{{{_HERE}}}", f"burnish_serve_steps_total{{{_HERE}}}"
_REFUSED = "burnish_serve_refused_total"
_ANSWERS = f'burnish_serve_answers_total{{reason="stop",{_MODEL}}}'
_WEIGHTS = {
    (server, mark): f'burnish_serve_weights{{model="m",arm="stable",fingerprint="{mark}",instance="{server}"}}'
    for server in "ab"
    for mark in ("1f", "2e")
}
_DRIFT = f'burnish_serve_drift{{model="m",feature="answer_tokens",{_HERE}}}'
SERVING_RULES: tuple[Rule, ...] = (
    _rule(
        "ServingDown",
        "critical",
        f'up{{job="{SERVE_JOB}"}} == 0',
        "{{ $labels.instance }}: the server does not answer",
        wait="1m",
        fires={f"up{{{_HERE}}}": "1x10 0x200"},
        quiet={f"up{{{_HERE}}}": "1x200"},
        labels=_AT,
    ),
    _rule(
        "ServingNotReady",
        "critical",
        "burnish_serve_ready == 0",
        "{{ $labels.instance }}: the server takes no requests",
        wait="2m",
        fires={f"burnish_serve_ready{{{_HERE}}}": "0x200"},
        quiet={f"burnish_serve_ready{{{_HERE}}}": "1x200"},
        labels=_AT,
    ),
    _rule(
        "ServingStalled",
        "critical",
        "burnish_serve_running > 0 and rate(burnish_serve_steps_total[5m]) == 0",
        "{{ $labels.instance }}: answers are in the making and no step is made",
        wait="1m",
        fires={_RUNNING: "3x200", _STEPS: "9x200"},
        quiet={_RUNNING: "3x200", _STEPS: "0+9x200"},
        labels=_AT,
    ),
    _rule(
        "ServingSlowFirstToken",
        "warning",
        _p95(_FIRST, "5"),
        "{{ $labels.model }}: 5 % of answers wait more than 5 s for their first token",
        wait="5m",
        fires={**_slow(_FIRST, True), **_counted(_FIRST)},
        quiet={**_slow(_FIRST, False), **_counted(_FIRST)},
        labels=_BY_MODEL,
    ),
    _rule(
        "ServingSlowTokens",
        "warning",
        _p95(_TOKEN, "0.5"),
        "{{ $labels.model }}: 5 % of answers come slower than two tokens a second",
        wait="5m",
        fires={**_slow(_TOKEN, True), **_counted(_TOKEN)},
        quiet={**_slow(_TOKEN, False), **_counted(_TOKEN)},
        labels=_BY_MODEL,
    ),
    _rule(
        "ServingQueueOld",
        "warning",
        _p95(_QUEUE, "5"),
        "{{ $labels.model }}: 5 % of answers wait more than 5 s for their turn",
        wait="5m",
        fires={**_slow(_QUEUE, True), **_counted(_QUEUE)},
        quiet={**_slow(_QUEUE, False), **_counted(_QUEUE)},
        labels=_BY_MODEL,
    ),
    _rule(
        "ServingQueueDeep",
        "warning",
        "burnish_serve_waiting > 2 * burnish_serve_running and burnish_serve_running > 0",
        "{{ $labels.instance }}: twice as many answers wait as are made",
        wait="5m",
        fires={f"burnish_serve_waiting{{{_HERE}}}": "70x200", _RUNNING: "32x200"},
        quiet={f"burnish_serve_waiting{{{_HERE}}}": "3x200", _RUNNING: "32x200"},
        labels=_AT,
    ),
    _rule(
        "ServingCacheFull",
        "warning",
        "burnish_serve_cache_share > 0.95 and burnish_serve_waiting > 0",
        "{{ $labels.instance }}: answers wait for room in the cache",
        wait="5m",
        fires={f"burnish_serve_cache_share{{{_HERE}}}": "0.99x200", f"burnish_serve_waiting{{{_HERE}}}": "5x200"},
        quiet={f"burnish_serve_cache_share{{{_HERE}}}": "0.99x200", f"burnish_serve_waiting{{{_HERE}}}": "0x200"},
        labels=_AT,
    ),
    _rule(
        "ServingRefusals",
        "warning",
        f'sum by (instance) (rate({_REFUSED}{{reason=~"busy|too_many"}}[5m])) > 0.05 * '
        f"(sum by (instance) (rate({_REFUSED}[5m])) + (sum by (instance) (rate(burnish_serve_answers_total[5m])) "
        f"or 0 * sum by (instance) (rate({_REFUSED}[5m]))))",
        "{{ $labels.instance }}: more than 5 % of requests are refused: there are too many",
        wait="5m",
        fires={f'{_REFUSED}{{reason="busy",{_HERE}}}': "0+2x200", _ANSWERS: "0+10x200"},
        quiet={f'{_REFUSED}{{reason="invalid",{_HERE}}}': "0+2x200", _ANSWERS: "0+10x200"},
        labels={"instance": "s:1"},
    ),
    _rule(
        "ServingVersionSkew",
        "warning",
        'count by (model) (count by (model, fingerprint) (burnish_serve_weights{arm="stable"})) > 1',
        "{{ $labels.model }}: servers answer with different weights",
        wait="10m",
        fires={_WEIGHTS["a", "1f"]: "1x200", _WEIGHTS["b", "2e"]: "1x200"},
        quiet={_WEIGHTS["a", "1f"]: "1x200", _WEIGHTS["b", "1f"]: "1x200"},
        labels=_BY_MODEL,
    ),
    _rule(
        "ServingSwapStuck",
        "warning",
        "burnish_serve_swaps_in_flight > 0",
        "{{ $labels.instance }}: weights have been loading for ten minutes",
        wait="10m",
        fires={f"burnish_serve_swaps_in_flight{{{_HERE}}}": "1x200"},
        quiet={f"burnish_serve_swaps_in_flight{{{_HERE}}}": "0x20 1x10 0x200"},
        labels=_AT,
    ),
    _rule(
        "ServingSwapRefused",
        "warning",
        'increase(burnish_serve_swaps_total{result="refused"}[15m]) > 0',
        "{{ $labels.instance }}: weights could not be exchanged; the old ones go on",
        fires={f'burnish_serve_swaps_total{{result="refused",{_HERE}}}': "0x20 1x100"},
        quiet={f'burnish_serve_swaps_total{{result="refused",{_HERE}}}': "1x200"},
        labels={**_AT, "result": "refused"},
    ),
    _rule(
        "ServingRolledBack",
        "warning",
        "increase(burnish_serve_rollbacks_total[1h]) > 0",
        "{{ $labels.model }}: a canary was rolled back",
        fires={f'burnish_serve_rollbacks_total{{model="m",{_HERE}}}': "0x20 1x100"},
        quiet={f'burnish_serve_rollbacks_total{{model="m",{_HERE}}}': "2x200"},
        labels={**_AT, "model": "m"},
    ),
    _rule(
        "ServingDrift",
        "info",
        "burnish_serve_drift == 1",
        "{{ $labels.model }}: {{ $labels.feature }} is not what it was",
        fires={_DRIFT: "0x20 1x200"},
        quiet={_DRIFT: "0x200"},
        labels={**_AT, "model": "m", "feature": "answer_tokens"},
    ),
    _rule(
        "ServingUnstored",
        "warning",
        "increase(burnish_serve_unstored_total[15m]) > 0",
        "{{ $labels.instance }}: answers could not be written to the store",
        fires={f"burnish_serve_unstored_total{{{_HERE}}}": "0x20 5x100"},
        quiet={f"burnish_serve_unstored_total{{{_HERE}}}": "5x200"},
        labels=_AT,
    ),
    _rule(
        "ServingCertificateEnds",
        "warning",
        "burnish_serve_certificate_expiry_timestamp_seconds > 0 and "
        "burnish_serve_certificate_expiry_timestamp_seconds - time() < 14 * 86400",
        "{{ $labels.instance }}: the certificate ends within 14 days",
        fires={f"burnish_serve_certificate_expiry_timestamp_seconds{{{_HERE}}}": "864000x200"},
        quiet={f"burnish_serve_certificate_expiry_timestamp_seconds{{{_HERE}}}": "8640000x200"},
        labels=_AT,
    ),
    _rule(
        "ServingRestarts",
        "warning",
        "changes(burnish_serve_start_timestamp_seconds[30m]) > 2",
        "{{ $labels.instance }}: the server started three times in half an hour",
        fires={f"burnish_serve_start_timestamp_seconds{{{_HERE}}}": "1x20 2x20 3x20 4x140"},
        quiet={f"burnish_serve_start_timestamp_seconds{{{_HERE}}}": "1x100 2x100"},
        labels=_AT,
        at="20m",
    ),
)
