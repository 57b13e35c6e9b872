"""Guidance is compiled beside the engine, and others go on meanwhile."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeLoader
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime import Model
from phi3_onnx.runtime.decoding.engine import Guidance
from phi3_onnx.runtime.model import load_to_serve
from phi3_onnx.runtime.server.compiling import Compiler
from phi3_onnx.runtime.server.messages import Accepted, Cancel, Finished, FromEngine, Job, Refused
from phi3_onnx.runtime.server.worker import Scheduler
from scripted import write_scripted_package


class FreeGuide:
    """A guide that leaves everything free."""

    ended = False

    def copy(self) -> "FreeGuide":
        return self

    def mask(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def take(self, token: int) -> None:
        pass


@dataclass
class Compiling:
    """Stands in for the compiler of guidance: "slow" waits until it may go on, and "wrong" is not understood."""

    threads: list[threading.Thread] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)

    def guide(self, guidance: Guidance) -> FreeGuide:
        self.threads.append(threading.current_thread())
        self.texts.append(guidance.text)
        if "slow" in guidance.text:
            assert self.go_on.wait(60), "the engine's thread waits for guidance"
        if "wrong" in guidance.text:
            raise UsageError("the regex is not understood: it is wrong")
        return FreeGuide()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    write_scripted_package(tmp_path / "fake", context_length=4096)
    model = FakeLoader(tmp_path / "fake")()
    monkeypatch.setattr(model.engine, "guides", False)
    return model


@pytest.fixture
def compiling(model: Model, monkeypatch: pytest.MonkeyPatch) -> Compiling:
    compiling = Compiling()
    monkeypatch.setattr(model.guides, "guide", compiling.guide)
    return compiling


def job(number: int, regex: str = "", choices: int = 1) -> Job:
    options = {"max_tokens": 2} | ({"guidance": Guidance("regex", regex)} if regex else {})
    return Job(number, ("ab",), choices, options, False)


def run(scheduler: Scheduler, until: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if until():
            return
        scheduler.step()
    raise AssertionError("it did not happen")


def test_others_go_on_while_guidance_is_compiled(model: Model, compiling: Compiling) -> None:
    sent: list[FromEngine] = []
    scheduler = Scheduler(model, 2, sent.append)
    scheduler.take(job(1, "slow"))
    scheduler.take(job(2))
    run(scheduler, lambda: any(isinstance(message, Finished) for message in sent))
    assert [message.id for message in sent if isinstance(message, Accepted | Finished)] == [2, 2]
    assert not scheduler.idle
    compiling.go_on.set()
    run(scheduler, lambda: scheduler.idle)
    assert [message.id for message in sent if isinstance(message, Accepted | Finished)] == [2, 2, 1, 1]
    assert threading.current_thread() not in compiling.threads


def test_others_go_on_with_genai_too(
    compiling: Compiling, tiny_package: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[FromEngine] = []
    with load_to_serve(tiny_package("gqa"), engine="genai") as genai:
        monkeypatch.setattr(genai.guides, "guide", compiling.guide)
        scheduler = Scheduler(genai, 2, sent.append)
        scheduler.take(job(1, "slow"))
        scheduler.take(job(2))
        run(scheduler, lambda: any(isinstance(message, Finished) for message in sent))
        assert [message.id for message in sent if isinstance(message, Finished)] == [2]
        compiling.go_on.set()
        run(scheduler, lambda: scheduler.idle)
    assert [message.id for message in sent if isinstance(message, Finished)] == [2, 1]
    assert len(compiling.threads) == 1 and threading.current_thread() not in compiling.threads


def test_without_a_compiler_of_our_own_genai_follows_guidance(
    tiny_package: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3_onnx.runtime.model.can_mask", lambda: False)
    sent: list[FromEngine] = []
    with load_to_serve(tiny_package("gqa"), engine="genai") as genai:
        monkeypatch.setattr(genai.guides, "guide", None)
        scheduler = Scheduler(genai, 2, sent.append)
        scheduler.take(job(1, "[0-9]{2}"))
        run(scheduler, lambda: scheduler.idle)
    (answer,) = (message for message in sent if isinstance(message, Finished))
    assert answer.text.isdecimal()


def test_the_choices_of_a_job_and_later_jobs_share_what_is_compiled(model: Model, compiling: Compiling) -> None:
    sent: list[FromEngine] = []
    scheduler = Scheduler(model, 2, sent.append)
    scheduler.take(job(1, "a+", choices=3))
    run(scheduler, lambda: scheduler.idle)
    scheduler.take(job(2, "a+"))
    run(scheduler, lambda: scheduler.idle)
    assert [message.id for message in sent if isinstance(message, Finished)] == [1, 1, 1, 2]
    assert compiling.texts == ["a+"]


@pytest.mark.parametrize("text", ["wrong", "slow and wrong"])
def test_what_is_wrong_is_refused(model: Model, compiling: Compiling, text: str) -> None:
    sent: list[FromEngine] = []
    scheduler = Scheduler(model, 2, sent.append)
    for number in (1, 2):
        scheduler.take(job(number, text))
    compiling.go_on.set()
    run(scheduler, lambda: scheduler.idle)
    assert sent == [Refused(number, "request", "the regex is not understood: it is wrong") for number in (1, 2)]


def test_a_client_that_hangs_up_meanwhile_is_forgotten(model: Model, compiling: Compiling) -> None:
    sent: list[FromEngine] = []
    scheduler = Scheduler(model, 2, sent.append)
    for number, text in enumerate(["slow", "never", "shared", "shared"]):
        scheduler.take(job(number, text))
    for number in (0, 1, 2):
        scheduler.take(Cancel(number))
    compiling.go_on.set()
    run(scheduler, lambda: scheduler.idle)
    assert [message.id for message in sent if isinstance(message, Finished)] == [3]
    assert compiling.texts == ["slow", "shared"]
    scheduler.take(job(5, "never"))
    run(scheduler, lambda: scheduler.idle)
    assert compiling.texts == ["slow", "shared", "never"]


def test_what_was_given_up_for_others_is_compiled_again_beside_them(model: Model, compiling: Compiling) -> None:
    compiler: Compiler[None] = Compiler(model.guides, 1)
    forms = [Guidance("regex", text) for text in ("slow", "b", "c")]
    compiling.go_on.set()
    for number, form in enumerate(forms):
        if compiler.start(number, form, None):
            while not list(compiler.pending.finished(wait=True)):
                pass
    compiling.go_on.clear()
    again = compiler.guide(forms[0])
    for _ in range(3):
        assert next(again) is None
        compiler.begin_step()
    compiling.go_on.set()
    assert not any(again)  # it comes to its end
    assert compiling.texts == ["slow", "b", "c", "slow"]
    assert threading.current_thread() not in compiling.threads
