"""The catalogue as Prometheus' text: what a process sets is told to whoever scrapes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(5)

        return stop

    def _of(self, name: str, labels: Iterable[str]) -> Any:
        metric, values = self._metrics[name], tuple(labels)
        return metric.labels(*values) if values else metric


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
