"""The web side of a server with many models: finds the one that a request names, and lets its application answer."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from .app import HANDLERS, create_app, outer_middleware
from .cards import ollama_card, openai_card
from .errors import ApiError
from .facts import Facts
from .gone import unless_gone
from .messages import Ready
from .metrics import Metrics
from .pool import Loaded, Offer, Pool
from .process import EngineProcess
from .requests import read_object
from .service import BODY
from .settings import Settings

_KEPT = "/v1/responses/"


def create_app_of_many(pool: Pool, settings: Settings, metrics: Metrics) -> Starlette:
    """Return the ASGI application; its lifespan ends the models' processes.

    Args:
        pool: the models.
        settings: of the server.
        metrics: those that the pool counts in.

    """
    front = _Front(pool, settings, metrics)
    routes = [
        Route("/health", front.health, methods=["GET"]),
        Route("/v1/models", front.models, methods=["GET"]),
        Route("/v1/models/{model:path}", front.model, methods=["GET"]),
        Route("/api/tags", front.tags, methods=["GET"]),
        Route("/api/ps", front.running, methods=["GET"]),
        Mount("", app=front.dispatch),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await pool.stop()

    paths = [route.path for route in front.idle.routes if isinstance(route, Route)]
    middleware = outer_middleware(settings, metrics, paths)
    return Starlette(routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=HANDLERS)


class _Front:
    def __init__(self, pool: Pool, settings: Settings, metrics: Metrics) -> None:
        self._pool = pool
        self._limit = settings.max_request_bytes
        self._started = time.time()
        # Answers what is about no model: the page, the metrics, what is not here. Its engine never starts.
        self.idle = create_app(EngineProcess(lambda: None, 1), settings, metrics, behind=True)
        metrics.unwatch(self.idle.state.service.label)

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200, and how each model that is loaded is."""
        uptime = round(time.time() - self._started, 1)
        models = {name: _health(entry) for name, entry in self._pool.loaded.items()}
        return JSONResponse({"status": "ok", "uptime_seconds": uptime, "models": models})

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: all that can be had."""
        return JSONResponse({"object": "list", "data": [self._card(offer) for offer in await self._pool.offers()]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/<model>`."""
        return JSONResponse(self._card(await self._pool.find(request.path_params["model"])))

    async def tags(self, request: Request) -> Response:
        """`GET /api/tags`: all that can be had, for Ollama's clients."""
        return JSONResponse({"models": [_tag(offer, self._info(offer)) for offer in await self._pool.offers()]})

    async def running(self, request: Request) -> Response:
        """`GET /api/ps`: those that are loaded."""
        return JSONResponse({"models": [_tag(entry.offer, entry.engine.info) for entry in self._pool.loaded.values()]})

    def _card(self, offer: Offer) -> dict[str, Any]:
        info = self._info(offer)
        context = info.context_length if info else None
        more = {"aliases": list(offer.aliases), "loaded": offer.name in self._pool.loaded}
        return openai_card(offer.name, offer.created, context, **more)

    def _info(self, offer: Offer) -> Ready | None:
        entry = self._pool.loaded.get(offer.name)
        return entry.engine.info if entry else None

    async def dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the model that a body names answer; what has no body is about no model."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._without_model({**scope, "root_path": ""}, receive, send)
            return
        messages, body = await _body(receive, self._limit)
        replayed = iter(messages)

        async def again() -> Message:
            return next(replayed, None) or await receive()

        if body is None:  # too large, or its sender is gone: any application says so
            await self.idle({**scope, "root_path": ""}, again, send)
            return
        try:
            values = read_object(body)
        except ApiError:  # any application says so
            await self.idle({**scope, "root_path": ""}, again, send)
            return
        name = values.get("model")
        async with AsyncExitStack() as stack:
            use = self._pool.use(name if isinstance(name, str) else None)
            entry = await unless_gone(receive, stack.enter_async_context(use))
            await entry.app({**scope, "root_path": "", BODY: values}, again, send)

    async def _without_model(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what names no model; a response that is kept is with the model that made it."""
        if scope["type"] == "http" and scope["path"].startswith(_KEPT):
            for entry in list(self._pool.loaded.values()):
                messages: list[Message] = []

                async def collect(message: Message, messages: list[Message] = messages) -> None:
                    messages.append(message)

                await entry.app(dict(scope), receive, collect)
                if messages and messages[0].get("status") != 404:
                    for message in messages:
                        await send(message)
                    return
        await self.idle(scope, receive, send)


async def _body(receive: Receive, limit: int) -> tuple[list[Message], bytes | None]:
    """Return a body as messages, and its bytes; None where it is larger than the limit, or not complete.

    All that came is one message, whatever chunks it came in: a message for each byte takes 200 times its memory.
    """
    body, more = bytearray(), True
    while more and len(body) <= limit:
        message = await receive()
        if message["type"] != "http.request":
            return [_request(bytes(body), more=True), message], None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    whole = bytes(body)
    return [_request(whole, more=more)], whole if len(whole) <= limit else None


def _request(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def _health(entry: Loaded) -> dict[str, Any]:
    service, engine = entry.app.state.service, entry.engine
    return {
        "status": "ok" if engine.state == "ready" else engine.state,
        "running": service.running,
        "waiting": service.waiting,
        "restarts": engine.restarts,
        "memory_bytes": entry.offer.needs,
        "idle_seconds": 0.0 if entry.active else round(time.monotonic() - entry.used, 1),
    }


def _tag(offer: Offer, info: Ready | None = None) -> dict[str, Any]:
    """Return a model as Ollama's clients see it: what its package says once it is loaded, and before what is known."""
    modified = datetime.fromtimestamp(offer.created, UTC).isoformat()
    return ollama_card(
        offer.name, info.facts if info else Facts(quantization=offer.target, size=offer.needs, modified=modified)
    )
