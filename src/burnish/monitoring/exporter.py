"""The catalogue as Prometheus' text: what a process sets is told to whoever scrapes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample

from burnish.errors import MachineError
from burnish.monitoring.catalogue import Spec

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which no rule and no panel asks for

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LOOK_SECONDS = 0.2
_CLASSES: dict[str, Any] = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}


class Exporter:
    """The metrics of some specs. `refresh` is called before each scrape, to set what is only then looked at."""

    def __init__(self, specs: Sequence[Spec], *, refresh: Callable[[], None] | None = None) -> None:
        self.refresh = refresh
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for spec in specs:
            options = {"buckets": spec.buckets} if spec.buckets else {}
            self._metrics[spec.name] = _CLASSES[spec.kind](
                spec.name, spec.meaning, spec.labels, registry=self.registry, **options
            )
        self._aliases = {spec.name.removesuffix("_total"): spec.alias for spec in specs if spec.alias}
        self._scrapes = _Scrapes()

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._of(name, labels).set(value)

    def count(self, name: str, amount: float, *labels: str) -> None:
        """Add to a counter."""
        self._of(name, labels).inc(amount)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add an observation to a histogram."""
        self._of(name, labels).observe(value)

    def remove(self, name: str, *labels: str) -> None:
        """Forget a labelled value, so that it is no longer told."""
        self._metrics[name].remove(*labels)

    def text(self) -> bytes:
        """What a scrape gets: every metric, and those that vLLM has under its name too."""
        if self.refresh is not None:
            self.refresh()
        return generate_latest(self.registry) + generate_latest(_Aliased(self.registry, self._aliases))

    def serve(self, port: int, host: str) -> Callable[[], None]:
        """Answer scrapes on a port, in a thread. Returns what ends it.

        Raises:
            MachineError: the port is taken.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise MachineError(f"metrics.port={port}: cannot listen on {host}:{port}: {error}") from error
        server.set_app(self._scrapes.counted(server.get_app()))

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(5)

        return stop

    def wait_for_scrape(self, seconds: float, should_stop: Callable[[], bool]) -> bool:
        """Wait until a scrape that begins from now on has its whole answer; whether one had it in time."""
        return self._scrapes.wait(seconds, should_stop)

    def _of(self, name: str, labels: Iterable[str]) -> Any:
        metric, values = self._metrics[name], tuple(labels)
        return metric.labels(*values) if values else metric


class _Scrapes:
    """Which scrapes began and which have their whole answer, so that a process that ends can be seen to the last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_begun = 0
        self._newest_answered = -1

    def counted(self, app: Any) -> Any:
        """A WSGI application that notes its answers, each once it is sent."""

        def noted(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            with self._changed:
                number = self._num_begun
                self._num_begun += 1
            yield from app(environ, start_response)
            with self._changed:  # the server asks for more when it has sent what it has
                self._newest_answered = max(self._newest_answered, number)
                self._changed.notify_all()

        return noted

    def wait(self, seconds: float, should_stop: Callable[[], bool]) -> bool:
        """See `Exporter.wait_for_scrape`."""
        until = time.monotonic() + seconds
        with self._changed:
            first = self._num_begun
            while self._newest_answered < first:
                left = until - time.monotonic()
                if left <= 0 or should_stop():
                    return False
                self._changed.wait(min(left, _LOOK_SECONDS))  # what would stop it, a signal, wakes nobody
        return True


class _Aliased:
    """The families of a registry that have another name as well."""

    def __init__(self, registry: CollectorRegistry, aliases: dict[str, str]) -> None:
        self._registry, self._aliases = registry, aliases

    def collect(self) -> Iterable[Family]:
        for family in self._registry.collect():
            alias = self._aliases.get(family.name)
            if alias is None:
                continue
            name = alias.removesuffix("_total")
            renamed = Family(name, family.documentation, family.type)
            renamed.samples.extend(
                Sample(name + each.name.removeprefix(family.name), _labels(each.labels), each.value)
                for each in family.samples
            )
            yield renamed


def _labels(labels: dict[str, str]) -> dict[str, str]:
    """VLLM's labels: its dashboards know `model_name` and `finished_reason`."""
    names = {"model": "model_name", "reason": "finished_reason"}
    return {names.get(name, name): value for name, value in labels.items()}
