"""When the text of a stream goes out."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeLoader
from phi3_onnx.runtime.server.messages import Accepted, Conversation, Finished, FromEngine, Job, Piece
from phi3_onnx.runtime.server.worker import Scheduler


def stream(folder: Path, text: str, **options: object) -> Iterator[FromEngine]:
    """Yield what the engine says while it streams `text`."""
    sent: list[FromEngine] = []
    scheduler = Scheduler(FakeLoader(folder)(), 1, sent.append)
    prompt = Conversation(({"role": "user", "content": f"say {text}"},))
    scheduler.take(Job(1, (prompt,), 1, options, stream=True))
    while not scheduler.idle:
        scheduler.step()
    return iter(sent)


def test_slow_text_goes_out_with_each_token(fake_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1.0)
    monkeypatch.setattr("phi3_onnx.runtime.server.worker.time.monotonic", lambda: next(clock))
    accepted, *pieces, finished = stream(fake_package, "Hi, you")
    assert isinstance(accepted, Accepted)
    assert [piece.text for piece in pieces if isinstance(piece, Piece)] == list("Hi, you")
    assert isinstance(finished, Finished)
    assert finished.text == ""


def test_fast_text_goes_out_together_after_the_first(fake_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 0.006)
    monkeypatch.setattr("phi3_onnx.runtime.server.worker.time.monotonic", lambda: next(clock))
    _, *pieces, finished = stream(fake_package, "Hi, you all", logprobs=1)
    assert [piece.text for piece in pieces if isinstance(piece, Piece)] == ["H", "i, ", "you", " al"]
    assert isinstance(finished, Finished)
    assert finished.text == "l"
    entries = [entry for message in (*pieces, finished) for entry in message.logprobs]  # pyright: ignore
    assert "".join(entry.text for entry in entries).startswith("Hi, you all")
