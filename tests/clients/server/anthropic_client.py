"""The anthropic client."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import anthropic
from checks import ASK, MODEL, URL, WEATHER, check, refused

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0, timeout=300)
TOOL = {"name": "weather", "input_schema": WEATHER}
greedy = {"model": MODEL, "max_tokens": 24, "extra_body": {"temperature": 0}}  # newer ones have no argument for it


@check("messages", "whole equals streamed")
def messages() -> None:
    whole = client.messages.create(messages=ASK, system="Be brief.", **greedy)
    with client.messages.stream(messages=ASK, system=[{"type": "text", "text": "Be brief."}], **greedy) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].text == text == final.content[0].text and text
    assert final.stop_reason == whole.stop_reason


@check("messages", "a stop sequence is named")
def stops() -> None:
    message = client.messages.create(messages=ASK, stop_sequences=["Paris"], **greedy)
    assert message.stop_reason in ("stop_sequence", "max_tokens")
    assert (message.stop_sequence == "Paris") == (message.stop_reason == "stop_sequence")


@check("messages", "a forced tool is called, streamed and whole, and its result is taken")
def tools() -> None:
    asked = {**greedy, "max_tokens": 100, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
    message = client.messages.create(messages=ASK, **asked)
    assert message.stop_reason == "tool_use" and message.content[0].input["city"] in ("Paris", "Rome")
    with client.messages.stream(messages=ASK, **asked) as stream:
        assert stream.get_final_message().content[0].input == message.content[0].input
    result = {"type": "tool_result", "tool_use_id": message.content[0].id, "content": "sunny"}
    told = [*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=told, tools=[TOOL], **greedy).usage.output_tokens


@check("messages", "tokens are counted")
def count() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=ASK).input_tokens
    usage = client.messages.create(messages=ASK, **greedy).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


@check("messages", "an error is the client's BadRequestError")
def error() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://localhost/a.png"}}
    with refused(anthropic.BadRequestError, "image"):
        client.messages.create(messages=[{"role": "user", "content": [image]}], **greedy)
