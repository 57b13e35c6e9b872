"""What a server says of itself: request ids, logs, metrics and their dashboard, OpenTelemetry. Never what was asked."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.configs.origin import install_command
from phi3_onnx.runtime.server import telemetry
from phi3_onnx.runtime.server.guard import REQUEST_ID_HEADER
from phi3_onnx.runtime.server.logs import JsonLines

from .conftest import RunningServer, StartServer

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "dashboard.json"
SECRET = "swordfish"
ASK = {"messages": [{"role": "user", "content": f"say {SECRET}"}], "temperature": 0, "max_tokens": 20}


@pytest.mark.parametrize("path", ["/health", "/v1/chat/completions", "/nowhere"])
def test_a_request_keeps_its_id_or_gets_one(server: RunningServer, path: str) -> None:
    with server.http() as http:
        assert http.get(path, headers={REQUEST_ID_HEADER: "trace-1/a:b"}).headers[REQUEST_ID_HEADER] == "trace-1/a:b"
        made = [http.get(path).headers[REQUEST_ID_HEADER] for _ in range(2)]
        odd = http.get(path, headers={REQUEST_ID_HEADER: 'x"} {'}).headers[REQUEST_ID_HEADER]
    assert made[0] != made[1] and all(re.fullmatch(r"req_[0-9a-f]{24}", number) for number in (*made, odd))


def test_an_error_and_a_stream_have_it_too(start_server: StartServer) -> None:
    server = start_server(api_key="k")
    with server.http() as http:
        assert http.get("/metrics", headers={REQUEST_ID_HEADER: "a"}).headers[REQUEST_ID_HEADER] == "a"
        headers = {REQUEST_ID_HEADER: "b", "Authorization": "Bearer k"}
        assert http.post("/v1/chat/completions", json={**ASK, "stream": True}, headers=headers).headers[
            REQUEST_ID_HEADER
        ] == "b"  # fmt: skip


def test_log_lines_are_json_and_hold_the_id_and_no_text(server: RunningServer) -> None:
    stream, logger = io.StringIO(), logging.getLogger("phi3_onnx")
    handler, level = logging.StreamHandler(stream), logger.level
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with server.http() as http:
            http.post("/v1/chat/completions", json={**ASK, "store": True}, headers={REQUEST_ID_HEADER: "abc"})
        for _ in range(6000):  # it is logged once all is sent, which the client does not wait for
            if ".access" in stream.getvalue():
                break
            time.sleep(0.01)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (access,) = [line for line in lines if line["logger"].endswith(".access")]
    assert (access["request_id"], access["method"], access["status"]) == ("abc", "POST", 200)
    assert access["path"] == "/v1/chat/completions" and access["seconds"] > 0 and access["level"] == "info"
    assert SECRET not in stream.getvalue()


def test_an_exception_is_one_line_of_json() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "went %s", ("wrong",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line and json.loads(line)["message"] == "went wrong"
    assert "ValueError: two\nlines" in json.loads(line)["exception"]


def test_the_command_line_logs_json_alone(fake_package: Path, tmp_path: Path) -> None:
    # The package cannot be loaded, as it has no model: what is said on the way is of interest.
    command = [sys.executable, "-m", "phi3_onnx.cli", "serve", str(fake_package), "--port", "0", "--log-format", "json"]
    ended = subprocess.run([*command, "--host", "0.0.0.0"], capture_output=True, text=True, timeout=120, check=False)
    lines = ended.stderr.splitlines()
    assert ended.returncode != 0 and lines[-1].startswith("phi3-onnx: ")
    assert "everyone who reaches 0.0.0.0" in json.loads(lines[0])["message"]
    assert all(json.loads(line)["time"] for line in lines[:-1])


def test_the_dashboard_shows_what_is_exported_and_nothing_else(server: RunningServer) -> None:
    with server.http() as http:
        http.post("/v1/chat/completions", json=ASK)
        report = http.get("/metrics").text
    families = dict(line.split()[2:4] for line in report.splitlines() if line.startswith("# TYPE phi3_onnx_"))
    exported: dict[str, str] = {}
    for name, kind in families.items():
        if not name.endswith("_created"):
            series = [f"{name}_bucket", f"{name}_count", f"{name}_sum"] if kind == "histogram" else [name]
            exported |= dict.fromkeys(series, name)
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    shown = {name for expression in asked for name in re.findall(r"phi3_onnx_\w+", expression)}
    assert shown <= set(exported)
    assert {exported[name] for name in shown} == set(exported.values())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in dashboard["panels"]]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let the environment be read anew, before and after."""
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    telemetry.telemetry.cache_clear()
    yield monkeypatch
    telemetry.telemetry.cache_clear()


def test_nothing_is_sent_unless_it_is_asked_for(fresh: pytest.MonkeyPatch) -> None:
    assert telemetry.telemetry() is None
    fresh.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert telemetry.configured()
    fresh.setenv("OTEL_SDK_DISABLED", "true")
    assert not telemetry.configured()


def test_what_is_not_installed_is_named(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("OTEL_TRACES_EXPORTER", "otlp")
    fresh.setattr(telemetry, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"; run: {re.escape(install_command('otel'))}$"):
        telemetry.telemetry()


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Run a collector of OTLP over HTTP; yields its address, and what it was sent."""
    got: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name that the base has
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", got
        http.shutdown()


SCRIPT = """
import json, sys
from pathlib import Path
import httpx
sys.path += [{doubles!r}, {root!r}]
from fake_engine import FakeLoader
from tests.runtime.server.conftest import RunningServer
from phi3_onnx.runtime.server.settings import Settings

if __name__ == "__main__":
    server = RunningServer(FakeLoader(Path({package!r})), Settings(model_name="fake"))
    trace = {{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Request-Id": "r-7"}}
    with server.http(headers=trace) as http:
        assert http.post("/v1/chat/completions", json={body!r}).status_code == 200
        assert http.post("/v1/chat/completions", json={{**{body!r}, "stream": True}}).status_code == 200
        assert http.post("/v1/completions", json={{"prompt": "abc", "n": 2, "max_tokens": 2}}).status_code == 200
        assert http.post("/v1/chat/completions", json={failing!r}).status_code == 500
    server.close()
"""


def test_spans_and_measurements_reach_a_collector(fake_package: Path, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the otel extra is not installed")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest  # pyright: ignore[reportMissingImports]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # pyright: ignore[reportMissingImports]

    root = Path(__file__).parents[3]
    failing = {"messages": [{"role": "user", "content": "fail"}]}
    script = tmp_path / "served.py"
    doubles = str(root / "tests" / "doubles")
    filled = SCRIPT.format(doubles=doubles, root=str(root), package=str(fake_package), body=ASK, failing=failing)
    script.write_text(filled)
    with collector() as (url, got):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "tested"}
        subprocess.run([sys.executable, str(script)], env={**_environment(), **environment}, check=True, timeout=120)
    traces, metrics = ExportTraceServiceRequest(), ExportMetricsServiceRequest()
    for path, data in got:
        {"/v1/traces": traces, "/v1/metrics": metrics}[path].MergeFromString(data)
        assert SECRET.encode() not in data
    spans = [span for entry in traces.resource_spans for scope in entry.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == ["chat fake", "chat fake", "text_completion fake", "chat fake"]
    assert all(span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c" for span in spans)
    assert all(span.parent_span_id.hex() == "b7ad6b7169203331" for span in spans)
    values = [{entry.key: entry.value for entry in span.attributes} for span in spans]
    first = values[0]
    assert first["gen_ai.operation.name"].string_value == "chat"
    assert first["gen_ai.request.max_tokens"].int_value == 20
    assert first["gen_ai.usage.output_tokens"].int_value == len(SECRET) + 1
    assert first["gen_ai.response.finish_reasons"].array_value.values[0].string_value == "stop"
    assert first["http.response.header.x-request-id"].array_value.values[0].string_value == "r-7"
    assert values[1]["gen_ai.usage.output_tokens"] == first["gen_ai.usage.output_tokens"]
    assert values[2]["gen_ai.request.choice.count"].int_value == 2
    assert values[2]["gen_ai.usage.input_tokens"].int_value == 3
    assert values[3]["error.type"].string_value == "engine" and spans[3].status.code == 2
    measured = [one for entry in metrics.resource_metrics for scope in entry.scope_metrics for one in scope.metrics]
    names = {one.name: one for one in measured}
    assert set(names) == {
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage",
    }
    counts = [point.count for point in names["gen_ai.server.request.duration"].histogram.data_points]
    assert sum(counts) == 4
    resource = {entry.key: entry.value.string_value for entry in traces.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "tested"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
