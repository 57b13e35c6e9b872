"""Long prompts: tokenized beside the engine, and refused before that where they cannot fit."""

import threading
import time
from pathlib import Path

import pytest
from fake_engine import FakeLoader
from phi3_onnx.runtime.server.messages import Accepted, Cancel, Finished, FromEngine, Job, Refused
from phi3_onnx.runtime.server.worker import Scheduler
from scripted import write_scripted_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_scripted_package(tmp_path / "fake", context_length=4096)
    return tmp_path / "fake"


def test_others_go_on_while_a_long_prompt_is_tokenized(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[FromEngine] = []
    model = FakeLoader(folder)()
    encode, go_on = model.tokenizer.encode, threading.Event()

    def slow(text: str, *, special: bool = True) -> list[int]:
        if len(text) > 10_000:
            assert go_on.wait(60), "the engine's thread waits for the tokens of a long prompt"
        return encode(text, special=special)

    monkeypatch.setattr(model.tokenizer, "encode", slow)
    scheduler = Scheduler(model, 2, sent.append)
    scheduler.take(Job(1, ("a" * 20_000,), 1, {"max_tokens": 1}, False))
    scheduler.take(Job(2, ("ab",), 1, {"max_tokens": 3}, False))
    until = time.monotonic() + 60
    while not any(isinstance(message, Finished) for message in sent) and time.monotonic() < until:
        scheduler.step()
    assert [message.id for message in sent if isinstance(message, Accepted | Finished)] == [2, 2]
    assert not scheduler.idle
    go_on.set()
    while not scheduler.idle and time.monotonic() < until:
        scheduler.step()
    assert isinstance(sent[-1], Refused)
    assert (sent[-1].id, sent[-1].kind) == (1, "context")


def test_what_cannot_fit_is_refused_without_its_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[FromEngine] = []
    model = FakeLoader(folder)()
    monkeypatch.setattr(model.tokenizer, "encode", lambda *_, **__: pytest.fail("it was tokenized"))
    scheduler = Scheduler(model, 1, sent.append)
    scheduler.take(Job(1, ("hello " * 600_000,), 1, {}, False))
    while not scheduler.idle:
        scheduler.step()
    assert isinstance(sent[0], Refused)
    assert sent[0].kind == "context"
    assert "3600000 characters is longer than the context of 4096 tokens can hold" in sent[0].message


def test_a_client_that_hangs_up_meanwhile_is_forgotten(folder: Path) -> None:
    sent: list[FromEngine] = []
    scheduler = Scheduler(FakeLoader(folder)(), 1, sent.append)
    scheduler.take(Job(1, (tuple(range(100)) * 200,), 1, {}, False))
    scheduler.take(Cancel(1))
    assert scheduler.idle
    scheduler.take(Job(2, ("ab",), 1, {"max_tokens": 1}, False))
    assert [type(message) for message in sent] == [Accepted]
