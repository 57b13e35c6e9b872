"""A server whose answers are decoded together: a request gets the same bytes whatever else is asked."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from phi3_onnx.runtime import load
from phi3_onnx.runtime.server.settings import Settings
from phi3_onnx.runtime.server.worker import PackageLoader

from .conftest import RunningServer

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {"type": "object", "properties": {"size": {"type": "integer", "maximum": 9}}, "required": ["size"]}


@pytest.fixture(scope="module")
def package(tiny_package: Callable[..., Path]) -> Path:
    return tiny_package("gqa", "cpu-int4-rtn")


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[RunningServer]:
    running = RunningServer(PackageLoader(str(package)), Settings(model_name="tiny", parallel=4))
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return server.client()


def request(number: int) -> dict[str, Any]:
    ways: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": True, "top_logprobs": 3},
        {"temperature": 1.0, "seed": 7, "logprobs": True},
        {"temperature": 1.0, "seed": 3, "n": 2},
        {"temperature": 0, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    ]
    messages = [{"role": "system", "content": "Be brief. " * (1 + number % 2)}, *MESSAGES[:1]]
    content = f"What is {number} and {number}? " + "And then? " * (7 * number % 23)
    return {"messages": [messages[0], {"role": "user", "content": content}], "max_tokens": 12, **ways[number % 4]}


def ask(client: openai.OpenAI, number: int) -> Any:
    answer = client.chat.completions.create(model="tiny", **request(number))
    return sorted((choice.model_dump() for choice in answer.choices), key=lambda choice: choice["index"])


def test_requests_get_the_same_alone_repeated_and_in_a_crowd(client: openai.OpenAI) -> None:
    alone = [ask(client, number) for number in range(16)]
    assert [ask(client, number) for number in range(16)] == alone
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda number: ask(client, number % 16), range(48))) == alone * 3
    assert alone[0][0]["logprobs"]["content"]


def test_streams_say_what_whole_answers_do(client: openai.OpenAI) -> None:
    def stream(number: int) -> str:
        chunks = client.chat.completions.create(model="tiny", stream=True, **request(number))
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    numbers = [0, 1, 3, 4, 5, 7]
    whole = [ask(client, number)[0]["message"]["content"] for number in numbers]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(stream, numbers)) == whole


def test_the_library_gives_the_same(client: openai.OpenAI, package: Path) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, logprobs=True)
    with load(package, engine="together") as model:
        alone = model.generate(MESSAGES, max_tokens=12, logprobs=0)
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].logprobs is not None
    served = [entry.logprob for entry in answer.choices[0].logprobs.content or ()]
    assert alone.logprobs is not None
    assert served == [entry.logprob for entry in alone.logprobs[: len(served)]]


def test_guided_answers_keep_to_their_form_beside_others(client: openai.OpenAI) -> None:
    def guided(number: int) -> Any:
        kind: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        messages: Any = [{"role": "user", "content": f"How many? {number}"}]
        answer = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=60, seed=number, temperature=1.0, response_format=kind
        )
        return answer.choices[0]

    with ThreadPoolExecutor(8) as pool:
        for choice in pool.map(guided, range(8)):
            if choice.finish_reason == "stop":
                assert json.loads(choice.message.content)["size"] <= 9
            else:
                assert re.match(r'\{"size": -?\d*', choice.message.content)


def test_a_grammar_that_makes_no_sense_is_refused(server: RunningServer) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "no such type"}}}
    reply = httpx.post(
        f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": MESSAGES, "response_format": form}
    )
    assert reply.status_code == 400
    assert "not understood" in reply.text


def test_several_prompts_of_one_request_are_answered_side_by_side(client: openai.OpenAI) -> None:
    prompts = ["The quick", "Once upon", "In 2024"]
    answer = client.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=6, temperature=0)
    assert [choice.index for choice in sorted(answer.choices, key=lambda choice: choice.index)] == list(range(6))
    for number, prompt in enumerate(prompts):
        alone = client.completions.create(model="tiny", prompt=prompt, max_tokens=6, temperature=0).choices[0]
        texts = {choice.text for choice in answer.choices if choice.index // 2 == number}
        assert texts == {alone.text}


def test_a_server_that_starts_again_knows_its_prompts(
    package: Path, tmp_path: Path, start_server: Callable[..., RunningServer]
) -> None:
    loader = PackageLoader(str(package), cache_memory=10**6, cache_folder=(tmp_path / "kept", 2**30))
    body = {"prompt": [5 + number % 300 for number in range(200)], "max_tokens": 6, "temperature": 0, "logprobs": 2}
    answers, reports = [], []
    for _ in range(2):
        running = start_server(loader)
        reply = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
        answers.append((reply.json()["choices"], reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]))
        httpx.post(f"{running.url}/v1/completions", json={"prompt": [5], "max_tokens": 1}, timeout=60)
        told = httpx.get(f"{running.url}/metrics").text
        reports.append(dict(re.findall(r'^(phi3_onnx_\w+)\{model="[^"]*"\} (\S+)$', told, re.M)))
        running.close()
    assert answers[0][0] == answers[1][0]
    assert [cached for _, cached in answers] == [0, 192]
    assert [float(report["phi3_onnx_cache_read_tokens"]) for report in reports] == [0, 192]
    assert float(reports[1]["phi3_onnx_cache_hit_tokens"]) == 192
    assert float(reports[1]["phi3_onnx_cache_miss_tokens"]) == 9
    assert float(reports[1]["phi3_onnx_cache_memory_bytes"]) > 0
    assert float(reports[1]["phi3_onnx_cache_disk_bytes"]) == sum(
        path.stat().st_size for path in tmp_path.glob("kept/*/*")
    )
