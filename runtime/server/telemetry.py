"""OpenTelemetry: a span and measurements for each request, by the conventions for generative AI.

Off unless the standard variables (`OTEL_EXPORTER_OTLP_ENDPOINT` and others) name where to send. Texts of prompts and
answers are in nothing that is sent. Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/.
"""

import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from ...configs import UsageError
from ...configs.origin import install_command
from .logs import REQUEST_ID
from .messages import Conversation, Finished, Job

_ENDPOINT = "OTEL_EXPORTER_OTLP{}_ENDPOINT"
_PROVIDER = "phi3_onnx"
_OPTIONS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}
# The boundaries that the conventions name.
_SECONDS = [0.01 * 2**power for power in range(14)]
_FIRST_SECONDS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_TOKEN_SECONDS = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
_COUNTS = [4**power for power in range(14)]


class Operation:
    """One request, from its beginning to its end."""

    def __init__(self, owner: "Telemetry", span: Any, attributes: dict[str, Any]) -> None:
        self._owner = owner
        self._span = span
        self._attributes = attributes
        self._begun = time.monotonic()
        self._over = False

    def done(self, answers: Sequence[Finished], prompts: int) -> None:
        """Note that all answers are complete, and end."""
        if self._over:
            return
        choices = max(1, len(answers) // prompts)
        read = sum(entry.prompt_tokens for entry in answers if entry.choice % choices == 0)
        written = sum(entry.completion_tokens for entry in answers)
        cached = sum(entry.cached_tokens for entry in answers if entry.choice % choices == 0)
        self._span.set_attributes(
            {
                "gen_ai.response.model": self._attributes["gen_ai.request.model"],
                "gen_ai.response.finish_reasons": [entry.reason for entry in answers],
                "gen_ai.usage.input_tokens": read,
                "gen_ai.usage.output_tokens": written,
                "gen_ai.usage.cache_read.input_tokens": cached,
            }
        )
        owner, attributes = self._owner, self._attributes
        for entry in answers:
            if entry.completion_tokens:
                owner.first.record(entry.queue_seconds + entry.prefill_seconds, attributes)
            if entry.completion_tokens > 1:
                owner.token.record(entry.decode_seconds / (entry.completion_tokens - 1), attributes)
        for kind, count in (("input", read), ("output", written)):
            owner.usage.record(count, {**attributes, "gen_ai.token.type": kind})
        self._end({})

    def end(self, problem: str) -> None:
        """End without all answers; does nothing where they were complete.

        Args:
            problem: what kind it is, such as `cancelled`.

        """
        if self._over:
            return
        from opentelemetry.trace import StatusCode  # pyright: ignore[reportMissingImports]

        self._span.set_attribute("error.type", problem)
        self._span.set_status(StatusCode.ERROR)
        self._end({"error.type": problem})

    def _end(self, more: dict[str, Any]) -> None:
        self._over = True
        self._owner.duration.record(time.monotonic() - self._begun, {**self._attributes, **more})
        self._span.end()


class Telemetry:
    """What spans and measurements go through."""

    def __init__(self, tracer: Any, meter: Any) -> None:
        """Take an OpenTelemetry tracer and a meter."""
        self._tracer = tracer

        def histogram(name: str, unit: str, help_text: str, boundaries: Sequence[float]) -> Any:
            return meter.create_histogram(name, unit, help_text, explicit_bucket_boundaries_advisory=boundaries)

        self.duration = histogram("gen_ai.server.request.duration", "s", "Time of a request.", _SECONDS)
        self.first = histogram(
            "gen_ai.server.time_to_first_token", "s", "Time to the first token of an answer.", _FIRST_SECONDS
        )
        self.token = histogram(
            "gen_ai.server.time_per_output_token", "s", "Time per token after an answer's first.", _TOKEN_SECONDS
        )
        self.usage = histogram("gen_ai.client.token.usage", "{token}", "Tokens that were read and written.", _COUNTS)

    def begin(self, headers: Mapping[str, str], job: Job, model: str) -> Operation:
        """Begin a request.

        Args:
            headers: of the HTTP request; `traceparent` says what trace it belongs to.
            job: what is asked for.
            model: what the model is called.

        """
        from opentelemetry.propagate import extract  # pyright: ignore[reportMissingImports]
        from opentelemetry.trace import SpanKind  # pyright: ignore[reportMissingImports]

        operation = "chat" if isinstance(job.prompts[0], Conversation) else "text_completion"
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": model,
        }
        details: dict[str, Any] = {
            _OPTIONS[name]: value for name, value in job.options.items() if name in _OPTIONS and value is not None
        }
        if job.choices > 1:
            details["gen_ai.request.choice.count"] = job.choices
        if number := REQUEST_ID.get():
            details["http.response.header.x-request-id"] = [number]
        details["gen_ai.request.stream"] = job.stream
        span = self._tracer.start_span(
            f"{operation} {model}", extract(dict(headers)), SpanKind.SERVER, {**attributes, **details}
        )
        return Operation(self, span, attributes)


def configured() -> bool:
    """Return whether the standard variables ask for traces or metrics."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return any(_exporter(signal) != "none" for signal in ("TRACES", "METRICS"))


def _exporter(signal: str) -> str:
    """Return how a signal is sent: `otlp`, `console`, or `none`, which it is where nothing says where to."""
    named = os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower()
    if named:
        return named
    reached = any(os.environ.get(_ENDPOINT.format(part)) for part in ("", f"_{signal}"))
    return "otlp" if reached else "none"


@cache
def telemetry() -> Telemetry | None:
    """Return what the environment asks for; None where it asks for nothing.

    Raises:
        UsageError: it asks for what is not installed, or not known.

    """
    if not configured():
        return None
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise UsageError(
            "OTEL_ variables ask for OpenTelemetry, which is not installed", remedy=f"run: {install_command('otel')}"
        )
    from opentelemetry.sdk.metrics import MeterProvider  # pyright: ignore[reportMissingImports]
    from opentelemetry.sdk.resources import Resource  # pyright: ignore[reportMissingImports]
    from opentelemetry.sdk.trace import TracerProvider  # pyright: ignore[reportMissingImports]

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or "phi3-onnx"})
    tracers = TracerProvider(resource=resource)
    if processor := _span_processor(_exporter("TRACES")):
        tracers.add_span_processor(processor)
    meters = MeterProvider([reader] if (reader := _metric_reader(_exporter("METRICS"))) else [], resource)
    return Telemetry(tracers.get_tracer("phi3_onnx.server"), meters.get_meter("phi3_onnx.server"))


def _span_processor(exporter: str) -> Any:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor  # pyright: ignore[reportMissingImports]

    if exporter == "none":
        return None
    if exporter == "console":
        return SimpleSpanProcessor(ConsoleSpanExporter())
    _check_otlp("TRACES", exporter)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # pyright: ignore[reportMissingImports]

    return BatchSpanProcessor(OTLPSpanExporter())


def _metric_reader(exporter: str) -> Any:
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader  # pyright: ignore[reportMissingImports]

    if exporter == "none":
        return None
    if exporter == "console":
        return PeriodicExportingMetricReader(ConsoleMetricExporter())
    _check_otlp("METRICS", exporter)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # pyright: ignore[reportMissingImports]

    return PeriodicExportingMetricReader(OTLPMetricExporter())


def _check_otlp(signal: str, exporter: str) -> None:
    protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if exporter != "otlp":
        raise UsageError(f"OTEL_{signal}_EXPORTER must be otlp, console or none, got {exporter!r}")
    if protocol not in (None, "", "http/protobuf"):
        raise UsageError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, got {protocol!r}")
