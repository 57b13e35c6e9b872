"""Messages between the processes, and the stream that is sent as they come."""

import asyncio
import json
import socket
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from phi3_onnx.runtime.server.answers import Answers
from phi3_onnx.runtime.server.channel import Decoder, encode
from phi3_onnx.runtime.server.errors import api_error, response
from phi3_onnx.runtime.server.framing import whole
from phi3_onnx.runtime.server.messages import Accepted, Finished, Job, Piece, RefusalKind, Refused, TokenText
from phi3_onnx.runtime.server.replies import CompletionReply
from phi3_onnx.runtime.server.requests import CompletionRequest, parse
from phi3_onnx.runtime.server.run import listen
from phi3_onnx.runtime.server.streaming import Events, EventStream
from starlette.responses import JSONResponse

PIECES = [Piece(1, 0, text, ()) for text in ("a", 'b"\n', "é\u2028", "")]
LAST = Finished(1, 0, "!", (), "stop", 3, 5, 0, 0.1, 0.2, last=True)


@pytest.mark.parametrize("size", [1, 2, 7, 10**6])
def test_messages_come_out_as_they_went_in(size: int) -> None:
    logprobs = (TokenText("a", -0.5, (("b", -1.0),)),)
    sent = [Accepted(1, 3), *PIECES, Piece(2**40, 3, "x" * 300, logprobs), LAST, Job(7, ("hi",), 1, {"n": 1}, True)]
    data, decoder = b"".join(map(encode, sent)), Decoder()
    found = [message for i in range(0, len(data), size) for message in decoder.feed(data[i : i + size])]
    assert found == sent


def test_a_large_message_is_not_copied_for_each_part_of_it() -> None:
    size, part = 2**22, 2**16
    data, decoder, taken = encode(Job(1, ("x" * size,), 1, {}, True)), Decoder(), 0
    messages: list[Any] = []
    tracemalloc.start()
    try:
        for start in range(0, len(data), part):
            piece = data[start : start + part]
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            messages = decoder.feed(piece)
            taken += tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert [len(message.prompts[0]) for message in messages] == [size]
    assert taken < 4 * size


def test_log_probabilities_take_little_memory_in_the_web_process() -> None:
    count = 10_000
    data = encode(replace(LAST, logprobs=tuple(TokenText("a", -0.5 - number, ()) for number in range(count))))
    tracemalloc.start()
    try:
        found = Decoder().feed(data)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(found[0].logprobs) == count
    assert taken < 180 * count


def test_whole_answers_are_the_json_that_python_writes() -> None:
    table = {"text": 'é\u2028"\\\n\x00😀', "logprobs": [-0.1, -9999.0, 1e-7, None], "n": 2**40, "empty": {}}
    assert json.loads(whole(table)) == json.loads(bytes(JSONResponse(table).body)) == table
    assert len(whole(table)) <= len(JSONResponse(table).body)  # nothing is escaped that need not be
    assert whole({"logprob": float("nan")}) == b'{"logprob":null}'


def test_connections_are_tcp_by_name() -> None:
    # asyncio turns Nagle's algorithm off for no others.
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        with listener.accept()[0] as connection:
            assert connection.proto == socket.IPPROTO_TCP


def stream_of(*steps: Any) -> tuple[str, list[str]]:
    """Put events one after another, or call what is callable, and return what was sent and what was called at ends."""

    async def run() -> tuple[str, list[str]]:
        answers, ends, sent = Answers(Job(1, ("hi",), 1, {}, True)), [], []
        body = parse(CompletionRequest, b'{"prompt": "hi", "stream": true}')
        events = Events(answers, Accepted(1, 3), CompletionReply(body, "m"), lambda *_: ends.append("done"), 1)
        open_gate, gone = asyncio.Event(), asyncio.Event()
        open_gate.set()

        async def send(message: Any) -> None:
            await open_gate.wait()  # waits only where the reader is slow
            sent.append(message.get("body", b""))

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        stream = EventStream(events, lambda: ends.append("end"))
        task = asyncio.create_task(stream({"type": "http"}, receive, send))
        for step in steps:
            await asyncio.sleep(0)
            if step == "slow":
                open_gate.clear()
            elif step == "read":
                open_gate.set()
            elif step == "gone":
                gone.set()
            else:
                answers.put(step)
        await asyncio.wait_for(task, 60)
        return b"".join(sent).decode(), ends

    return asyncio.run(run())


def texts(sent: str) -> list[str]:
    chunks = [json.loads(line[6:]) for line in sent.split("\n\n") if line.startswith("data: {")]
    return [choice["text"] for chunk in chunks for choice in chunk.get("choices", [])]


@pytest.mark.parametrize(
    "steps",
    [
        [Accepted(1, 3), *PIECES, LAST],
        [Accepted(1, 3), PIECES[0], "slow", *PIECES[1:], LAST, "read"],
        [Accepted(1, 3), "slow", *PIECES[:2], "read", "slow", *PIECES[2:], "read", LAST],
    ],
)
def test_every_text_is_sent_once_and_in_order_to_slow_readers_too(steps: list[Any]) -> None:
    sent, ends = stream_of(*steps)
    assert "".join(texts(sent)) == 'ab"\né\u2028!'
    assert sent.endswith("data: [DONE]\n\n") and ends == ["done", "end"]


def test_a_late_refusal_ends_a_stream() -> None:
    sent, ends = stream_of(Accepted(1, 3), PIECES[0], Refused(1, "engine", "it broke"))
    assert texts(sent) == ["a"] and "it broke" in sent and "[DONE]" not in sent and ends == ["end"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("engine", "engine_error"),
        ("stopped", "engine_unavailable"),
        ("context", "context_length_exceeded"),
        ("request", "invalid_value"),
    ],
)
def test_a_late_refusal_has_the_body_of_an_early_one(kind: RefusalKind, code: str) -> None:
    refused = Refused(1, kind, "it broke")
    sent, _ = stream_of(Accepted(1, 3), PIECES[0], refused)
    last = json.loads(sent.rstrip("\n").rpartition("data: ")[2])
    assert last["error"]["code"] == code
    assert last == json.loads(bytes(response(api_error(refused), "/v1/completions").body))


def test_a_client_that_leaves_ends_a_stream() -> None:
    sent, ends = stream_of(Accepted(1, 3), PIECES[0], "gone")
    assert texts(sent) == ["a"] and ends == ["end"]
