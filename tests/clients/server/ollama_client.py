"""The ollama client."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import json

import ollama
from checks import ASK, MODEL, PERSON, URL, WEATHER, check, refused

client = ollama.Client(host=URL, timeout=300)
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": WEATHER}}
greedy = {"model": MODEL, "options": {"temperature": 0, "num_predict": 24}}


@check("chat", "whole equals streamed")
def chat() -> None:
    whole = client.chat(messages=ASK, **greedy)
    parts = list(client.chat(messages=ASK, stream=True, **greedy))
    assert whole.message.content and whole.message.content == "".join(part.message.content for part in parts)
    assert parts[-1].done and parts[-1].eval_count == whole.eval_count > 0 and whole.total_duration > 0


@check("chat", "an answer follows a schema")
def schema() -> None:
    answer = client.chat(MODEL, messages=ASK, format=PERSON, options={"temperature": 0, "num_predict": 100})
    assert set(json.loads(answer.message.content)) == {"name", "age"}


@check("chat", "tools are taken, and results of calls")
def tools() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    told = [
        *ASK,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": "sun"},
    ]
    assert client.chat(messages=told, tools=[TOOL], **greedy).eval_count > 0


@check("generate", "whole equals streamed, in the template and raw")
def generate() -> None:
    for raw in (False, True):
        whole = client.generate(prompt="The capital of France is", raw=raw, **greedy)
        parts = client.generate(prompt="The capital of France is", raw=raw, stream=True, **greedy)
        assert whole.response and whole.response == "".join(part.response for part in parts)


@check("models", "they are listed and shown")
def models() -> None:
    assert [model.model for model in client.list().models] == [MODEL]
    assert [model.model for model in client.ps().models] == [MODEL]
    assert client.show(MODEL).capabilities == ["completion", "tools"]


@check("errors", "an error is the client's ResponseError")
def error() -> None:
    with refused(ollama.ResponseError, "suffix"):
        client.generate(MODEL, prompt="a", suffix="b")
