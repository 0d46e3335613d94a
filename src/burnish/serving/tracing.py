"""Spans of answers, as OpenTelemetry's conventions for generative models name them (still in development: the names
stand here alone).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from burnish import __version__
from burnish.config.extras import requires_extra
from burnish.serving.answers import Answered
from burnish.serving.service import Service

_EXPORT_SECONDS = 10


def require_opentelemetry() -> None:
    """Before a model loads.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    with requires_extra("otel", "tracing.endpoint needs OpenTelemetry"):
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401


def trace_answers(endpoint: str, service: Service) -> Callable[[], None]:
    """Send a span for each answer, below the span that its request names (traceparent). Returns what ends it."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    resource = Resource.create({"service.name": "burnish", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_SECONDS)))
    tracer, propagator = provider.get_tracer("burnish"), TraceContextTextMapPropagator()

    def trace(answered: Answered) -> None:
        request, weights = answered.request, answered.weights
        if weights.arm == "shadow":
            return
        operation = "chat" if request.messages is not None else "text_completion"
        parent = propagator.extract({"traceparent": request.traceparent} if request.traceparent else {})
        end = time.time_ns()
        span = tracer.start_span(
            f"{operation} {weights.name}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=end - int(answered.seconds * 1e9),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "burnish",
                "gen_ai.request.model": weights.name,
                "gen_ai.request.max_tokens": answered.max_tokens,
                "gen_ai.response.model": weights.name,
                "gen_ai.response.id": request.id,
                "gen_ai.response.finish_reasons": [str(answered.ending)],
                "gen_ai.usage.input_tokens": len(answered.prompt_ids),
                "gen_ai.usage.output_tokens": len(answered.token_ids),
                "burnish.weight_version": weights.version,
                "burnish.arm": weights.arm,
            },
        )
        if (timing := answered.timing) is not None:
            first = timing.queue + timing.prefill
            span.add_event("first token", timestamp=end - int((answered.seconds - first) * 1e9))
        if answered.ending in ("failed", "late"):
            span.set_status(Status(StatusCode.ERROR, answered.ending))
        span.end(end)

    def end() -> None:
        provider.force_flush(_EXPORT_SECONDS * 1000)  # shutting down may give up what is being sent
        provider.shutdown()

    service.on_answered.append(trace)
    return end
