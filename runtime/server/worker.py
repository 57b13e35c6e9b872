"""The engine's process: takes jobs, and lets their answers grow side by side, one step of each at a time.

One thread does everything, so that nothing waits for a lock, but for long prompts and guidance, which become tokens and
guides in threads of their own. Between two steps (a token of one answer, or a chunk of one prompt) it looks for
messages, and a job that was given up is gone by its next step.
"""

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ...configs import EngineError, Phi3OnnxError, UsageError
from ...configs.lifeline import end_with
from ..decoding.engine import GuidedDraws
from ..decoding.generation import Options
from ..decoding.guide import Guide
from ..decoding.kvcache import KvCache
from ..decoding.response import Chunk, Response
from ..decoding.sampling import TokenLogprobs, token_logprobs
from ..decoding.score import run_through
from ..engines.load import EngineChoice
from ..engines.together import Together
from ..model import Model, load_to_serve
from ..providers.hardware import available_memory
from .caches import CachePool
from .channel import EngineEnd
from .compiling import Compiler
from .facts import facts_of
from .fairness import in_turns
from .logs import LogFormat, log_in_json
from .messages import (
    Accepted,
    CacheState,
    Cancel,
    Finished,
    FromEngine,
    Job,
    LoadFailed,
    Piece,
    Ready,
    RefusalKind,
    Refused,
    Shutdown,
    ToEngine,
    Tokenized,
    TokenText,
)
from .prompts import ContextError, Prompts, Tokens
from .texts import LogprobTexts, prompt_texts

_LOG = logging.getLogger(__name__)
_LEAST_SPARE = 1024
_SAVE_SECONDS = 3.0  # less than what a process is given to end
_CACHE_SHARE = 4  # of the memory that is free, for texts that ended
# An engine that fails this often without one answer in between is broken (a GPU that was lost): a new process helps.
_FAILURES_IN_A_ROW = 3
BROKEN_ENGINE_EXIT = 70
# Text that comes faster than screens show it goes out together: each message takes time of all processes, the client's
# too, on the cores that the model runs on.
_FRAME_SECONDS = 1 / 60
# What comes in waits for answers under way after so long: a flood of small requests held them back as long as it came.
_TAKE_SECONDS = 0.01
_SLICE = 16
"""Tokens of a prompt whose log probabilities are worked out in one step."""
MOST_LOGPROBS = 2**19
"""Log probabilities of a request's prompts, those of other tokens at their places included; each takes 100 bytes."""


_THROUGH = object()


@dataclass(frozen=True)
class PackageLoader:
    """Loads a package in the engine's process; the arguments are those of `runtime.load_to_serve`."""

    package: str
    provider: str = "auto"
    threads: int | None = None
    device: int | None = None
    engine: EngineChoice = "auto"
    speculate: str = "auto"
    draft: str | None = None
    self_test: bool = True
    cache_memory: int | None = None
    """Bytes that texts may keep in memory after their end; by default a quarter of what is free."""
    cache_folder: tuple[Path, int] | None = None
    """Where they are kept over restarts, and the bytes that they may take there."""
    notify: Callable[[str], None] | None = None
    """Has to be picklable."""
    log_format: LogFormat = "text"

    def __call__(self) -> Model:
        """Load it."""
        if self.log_format == "json":
            log_in_json(debug=False)
        model = load_to_serve(
            self.package,
            provider=self.provider,
            threads=self.threads,
            device=self.device,
            engine=self.engine,
            speculate=self.speculate,
            draft=self.draft,
            self_test=self.self_test,
            notify=self.notify,
        )
        model.cache_memory, model.cache_folder = self.cache_memory, self.cache_folder
        return model


def run_engine(connection: socket.socket, loader: Callable[[], Model], parallel: int) -> None:
    """Load a model and serve jobs until the connection closes or `Shutdown` comes: the main function of the process.

    Args:
        connection: the engine's end.
        loader: returns the model; has to be picklable.
        parallel: answers to work on side by side.

    """
    # A Ctrl-C at the terminal and a service manager's SIGTERM reach every process of the group. The web process
    # decides what happens then; where it dies, the connection closes.
    for name in ("SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
        # While a model loads, which takes a minute for large ones, nothing reads the connection.
        end_with(parent.pid or 0)
    web = EngineEnd(connection)
    gone = suppress(EOFError, OSError)
    try:
        model = loader()
    except Phi3OnnxError as error:
        with gone:
            web.send(LoadFailed(str(error), error.exit_code))
        return
    with gone:
        _serve(model, web, parallel)


def _serve(model: Model, web: EngineEnd, parallel: int) -> None:
    """Serve until `Shutdown` comes. Raises EOFError or OSError when the web process is gone."""
    if model.masks_guidance or not model.engine.guides:
        model.guides.prepare()
    web.send(_ready(model))
    with model:
        scheduler = Scheduler(model, parallel, web.send)
        while scheduler.failures < _FAILURES_IN_A_ROW:
            until = time.monotonic() + _TAKE_SECONDS
            while scheduler.idle or (web.waiting() and time.monotonic() < until):
                while scheduler.idle and not web.waiting() and scheduler.save_some():
                    pass
                if not scheduler.take(web.receive()):
                    scheduler.save_all(_SAVE_SECONDS)
                    return
            scheduler.step()
    os._exit(BROKEN_ENGINE_EXIT)


def _ready(model: Model) -> Ready:
    return Ready(
        model=model.package.name,
        provider=model.provider,
        choice=str(model.choice),
        engine=model.engine.name,
        context_length=model.context_length,
        can_chat=model.template is not None,
        tools=model.template.dialect if model.template else "convention",
        facts=facts_of(model),
        turns_because=model.turns_because,
    )


@dataclass
class _Task:
    """A job under way: its prompts as tokens, and where its answers stand."""

    job: Job
    prompts: Tokens
    options: Options
    left: int
    """Answers that are not through."""
    echoes: "dict[int, tuple[str, tuple[TokenText, ...]]]"
    """What answers begin with, by the number of the prompt: its text, and its tokens where they are wanted."""
    taken: float
    """When it came, by `time.monotonic`."""
    steps: list[Generator[None, None, None]]
    """Its answers that were begun: each yields where it lets others have their turn. One after another they stand in
    one such."""
    begun: int = 0
    """How many of its answers were begun; 1 for all of them where they are made one after another."""


class Scheduler:
    """Lets several jobs take turns in one engine. For use by one thread."""

    def __init__(self, model: Model, parallel: int, send: Callable[[FromEngine], None]) -> None:
        """Begin without jobs.

        Args:
            model: the loaded model.
            parallel: jobs to work on side by side; the others wait, each client's in the order they came.
            send: called with what there is to say about each job.

        """
        self._model = model
        self._parallel = parallel
        self._send = send
        self._tasks: dict[int, _Task] = {}
        self._pool = CachePool(model, parallel)
        kept = model.cache_memory
        self._together = model.together(parallel, available_memory() // _CACHE_SHARE if kept is None else kept)
        self._failure: EngineError | None = None
        self._scoring = False
        self._prompts = Prompts(model)
        self._compiler: Compiler[tuple[Job, Tokens, Options]] = Compiler(model.guides, parallel)
        self._taken: dict[int, float] = {}  # when jobs came that are not accepted yet
        self.failures = 0
        """How often the engine failed since the last answer."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._tasks or self._prompts.pending or self._compiler.pending)

    def take(self, message: ToEngine) -> bool:
        """Take a message of the web process; return whether to continue."""
        if isinstance(message, Shutdown):
            return False
        if isinstance(message, Cancel):
            self._prompts.pending.drop(message.id)
            self._compiler.pending.drop(message.id)
            self._end_job(message.id)
            return True
        self._taken[message.id] = time.monotonic()
        if not self._prompts.start(message):
            self._guard(message.id, lambda: self._accept(message, self._prompts.encode(message)))
        return True

    def save_some(self) -> bool:
        """Write some of what ended texts left to disk; return whether there was anything to write."""
        return self._together is not None and self._together.save_some()

    def save_all(self, seconds: float) -> None:
        """Write what is not on disk yet, for so long at most."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.save_some():
            pass

    def step(self) -> None:
        """Let each job that has its turn make one step; all together, where the engine can."""
        self._compiler.begin_step()
        for job, tokens in self._prompts.pending.finished(wait=not self._tasks):
            self._guard(job.id, lambda job=job, tokens=tokens: self._accept(job, tokens.result()))
        for ready, guide in self._compiler.pending.finished(wait=not self._tasks):
            self._guard(ready[0].id, lambda ready=ready, guide=guide: self._accept_guided(ready, guide))
        for task, steps in self._turns():
            self._guard(task.job.id, lambda task=task, steps=steps: self._step(task, steps))
        if self._together:
            self._together.step()

    def _turns(self) -> "list[tuple[_Task, Generator[None, None, None]]]":
        """Return who makes a step, in the order in which they may take what became free.

        Clients take turns. Among the answers of one, the first of each job comes before the second of any: a job of a
        thousand answers holds nobody back.
        """
        tasks = list(self._tasks.values())
        if not self._together:
            order = sorted(in_turns(tasks, lambda task: task.job.client), key=lambda task: not task.begun)
            for task in order[: self._parallel]:
                task.begun = task.begun or 1
            return [(task, steps) for task in order[: self._parallel] for steps in task.steps]
        for task in tasks:
            self._begin_answers(task, self._together)
        turns = [(place, task, steps) for task in tasks for place, steps in enumerate(task.steps)]
        ordered = [(task, steps) for _, task, steps in sorted(turns, key=lambda turn: turn[0])]
        return in_turns(ordered, lambda turn: turn[0].job.client)

    def _begin_answers(self, task: _Task, together: Together) -> None:
        """Begin twice as many answers of a job as can be live at a time: each that waits takes time in every step."""
        while len(task.steps) < 2 * self._parallel and task.begun < len(task.prompts) * task.job.choices:
            task.steps.append(self._joined(task, task.begun, together))
            task.begun += 1

    def _step(self, task: _Task, steps: Generator[None, None, None]) -> None:
        if task.job.id in self._tasks and next(steps, _THROUGH) is _THROUGH:
            task.steps.remove(steps)
            if not task.steps and not task.left:
                self._end_job(task.job.id)

    def _end_job(self, job: int) -> None:
        self._taken.pop(job, None)
        if task := self._tasks.pop(job, None):
            for steps in task.steps:
                steps.close()

    def _guard(self, job: int, action: Callable[[], None]) -> None:
        """Do something for a job, and where that fails, end this job alone."""
        kind: RefusalKind = "request"
        try:
            action()
            return
        except EngineError as error:
            self.failures += error is not self._failure  # one run that failed ends all that were in it
            self._failure = error
            kind, reason = "engine", str(error)
            while self._pool.give_up_one():
                pass
        except ContextError as error:
            kind, reason = "context", str(error)
        except Phi3OnnxError as error:
            reason = str(error)
        except Exception:
            _LOG.exception("job %d failed", job)
            kind, reason = "engine", "the engine met an error that it does not know; its log has the details"
        self._end_job(job)
        self._send(Refused(job, kind, reason))

    def _accept(self, job: Job, prompts: Tokens) -> None:
        if job.tokens_only:
            self._taken.pop(job.id)
            # A text is not decoded again: it may be long, and all answers wait meanwhile.
            texts = (
                given if isinstance(given, str) else self._model.tokenizer.decode(tokens, skip_special=False)
                for given, tokens in zip(job.prompts, prompts, strict=True)
            )
            self._send(Tokenized(job.id, prompts, tuple(texts)))
            return
        options = self._model.options(**job.options)
        for prompt in prompts:
            try:
                self._model.room(prompt, options)
            except UsageError as error:
                raise ContextError(str(error)) from error
        if job.echo and options.logprobs is not None:
            count = sum(map(len, prompts)) * (options.logprobs + 1)
            if count > MOST_LOGPROBS:
                raise UsageError(
                    f"echo with logprobs gives {count:,} log probabilities of the prompts, more than the limit of "
                    f"{MOST_LOGPROBS:,}; send fewer prompts at a time, or ask for a smaller logprobs"
                )
        if guided := self._model.opened_under(options):  # whether it is understood shows when a sequence is opened
            self._model.engine.open(8, guided).close()
        elif options.guidance and self._compiler.start(job.id, options.guidance, (job, prompts, options)):
            return
        self._begin_task(job, prompts, options)

    def _accept_guided(self, ready: tuple[Job, Tokens, Options], guide: "Future[Guide]") -> None:
        guide.result()  # raises what is wrong with it
        self._begin_task(*ready)

    def _begin_task(self, job: Job, prompts: Tokens, options: Options) -> None:
        task = self._tasks[job.id] = _Task(
            job, prompts, options, len(prompts) * job.choices, {}, self._taken.pop(job.id), []
        )
        if not self._together:
            task.steps.append(self._in_turn(task))
        self._send(Accepted(job.id, sum(map(len, prompts))))

    def _part(self, task: _Task, number: int) -> tuple[tuple[int, ...], Options]:
        """Return prompt and options of one of a job's answers."""
        prompt, choice = divmod(number, task.job.choices)
        options = task.options
        if options.seed is not None:
            options = replace(options, seed=options.seed + choice)
        return task.prompts[prompt], options

    def _joined(self, task: _Task, number: int, together: Together) -> Generator[None, None, None]:
        """Make one answer beside all others; yields where it waits for the next run."""
        prompt, options = self._part(task, number)
        yield from self._echo(task, number, prompt)
        reporter = self._reporter(task, number, prompt)
        if task.job.silent:
            reporter.report_silence(len(prompt))
            return
        for chunk in self._model.joined(together, prompt, options, guide=lambda: self._guide(options)):
            if chunk:
                reporter.report(chunk)
            else:
                yield
        self.failures = 0
        self._send(_cache_state(together))

    def _guide(self, options: Options) -> Generator[None, None, Guide | None]:
        """Return the guide through one answer, where logits are masked; yields where it is compiled again."""
        guidance = self._model.masked_under(options)
        return (yield from self._compiler.guide(guidance)) if guidance else None

    def _in_turn(self, task: _Task) -> Generator[None, None, None]:
        """Make all answers of a job, one after another, so that the choices of a prompt share its cache."""
        for number in range(task.left):
            yield from self._answer(task, number, *self._part(task, number))

    def _answer(self, task: _Task, number: int, prompt: Sequence[int], options: Options) -> Iterator[None]:
        yield from self._echo(task, number, prompt)
        reporter = self._reporter(task, number, prompt)
        if task.job.silent:
            reporter.report_silence(len(prompt))
            return
        needed = len(prompt) + self._model.room(prompt, options)
        yield from self._until_affordable(needed)
        guided = self._model.opened_under(options)
        cache = self._pool.take(prompt, guided)
        try:
            self._reserve(cache, needed, guided)
            guide = yield from self._guide(options)
            for chunk in self._model.generation(prompt, options, cache, guide=guide).steps():
                if chunk:
                    reporter.report(chunk)
                yield
            self.failures = 0
        finally:
            self._pool.give_back(cache)

    def _echo(self, task: _Task, number: int, prompt: Sequence[int]) -> Iterator[None]:
        """Find what an answer begins with, once for all choices of a prompt; yields after each part of a run."""
        which, choice = divmod(number, task.job.choices)
        while task.job.echo and choice and which not in task.echoes:
            yield  # the first choice finds it
        if not task.job.echo or choice:
            return
        given, tokenizer, top = task.job.prompts[which], self._model.tokenizer, task.options.logprobs
        text = given if isinstance(given, str) else tokenizer.decode(prompt, skip_special=False)
        tokens: tuple[TokenText, ...] = ()
        if top is not None:
            while self._scoring:  # each has a cache of its own, and runs beside the answers
                yield
            self._scoring = True
            try:
                logprobs = yield from self._score(prompt, top)
            finally:
                self._scoring = False
            entries: list[TokenText] = []
            for entry in prompt_texts(tokenizer, prompt, logprobs, given if isinstance(given, str) else None):
                entries.append(entry)
                if len(entries) % _SLICE == 0:
                    yield
            tokens = tuple(entries)
        task.echoes[which] = text, tokens

    def _score(self, prompt: Sequence[int], top: int) -> Generator[None, None, list[TokenLogprobs]]:
        """Run a prompt and return the log probabilities of its tokens; yields after each slice of them."""
        logprobs: list[TokenLogprobs] = []
        yield from self._until_affordable(len(prompt))
        cache = self._model.new_cache()
        try:
            self._reserve(cache, len(prompt))
            for rows, following in run_through(cache, prompt):
                for start in range(0, len(following), _SLICE):
                    part = slice(start, start + _SLICE)
                    found = zip(rows[part], following[part], strict=True)
                    logprobs += [token_logprobs(row, token, top) for row, token in found]
                    yield
        finally:
            cache.close()
        return logprobs

    def _reporter(self, task: _Task, number: int, prompt: Sequence[int]) -> "_Reporter":
        begin = task.echoes.get(number // task.job.choices, ("", ()))
        return _Reporter(task, number, LogprobTexts(self._model.tokenizer, prompt[-1]), self._send, begin)

    def _until_affordable(self, needed: int) -> Iterator[None]:
        while self._pool.lent and not self._affordable(needed):
            yield  # others give memory back when they are through

    def _reserve(self, cache: KvCache, needed: int, guided: GuidedDraws | None = None) -> None:
        spare = max(_LEAST_SPARE, needed // 2)
        while True:
            try:
                cache.reserve(needed, spare, guided)
                return
            except (EngineError, UsageError):
                if not self._pool.give_up_one():
                    raise

    def _affordable(self, needed: int) -> bool:
        if self._model.provider != "cpu":  # what a GPU has free, only its own library knows
            return True
        return needed * self._model.kv_bytes_per_token <= available_memory() or self._pool.cached_tokens > 0


def _cache_state(together: Together) -> CacheState:
    return CacheState(
        hit_tokens=together.hit_tokens,
        miss_tokens=together.miss_tokens,
        read_tokens=together.read_tokens,
        memory_bytes=together.kept_bytes,
        disk_bytes=together.files.num_bytes if together.files else 0,
        drafted_tokens=together.drafted,
        accepted_tokens=together.accepted,
    )


class _Reporter:
    """Says what becomes of one answer."""

    def __init__(
        self,
        task: _Task,
        number: int,
        texts: LogprobTexts,
        send: Callable[[FromEngine], None],
        begin: tuple[str, tuple[TokenText, ...]],
    ) -> None:
        self._task = task
        self._job = task.job
        self._number = number
        self._texts = texts
        self._send = send
        self._begin = begin[0]
        self._text, self._logprobs = self._begin, list(begin[1])
        self._tokens = 0
        self._first_at = 0.0
        self._sent_at = 0.0

    def report_silence(self, prompt_tokens: int) -> None:
        """Say that the answer is its prompt alone."""
        response = Response("", (), prompt_tokens, 0, 0.0, 0.0, "length")
        self._send(self._finished(Chunk("", response=response), ()))

    def report(self, chunk: Chunk) -> None:
        """Say what came with a chunk."""
        self._tokens += chunk.token_id is not None
        self._first_at = self._first_at or time.monotonic()
        if chunk.token_id is not None and chunk.logprobs:
            self._texts.push(chunk.token_id, chunk.logprobs)
        entries = self._texts.shown(chunk.text) if chunk.text else ()
        if chunk.response:
            self._send(self._finished(chunk, (*entries, *self._end(chunk.response))))
            return
        self._text += chunk.text
        self._logprobs += entries
        if self._job.stream and self._text and (now := time.monotonic()) - self._sent_at >= _FRAME_SECONDS:
            self._send(Piece(self._job.id, self._number, self._text, tuple(self._logprobs), self._tokens))
            self._text, self._logprobs, self._sent_at = "", [], now

    def _end(self, response: Response) -> tuple[TokenText, ...]:
        """Return the token that ended an answer, without text, where the answer begins with its prompt.

        Whoever scores texts counts on an entry for each token generated: lm_eval cuts the last one off.
        """
        if not self._job.echo or not response.logprobs or len(response.token_ids) == self._tokens:
            return ()
        return (self._texts.without_text(response.logprobs[-1]),)

    def _finished(self, chunk: Chunk, entries: tuple[TokenText, ...]) -> Finished:
        response = chunk.response
        assert response is not None
        self._task.left -= 1
        return Finished(
            id=self._job.id,
            choice=self._number,
            text=self._text + chunk.text if self._job.stream else self._begin + response.text,
            logprobs=(*self._logprobs, *entries),
            reason=response.finish_reason,
            prompt_tokens=response.prompt_tokens,
            completion_tokens=response.completion_tokens,
            cached_tokens=response.cached_tokens,
            prefill_seconds=response.prefill_seconds,
            decode_seconds=response.decode_seconds,
            last=self._task.left == 0,
            queue_seconds=max(0.0, (self._first_at or time.monotonic()) - self._task.taken - response.prefill_seconds),
            stop=response.stop,
            drafted_tokens=response.drafted_tokens,
            accepted_tokens=response.accepted_tokens,
        )
