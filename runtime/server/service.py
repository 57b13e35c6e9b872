"""The way of a request to the engine and back, the same for every protocol."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..decoding.engine import Guidance
from .answers import Answers, Engine
from .errors import ApiError, api_error, queue_full, unavailable
from .fairness import has_room
from .framing import whole
from .gone import unless_gone
from .limits import GuidanceTrials
from .messages import Accepted, Client, Conversation, Finished, Job, Prompt, Ready, Refused, Tokenized
from .metrics import Metrics
from .parameters import WARNING_HEADER, Notes, OnceAClient, quoted
from .replies import Reply, usage
from .requests import ChatRequest
from .settings import Settings
from .streaming import Events, EventStream
from .telemetry import telemetry
from .tools import conversation, guidance, most_calls

_LOG = logging.getLogger(__name__)


BODY = "phi3_onnx.body"
"""Where the scope of a request has the JSON object of its body, once that was read."""
_OF_BROWSERS = ("Origin", "Sec-Fetch-Site")
"""Headers that browsers send with every request that a page of another site has them make."""
# Fields of `CacheState`; they begin anew with the engine's process.
_CACHE_METRICS = {
    "cache_hit_tokens": "Tokens of prompts that were kept, in memory or on disk.",
    "cache_miss_tokens": "Tokens of prompts that were run.",
    "cache_read_tokens": "Kept tokens of prompts that came from disk.",
    "cache_memory_bytes": "Memory of texts that ended.",
    "cache_disk_bytes": "Size of the cache folder.",
    "drafted_tokens": "Tokens that were run ahead of answers.",
    "accepted_tokens": "Tokens that were run ahead and came true.",
}


class Service:
    """One engine, and what all protocols share on the way to it."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics | None = None) -> None:
        """Put it together; nothing starts yet.

        Args:
            engine: what answers.
            settings: of the server.
            metrics: takes what there is to count; by default new ones.

        """
        self.engine = engine
        self.settings = settings
        self.metrics = metrics or Metrics()
        self._telemetry = telemetry()
        self._pace = 1.0  # seconds that a request takes, a moving average
        self._trials = GuidanceTrials()
        self._hints = OnceAClient()
        watch = self.watch
        watch("phi3_onnx_requests_running", "Requests that the engine works on.", lambda: self.running)
        watch("phi3_onnx_requests_waiting", "Requests that wait for their turn.", lambda: self.waiting)
        watch("phi3_onnx_engine_up", "Whether the engine is ready.", lambda: float(engine.state == "ready"))
        watch("phi3_onnx_engine_restarts", "How often the engine was started again.", lambda: engine.restarts)
        if engine.cache is not None:
            for name, help_text in _CACHE_METRICS.items():
                watch(f"phi3_onnx_{name}", help_text, partial(self._cached, name.removeprefix("cache_")))

    def _cached(self, field: str) -> float:
        return getattr(self.engine.cache, field)

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Report a value of this model that is read when `/metrics` is."""
        self.metrics.watch(name, help_text, self.label, read)

    @property
    def running(self) -> int:
        """Requests that the engine works on."""
        return min(self.engine.jobs, self.settings.parallel)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self.engine.jobs - self.running

    def info(self) -> Ready:
        """Return what the model is.

        Raises:
            ApiError: the engine is not ready.

        """
        if self.engine.info is None or self.engine.state != "ready":
            raise unavailable(f"the engine is {self.engine.state}")
        return self.engine.info

    def name(self, info: Ready) -> str:
        """Return what clients call the model."""
        return self.settings.model_name or info.model

    def label(self) -> str:
        """Return what the model is called in metrics; nothing before it was loaded for the first time."""
        return self.name(self.engine.info) if self.engine.info else self.settings.model_name or ""

    def notes(self) -> Notes:
        """Return the notes of a new request."""
        return Notes(self.settings.strict)

    def check_model(self, model: str | None, info: Ready, notes: Notes) -> None:
        """Note where another model was asked for than the one that answers, or refuse it where notes are strict."""
        if model in (None, self.name(info), *self.settings.model_aliases):
            return
        if notes.strict:
            raise ApiError(
                404, f"there is no model {model!r}; this is {self.name(info)!r}", param="model", code="model_not_found"
            )
        notes.remarks.append(f"the model {quoted(model)} is not served; {quoted(self.name(info))} answers instead")

    def noted(self, request: Request, response: Response, notes: Notes) -> Response:
        """Return an answer with its warning, after logging what had no effect on it."""
        if warning := notes.warning:
            response.headers[WARNING_HEADER] = warning
        if _LOG.isEnabledFor(logging.DEBUG):
            client = request.client.host if request.client else "a client"
            for hint in self._hints.new(client, notes.hints):
                _LOG.debug("%s sends %s, which has no effect on answers", client, hint)
        return response

    async def body(self, request: Request) -> bytes | Mapping[str, Any]:
        """Return a request's body, or what is in it where that was read on the way here.

        Raises:
            ApiError: it is too large, or a browser sent it as another kind than JSON.

        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and any(name in request.headers for name in _OF_BROWSERS):
            # Browsers send other kinds across origins without asking first. Ollama's clients and curl send any.
            raise ApiError(415, f"the content type must be application/json, got {kind or 'none'!r}")
        if (values := request.scope.get(BODY)) is not None:
            return values
        limit = self.settings.max_request_bytes
        stated = request.headers.get("content-length", "")
        body, size = bytearray(), int(stated) if stated.isdecimal() else 0
        if size <= limit:
            async for part in request.stream():
                body += part  # at once: chunks of a few bytes take many times as much memory each
                if len(body) > limit:
                    break
        if max(size, len(body)) > limit:
            raise ApiError(413, f"the request's body is larger than {limit} bytes", code="request_too_large")
        return bytes(body)

    def conversation(self, body: ChatRequest) -> Conversation:
        """Return the prompt of a chat.

        Raises:
            ApiError: the model has no chat template.

        """
        info = self.info()
        if not info.can_chat:
            raise ApiError(400, f"{self.name(info)} has no chat template; use /v1/completions", code="no_chat_template")
        return conversation(body, info.tools)

    async def chat(
        self, request: Request, body: ChatRequest, reply: Callable[[str, int], Reply], prompt: Prompt | None = None
    ) -> Response:
        """Answer a chat.

        Args:
            request: whose answer it is.
            body: what is asked for.
            reply: makes the reply, of the model's name and of how many tool calls an answer may hold.
            prompt: replaces the conversation.

        """
        info, most = self.info(), self.settings.tool_calls
        prompt = self.conversation(body) if prompt is None else prompt
        options = body.options()
        options["guidance"] = await self.tried(guidance(body, info.tools, most))
        made = reply(self.name(info), most_calls(body, most))
        job = Job(0, (prompt,), body.n, options, body.stream, client=client_of(request, body.asker))
        return await self.answer(request, job, made)

    async def tried(self, form: Guidance | None) -> Guidance | None:
        """Return guidance after it was compiled on trial.

        Raises:
            UsageError: it cannot be compiled, or not within the limits of time and memory.

        """
        if form is not None:
            await self._trials.check(form)
        return form

    async def tokens(self, request: Request, prompt: Prompt) -> Tokenized:
        """Return the tokens of a prompt."""
        job = Job(0, (prompt,), 1, {}, stream=False, tokens_only=True, client=client_of(request))
        async with self._begun(request, job) as (_, first):
            return first

    async def answer(self, request: Request, job: Job, reply: Reply) -> Response:
        """Let the engine answer, and return the whole answer, or the stream of its pieces."""
        prompts = len(job.prompts)
        async with self._begun(request, job) as (answers, first):
            if job.stream:
                events = Events(answers, first, reply, self._done, prompts)
                return EventStream(events, lambda: self._over(answers))
            table = await unless_gone(request.receive, self._whole(answers, first, reply, prompts))
            return Response(whole(table), media_type="application/json")

    @asynccontextmanager
    async def _begun(self, request: Request, job: Job) -> AsyncIterator[tuple[Answers, Any]]:
        """Hand a job over, and give it up at the end unless it is streamed; the second value is its first event.

        Raises:
            ApiError: the engine refuses it.

        """
        answers = self._submit(job)
        if self._telemetry and not job.tokens_only:
            answers.operation = self._telemetry.begin(request.headers, job, self.label())
        handed_on = False
        try:
            first = await unless_gone(request.receive, answers.accepted())
            if isinstance(first, Refused):
                raise api_error(first)
            yield answers, first
            handed_on = job.stream
        finally:
            if not handed_on:
                self._over(answers)

    def _over(self, answers: Answers) -> None:
        self.engine.cancel(answers)
        if answers.operation:
            answers.operation.end(answers.refused or "cancelled")

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
        self.metrics.answered(self.label(), seconds, finished)
        if answers.operation:
            answers.operation.done(finished, len(answers.job.prompts))

    def _submit(self, job: Job) -> Answers:
        parallel, queue = self.settings.parallel, self.settings.queue
        if not has_room(job.client, self.engine.clients, parallel, queue):
            # The time until a slot becomes free for whoever asks next, at the pace of late.
            jobs, wait = self.engine.jobs, max(1, round(self._pace))
            raise queue_full(f"{jobs} requests are under way or waiting, and the limit is {parallel + queue}", wait)
        self.info()
        return self.engine.submit(job)


def client_of(request: Request, user: str = "") -> Client:
    """Return who sent a request, for a user whom it may name."""
    return Client(request.client.host if request.client else "", user)
