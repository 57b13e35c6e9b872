"""Answers that continue the last message, and what a request tells the chat template."""

from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeLoader
from phi3_onnx.runtime.server.messages import Conversation
from phi3_onnx.runtime.server.requests import ChatRequest, checked
from phi3_onnx.runtime.server.tools import conversation
from scripted import CHAT_TEMPLATE, write_scripted_package

from .conftest import RunningServer, StartServer

ASK = {"role": "user", "content": "say hello"}
BEGUN = [ASK, {"role": "assistant", "content": "he"}]


def post(server: RunningServer, **body: Any) -> Any:
    with server.http() as http:
        return http.post("/v1/chat/completions", json={"messages": BEGUN, **body})


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"continue_final_message": True},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "he"}], "prefix": True}]},
    ],
)
def test_words_of_the_assistant_are_continued(server: RunningServer, flags: dict[str, Any]) -> None:
    choice = post(server, **flags).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("llo", "stop")


@pytest.mark.parametrize("flags", [{"continue_final_message": False}, {"add_generation_prompt": True}])
def test_unless_a_new_message_is_asked_for(server: RunningServer, flags: dict[str, Any]) -> None:
    assert post(server, **flags).json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize(
    ("flags", "continues", "opens"),
    [
        ({"messages": [ASK]}, False, True),
        ({"messages": [ASK], "add_generation_prompt": False}, False, False),
        ({"add_generation_prompt": False}, False, False),
        ({}, True, False),
    ],
)
def test_what_the_template_is_told(flags: dict[str, Any], continues: bool, opens: bool) -> None:
    request = checked(ChatRequest, {"messages": BEGUN, **flags})
    prompt = conversation(request, "convention")
    assert (prompt.continues, prompt.opens) == (continues, opens)


def test_an_assistant_that_called_tools_is_not_continued() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    request = checked(ChatRequest, {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]})
    assert not request.continues and isinstance(conversation(request, "template"), Conversation)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"continue_final_message": True, "messages": [ASK]}, "needs a last message of the assistant"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
        ({"chat_template_kwargs": {"messages": []}}, "messages is not a variable"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "add_generation_prompt is not a variable"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ],
)
def test_what_contradicts_itself_is_refused(server: RunningServer, flags: dict[str, Any], message: str) -> None:
    reply = post(server, **flags)
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]


def test_the_template_reads_variables(tmp_path: Path, start_server: StartServer) -> None:
    write_scripted_package(tmp_path)
    loud_one = CHAT_TEMPLATE.replace("content'] +", "content'] | upper +")
    both = "{% if loud %}" + loud_one + "{% else %}" + CHAT_TEMPLATE + "{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(both)
    server = start_server(FakeLoader(tmp_path))
    messages = [{"role": "user", "content": "hi"}]
    plain, loud = (
        post(server, messages=messages, chat_template_kwargs={"loud": value}).json()["choices"][0]["message"]["content"]
        for value in (False, True)
    )
    assert (plain, loud) == ("You said: hi", "You said: HI")
