"""Jobs whose replica is lost continue on another one, at the place that the client has reached."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phi3_onnx.configs import EngineError
from phi3_onnx.runtime.server import remote
from phi3_onnx.runtime.server.answers import Answers
from phi3_onnx.runtime.server.facts import Facts
from phi3_onnx.runtime.server.messages import (
    Accepted,
    Event,
    Finished,
    FromEngine,
    Job,
    Piece,
    Ready,
    Refused,
    TokenText,
)
from phi3_onnx.runtime.server.remote import LostError, RemoteEngine, Run

READY = Ready("m", "cpu", "the only one", "ort", 4096, can_chat=True, tools="convention", facts=Facts())
TEXT = "The capital of France is Paris."


def logprob(letter: str) -> TokenText:
    return TokenText(letter, -1.0, ())


def events(text: str, cuts: Sequence[int], choices: int = 1) -> list[FromEngine]:
    """Return the events of streamed answers of one text each, cut at some places, a log probability a letter."""
    found: list[FromEngine] = [Accepted(1, 5)]
    edges = [0, *sorted(cuts), len(text)]
    parts = [text[start:end] for start, end in pairwise(edges)]
    for choice in range(choices):
        found += [Piece(1, choice, part, tuple(map(logprob, part))) for part in parts[:-1]]
        found.append(finished(parts[-1], choice, last=choice == choices - 1))
    return found


def finished(text: str, choice: int = 0, *, last: bool = True) -> Finished:
    return Finished(1, choice, text, tuple(map(logprob, text)), "stop", 5, 7, 0, 0.1, 0.2, last)


def replicas(*plans: Sequence[FromEngine | Exception]) -> tuple[Run, list[Job]]:
    """Return replicas that do what is planned, one attempt after another, and the jobs that they got."""
    left, jobs = list(plans), list[Job]()

    async def run(job: Job) -> AsyncIterator[Sequence[FromEngine]]:
        jobs.append(job)
        for step in left.pop(0):
            await asyncio.sleep(0)
            if isinstance(step, Exception):
                raise step
            yield [step]

    return run, jobs


async def ready() -> Ready:
    return READY


async def collected(answers: Answers) -> tuple[Any, list[Event]]:
    first = await answers.accepted()
    found: list[Event] = []
    while isinstance(first, Accepted) and not (
        found and (isinstance(found[-1], Refused) or (isinstance(found[-1], Finished) and found[-1].last))
    ):
        found += await answers.next()
    return first, found


async def started(run: Run, load: Callable[[], Awaitable[Ready]] = ready) -> RemoteEngine:
    engine = RemoteEngine(load, run, lambda error: isinstance(error, ConnectionError))
    await engine.start()
    while engine.state != "ready":
        await asyncio.sleep(0)
    return engine


def outcome(run: Run, job: Job) -> tuple[Any, list[Event], RemoteEngine]:
    async def go() -> tuple[Any, list[Event], RemoteEngine]:
        engine = await started(run)
        first, found = await asyncio.wait_for(collected(engine.submit(job)), 20)
        await asyncio.sleep(0)
        return first, found, engine

    return asyncio.run(go())


def make_job(*, stream: bool = True, choices: int = 1) -> Job:
    return Job(0, ("x",), choices, {}, stream)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WAIT_SECONDS", 0.0)


CUTS = st.lists(st.integers(0, len(TEXT)), max_size=6)


@given(CUTS, CUTS, st.integers(0, 7), st.integers(1, 3))
def test_a_stream_continues_where_its_client_is(
    cuts: list[int], other_cuts: list[int], lost_after: int, choices: int
) -> None:
    first = events(TEXT, cuts, choices)
    first = [*first[: min(lost_after, len(first) - 1)], ConnectionError("the replica died")]
    run, jobs = replicas(first, events(TEXT, other_cuts, choices))
    accepted, found, engine = outcome(run, make_job(choices=choices))
    assert accepted == Accepted(1, 5)
    assert len(jobs) == 2
    assert jobs[0] == jobs[1]
    assert engine.restarts == 1
    assert engine.jobs == 0
    for choice in range(choices):
        own = [event for event in found if isinstance(event, Piece | Finished) and event.choice == choice]
        assert "".join(event.text for event in own) == TEXT
        assert [entry.text for event in own for entry in event.logprobs] == list(TEXT)
        assert isinstance(own[-1], Finished)
    assert [event.last for event in found if isinstance(event, Finished)] == [False] * (choices - 1) + [True]


def test_a_whole_answer_is_given_once() -> None:
    run, _ = replicas(
        [Accepted(1, 5), finished(TEXT, 1, last=False), LostError("gone")],
        [Accepted(1, 5), finished(TEXT, 0, last=False), finished(TEXT, 1, last=True)],
    )
    _, found, _ = outcome(run, make_job(stream=False, choices=2))
    assert [(event.choice, event.text, event.last) for event in found if isinstance(event, Finished)] == [
        (1, TEXT, False),
        (0, TEXT, True),
    ]


@pytest.mark.parametrize("again", ["The capital of Spain is Madrid.", "The cap"])
def test_an_answer_that_begins_otherwise_is_not_mixed_into_a_stream(again: str) -> None:
    run, _ = replicas([*events(TEXT, [20])[:2], LostError("gone")], events(again, []))
    _, found, _ = outcome(run, make_job())
    refused = found[-1]
    assert isinstance(refused, Refused)
    assert refused.kind == "stopped"
    assert "another one's answer" in refused.message


def test_a_replica_that_stops_or_ends_early_is_lost() -> None:
    run, jobs = replicas(
        [Refused(1, "stopped", "the engine is starting again")], [Accepted(1, 5)], [Accepted(1, 5), finished(TEXT)]
    )
    _, found, _ = outcome(run, make_job(stream=False))
    assert found == [finished(TEXT)]
    assert len(jobs) == 3


def test_what_is_wrong_with_a_request_is_not_tried_again() -> None:
    refused = Refused(1, "context", "too long")
    run, jobs = replicas([refused])
    first, _, _ = outcome(run, make_job())
    assert first == refused
    assert len(jobs) == 1


def test_an_unknown_error_is_the_engines() -> None:
    run, jobs = replicas([ZeroDivisionError()])
    first, _, _ = outcome(run, make_job())
    assert first.kind == "engine"
    assert len(jobs) == 1


def test_a_request_that_ends_every_replica_is_refused_in_the_end() -> None:
    run, jobs = replicas(*[[LostError("gone")]] * 9)
    first, _, _ = outcome(run, make_job())
    assert first.kind == "stopped"
    assert "5 replicas were lost" in first.message
    assert len(jobs) == 5


def test_jobs_have_a_seed_and_keep_their_own() -> None:
    seeds = []
    for options in ({}, {"seed": None}, {"seed": 7}):
        run, jobs = replicas([Accepted(1, 5), finished(TEXT)])
        outcome(run, Job(0, ("x",), 1, options, stream=True))
        seeds.append(jobs[0].options["seed"])
    assert seeds[2] == 7
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_job_that_is_given_up_ends_at_its_replica() -> None:
    ended = []

    async def run(job: Job) -> AsyncIterator[Sequence[FromEngine]]:
        try:
            yield [Accepted(job.id, 5)]
            await asyncio.sleep(60)
        finally:
            ended.append(job.id)

    async def go() -> None:
        engine = await started(run)
        answers = engine.submit(make_job())
        await answers.accepted()
        assert engine.jobs == 1
        engine.cancel(answers)
        await asyncio.sleep(0.01)
        assert engine.jobs == 0

    asyncio.run(go())
    assert ended == [1]


def test_stopping_ends_the_jobs() -> None:
    async def run(job: Job) -> AsyncIterator[Sequence[FromEngine]]:
        yield [Accepted(job.id, 5)]
        await asyncio.sleep(60)

    async def go() -> None:
        engine = await started(run)
        answers = engine.submit(make_job())
        await answers.accepted()
        await engine.stop()
        assert answers.take() == [Refused(1, "stopped", "the server is shutting down")]
        with pytest.raises(EngineError, match="the engine is stopped"):
            engine.submit(make_job())

    asyncio.run(go())


def test_it_waits_for_a_replica_that_has_the_model() -> None:
    tries = []

    async def load() -> Ready:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError
        return READY

    async def go() -> None:
        run, _ = replicas()
        engine = await started(run, load)
        assert engine.info == READY

    asyncio.run(go())
    assert len(tries) == 3
