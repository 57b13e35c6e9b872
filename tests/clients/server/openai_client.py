"""The openai client from 1.40 on: chats, completions, and responses where it has them."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import json

import openai
from checks import ASK, MODEL, PERSON, URL, WEATHER, check, refused

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=300)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
greedy = {"model": MODEL, "temperature": 0, "max_tokens": 24}


@check("chat", "whole equals streamed")
def chat() -> None:
    whole = client.chat.completions.create(messages=ASK, **greedy).choices[0].message.content
    chunks = client.chat.completions.create(messages=ASK, stream=True, **greedy)
    assert whole and whole == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@check("chat", "a forced tool is called, streamed and whole")
def tools() -> None:
    asked = {"messages": ASK, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    [call] = client.chat.completions.create(**{**greedy, "max_tokens": 100}, **asked).choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    chunks = client.chat.completions.create(**{**greedy, "max_tokens": 100}, **asked, stream=True)
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert "".join(delta.function.arguments or "" for delta in deltas) == call.function.arguments


@check("chat", "an answer follows a schema")
def schema() -> None:
    answer = client.chat.completions.create(messages=ASK, **{**greedy, "max_tokens": 100}, response_format=SCHEMA)
    assert set(json.loads(answer.choices[0].message.content)) == {"name", "age"}


@check("chat", "an error is the client's BadRequestError")
def error() -> None:
    with refused(openai.BadRequestError, "temperature"):
        client.chat.completions.create(messages=ASK, **{**greedy, "temperature": -1})


@check("completions", "a text is continued")
def completions() -> None:
    answer = client.completions.create(prompt="The capital of France is", **greedy, logprobs=1)
    assert answer.choices[0].text and answer.choices[0].logprobs.token_logprobs


@check("models", "they are listed")
def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


if hasattr(client, "responses"):

    @check("responses", "whole equals streamed")
    def responses() -> None:
        asked = {"model": MODEL, "input": "What is the capital of France?", "temperature": 0, "max_output_tokens": 24}
        whole = client.responses.create(**asked).output_text
        events = client.responses.create(**asked, stream=True)
        assert whole == "".join(event.delta for event in events if event.type == "response.output_text.delta")

    @check("responses", "one goes on from another, and is deleted")
    def stored() -> None:
        first = client.responses.create(model=MODEL, input="My name is Ada.", max_output_tokens=16)
        second = client.responses.create(
            model=MODEL, input="What is my name?", previous_response_id=first.id, max_output_tokens=16
        )
        assert second.usage.input_tokens > first.usage.input_tokens
        client.responses.delete(first.id)

    @check("responses", "a forced tool is called")
    def response_tools() -> None:
        tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": False}
        response = client.responses.create(model=MODEL, input="Weather?", tools=[tool], tool_choice="required")
        assert [item.type for item in response.output][:1] == ["function_call"]

    @check("responses", "an answer is parsed into a model of pydantic")
    def parsed() -> None:
        from pydantic import BaseModel, Field

        class Person(BaseModel):
            name: str = Field(max_length=10)
            age: int

        response = client.responses.parse(model=MODEL, input="Who are you?", text_format=Person, max_output_tokens=100)
        assert isinstance(response.output_parsed, Person)
