"""Which engine runs a package, and answers that run ahead of themselves in it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs import ProviderError, SelfTestError, UsageError
from phi3_onnx.runtime import Guidance, Model, Response, load
from phi3_onnx.runtime.engines import load as module
from phi3_onnx.runtime.engines.genai import GenAiEngine
from phi3_onnx.runtime.engines.ort import OrtEngine
from phi3_onnx.runtime.engines.packed_engine import PackedEngine

Make = Callable[..., Path]

LOOP = "the dog and the fox and the dog and the fox and the dog and"
LONGROPE = {"original_max_position_embeddings": 40, "max_position_embeddings": 300}


def without_genai(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = [wheel for wheel in module.installed_wheels() if wheel.module != module.GENAI]
    monkeypatch.setattr(module, "installed_wheels", lambda: wheels)

    def missing(*_: Any, **__: Any) -> None:
        raise ProviderError("onnxruntime_genai is not installed")

    monkeypatch.setattr(module, "load_engine", missing)


def test_the_engine_that_suits_a_package(tiny_package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, quantized = tiny_package("gqa"), tiny_package("gqa", "cpu-int4-rtn")

    def kind(package: Path, **options: Any) -> type:
        with load(package, **options) as model:
            return type(model.engine)

    assert kind(quantized) is kind(quantized, engine="ort") is PackedEngine
    assert kind(quantized, engine="genai") is GenAiEngine
    assert kind(plain) is GenAiEngine
    assert kind(plain, engine="ort") is kind(quantized, engine="onnxruntime") is OrtEngine
    without_genai(monkeypatch)
    assert kind(plain) is OrtEngine
    assert kind(quantized) is PackedEngine
    with pytest.raises(ProviderError, match="genai is not installed"):
        load(plain, engine="genai")
    with pytest.raises(ProviderError, match="genai is not installed"):  # nothing else runs DirectML
        load(plain, provider="dml")


def test_without_genai_everything_is_answered(tiny_package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    package, digits = tiny_package("gqa"), Guidance("regex", "[0-9]{4}")
    with load(package, engine="genai") as model:
        expected = model.generate(LOOP, max_tokens=12, temperature=0).token_ids
    without_genai(monkeypatch)
    with load(package) as model:
        assert model.generate(LOOP, max_tokens=12, temperature=0).token_ids == expected
        assert model.generate("x", guidance=digits, max_tokens=20, temperature=1.0, seed=2).text.isdecimal()
        answers = list(model.generate_many([LOOP, "a", "b"], max_tokens=12, temperature=0))
        assert answers[0].token_ids == expected
        said = list[str]()
        guided = list(model.generate_many(["a", "b"], guidance=digits, max_tokens=20, notify=said.append))
        assert all(answer.text.isdecimal() for answer in guided)
        assert not any("one at a time" in line for line in said)
        assert model.chat().ask("Hi", max_tokens=3).completion_tokens


def test_auto_passes_over_an_engine_that_computes_wrongly(tiny_package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    package, said = tiny_package("gqa", "cpu-int4-rtn"), list[str]()

    def wrong(*_: Any, **__: Any) -> None:
        raise SelfTestError("it computes wrongly")

    monkeypatch.setattr(module, "load_packed_engine", wrong)
    with load(package, notify=said.append) as model:
        assert isinstance(model.engine, GenAiEngine)
    assert said == ["warning: it computes wrongly"]
    refused: list[dict[str, Any]] = [{"engine": "ort"}, {"speculate": 3}]
    for options in refused:
        with pytest.raises(SelfTestError):
            load(package, **options)


def test_what_cannot_run_ahead_says_so(tiny_package: Make) -> None:
    with pytest.raises(UsageError, match=r"no decode\.onnx"):
        load(tiny_package("gqa"), speculate=4)
    with pytest.raises(UsageError, match="engine genai was asked for"):
        load(tiny_package("gqa", "cpu-int4-rtn"), engine="genai", speculate="4")
    with pytest.raises(UsageError, match="the provider is cuda"):
        load(tiny_package("gqa", "cpu-int4-rtn"), provider="cuda", speculate="4")
    with pytest.raises(UsageError, match="must be auto, off, or a number of tokens from 1 to 64"):
        load(tiny_package("gqa"), speculate="much")
    with pytest.raises(UsageError, match="must be one of auto, ort, genai"):
        load(tiny_package("gqa"), engine="fast")  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module", params=["gqa", "longrope"])
def speculated(request: pytest.FixtureRequest, tiny_package: Make) -> Iterator[dict[str, Model]]:
    package = tiny_package(request.param, "cpu-int4-rtn", **(LONGROPE if request.param == "longrope" else {}))
    models = {speculate: load(package, speculate=speculate) for speculate in ("off", "auto", "6")}
    yield models
    for model in models.values():
        model.close()


WAYS: list[dict[str, Any]] = [
    {"temperature": 0, "logprobs": 3},
    {"temperature": 0.9, "seed": 5, "top_p": 0.9, "logprobs": 1},
    {"temperature": 0, "repetition_penalty": 1.3, "logprobs": 0},
    {"temperature": 0.8, "seed": 2, "guidance": Guidance("regex", "(over and over, ){4}"), "logprobs": 1},
]


def exact(response: Response) -> tuple[Any, ...]:
    return response.token_ids, response.text, response.finish_reason, response.logprobs


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_an_answer_is_the_same_run_ahead_or_not(speculated: dict[str, Model], way: int) -> None:
    found = {name: model.generate(LOOP, raw=True, max_tokens=60, **WAYS[way]) for name, model in speculated.items()}
    assert {name for name, response in found.items() if exact(response) != exact(found["off"])} == set()
    assert found["off"].drafted_tokens == 0
    # What auto does depends on what this machine's steps cost.
    assert found["6"].accepted_tokens <= found["6"].drafted_tokens
    if way == 3:
        assert found["6"].accepted_tokens > 5


def test_a_conversation_is_the_same_run_ahead_or_not(speculated: dict[str, Model]) -> None:
    conversations = {}
    for name in ("off", "6"):
        chat = speculated[name].chat(temperature=0, max_tokens=14, logprobs=1)
        answers = [chat.ask(LOOP), chat.ask("and the dog and the fox"), chat.ask("the fox and", max_tokens=3)]
        chat.undo()
        answers.append(chat.ask("the dog", max_tokens=9))
        conversations[name] = [(exact(answer), answer.cached_tokens) for answer in answers]
        chat.close()
    assert conversations["6"] == conversations["off"]


def test_threads_with_texts_of_their_own_do_not_meet(speculated: dict[str, Model]) -> None:
    model, ready = speculated["6"], threading.Barrier(4)
    prompts = [f"{LOOP} {number}" for number in range(4)]
    options: dict[str, Any] = {"raw": True, "max_tokens": 30, "temperature": 0, "logprobs": 2}
    alone = [exact(model.generate(prompt, **options)) for prompt in prompts]

    def ask(prompt: str) -> tuple[Any, ...]:
        ready.wait()
        return exact(model.generate(prompt, **options))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, prompts)) == alone
