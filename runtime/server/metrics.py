"""What `/metrics` reports, in Prometheus's text format; `deploy/grafana/dashboard.json` shows all of it."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .messages import Finished

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)


class Metrics:
    """The counters of one server, each by the model's name where it is about one."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._watched = _Watched()
        registry.register(self._watched)

        def histogram(name: str, help_text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(name, help_text, ["model"], buckets=buckets, registry=registry)

        self.requests = Counter(
            "phi3_onnx_requests", "HTTP requests by path and status.", ["path", "status"], registry=registry
        )
        self._tokens = Counter(
            "phi3_onnx_tokens",
            "Tokens: prompt ones that were run, prompt ones from a kept cache, generated ones.",
            ["model", "kind"],
            registry=registry,
        )
        self._queue = histogram("phi3_onnx_queue_seconds", "Time that an answer waited for its turn.")
        self._prefill = histogram(
            "phi3_onnx_prefill_seconds", "Time from the beginning of an answer to its first token, without the wait."
        )
        self._first = histogram(
            "phi3_onnx_time_to_first_token_seconds",
            "Time from a request to the first token of an answer, with the wait.",
        )
        self._token = histogram(
            "phi3_onnx_time_per_output_token_seconds", "Time per token after an answer's first.", _TOKEN_SECONDS
        )
        self._latency = histogram("phi3_onnx_request_seconds", "Time from a request to the end of all its answers.")

    def watch(self, name: str, help_text: str, model: Callable[[], str], read: Callable[[], float]) -> None:
        """Report a value of a model that is read when `/metrics` is."""
        self._watched.entries.setdefault((name, help_text), []).append((model, read))

    def unwatch(self, model: Callable[[], str]) -> None:
        """Report no more values that were given with this name."""
        for entries in self._watched.entries.values():
            entries[:] = [entry for entry in entries if entry[0] != model]

    def answered(self, model: str, seconds: float, answers: Iterable[Finished]) -> None:
        """Count a request whose answers are all complete."""
        self._latency.labels(model).observe(seconds)
        for finished in answers:
            self._tokens.labels(model, "prompt").inc(finished.prompt_tokens - finished.cached_tokens)
            self._tokens.labels(model, "cached").inc(finished.cached_tokens)
            self._tokens.labels(model, "generated").inc(finished.completion_tokens)
            self._queue.labels(model).observe(finished.queue_seconds)
            if finished.completion_tokens:
                self._prefill.labels(model).observe(finished.prefill_seconds)
                self._first.labels(model).observe(finished.queue_seconds + finished.prefill_seconds)
            if finished.completion_tokens > 1:
                self._token.labels(model).observe(finished.decode_seconds / (finished.completion_tokens - 1))

    def text(self) -> bytes:
        """Return the report."""
        return generate_latest(self._registry)


class _Watched(Collector):
    """Values that are read when they are asked for."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], list[tuple[Callable[[], str], Callable[[], float]]]] = {}

    def collect(self) -> Iterable[Metric]:
        """Yield them."""
        for (name, help_text), entries in self.entries.items():
            family = GaugeMetricFamily(name, help_text, labels=["model"])
            for model, read in entries:
                family.add_metric([model()], read())
            yield family
