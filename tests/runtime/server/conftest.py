"""Servers on the fake engine, on a free port, in a thread of the test's process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server extra is not installed")
pytest.importorskip("openai", reason="the openai client is not installed")

import httpx
import openai
import uvicorn
from fake_engine import FakeLoader
from phi3_onnx.runtime.server.app import create_app
from phi3_onnx.runtime.server.process import EngineProcess
from phi3_onnx.runtime.server.run import address, listen, web_config
from phi3_onnx.runtime.server.settings import Settings
from scripted import write_scripted_package


class RunningServer:
    """A server in a thread."""

    def __init__(self, loader: Callable[[], Any], settings: Settings) -> None:
        self.settings = settings
        self.engine = EngineProcess(loader, settings.parallel)
        self._listener = listen("127.0.0.1", 0)
        self.url = address(self._listener)
        self._loop = asyncio.new_event_loop()
        self._server = uvicorn.Server(web_config(create_app(self.engine, settings), settings))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.engine.loaded(), self._loop).result(60)

    def _run(self) -> None:
        self._loop.run_until_complete(self._server.serve(sockets=[self._listener]))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)


StartServer = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def fake_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server") / "fake"
    write_scripted_package(folder, context_length=4096)
    return folder


@pytest.fixture
def start_server(fake_package: Path) -> Iterator[StartServer]:
    """Return `start_server(loader=None, **settings)`, for tests that need a server of their own."""
    running: list[RunningServer] = []

    def start(loader: Callable[[], Any] | None = None, **settings: Any) -> RunningServer:
        running.append(RunningServer(loader or FakeLoader(fake_package), Settings(**settings)))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def server(fake_package: Path) -> Iterator[RunningServer]:
    """Return a server that all tests of the session share."""
    running = RunningServer(FakeLoader(fake_package), Settings(model_name="fake"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def client(server: RunningServer) -> openai.OpenAI:
    return server.client()
