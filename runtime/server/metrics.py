"""What `/metrics` reports, in Prometheus's text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .messages import Finished

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "phi3_onnx_requests", "HTTP requests by path and status.", ["path", "status"], registry=registry
        )
        self._tokens = Counter(
            "phi3_onnx_tokens",
            "Tokens: prompt ones that were run, prompt ones from a kept cache, generated ones.",
            ["kind"],
            registry=registry,
        )
        self._first = Histogram(
            "phi3_onnx_time_to_first_token_seconds",
            "Time from the beginning of an answer to its first token, without the time it waited for its turn.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.latency = Histogram(
            "phi3_onnx_request_seconds",
            "Time from a request to the end of all its answers.",
            buckets=_SECONDS,
            registry=registry,
        )

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Report a value that is read when `/metrics` is."""
        Gauge(name, help_text, registry=self._registry).set_function(read)

    def answered(self, finished: Finished) -> None:
        """Count one answer."""
        self._tokens.labels("prompt").inc(finished.prompt_tokens - finished.cached_tokens)
        self._tokens.labels("cached").inc(finished.cached_tokens)
        self._tokens.labels("generated").inc(finished.completion_tokens)
        self._first.observe(finished.prefill_seconds)

    def text(self) -> bytes:
        """Return the report."""
        return generate_latest(self._registry)
