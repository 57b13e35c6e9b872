"""Many prompts, several answered side by side: when a row of the batch is done, it continues with the next prompt.

Each answer is the one that its prompt gets alone: exactly with the engine that decodes together, and but for rounding
with slots, where a matrix product of several rows may add up in another order than that of one.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from ..configs import PackageError, Phi3OnnxError, ProviderError, UsageError
from ..configs.sizes import size
from .core import ModelCore
from .decoding.generation import Options
from .decoding.kvcache import KvCache, check_memory
from .decoding.response import Chunk, Response, last_response
from .engines.ort import OrtEngine
from .engines.together import Together

DEFAULT_BATCH = 8
"""How many prompts are answered side by side where nothing else is asked for."""

Notify = Callable[[str], None]
Result = Response | Phi3OnnxError


@dataclass(frozen=True)
class BatchPrompt:
    """One prompt of a batch, and how to answer it."""

    prompt: Sequence[int]
    """Token ids."""
    options: Options


def answer_all(
    model: ModelCore,
    jobs: Sequence[BatchPrompt],
    *,
    batch: int = DEFAULT_BATCH,
    cancel: threading.Event | None = None,
    on_prefill: Callable[[int, int], None] | None = None,
    notify: Notify | None = None,
) -> Iterator[Result]:
    """Answer prompts, several at a time.

    The engine that decodes together takes all. Else those with guidance, and all of a package that cannot be batched,
    are answered one after another.

    Args:
        model: the loaded model.
        jobs: the prompts.
        batch: how many to answer side by side; 1 answers all one after another.
        cancel: set it, from any thread, to end the answers under way before their next token and to begin no others.
        on_prefill: called with a prompt's tokens run so far and in all, where it is answered alone.
        notify: called with a line for what is not done as was asked for and why, and for the memory that is taken.

    Yields:
        For each prompt in turn its answer, or what is wrong with it, as soon as those before it are there too.

    Raises:
        UsageError: the model was closed, or `batch` is not positive.

    """
    if batch < 1:
        raise UsageError(f"batch must be 1 or more, got {batch}")
    stop, say = cancel or threading.Event(), notify or (lambda _: None)
    core = model.together(min(batch, len(jobs))) if jobs else None
    rows, together = _joined(model, core, jobs, stop) if core else _batched(model, jobs, batch, stop, say)
    cache, done = model.new_cache(), dict[int, Result]()
    try:
        for number, job in enumerate(jobs):
            while number in together and number not in done:
                finished, result = next(rows, (number, None))
                if result is None:  # it was not begun before the end
                    return
                done[finished] = result
            if number in together:
                yield done.pop(number)
            elif stop.is_set():
                return
            else:
                yield _answer(model, cache, job, stop, on_prefill)
    finally:
        rows.close()
        cache.close()


def _answer(
    model: ModelCore,
    cache: KvCache,
    job: BatchPrompt,
    cancel: threading.Event,
    on_prefill: Callable[[int, int], None] | None,
) -> Result:
    try:
        # One cache for all prompts: what they share from the start, such as a system message, is run once.
        return last_response(model.run(job.prompt, job.options, cache=cache, cancel=cancel, on_prefill=on_prefill))
    except Phi3OnnxError as error:
        return error


_Rows = Generator[tuple[int, Result], None, None]


def _batched(
    model: ModelCore, jobs: Sequence[BatchPrompt], batch: int, cancel: threading.Event, notify: Notify
) -> tuple[_Rows, frozenset[int]]:
    """Return what answers jobs side by side, and the numbers of those jobs; perhaps none."""
    # An engine that follows guidance by itself has no masks, and the one that batches takes nothing else.
    free = [number for number, job in enumerate(jobs) if not (job.options.guidance and model.engine.guides)]
    engine = _engine(model, notify) if batch > 1 and len(free) > 1 else None
    if engine is None:
        return _nothing(), frozenset()
    if len(free) < len(jobs):
        notify(f"{len(jobs) - len(free)} of {len(jobs)} prompts have guidance and are answered one at a time")
    rows = _side_by_side(model, engine, {number: jobs[number] for number in free}, batch, cancel, notify)
    return rows, frozenset(free)


def _joined(
    model: ModelCore, core: Together, jobs: Sequence[BatchPrompt], cancel: threading.Event
) -> tuple[_Rows, frozenset[int]]:
    """Return what answers all jobs together, each with what it gets alone."""

    def rows() -> _Rows:
        try:
            yield from answer_together(model, core, jobs, cancel=cancel)
        finally:
            core.close()

    return rows(), frozenset(range(len(jobs)))


def answer_together(
    model: ModelCore, core: Together, jobs: Sequence[BatchPrompt], *, cancel: threading.Event | None = None
) -> Generator[tuple[int, Result], None, None]:
    """Answer jobs that are all asked at once; yields (number, result) as they end.

    Args:
        model: what `core` belongs to.
        core: what decodes them; what it keeps of texts stays for the next ones.
        jobs: what to answer.
        cancel: ends the answers under way when it is set, and begins no others.

    """
    answers = {number: model.joined(core, job.prompt, job.options, cancel=cancel) for number, job in enumerate(jobs)}
    try:
        while answers:
            for number, chunks in list(answers.items()):
                finished, result = _until_it_waits(chunks)
                if finished:
                    del answers[number]
                if result is not None:
                    yield number, result
            core.step()
    finally:
        for chunks in answers.values():
            chunks.close()


def _until_it_waits(chunks: Iterator[Chunk | None]) -> tuple[bool, Result | None]:
    """Take an answer to where it waits, or to its end; return whether that is reached, and what came of it."""
    try:
        for chunk in chunks:
            if chunk is None:
                return False, None
            if chunk.response:
                return True, chunk.response
    except Phi3OnnxError as error:
        return True, error
    return True, None  # it was not begun before the end


def _nothing() -> _Rows:
    yield from ()


def _engine(model: ModelCore, notify: Notify) -> OrtEngine | None:
    try:
        return model.batching_engine()
    except (PackageError, ProviderError) as error:
        notify(f"prompts are answered one at a time: {error}")
        return None


def _side_by_side(
    model: ModelCore,
    engine: OrtEngine,
    jobs: dict[int, BatchPrompt],
    batch: int,
    cancel: threading.Event,
    notify: Notify,
) -> _Rows:
    """Answer jobs, each in a row of a batch; yields (number, result) as they come."""
    needs, free = dict[int, int](), model.free_memory()
    for number, job in jobs.items():
        try:
            needs[number] = _tokens_needed(model, job, free)
        except UsageError as error:
            yield number, error
    if not needs:
        return
    capacity = max(needs.values())
    rows = _affordable_rows(model, min(batch, len(needs)), capacity, free, notify)
    pool = engine.pool(rows, capacity)
    switch = model.package.longrope_switch
    caches = [KvCache(pool, context_length=model.context_length, switch=switch) for _ in range(rows)]
    try:
        yield from _take_turns(model, caches, deque((number, jobs[number]) for number in needs), cancel)
    finally:
        for cache in caches:
            cache.close()
        pool.close()


def _tokens_needed(model: ModelCore, job: BatchPrompt, free: int | None) -> int:
    """Return the tokens of prompt and answer.

    Raises:
        UsageError: they do not fit into the context, or into the memory even alone.

    """
    if not job.prompt:
        raise UsageError("the prompt holds no tokens")
    needed = len(job.prompt) + model.room(job.prompt, job.options)
    check_memory(needed, model.package.kv_bytes_per_token, free)
    return needed


def _affordable_rows(model: ModelCore, rows: int, capacity: int, free: int | None, notify: Notify) -> int:
    """Return for how many rows of `capacity` tokens there is memory, and say how much of it they take."""
    each = capacity * model.package.kv_bytes_per_token
    if free is not None and rows * each > free:
        fitting = max(1, free // each)
        notify(
            f"{rows} KV caches of {capacity} tokens take {size(rows * each)} and {size(free)} of "
            f"memory are free; {fitting} at a time"
        )
        rows = fitting
    notify(f"KV cache: {size(rows * each)} for {rows} times {capacity} tokens")
    return rows


def _take_turns(
    model: ModelCore, caches: Sequence[KvCache], queue: deque[tuple[int, BatchPrompt]], cancel: threading.Event
) -> _Rows:
    idle, live = list(caches), list[_Row]()
    while queue or live:
        while queue and idle and not cancel.is_set():
            number, job = queue.popleft()
            # The cache that held most of this prompt before, such as a system message that all share.
            cache = max(idle, key=lambda cache: cache.shared(job.prompt))
            idle.remove(cache)
            live.append(_Row(number, cache, _steps(model, cache, job, cancel)))
        if cancel.is_set():
            queue.clear()
        if not queue:
            for cache in idle:  # their slots are left out of the next runs
                cache.close()
        for row in list(live):
            if result := _advance(row):
                live.remove(row)
                idle.append(row.cache)
                yield row.number, result


@dataclass(frozen=True)
class _Row:
    """An answer under way."""

    number: int
    cache: KvCache
    steps: Iterator[Chunk | None]


def _steps(model: ModelCore, cache: KvCache, job: BatchPrompt, cancel: threading.Event) -> Iterator[Chunk | None]:
    cache.reserve(len(job.prompt) + model.room(job.prompt, job.options))
    yield from model.generation(job.prompt, job.options, cache, cancel=cancel).steps()


def _advance(row: _Row) -> Result | None:
    """Take an answer to where its next token waits for the others', or to its end: the result."""
    try:
        for chunk in row.steps:
            if chunk and chunk.response:
                return chunk.response
            if row.cache.waiting:
                return None
    except Phi3OnnxError as error:
        return error
    raise RuntimeError("an answer ended without a response")
