"""The official client, the command line and a tiny package that ONNX Runtime GenAI really runs."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
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
from serving import start

from .conftest import RunningServer

SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer", "minimum": 0, "maximum": 9}, "open": {"type": "boolean"}},
    "required": ["size", "open"],
    "additionalProperties": False,
}
MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def package(tiny_package: Callable[..., Path]) -> Path:
    return tiny_package("gqa")


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[RunningServer]:
    running = RunningServer(PackageLoader(str(package)), Settings(model_name="tiny"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return server.client()


def ask(client: openai.OpenAI, **options: Any) -> Any:
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, **options}
    return client.chat.completions.create(**options)


def test_answers_as_the_library_does(client: openai.OpenAI, package: Path) -> None:
    with load(package) as model:
        alone = model.generate(MESSAGES, max_tokens=12, logprobs=0)
    answer = ask(client, logprobs=True)
    assert answer.choices[0].message.content == alone.text
    assert answer.usage.completion_tokens == alone.completion_tokens
    assert alone.logprobs is not None
    served = [entry.logprob for entry in answer.choices[0].logprobs.content]
    assert served == [entry.logprob for entry in alone.logprobs[: len(served)]]
    streamed = ask(client, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == alone.text


def test_fifty_clients_get_what_one_gets(client: openai.OpenAI) -> None:
    questions = [f"What is {number} and {number}?" for number in range(5)]

    def one(number: int) -> str:
        messages = [{"role": "user", "content": questions[number % 5]}]
        return ask(client, messages=messages, max_tokens=6).choices[0].message.content

    alone = [one(number) for number in range(5)]
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(one, range(50))) == alone * 10


def test_answers_follow_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "shop", "schema": SCHEMA, "strict": True}}
    answer = json.loads(ask(client, response_format=schema, max_tokens=60).choices[0].message.content)
    assert set(answer) == {"size", "open"} and answer["size"] in range(10) and isinstance(answer["open"], bool)
    hot = ask(client, response_format=schema, max_tokens=60, temperature=1.0, seed=3, stream=True)
    json.loads("".join(chunk.choices[0].delta.content or "" for chunk in hot))


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"regex": "[0-9]{3}"}, "[0-9]{3}"),
    ({"guided_regex": "[0-9]{3}"}, "[0-9]{3}"),
    ({"structured_outputs": {"regex": "[0-9]{3}"}}, "[0-9]{3}"),
    ({"guided_choice": ["c.d", "e{2}"]}, r"c\.d|e\{2\}"),
    ({"structured_outputs": {"choice": ["c.d", "e{2}"], "disable_fallback": True}}, r"c\.d|e\{2\}"),
    ({"grammar": 'root ::= "\\u00e9" [0-9]{2}'}, "é[0-9]{2}"),
    ({"guided_grammar": 'start: "x" /[0-9]{2}/'}, "x[0-9]{2}"),
    ({"ebnf": 'root ::= "x" [0-9]{2}'}, "x[0-9]{2}"),
    ({"structured_outputs": {"grammar": 'root ::= "x" [0-9]{2}'}}, "x[0-9]{2}"),
    ({"json_schema": {"enum": [17]}}, "17"),
    ({"guided_json": '{"enum": [17]}'}, "17"),
    ({"structured_outputs": {"json": {"enum": [17]}}}, "17"),
    ({"response_format": {"type": "json_object", "schema": {"properties": {"a": {"enum": [1]}}, "required": ["a"],
                                                            "additionalProperties": False}}}, r'\{"a": 1\}'),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [17]}}}}, "17"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "pattern"), FORMS)
def test_every_name_of_a_form_holds_both_kinds_of_completion_to_it(
    client: openai.OpenAI, form: dict[str, Any], pattern: str
) -> None:
    options: dict[str, Any] = {"model": "tiny", "extra_body": form, "max_tokens": 40, "temperature": 1.0, "seed": 3}
    chat = client.chat.completions.create(messages=MESSAGES, **options).choices[0]
    assert chat.finish_reason == "stop" and re.fullmatch(pattern, chat.message.content or "")
    text = client.completions.create(prompt="Once", **options).choices[0]
    assert text.finish_reason == "stop" and re.fullmatch(pattern, text.text)


def test_a_schema_that_is_not_understood_is_refused(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "bad", "schema": {"type": "nonsense"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="Invalid type: nonsense"):
            ask(client, response_format=schema, stream=stream)


def test_a_forced_call_follows_its_parameters(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "build", "parameters": SCHEMA}}]
    choice = ask(client, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=200).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "build" and set(json.loads(call.function.arguments)) == {"size", "open"}


def test_free_choice_gives_text_or_a_call(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "build", "parameters": SCHEMA}}]
    choice = ask(client, tools=tools, max_tokens=200).choices[0]
    assert bool(choice.message.tool_calls) != bool(choice.message.content)


def test_the_second_turn_and_the_same_prompt_use_the_cache(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Once upon a time there was a small model. " * 8}]
    first = ask(client, messages=messages)
    again = ask(client, messages=messages)
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    assert again.choices[0].message.content == first.choices[0].message.content


def test_a_schema_keeps_its_cache_for_the_next_turn_and_holds_there(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "shop", "schema": SCHEMA}}
    messages = [{"role": "user", "content": "Once upon a time there was a small model. " * 8}]
    first = ask(client, messages=messages, response_format=schema, max_tokens=60)
    messages += [first.choices[0].message.model_dump(), {"role": "user", "content": "Another one."}]
    second = ask(client, messages=messages, response_format=schema, max_tokens=60)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    for answer in (first, second):
        assert set(json.loads(answer.choices[0].message.content)) == {"size", "open"}
    # A seed begins anew, whatever was drawn before it.
    hot = {"response_format": schema, "max_tokens": 60, "temperature": 1.5, "seed": 5, "messages": messages}
    assert ask(client, **hot).choices[0].message.content == ask(client, **hot).choices[0].message.content


def test_sigterm_lets_an_answer_end(package: Path) -> None:
    process, url, _ = start(package, "--api-key", "k")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    name = client.models.list().data[0].id
    stream: Any = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=400, stream=True, seed=1)
    chunks = [next(stream)]
    process.send_signal(signal.SIGTERM)
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert process.wait(60) == 0


@pytest.mark.parametrize(("arguments", "signals"), [(("--shutdown-seconds", "0"), 1), ((), 2)])
def test_sigterm_ends_an_answer_that_takes_too_long(package: Path, arguments: tuple[str, ...], signals: int) -> None:
    process, url, _ = start(package, *arguments)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
    name = client.models.list().data[0].id
    # A list this long takes all tokens that there are, whatever the model makes of it.
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 4000}
    stream: Any = client.chat.completions.create(
        model=name,
        messages=MESSAGES,
        max_tokens=4000,
        stream=True,
        response_format={"type": "json_schema", "json_schema": {"name": "long", "schema": schema}},
    )
    next(stream)
    process.send_signal(signal.SIGTERM)
    if signals == 2:
        with contextlib.suppress(httpx.TransportError):  # it no longer listens: the first signal has arrived
            while True:
                httpx.get(f"{url}/health")
        process.send_signal(signal.SIGTERM)
    with pytest.raises((openai.APIError, httpx.TransportError)) as caught:
        list(stream)
    if signals == 1:
        assert "the server is shutting down" in str(caught.value)
    assert process.wait(60) == 0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phi3_onnx.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_port_that_is_taken_is_said_in_a_line(package: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run(str(package), "--port", str(port))
    expected = f"port {port} of 127.0.0.1 is taken by another program; take another, such as --port {port + 1}"
    assert (result.returncode, result.stderr) == (2, f"phi3-onnx: {expected}\n")


def test_a_provider_that_can_not_run_is_said_in_a_line(package: Path) -> None:
    result = run(str(package), "--port", "0", "--provider", "cuda")
    assert result.returncode == 3 and result.stdout == ""
    assert result.stderr.startswith("phi3-onnx: provider cuda cannot run here: ") and result.stderr.count("\n") == 1


def test_open_doors_are_said(package: Path) -> None:
    process, *_ = start(package, "--host", "127.0.0.1")
    process.terminate()
    assert process.wait(60) == 0
    result = run("no-such-package", "--host", "0.0.0.0")
    assert result.returncode == 1 and "neither a folder nor a package" in result.stderr
