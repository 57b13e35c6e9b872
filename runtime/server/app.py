"""The web side: routes, and the endpoints of OpenAI's completions."""

import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ...configs import UsageError
from .answers import Engine
from .cards import openai_card
from .errors import ApiError, api_error, response
from .forms import guidance_of
from .guard import REQUEST_ID_HEADER, Counted, Guard, RequestIds
from .messages import Job, Ready
from .metrics import Metrics
from .openapi import document
from .parameters import WARNING_HEADER, Notes
from .protocols.anthropic import Anthropic
from .protocols.ollama import Ollama
from .protocols.responses import Responses
from .replies import ChatReply, CompletionReply
from .requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, parse
from .service import Service, client_of
from .settings import Settings

_LOG = logging.getLogger(__name__)
_STATIC = Path(__file__).with_name("static")
# The page is one file: nothing may come from elsewhere, and no other site may put it into a frame.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(
    engine: Engine, settings: Settings, metrics: Metrics | None = None, *, behind: bool = False
) -> Starlette:
    """Return the ASGI application of one model; its lifespan starts and ends the engine's process.

    Args:
        engine: the model's.
        settings: of the server.
        metrics: takes what there is to count; by default new ones.
        behind: whether another application stands before it, which keeps strangers out and counts requests.

    """
    service = Service(engine, settings, metrics)
    server = Server(service)
    routes: list[BaseRoute] = [
        Route("/", server.page, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/metrics", server.report, methods=["GET"]),
        Route("/docs", server.docs, methods=["GET"]),
        Route("/openapi.json", server.openapi, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{model:path}", server.model, methods=["GET"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.complete, methods=["POST"]),
        Route("/tokenize", server.tokenize, methods=["POST"]),
        Route("/detokenize", server.detokenize, methods=["POST"]),
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
        *Ollama(service).routes(),
        *Anthropic(service).routes(),
        *Responses(service).routes(),
    ]
    paths = [route.path for route in routes if isinstance(route, Route)]
    if settings.shared_files:
        routes.append(Mount("/package", StaticFiles(directory=settings.shared_files)))
    middleware = [] if behind else outer_middleware(settings, service.metrics, paths)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop()

    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=HANDLERS)
    app.state.service = service
    return app


def outer_middleware(settings: Settings, metrics: Metrics, paths: Collection[str]) -> list[Middleware]:
    """Return what every request passes first; `paths` are those that are counted by name."""
    middleware = [Middleware(RequestIds), Middleware(Counted, metrics=metrics, paths=paths)]
    if settings.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["Retry-After", WARNING_HEADER, REQUEST_ID_HEADER],
            )
        )
    middleware.append(Middleware(Guard, settings=settings))
    return middleware


class Server:
    """The endpoints of one server."""

    def __init__(self, service: Service) -> None:
        """Put it together; nothing starts yet."""
        self._service = service
        self._started = time.time()

    async def page(self, request: Request) -> Response:
        """`GET /`: the chat page."""
        return HTMLResponse(_page("index.html"), headers=_PAGE_HEADERS)

    async def docs(self, request: Request) -> Response:
        """`GET /docs`: a page of the endpoints."""
        return HTMLResponse(_page("docs.html"), headers=_PAGE_HEADERS)

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`: this description."""
        return JSONResponse(document([route for route in request.app.routes if isinstance(route, Route)], _version()))

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 where the engine is ready, else 503."""
        service = self._service
        engine = service.engine
        status = "ok" if engine.state == "ready" else engine.state
        body: dict[str, Any] = {
            "status": status,
            "running": service.running,
            "waiting": service.waiting,
            "restarts": engine.restarts,
            "uptime_seconds": round(time.time() - self._started, 1),
        }
        if engine.info:
            body |= {"model": service.name(engine.info), "provider": engine.info.provider, "engine": engine.info.engine}
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def report(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._card(self._service.info())]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/<model>`."""
        info = self._service.info()
        self._service.check_model(request.path_params["model"], info, Notes(strict=True))
        return JSONResponse(self._card(info))

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        service, notes = self._service, self._service.notes()
        body = parse(ChatRequest, await service.body(request), notes)
        service.check_model(body.model, service.info(), notes)
        return service.noted(request, await service.chat(request, body, partial(ChatReply, body)), notes)

    async def complete(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        service, notes = self._service, self._service.notes()
        body = parse(CompletionRequest, await service.body(request), notes)
        info = service.info()
        service.check_model(body.model, info, notes)
        options = body.options()
        options["guidance"] = await service.tried(guidance_of(body))
        job = Job(
            0, body.prompts, body.n, options, body.stream, body.echo, body.silent, client=client_of(request, body.asker)
        )
        answer = await service.answer(request, job, CompletionReply(body, service.name(info)))
        return service.noted(request, answer, notes)

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: the tokens that a prompt of `/v1/completions` has."""
        service, notes = self._service, self._service.notes()
        body = parse(TokenizeRequest, await service.body(request), notes)
        info = service.info()
        service.check_model(body.model, info, notes)
        tokens = (await service.tokens(request, body.prompt)).tokens[0]
        table = {"count": len(tokens), "max_model_len": info.context_length, "tokens": tokens}
        return service.noted(request, JSONResponse(table), notes)

    async def detokenize(self, request: Request) -> Response:
        """`POST /detokenize`: the text of token ids, special tokens included."""
        service, notes = self._service, self._service.notes()
        body = parse(DetokenizeRequest, await service.body(request), notes)
        info = service.info()
        context = info.context_length
        if len(body.tokens) > context:  # all answers wait while they are decoded
            raise ApiError(
                400,
                f"tokens must hold at most {context} ids, as the context does; got {len(body.tokens)}",
                param="tokens",
                code="context_length_exceeded",
            )
        service.check_model(body.model, info, notes)
        found = await service.tokens(request, tuple(body.tokens))
        return service.noted(request, JSONResponse({"prompt": found.texts[0]}), notes)

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`: always 501, with the reason."""
        await self._service.body(request)
        raise ApiError(
            501,
            "this server has no embeddings: a language model's hidden states make poor ones; use an embedding model",
            code="embeddings_not_supported",
        )

    def _card(self, info: Ready) -> dict[str, Any]:
        return openai_card(self._service.name(info), self._started, info.context_length)


@cache
def _page(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _version() -> str:
    try:
        return version("phi3-onnx")
    except PackageNotFoundError:  # run from a checkout
        return "0"


async def _on_api_error(request: Request, error: Exception) -> Response:
    return response(api_error(error), request.url.path)


async def _on_http_error(request: Request, error: Exception) -> Response:
    told = api_error(error)
    messages = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not allowed here"}
    told.message = messages.get(told.status, told.message)
    return response(told, request.url.path)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it: nginx's code for a client that closed the connection


async def _on_error(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return response(api_error(error), request.url.path)


HANDLERS: Mapping[Any, Any] = MappingProxyType(
    {
        ApiError: _on_api_error,
        UsageError: _on_api_error,
        HTTPException: _on_http_error,
        ClientDisconnect: _on_disconnect,
        Exception: _on_error,
    }
)
"""What becomes of each kind of exception."""
