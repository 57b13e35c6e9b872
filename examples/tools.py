"""Tools by OpenAI's protocol, against `phi3-onnx serve PACKAGE`: `python tools.py [ADDRESS]`; `pip install openai`.

The first request is answered with a call, this program makes it, and the second request has its result.
"""

import json
import sys
from typing import Any

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1", api_key="none")
model = client.models.list().data[0].id


def weather(city: str) -> dict[str, Any]:
    """Return the weather of a city; a real program would ask someone."""
    return {"city": city, "celsius": 21, "sky": "clear"}


tools: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city now.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 40}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
# `required` makes small models call; a model that was trained on tools decides for itself with "auto".
first = client.chat.completions.create(
    model=model, messages=messages, tools=tools, tool_choice="required", temperature=0, max_tokens=200
)
message: Any = first.choices[0].message
messages.append(message)
for call in message.tool_calls:
    result = weather(**json.loads(call.function.arguments))
    print("called", call.function.name, call.function.arguments)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
second = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=100)
print(second.choices[0].message.content)
