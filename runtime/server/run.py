"""Runs a server until it is told to end."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette

from ...configs import UsageError
from .app import create_app
from .connections import Patience, most_connections, protocol
from .errors import ApiError
from .many import create_app_of_many
from .messages import Ready
from .metrics import Metrics
from .pool import Offer, Pool
from .process import EngineProcess, LoadError
from .settings import Settings

_LOG = logging.getLogger(__name__)
# Beyond the time that answers have: for their last events to be sent.
_LAST_SECONDS = 3


def serve(loader: Callable[[], Any], settings: Settings, on_ready: Callable[[Ready, str], None]) -> None:
    """Serve a model until SIGINT or SIGTERM, which let answers under way end within `settings.shutdown_seconds`.

    A second signal ends them at once.

    Args:
        loader: returns the `Model`, in the engine's process; has to be picklable.
        settings: of the server.
        on_ready: called with what the model is and the server's address, once requests are answered.

    Raises:
        UsageError: the address is taken, or cannot be had.
        LoadError: the model cannot be loaded.

    """
    _run(settings, lambda listener: _serve_one(loader, settings, listener, on_ready))


def serve_many(
    offers: Callable[[], Sequence[Offer]],
    settings: Settings,
    on_ready: Callable[[str], None],
    *,
    preload: Sequence[str] = (),
    free: Callable[[], int | None],
    notify: Callable[[str], None],
) -> None:
    """Serve many models, each loaded when it is first asked for; signals as for `serve`.

    Args:
        offers: returns the models that can be had, as they are now.
        settings: of the server.
        on_ready: called with the server's address, once requests are answered.
        preload: models to load before that.
        free: returns the bytes of memory that can be taken; None where that is not known.
        notify: called with a line before a model is loaded or unloaded.

    Raises:
        UsageError: the address is taken, or cannot be had; or a model cannot be preloaded.

    """

    async def run(listener: socket.socket) -> None:
        metrics = Metrics()
        pool = Pool(offers, settings, metrics, free=free, notify=notify)
        app = create_app_of_many(pool, settings, metrics)
        server = _Server(web_config(app, settings), pool, settings.shutdown_seconds)
        failure: list[ApiError] = []

        async def announce() -> None:
            try:
                await pool.start(preload)
            except ApiError as error:
                failure.append(error)
                server.should_exit = True
                return
            on_ready(address(listener))

        announcing = asyncio.create_task(announce())
        try:
            await server.serve(sockets=[listener])
        finally:
            announcing.cancel()
            await pool.stop()
        if failure:
            raise UsageError(failure[0].message)

    _run(settings, run)


def _run(settings: Settings, main: Callable[[socket.socket], Coroutine[Any, Any, None]]) -> None:
    listener = listen(settings.host, settings.port)
    # The loop that uvicorn would take: uvloop's, where it is installed.
    new_loop = uvicorn.Config("", log_config=None).get_loop_factory()
    with contextlib.closing(listener), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main(listener))


def web_config(app: Starlette, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves an app: with bounds on connections, and silent but for what the project logs."""
    patience = Patience(most_connections(), whole=2**20 + 8 * settings.max_request_bytes)
    return uvicorn.Config(
        app,
        http=protocol(patience),
        timeout_keep_alive=round(patience.idle),
        log_config=None,
        access_log=_LOG.isEnabledFor(logging.DEBUG),
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)) + _LAST_SECONDS,
    )


async def _serve_one(
    loader: Callable[[], Any], settings: Settings, listener: socket.socket, on_ready: Callable[[Ready, str], None]
) -> None:
    engine = EngineProcess(loader, settings.parallel)
    server = _Server(web_config(create_app(engine, settings), settings), engine, settings.shutdown_seconds)
    failure: list[LoadError] = []

    async def announce() -> None:
        try:
            info = await engine.loaded()
        except LoadError as error:
            failure.append(error)
            server.should_exit = True
            return
        on_ready(info, address(listener))

    announcing = asyncio.create_task(announce())
    try:
        await server.serve(sockets=[listener])
    finally:
        announcing.cancel()
        await engine.stop()  # uvicorn leaves the lifespan's end out where it was told to hurry
    if failure:
        raise failure[0]


class _Server(uvicorn.Server):
    """Gives answers under way a time to end, tells those that do not, and leaves with exit code 0."""

    def __init__(self, config: uvicorn.Config, engine: EngineProcess | Pool, seconds: float) -> None:
        super().__init__(config)
        self._engine = engine
        self._seconds = seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own raises the signal again in the end, which makes an orderly end look like a killed process.
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.force_exit = self.should_exit  # the second one hurries
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_answers())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_answers(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._seconds
        while not self.force_exit and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        self._engine.end_jobs("the server is shutting down")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, before any time is spent on loading.

    Raises:
        UsageError: the port is taken, or the address is not one of this machine.

    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # Named TCP, as its connections are then too: asyncio turns Nagle's algorithm off for no others, and with it
        # answers on a kept connection wait 40 ms for the client's delayed acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise UsageError(f"--host {host} is not an address of this machine: {error.strerror or error}") from error
    # On Windows this option would share a port with whoever has it.
    if hasattr(signal, "SIGKILL"):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(_bind_problem(error, host, port)) from error
    listener.setblocking(False)
    return listener


def _bind_problem(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another program; take another, such as --port {port + 1}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is not for this user: ports below 1024 are for the administrator; take --port 8080"
    return f"cannot listen on {host} port {port}: {error.strerror or error}"


def address(listener: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
