"""The web side: routes, and the way of a request to the engine and back."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ...configs import UsageError
from .errors import ApiError, api_error, unavailable
from .guard import Counted, Guard
from .limits import GuidanceTrials
from .messages import Accepted, Finished, Job, Prompt, Ready, Refused, Tokenized
from .metrics import Metrics
from .parameters import WARNING_HEADER, Notes, OnceAClient, quoted
from .process import Answers, EngineProcess
from .replies import ChatReply, CompletionReply, Reply, usage
from .requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, parse
from .settings import Settings
from .streaming import Events, EventStream
from .tools import conversation, guidance, most_calls

_LOG = logging.getLogger(__name__)
_PAGE = Path(__file__).with_name("static") / "index.html"
# The page is one file: nothing may come from elsewhere, and no other site may put it into a frame.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(engine: EngineProcess, settings: Settings) -> Starlette:
    """Return the ASGI application; its lifespan starts and ends the engine's process."""
    server = Server(engine, settings)
    routes = [
        Route("/", server.page, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/metrics", server.report, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{model:path}", server.model, methods=["GET"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.complete, methods=["POST"]),
        Route("/tokenize", server.tokenize, methods=["POST"]),
        Route("/detokenize", server.detokenize, methods=["POST"]),
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
    ]
    middleware = [Middleware(Counted, metrics=server.metrics, paths=[route.path for route in routes])]
    if settings.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["Retry-After", WARNING_HEADER],
            )
        )
    middleware.append(Middleware(Guard, settings=settings))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.stop()

    return Starlette(
        routes=routes,
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={
            ApiError: _on_api_error,
            UsageError: _on_api_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_error,
        },
    )


class Server:
    """The endpoints of one server."""

    def __init__(self, engine: EngineProcess, settings: Settings) -> None:
        """Put it together; nothing starts yet."""
        self._engine = engine
        self._settings = settings
        self._started = time.time()
        self._pace = 1.0  # seconds that a request takes, a moving average
        self._trials = GuidanceTrials()
        self._hints = OnceAClient()
        self.metrics = Metrics()
        watch = self.metrics.watch
        watch("phi3_onnx_requests_running", "Requests that the engine works on.", lambda: self._running)
        watch("phi3_onnx_requests_waiting", "Requests that wait for their turn.", lambda: self._waiting)
        watch("phi3_onnx_engine_up", "Whether the engine is ready.", lambda: float(engine.state == "ready"))
        watch("phi3_onnx_engine_restarts", "How often the engine was started again.", lambda: engine.restarts)

    @property
    def _running(self) -> int:
        return min(self._engine.jobs, self._settings.parallel)

    @property
    def _waiting(self) -> int:
        return self._engine.jobs - self._running

    async def page(self, request: Request) -> Response:
        """`GET /`: the chat page."""
        return HTMLResponse(_page(), headers=_PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 where the engine is ready, else 503."""
        engine = self._engine
        status = "ok" if engine.state == "ready" else engine.state
        body: dict[str, Any] = {
            "status": status,
            "running": self._running,
            "waiting": self._waiting,
            "restarts": engine.restarts,
            "uptime_seconds": round(time.time() - self._started, 1),
        }
        if engine.info:
            body |= {"model": self._name(engine.info), "provider": engine.info.provider, "engine": engine.info.engine}
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def report(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._card(self._info())]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/<model>`."""
        info = self._info()
        self._check_model(request.path_params["model"], info, Notes(strict=True))
        return JSONResponse(self._card(info))

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        notes = Notes(self._settings.strict)
        body = parse(ChatRequest, await self._body(request), notes)
        info = self._info()
        self._check_model(body.model, info, notes)
        if not info.can_chat:
            raise ApiError(
                400, f"{self._name(info)} has no chat template; use /v1/completions", code="no_chat_template"
            )
        options = body.options()
        options["guidance"] = form = guidance(body, info.tools, self._settings.tool_calls)
        if form is not None:
            await self._trials.check(form)
        prompt = conversation(body, info.tools)
        reply = ChatReply(body, self._name(info), most_calls(body, self._settings.tool_calls))
        return self._noted(request, await self._answer(request, (prompt,), body.n, options, body.stream, reply), notes)

    async def complete(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        notes = Notes(self._settings.strict)
        body = parse(CompletionRequest, await self._body(request), notes)
        info = self._info()
        self._check_model(body.model, info, notes)
        options = body.options()
        if body.logprobs is not None:
            options["logprobs"] = body.logprobs
        reply = CompletionReply(body, self._name(info))
        return self._noted(
            request, await self._answer(request, body.prompts, body.n, options, body.stream, reply), notes
        )

    def _noted(self, request: Request, response: Response, notes: Notes) -> Response:
        """Return an answer with its warning, after logging what had no effect on it."""
        if warning := notes.warning:
            response.headers[WARNING_HEADER] = warning
        if _LOG.isEnabledFor(logging.DEBUG):
            client = request.client.host if request.client else "a client"
            for hint in self._hints.new(client, notes.hints):
                _LOG.debug("%s sends %s, which has no effect on answers", client, hint)
        return response

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: the tokens that a prompt of `/v1/completions` has."""
        notes = Notes(self._settings.strict)
        body = parse(TokenizeRequest, await self._body(request), notes)
        tokens = (await self._tokenized(request, body.model, body.prompt, notes)).tokens[0]
        table = {"count": len(tokens), "max_model_len": self._info().context_length, "tokens": tokens}
        return self._noted(request, JSONResponse(table), notes)

    async def detokenize(self, request: Request) -> Response:
        """`POST /detokenize`: the text of token ids, special tokens included."""
        notes = Notes(self._settings.strict)
        body = parse(DetokenizeRequest, await self._body(request), notes)
        context = self._info().context_length
        if len(body.tokens) > context:  # all answers wait while they are decoded
            raise ApiError(
                400,
                f"tokens must hold at most {context} ids, as the context does; got {len(body.tokens)}",
                param="tokens",
                code="context_length_exceeded",
            )
        found = await self._tokenized(request, body.model, tuple(body.tokens), notes)
        return self._noted(request, JSONResponse({"prompt": found.texts[0]}), notes)

    async def _tokenized(self, request: Request, model: str | None, prompt: Prompt, notes: Notes) -> Tokenized:
        self._check_model(model, self._info(), notes)
        answers = self._submit(Job(0, (prompt,), 1, {}, stream=False, tokens_only=True))
        try:
            first = await _unless_gone(request, answers.accepted())
        finally:
            self._engine.cancel(answers)
        if isinstance(first, Refused):
            raise api_error(first)
        return first

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`: always 501, with the reason."""
        await self._body(request)
        raise ApiError(
            501,
            "this server has no embeddings: a language model's hidden states make poor ones; use an embedding model",
            code="embeddings_not_supported",
        )

    async def _answer(
        self,
        request: Request,
        prompts: tuple[Prompt, ...],
        choices: int,
        options: dict[str, Any],
        stream: bool,
        reply: Reply,
    ) -> Response:
        answers = self._submit(Job(0, prompts, choices, options, stream))
        handed_on = False
        try:
            first = await _unless_gone(request, answers.accepted())
            if isinstance(first, Refused):
                raise api_error(first)
            if stream:
                handed_on = True
                events = Events(answers, first, reply, self._done, len(prompts))
                return EventStream(events, lambda: self._engine.cancel(answers))
            whole = await _unless_gone(request, self._whole(answers, first, reply, len(prompts)))
            return JSONResponse(whole)
        finally:
            if not handed_on:
                self._engine.cancel(answers)

    async def _whole(self, answers: Answers, accepted: Accepted, reply: Reply, prompts: int) -> dict[str, Any]:
        finished: list[Finished] = []
        while not (finished and finished[-1].last):
            for event in await answers.next():
                if isinstance(event, Refused):
                    raise api_error(event)
                if isinstance(event, Finished):
                    finished.append(event)
        self._done(answers, finished)
        return reply.whole(finished, usage(accepted.prompt_tokens, finished, prompts))

    def _done(self, answers: Answers, finished: list[Finished]) -> None:
        """Count a request whose answers are all complete."""
        seconds = time.monotonic() - answers.started
        # What the engine worked on it, without the wait: that is what a slot takes to become free.
        work = sum(entry.prefill_seconds + entry.decode_seconds for entry in finished)
        self._pace += 0.2 * (min(work, seconds) - self._pace)
        self.metrics.latency.observe(seconds)
        for entry in finished:
            self.metrics.answered(entry)

    def _submit(self, job: Job) -> Answers:
        limit = self._settings.parallel + self._settings.queue
        if self._engine.jobs >= limit:
            # The time until a slot becomes free for whoever asks next, at the pace of late.
            wait = max(1, round(self._pace))
            raise ApiError(
                429,
                f"{limit} requests are under way or waiting, which is the limit; try again in {wait} s",
                code="queue_full",
                headers={"Retry-After": str(wait)},
            )
        self._info()
        return self._engine.submit(job)

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Browsers send other kinds across origins without asking first.
            raise ApiError(415, f"the content type must be application/json, got {kind or 'none'!r}")
        limit = self._settings.max_request_bytes
        stated = request.headers.get("content-length", "")
        parts, size = [], int(stated) if stated.isdecimal() else 0
        if size <= limit:
            size = 0
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > limit:
                    break
        if size > limit:
            raise ApiError(413, f"the request's body is larger than {limit} bytes", code="request_too_large")
        return b"".join(parts)

    def _info(self) -> Ready:
        if self._engine.info is None or self._engine.state != "ready":
            raise unavailable(f"the engine is {self._engine.state}")
        return self._engine.info

    def _name(self, info: Ready) -> str:
        return self._settings.model_name or info.model

    def _check_model(self, model: str | None, info: Ready, notes: Notes) -> None:
        """Note where another model was asked for than the one that answers, or refuse it where notes are strict."""
        if model in (None, self._name(info)):
            return
        if notes.strict:
            raise ApiError(
                404, f"there is no model {model!r}; this is {self._name(info)!r}", param="model", code="model_not_found"
            )
        notes.remarks.append(f"the model {quoted(model)} is not here: {quoted(self._name(info))} answers")

    def _card(self, info: Ready) -> dict[str, Any]:
        return {
            "id": self._name(info),
            "object": "model",
            "created": int(self._started),
            "owned_by": "phi3-onnx",
            "context_length": info.context_length,
            "max_model_len": info.context_length,  # the name that clients of vLLM look for
        }


@cache
def _page() -> str:
    return _PAGE.read_text(encoding="utf-8")


async def _unless_gone(request: Request, waiting: Awaitable[Any]) -> Any:
    """Return what is waited for; where the client hangs up before, give it up.

    Raises:
        ClientDisconnect: it hung up.

    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(waiting), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()


async def _on_api_error(request: Request, error: Exception) -> Response:
    return api_error(error).response


async def _on_http_error(request: Request, error: Exception) -> Response:
    told = api_error(error)
    messages = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not allowed here"}
    told.message = messages.get(told.status, told.message)
    return told.response


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it: nginx's code for a client that closed the connection


async def _on_error(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return api_error(error).response
