"""Clients that connect and say nothing, too slowly or without an end, or that never read: the others are answered."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest
import uvicorn
from phi3_onnx.runtime.server.connections import Patience, most_connections, protocol
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .conftest import RunningServer

resource = pytest.importorskip("resource", reason="the system counts no files")
uvloop = pytest.importorskip("uvloop")

_PATIENT = Patience(connections=1000, request=3600, idle=3600, reading=3600, grace=0.1)
_HEAD = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
_SECONDS = 60


class App:
    """Answers `/echo` with the body's length, `/held` when it is let go, `/long` with more than sockets hold."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.ended: list[str] = []
        self.begun = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        self.begun += 1
        size, more = 0, True
        while more and path != "/refused":
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.append(path)
                return
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        if path == "/held":
            await self.release.wait()
        await send({"type": "http.response.start", "status": 413 if path == "/refused" else 200, "headers": []})
        for _ in range(2000 if path == "/long" else 0):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": str(size).encode(), "more_body": False})
        self.ended.append(path)


class Served:
    """A server in this loop, with a client beside it."""

    def __init__(self, app: App, port: int, http: httpx.AsyncClient) -> None:
        self.app = app
        self.port = port
        self.http = http

    async def connect(self, sends: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sends)
        await writer.drain()
        return reader, writer

    async def answers(self) -> None:
        assert (await self.http.post("/echo", content=b"abc")).text == "3"


Case = Callable[[Served], Awaitable[None]]
Serve = Callable[[Patience, Case], None]


@pytest.fixture(params=[HttpToolsProtocol, H11Protocol], ids=["httptools", "h11"])
def base(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def serve(request: pytest.FixtureRequest, base: Any) -> Serve:
    """Return what serves an app with these bounds while a case runs."""

    def run(patience: Patience, case: Case) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(_serve(patience, base, case), _SECONDS))

    return run


class _QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _serve(patience: Patience, base: Any, case: Case) -> None:
    app = App()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=protocol(patience, base), timeout_keep_alive=int(patience.idle), log_config=None, lifespan="off"
    )
    server = _QuietServer(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    port = listener.getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=_SECONDS) as http:
            await case(Served(app, port, http))
    finally:
        app.release.set()
        server.should_exit = server.force_exit = True
        await running


def test_silent_connections_make_room_for_newer_ones(serve: Serve) -> None:
    async def case(served: Served) -> None:
        silent = [await served.connect(_HEAD if number % 2 else b"") for number in range(20)]
        for _ in range(5):
            await served.answers()
        assert await silent[0][0].read() == b""
        assert not silent[-1][0].at_eof()

    serve(replace(_PATIENT, connections=4), case)


def test_connections_that_are_answered_are_kept_and_newer_ones_told(serve: Serve) -> None:
    async def case(served: Served) -> None:
        held = [asyncio.create_task(served.http.get("/held")) for _ in range(3)]
        while served.app.begun < 3:
            await asyncio.sleep(0.01)
        reader, _ = await served.connect()
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        served.app.release.set()
        assert [(await one).status_code for one in held] == [200] * 3
        await served.answers()

    serve(replace(_PATIENT, connections=3), case)


@pytest.mark.parametrize(
    ("sends", "answer"),
    [
        (b"", b""),
        (b"POST /ec", b"HTTP/1.1 408 "),
        (_HEAD + b"A: b", b"HTTP/1.1 408 "),
        (_HEAD + b"Content-Length: 10\r\n\r\nabc", b"HTTP/1.1 408 "),
    ],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
def test_a_request_that_does_not_become_whole_is_given_up(serve: Serve, sends: bytes, answer: bytes) -> None:
    async def case(served: Served) -> None:
        reader, _ = await served.connect(sends)
        assert (await reader.read())[: len(answer)] == answer
        assert served.app.ended == (["/echo"] if b"abc" in sends else [])
        await served.answers()

    serve(replace(_PATIENT, request=0.2), case)


def test_bytes_that_come_one_at_a_time_win_no_time(serve: Serve) -> None:
    async def case(served: Served) -> None:
        reader, writer = await served.connect(_HEAD)
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            with contextlib.suppress(ConnectionError):
                writer.write(b"A: b\r\n")
                await writer.drain()
            await asyncio.sleep(0.05)
        with contextlib.suppress(ConnectionError):  # what was sent to a closed connection may have reset it
            assert b"408" in await answer

    serve(replace(_PATIENT, request=0.3), case)


def test_an_answer_that_takes_long_is_no_silence(serve: Serve) -> None:
    async def case(served: Served) -> None:
        held = asyncio.create_task(served.http.get("/held"))
        await asyncio.sleep(1)
        assert not held.done()
        served.app.release.set()
        assert (await held).status_code == 200

    serve(replace(_PATIENT, request=0.2, idle=1, reading=0.2), case)


@pytest.mark.parametrize("piece", [b"A: " + b"b" * 4000 + b"\r\n", b"b" * 4096], ids=["lines", "one line"])
def test_a_head_without_an_end_is_refused(serve: Serve, piece: bytes) -> None:
    async def case(served: Served) -> None:
        reader, writer = await served.connect(_HEAD + b"A: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and sent < 1 << 26:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                await asyncio.sleep(0)
        assert sent < 1 << 24
        await served.answers()

    serve(_PATIENT, case)


def test_a_body_whose_chunks_never_end_is_refused(serve: Serve, base: Any) -> None:
    if base is H11Protocol:
        pytest.skip("h11 has a bound of its own")

    async def case(served: Served) -> None:
        reader, writer = await served.connect(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;a=")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and sent < 1 << 26:
                writer.write(b"b" * 4096)
                await writer.drain()
                sent += 4096
                await asyncio.sleep(0)
        assert sent < 1 << 24
        await served.answers()

    serve(replace(_PATIENT, whole=1 << 20), case)


def test_a_body_may_follow_a_refusal(serve: Serve) -> None:
    async def case(served: Served) -> None:
        reader, writer = await served.connect()
        writer.write(b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
        assert b" 413 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x" * 500_000)
        await writer.drain()
        writer.write(b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b" 200 " in await reader.read()

    serve(_PATIENT, case)


def test_a_client_that_never_reads_is_dropped(serve: Serve) -> None:
    async def case(served: Served) -> None:
        _, writer = await served.connect(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n")
        writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
        while not served.app.ended:
            await asyncio.sleep(0.05)
        await served.answers()

    serve(replace(_PATIENT, reading=0.3), case)


def test_a_kept_connection_is_closed_when_it_was_idle_long_enough(serve: Serve) -> None:
    async def case(served: Served) -> None:
        reader, writer = await served.connect(b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200" in await reader.read()
        writer.close()

    serve(replace(_PATIENT, idle=1), case)


def test_a_request_that_came_while_the_process_stood_still_is_answered(serve: Serve) -> None:
    async def case(served: Served) -> None:
        def ask_twice() -> list[int]:
            with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=_SECONDS) as http:
                first = http.get("/echo").status_code
                loop.call_soon_threadsafe(time.sleep, 2)
                time.sleep(0.5)  # it stands still now
                return [first, http.get("/echo").status_code]

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            assert await loop.run_in_executor(pool, ask_twice) == [200, 200]

    serve(replace(_PATIENT, idle=1), case)


def test_the_server_that_users_start_has_these_bounds(server: RunningServer) -> None:
    with server.http() as http:
        host, port = http.base_url.host, http.base_url.port
        assert http.get("/health").status_code == 200
    with socket.create_connection((host, port or 80), timeout=_SECONDS) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                client.sendall(b"A: " + b"b" * 4000 + b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert b" 431 " in client.recv(4096)


@pytest.mark.parametrize(("soft", "hard", "most"), [(1024, 20000, 4096), (256, 512, 256), (20000, 20000, 4096)])
def test_as_many_connections_as_files_allow(soft: int, hard: int, most: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this process may not have so many files")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({}, {}));"
        "from phi3_onnx.runtime.server.connections import most_connections as most;"
        "print(most(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    ran = subprocess.run([sys.executable, "-c", code.format(soft, hard)], capture_output=True, text=True, check=True)
    got, files = map(int, ran.stdout.split())
    assert got == most
    assert files >= 2 * got
    assert most_connections() <= 4096
