"""LiteLLM, as a client of each protocol."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import litellm
from checks import ASK, MODEL, URL, WEATHER, check

TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
WAYS = {
    "chat": {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1"},
    "messages": {"model": f"anthropic/{MODEL}", "api_base": URL},
    "ollama": {"model": f"ollama_chat/{MODEL}", "api_base": URL},
}

for protocol, way in WAYS.items():
    greedy = {**way, "api_key": "none", "temperature": 0, "max_tokens": 24}

    @check(protocol, "whole equals streamed")
    def chat(greedy=greedy) -> None:
        whole = litellm.completion(messages=ASK, **greedy).choices[0].message.content
        chunks = litellm.completion(messages=ASK, stream=True, **greedy)
        assert whole and whole == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    if protocol != "ollama":  # it cannot force a tool there

        @check(protocol, "a forced tool is called")
        def tools(greedy=greedy) -> None:
            asked = {**greedy, "max_tokens": 100, "tools": [TOOL]}
            forced = {"type": "function", "function": {"name": "weather"}}
            message = litellm.completion(messages=ASK, tool_choice=forced, **asked).choices[0].message
            assert [call.function.name for call in message.tool_calls] == ["weather"]


@check("responses", "a response")
def responses() -> None:
    way = {**WAYS["chat"], "api_key": "none"}
    assert litellm.responses(input="Hello!", max_output_tokens=16, **way).output
