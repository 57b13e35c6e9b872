"""Bodies that come in many small chunks take about their own size in memory, and are read as if they came at once."""

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeLoader
from phi3_onnx.runtime.server.app import create_app
from phi3_onnx.runtime.server.many import create_app_of_many
from phi3_onnx.runtime.server.metrics import Metrics
from phi3_onnx.runtime.server.pool import Offer, Pool
from phi3_onnx.runtime.server.process import EngineProcess
from phi3_onnx.runtime.server.settings import Settings

LIMIT = 2**19
Application = Callable[..., Awaitable[None]]


def of_many(folder: Path) -> Application:
    settings, metrics = Settings(max_request_bytes=LIMIT), Metrics()
    offers = [Offer(f"{letter}/int4", FakeLoader(folder), 1) for letter in "ab"]
    return create_app_of_many(Pool(lambda: offers, settings, metrics), settings, metrics)


def of_one(folder: Path) -> Application:
    settings = Settings(max_request_bytes=LIMIT)
    return create_app(EngineProcess(FakeLoader(folder), settings.parallel), settings, Metrics())


def post(app: Application, body: bytes, size: int, *, ends: bool = True) -> tuple[int, Any]:
    """Send a body in chunks of a size; return the status, and what is said. Unless it `ends`, it is never complete."""
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/completions", "raw_path": b"/",
        "query_string": b"", "root_path": "", "scheme": "http", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
        "headers": [(b"host", b"127.0.0.1:8080"), (b"content-type", b"application/json")],
    }  # fmt: skip
    starts = iter(range(0, len(body), size))
    sent: list[Any] = []

    async def receive() -> Any:
        if (start := next(starts, None)) is None:
            return {"type": "http.disconnect"}
        more = not ends or start + size < len(body)
        return {"type": "http.request", "body": body[start : start + size], "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # pyright: ignore[reportArgumentType]
    said = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], (json.loads(said) if said else None)


both = pytest.mark.parametrize("application", [of_many, of_one])


@both
def test_chunks_take_no_more_memory_than_their_bytes(
    application: Callable[..., Application], fake_package: Path
) -> None:
    app = application(fake_package)
    body = json.dumps({"model": "nowhere", "prompt": "x" * 400_000}).encode()
    at_once = post(app, body, len(body))
    tracemalloc.start()
    try:
        in_chunks = post(app, body, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert in_chunks == at_once
    assert in_chunks[0] == (404 if application is of_many else 503)
    assert peak < 8 * len(body)


@both
@pytest.mark.parametrize("size", [1000, LIMIT * 2])
def test_what_is_too_large_is_refused(application: Callable[..., Application], fake_package: Path, size: int) -> None:
    body = json.dumps({"model": "a/int4", "prompt": "x" * LIMIT}).encode()
    status, said = post(application(fake_package), body, size)
    assert status == 413 and said["error"]["code"] == "request_too_large"


@both
def test_a_sender_that_leaves_within_a_body_ends_its_request(
    application: Callable[..., Application], fake_package: Path
) -> None:
    body = json.dumps({"model": "a/int4", "prompt": "hi"}).encode()
    assert post(application(fake_package), body, 3, ends=False)[0] == 499
