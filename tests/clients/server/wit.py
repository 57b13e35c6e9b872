"""Tells the small model's wit from the server's doing: `python wit.py [URL [REFERENCE]]`, in the project's environment.

URL is our server, REFERENCE llama.cpp's with the same model. First, what each says after a tool's result where both get
the same words, those that we put tools into for a model without a template for them (llama.cpp leaves tools out of such
a prompt). Second, how many calls come from ours, and how many different ones, where a call has to come and an answer
may hold several (`tool_choice: "required"`, `parallel_tool_calls: true`).
"""

import json
import sys
from typing import Any

import httpx
from phi3_onnx.runtime.server.requests import ChatRequest, checked
from phi3_onnx.runtime.server.tools import conversation

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather for a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["c", "f"]}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "description": "Get the time of day in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
            },
        },
    },
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
RESULT = [
    {"role": "user", "content": "What's the weather in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": '{"temp_c": 18, "sky": "clear"}'},
]
ONE_CALL = (
    "What's the weather in Paris?",
    "Is it raining in Rome now?",
    "What time is it in Tokyo?",
    "Tell me the temperature in Oslo.",
)
SEVERAL_CALLS = (
    "What's the weather in Paris and in Rome?",
    "What time is it in Tokyo, and how is the weather there?",
    "Compare the weather of Oslo, Madrid and Cairo.",
    "What's the time in London and in Delhi?",
)


def ask(url: str, **body: Any) -> dict[str, Any]:
    """Return the message that a chat request gets."""
    said = httpx.post(f"{url}/v1/chat/completions", json={"model": "small", "temperature": 0, **body}, timeout=900)
    said.raise_for_status()
    return said.json()["choices"][0]["message"]


def main(urls: list[str]) -> None:
    """Print both."""
    request = checked(ChatRequest, {"model": "small", "messages": RESULT, "tools": TOOLS[:1]})
    words = list(conversation(request, "convention").messages)
    for url in urls:
        print(f"{url}, the same words: {ask(url, messages=words, max_tokens=64)['content']!r}")
    for kind, questions in (("one call is wanted", ONE_CALL), ("several are wanted", SEVERAL_CALLS)):
        for question in questions:
            body = {"messages": [{"role": "user", "content": question}], "tools": TOOLS, "max_tokens": 512}
            said = ask(urls[0], **body, tool_choice="required", parallel_tool_calls=True)
            calls = [json.dumps(call["function"], sort_keys=True) for call in said.get("tool_calls") or []]
            print(f"{kind}: {len(calls)} calls, {len(set(calls))} different: {question}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["http://127.0.0.1:8080"])
