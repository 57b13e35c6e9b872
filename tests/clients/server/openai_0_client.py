"""The openai client before 1.0, whose calls are functions of its module."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import openai
from checks import ASK, MODEL, URL, check, refused

openai.api_base, openai.api_key = f"{URL}/v1", "none"
greedy = {"model": MODEL, "temperature": 0, "max_tokens": 24}


@check("chat", "whole equals streamed")
def chat() -> None:
    whole = openai.ChatCompletion.create(messages=ASK, **greedy)["choices"][0]["message"]["content"]
    chunks = openai.ChatCompletion.create(messages=ASK, stream=True, **greedy)
    assert whole and whole == "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


@check("chat", "an error is the client's InvalidRequestError")
def error() -> None:
    with refused(openai.error.InvalidRequestError, "temperature"):
        openai.ChatCompletion.create(messages=ASK, **{**greedy, "temperature": -1})


@check("completions", "a text is continued")
def completions() -> None:
    assert openai.Completion.create(prompt="The capital of France is", **greedy)["choices"][0]["text"]


@check("models", "they are listed")
def models() -> None:
    assert [model["id"] for model in openai.Model.list()["data"]] == [MODEL]
