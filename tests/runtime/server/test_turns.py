"""Who has to wait for whom in the engine's process: no client's requests hold all others back."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeLoader
from phi3_onnx.runtime import load
from phi3_onnx.runtime.server import worker
from phi3_onnx.runtime.server.messages import Accepted, Finished, FromEngine, Job, Refused, ToEngine
from phi3_onnx.runtime.server.worker import MOST_LOGPROBS, Scheduler
from scripted import write_scripted_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scripted_package(tmp_path / "fake", context_length=4096)
    return tmp_path / "fake"


class Flood:
    """A web process in which one message follows the other."""

    def __init__(self, most: int) -> None:
        self.sent: list[FromEngine] = []
        self._messages = self._all(most)
        self.received = 0

    def _all(self, most: int) -> Iterator[ToEngine]:
        yield Job(0, ("ab",), 1, {"max_tokens": 3}, stream=False)
        for number in range(1, most):
            yield Job(number, ("ab",), 1, {}, stream=False, tokens_only=True)

    def send(self, message: FromEngine) -> None:
        self.sent.append(message)

    def waiting(self) -> bool:
        return True

    def receive(self) -> ToEngine:
        if any(isinstance(message, Finished) for message in self.sent):
            raise EOFError
        self.received += 1
        message = next(self._messages, None)
        if message is None:
            raise EOFError
        return message


def test_an_answer_goes_on_while_small_requests_come_one_after_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count()
    monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock) / 1000)  # a millisecond at each look
    web: Any = Flood(5000)
    with pytest.raises(EOFError):
        worker._serve(FakeLoader(folder)(), web, 2)
    assert [message.text for message in web.sent if isinstance(message, Finished)] == ["cde"]


@pytest.fixture
def package(tiny_package: Callable[..., Path]) -> Path:
    return tiny_package("gqa", "cpu-int4-rtn")


def test_a_job_of_many_answers_holds_no_other_back(package: Path) -> None:
    sent: list[FromEngine] = []
    with load(package, engine="together") as model:
        scheduler = Scheduler(model, 2, sent.append)
        prompts = tuple(f"The number {number}" for number in range(12))
        options = {"max_tokens": 3, "ignore_eos": True}
        scheduler.take(Job(1, prompts, 2, options, stream=False))
        for _ in range(3):
            scheduler.step()
        scheduler.take(Job(2, ("Hello",), 1, options, stream=False))
        while not scheduler.idle:
            scheduler.step()
    assert not any(isinstance(message, Refused) for message in sent)
    finished = [message for message in sent if isinstance(message, Finished)]
    assert sorted(answer.choice for answer in finished if answer.id == 1) == list(range(24))
    assert [answer.id for answer in finished].index(2) < 6


def test_one_prompt_is_scored_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[FromEngine] = []
    model = FakeLoader(folder)()
    run_through, under_way, most = worker.run_through, 0, 0

    def counted(cache: Any, tokens: Any) -> Iterator[Any]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        yield from run_through(cache, tokens)
        under_way -= 1

    monkeypatch.setattr(worker, "run_through", counted)
    scheduler = Scheduler(model, 4, sent.append)
    for number in range(4):
        scheduler.take(Job(number, ("ab" * 50,), 1, {"logprobs": 1}, stream=False, echo=True, silent=True))
    while not scheduler.idle:
        scheduler.step()
    finished = [message for message in sent if isinstance(message, Finished)]
    assert [len(answer.logprobs) for answer in finished] == [100] * 4
    assert most == 1


def test_so_many_log_probabilities_of_prompts_at_most(folder: Path) -> None:
    sent: list[FromEngine] = []
    scheduler = Scheduler(FakeLoader(folder)(), 1, sent.append)
    prompts = (tuple([70] * 4000),) * 8
    each = MOST_LOGPROBS // 32_000
    for number, top in enumerate((each - 1, each)):
        options = {"logprobs": top, "max_tokens": 1}
        scheduler.take(Job(number, prompts, 1, options, stream=False, echo=True, silent=True))
        while len(sent) == number:
            scheduler.step()
    assert isinstance(sent[0], Accepted)
    assert isinstance(sent[1], Refused) and f"{MOST_LOGPROBS:,}" in sent[1].message
