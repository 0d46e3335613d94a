"""What the server tells Prometheus: the catalogue's serving metrics, set from what happens."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, get_args

from burnish import __version__
from burnish.monitoring.catalogue import SERVING
from burnish.monitoring.exporter import Exporter
from burnish.serving.answers import Answered
from burnish.serving.asks import Arm
from burnish.serving.refusals import Kind
from burnish.serving.service import Service

ARMS: tuple[Arm, ...] = ("stable", "canary", "shadow")

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Scope]]
_Send = Callable[[_Scope], Awaitable[None]]


class ServeMetrics:
    """Listens to a service. The state of the engine is looked at when Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._steps_told = 0
        self._shown: dict[tuple[str, Arm], tuple[int, str]] = {}
        self._named: set[str] = set()
        self.exporter = Exporter(SERVING, refresh=self._refresh)
        self.exporter.set("burnish_serve_info", 1, __version__)
        self.exporter.set("burnish_serve_start_timestamp_seconds", time.time())
        self._begin_at_zero()
        service.on_answered.append(self.answered)

    def _begin_at_zero(self) -> None:
        """Show the counters that alerts look at before there is anything to count: Prometheus sees no increase in one
        that begins with 1.
        """
        for kind in get_args(Kind):
            self.exporter.count("burnish_serve_refused_total", 0, kind)
        for result in ("done", "refused"):
            self.exporter.count("burnish_serve_swaps_total", 0, result)

    def answered(self, answered: Answered) -> None:
        """Count an answer that is over."""
        labels = answered.weights.name, answered.weights.arm
        count, observe = self.exporter.count, self.exporter.observe
        count("burnish_serve_answers_total", 1, *labels, str(answered.ending))
        count("burnish_serve_answer_tokens_total", len(answered.token_ids), *labels)
        observe("burnish_serve_max_tokens", answered.max_tokens, *labels)
        if (timing := answered.timing) is None:
            return
        count("burnish_serve_prompt_tokens_total", len(answered.prompt_ids), *labels)
        count("burnish_serve_looked_up_tokens_total", len(answered.prompt_ids), *labels)
        count("burnish_serve_cached_tokens_total", answered.cached_tokens, *labels)
        observe("burnish_serve_answer_length", len(answered.token_ids), *labels)
        observe("burnish_serve_first_token_seconds", timing.queue + timing.prefill, *labels)
        observe("burnish_serve_queue_seconds", timing.queue, *labels)
        observe("burnish_serve_prefill_seconds", timing.prefill, *labels)
        observe("burnish_serve_decode_seconds", timing.decode, *labels)
        observe("burnish_serve_answer_seconds", timing.queue + timing.prefill + timing.decode, *labels)
        if answered.gaps:
            observe("burnish_serve_token_seconds", timing.decode / len(answered.gaps), *labels)
        for gap in answered.gaps:
            observe("burnish_serve_gap_seconds", gap, *labels)

    def refused(self, reason: str) -> None:
        """Count a request that got no answer."""
        self.exporter.count("burnish_serve_refused_total", 1, reason)

    def deployed(self, event: Mapping[str, Any]) -> None:
        """Note what happened to a deployment."""
        name = str(event["model"])
        self.name_model(name)
        began = event["event"] == "canary began"
        self.exporter.set("burnish_serve_canary_share", event["share"] if began else 0.0, name)
        if event["event"] == "rolled back":
            self.exporter.count("burnish_serve_rollbacks_total", 1, name)

    def _refresh(self) -> None:
        engine, put = self._service.engine, self.exporter.set
        put("burnish_serve_ready", float(self._service.is_ready))
        put("burnish_serve_running", engine.num_running)
        put("burnish_serve_waiting", engine.num_waiting)
        put("burnish_serve_cache_share", engine.reserved_tokens / engine.cache_tokens)
        put("burnish_serve_step_age_seconds", time.monotonic() - engine.stepped_at)
        put("burnish_serve_sets_of_weights", engine.num_sets)
        steps = engine.num_steps
        self.exporter.count("burnish_serve_steps_total", steps - self._steps_told)
        self._steps_told = steps
        self._show_weights()

    def name_model(self, name: str) -> None:
        """Let what is counted of a model begin at 0."""
        if name not in self._named:
            self._named.add(name)
            self.exporter.count("burnish_serve_rollbacks_total", 0, name)
            self.exporter.set("burnish_serve_canary_share", 0, name)

    def _show_weights(self) -> None:
        """Which weights answer, and no others."""
        mismatches = self._service.engine.mismatches()
        now = {
            (name, arm): (each.version, each.fingerprint[:16])
            for arm in ARMS
            for name, each in self._service.engine.models(arm).items()
            if (name, arm) in mismatches  # not what came since
        }
        for labels, (_, fingerprint) in self._shown.items():
            if now.get(labels, (0, ""))[1] != fingerprint:
                self.exporter.remove("burnish_serve_weights", *labels, fingerprint)
            if labels not in now:
                self.exporter.remove("burnish_serve_weight_version", *labels)
                self.exporter.remove("burnish_serve_mismatch", *labels)
        for labels, (number, fingerprint) in now.items():
            if labels not in self._shown:
                for ending in ("stop", "length", "failed", "late"):
                    self.exporter.count("burnish_serve_answers_total", 0, *labels, ending)
            self.exporter.set("burnish_serve_weight_version", number, *labels)
            self.exporter.set("burnish_serve_weights", 1, *labels, fingerprint)
            self.exporter.set("burnish_serve_mismatch", mismatches[labels], *labels)
        self._shown = now


class CountRequests:
    """ASGI middleware that counts requests by route and status. A route is named by its template: a path that fits
    none is `none`, so that nobody can make labels.
    """

    def __init__(self, app: Any, metrics: ServeMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        statuses: list[int] = []

        async def watched(message: _Scope) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            status = str(statuses[0]) if statuses else "500"
            self._metrics.exporter.count("burnish_serve_http_requests_total", 1, route, status)
