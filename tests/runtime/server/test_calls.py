"""Reading tool calls from answers, whole and in pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phi3_onnx.runtime.server.calls import CallFilter, read_calls
from phi3_onnx.runtime.server.messages import Finished, Piece
from phi3_onnx.runtime.server.replies import ChatReply
from phi3_onnx.runtime.server.requests import ChatRequest

NAMES = frozenset({"add", "now"})
ADD = '{"name": "add", "arguments": {"a": 1}}'
CALL = '<tool_call>{"name": "now"}</tool_call>'


def found(text: str) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in read_calls(text, NAMES)[0]]


@pytest.mark.parametrize(
    "text",
    [
        f'{{"tool_calls": [{ADD}]}}',
        f"<tool_call>\n{ADD}\n</tool_call>",
        f"<tool_call>{ADD}",
        f"<|tool_call|>[{ADD}]<|/tool_call|>",
        f"[{ADD}]",
        f"functools[{ADD}]",
        ' {"name": "add", "parameters": {"a": 1}}\n',
        '{"name": "add", "arguments": "{\\"a\\": 1}"}',
        # What the small model's tokens ran out for, and what others write around calls.
        f'{{"tool_calls": [{ADD}, {{"name": "add", "argum',
        f"<|tool_call|>[{ADD}, {{",
        f'<tool_call>{ADD}</tool_call><tool_call>{{"na',
        f'<tool_call>{{"name": "other"}}</tool_call><tool_call>{ADD}</tool_call>',
        f'{{"tool_calls": [{{"name": "other", "arguments": {{}}}}, {ADD}]}}',
        f"<tool_call>not json</tool_call><tool_call>{ADD}</tool_call>",
    ],
)
def test_reads_every_form_of_call(text: str) -> None:
    assert found(text) == [("add", {"a": 1})]


def test_reads_several_calls() -> None:
    text = '<tool_call>{"name": "now"}</tool_call>\n<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    assert found(text) == [("now", {}), ("add", {})]
    assert found('{"name": "now"}; {"name": "add"}') == [("now", {}), ("add", {})]


@pytest.mark.parametrize("mark", ["</tool_call>", "<tool_call>", "<|/tool_call|>", '"}]}', "\ud800", "\x00", "日本"])
@pytest.mark.parametrize(
    "form", ['{{"tool_calls": [{}]}}', "<tool_call>{}</tool_call>", "<|tool_call|>[{}]<|/tool_call|>"]
)
def test_arguments_may_hold_anything(mark: str, form: str) -> None:
    call = json.dumps({"name": "add", "arguments": {"a": f"x {mark} y"}})
    (entry,), text = read_calls(form.format(call), NAMES)
    assert json.loads(entry.arguments) == {"a": f"x {mark} y"} and text == ""
    entry.arguments.encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{not json",
        '{"name": "unknown", "arguments": {}}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": "1"}',
        '{"name": "add", "arguments": {"a": NaN}}',
        '{"name": "add", "arguments": {"a": 1e999}}',
        '[{"name": "add"}, 5]',
        '{"name": ["add"]}',
        '{"answer": 42}',
        "<tool_call>later</tool_call>",
        "[" * 100_000,
        '{"name": "add", "arguments": {"a": ' + "[" * 100_000,
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read_calls(text, NAMES) == ([], text)


def test_a_long_answer_of_nothing_but_marks_is_read_in_one_pass() -> None:
    assert read_calls("<tool_call>" * 100_000, NAMES)[0] == []
    assert read_calls("<tool_call>{" * 100_000, NAMES)[0] == []


def feed(text: str, most: int = 8, size: int = 1) -> tuple[str, str, list[str]]:
    """Return what a filter shows on the way, what at the end, and the calls' names."""
    calls = CallFilter(NAMES, most)
    shown = "".join(calls.push(text[i : i + size]) for i in range(0, len(text), size))
    rest, read = calls.finish()
    return shown, rest, [call.name for call in read]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Plain text.", ("Plain text.", "", [])),
        ("functions are fun", ("functions are fun", "", [])),
        ("Let me see. " + CALL, ("Let me see. ", "", ["now"])),
        ("Let me see. " + CALL + " So.", ("Let me see. ", " So.", ["now"])),
        (f"{CALL} and {CALL}\n", ("", " and ", ["now", "now"])),
        ("  " + CALL + CALL, ("  ", "", ["now", "now"])),
        ('{"name": "now"}', ("", "", ["now"])),
        ('{"name": "now"} it is', ("", " it is", ["now"])),
        ('{"a": 1} is JSON', ("", '{"a": 1} is JSON', [])),
        ("So {a} and [b] < c", ("So {a} and [b] < c", "", [])),
    ],
)
def test_shows_text_at_once_and_holds_calls_back(text: str, expected: tuple[str, str, list[str]], size: int) -> None:
    assert feed(text, size=size) == expected


def test_the_beginning_of_a_mark_is_shown_when_none_comes() -> None:
    assert feed("a <tool") == ("a ", "<tool", [])


def test_no_more_calls_than_wanted() -> None:
    assert feed(CALL * 3, most=2)[2] == ["now", "now"]


_PARTS = st.one_of(
    st.sampled_from(
        [
            CALL,
            "<tool_call>",
            "</tool_call>",
            "<|tool_call|>",
            "<|/tool_call|>",
            '{"tool_calls": [',
            ADD,
            "]}",
            "functools",
        ]
    ),
    st.text('<tool_cal>|/{}[]"name\\: ,adn\n', max_size=8),
)


@given(st.lists(_PARTS, max_size=8).map("".join), st.data())
def test_streamed_and_whole_replies_are_equal(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    tools = [{"type": "function", "function": {"name": name}} for name in NAMES]
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "go"}], "tools": tools})

    def finished(text: str) -> Finished:
        return Finished(1, 0, text, (), "stop", 1, 1, 0, 0, 0, True)

    (whole,) = ChatReply(request, "m", 8).whole([finished(text)], {})["choices"]
    stream = ChatReply(request, "m", 8)
    chunks = stream.opening()
    for piece in pieces[:-1]:
        chunks += stream.piece(Piece(1, 0, piece, ()))
    chunks += stream.ending(finished(pieces[-1]))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == (whole["message"]["content"] or "")
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls == [call["function"] for call in whole["message"].get("tool_calls", [])]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_a_reply_that_was_cut_says_so_and_has_its_complete_calls() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "go"}], "tools": tools})
    text = f'{{"tool_calls": [{ADD}, {{"name": "a'
    cut = Finished(1, 0, text, (), "length", 1, 1, 0, 0, 0, True)
    (choice,) = ChatReply(request, "m", 8).whole([cut], {})["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] is None
    assert [call["function"] for call in choice["message"]["tool_calls"]] == [{"name": "add", "arguments": '{"a": 1}'}]
