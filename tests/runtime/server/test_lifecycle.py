"""Many clients, clients that leave, an engine that dies, and the end of a server."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_engine
import httpx
import openai
import pytest
from fake_engine import FakeLoader
from phi3_onnx.runtime.server.process import LoadError

from .conftest import RunningServer, StartServer


def ask(server: RunningServer, text: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return server.client().chat.completions.create(model="fake", messages=messages, **options)


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for what has to come; a minute is no limit on its speed, but the end of a test that hangs."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within a minute")


def health(server: RunningServer) -> dict[str, Any]:
    with server.http() as http:
        return http.get("/health").json()


def test_fifty_clients_all_get_their_own_answer(server: RunningServer) -> None:
    def one(number: int) -> str:
        text = f"answer number {number}, " * 3
        if number % 2:
            return ask(server, f"say {text}{number}").choices[0].message.content
        chunks = ask(server, f"say {text}{number}", stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(one, range(50)))
    assert answers == [f"answer number {number}, " * 3 + str(number) for number in range(50)]


def test_answers_grow_side_by_side(server: RunningServer) -> None:
    with ask(server, "for-ever", stream=True) as endless:
        next(iter(endless))
        assert ask(server, "say me first").choices[0].message.content == "me first"


def test_health_answers_while_the_engine_is_busy(start_server: StartServer, tmp_path: Path) -> None:
    server, gate = start_server(parallel=1), tmp_path / "gate"
    with ThreadPoolExecutor() as pool:
        blocked = pool.submit(ask, server, f"wait {gate}")
        wait_until(lambda: server.engine.jobs)
        waiting = pool.submit(ask, server, "say hi")
        wait_until(lambda: health(server)["waiting"] == 1)
        assert health(server)["running"] == 1 and health(server)["status"] == "ok"
        assert not blocked.done() and not waiting.done()
        gate.touch()
        assert blocked.result().choices[0].message.content == "done"
        assert waiting.result().choices[0].message.content == "hi"


def test_who_comes_when_the_queue_is_full_is_told_when_to_come_back(start_server: StartServer, tmp_path: Path) -> None:
    server, gate = start_server(parallel=1, queue=1), tmp_path / "gate"
    with ThreadPoolExecutor() as pool:
        blocked = [pool.submit(ask, server, f"wait {gate}") for _ in range(2)]
        wait_until(lambda: server.engine.jobs == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(server, "say hi")
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        gate.touch()
        assert [future.result().choices[0].message.content for future in blocked] == ["done", "done"]
    assert ask(server, "say hi").choices[0].message.content == "hi"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_the_engine(start_server: StartServer, stream: bool) -> None:
    server = start_server(parallel=1, queue=0)
    if stream:
        endless = ask(server, "for-ever", stream=True)
        next(iter(endless))
        endless.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            ask(server, "for-ever", timeout=httpx.Timeout(60, read=0.3))
    wait_until(lambda: server.engine.jobs == 0)
    # With one slot and no queue, this needs the engine itself to have left the other answer.
    assert ask(server, "say free").choices[0].message.content == "free"


def test_the_second_turn_runs_only_what_is_new(server: RunningServer) -> None:
    messages: Any = [{"role": "user", "content": "say " + "a long story. " * 20}]
    client = server.client()
    first = client.chat.completions.create(model="fake", messages=messages)
    messages += [first.choices[0].message.model_dump(), {"role": "user", "content": "say more"}]
    second = client.chat.completions.create(model="fake", messages=messages)
    assert first.usage and second.usage and second.usage.prompt_tokens_details
    # All of the first turn, the end of the answer included: the template repeats it as it was.
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached == first.usage.prompt_tokens + first.usage.completion_tokens - 1


def test_an_engine_that_dies_is_started_again(start_server: StartServer) -> None:
    server = start_server()
    before = server.engine.pid
    with ask(server, "for-ever", stream=True) as endless:
        next(iter(endless))
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server, "crash")
        assert caught.value.status_code == 503 and caught.value.code == "engine_unavailable"
        assert "Retry-After" in caught.value.response.headers
        with pytest.raises(openai.APIError, match="stopped unexpectedly"):  # an answer under way says so, too
            list(endless)
    wait_until(lambda: health(server)["status"] == "ok")
    assert server.engine.pid != before and health(server)["restarts"] == 1
    assert ask(server, "say hello again").choices[0].message.content == "hello again"
    with server.http() as http:
        assert 'phi3_onnx_engine_restarts{model="fake"} 1.0' in http.get("/metrics").text


def test_an_engine_that_cannot_be_started_again_is_tried_until_it_can(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3_onnx.runtime.server.process._AGAIN_SECONDS", 0.05)
    server, failures = start_server(), iter([OSError(11, "no more processes"), OSError(24, "no more files")])
    start = server.engine.start

    async def no_room() -> None:
        if error := next(failures, None):
            raise error
        await start()

    monkeypatch.setattr(server.engine, "start", no_room)
    with pytest.raises(openai.InternalServerError):
        ask(server, "crash")
    wait_until(lambda: health(server)["status"] == "ok")
    assert health(server)["restarts"] == 1 and next(failures, None) is None
    assert ask(server, "say hello again").choices[0].message.content == "hello again"


def test_an_engine_that_is_broken_ends_itself_for_a_new_one(start_server: StartServer) -> None:
    server = start_server()
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            ask(server, "fail")
    wait_until(lambda: health(server)["restarts"] == 1 and health(server)["status"] == "ok")
    assert ask(server, "say well").choices[0].message.content == "well"


def test_a_model_that_does_not_load_is_said_at_once(start_server: StartServer, fake_package: Path) -> None:
    with pytest.raises(LoadError, match="ended with exit code 3 while it loaded"):
        start_server(FakeLoader(fake_package, fail=True))


SERVE_SLOWLY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_engine import FakeLoader
from phi3_onnx.runtime.server.run import serve
from phi3_onnx.runtime.server.settings import Settings
if __name__ == "__main__":
    serve(FakeLoader(Path(sys.argv[2]), gate=Path(sys.argv[3])), Settings(port=0), print)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a POSIX system")
@pytest.mark.parametrize("opened", [False, True], ids=["loading", "loaded at once"])
def test_an_engine_ends_quietly_with_a_server_that_is_killed(opened: bool, fake_package: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(SERVE_SLOWLY, encoding="utf-8")
    gate, doubles = tmp_path / "gate", str(Path(fake_engine.__file__).parent)
    begin = [sys.executable, tmp_path / "serve.py", doubles, fake_package, gate]
    with subprocess.Popen(begin, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: gate.with_suffix(".waits").exists())
        finally:
            server.kill()
        if opened:  # what it says when it has loaded reaches nobody
            gate.touch()
        # The engine holds the stream, so its end is the engine's.
        said = server.communicate(timeout=60)[1].decode()
    assert "Traceback" not in said


def test_metrics_count_requests_and_tokens(start_server: StartServer) -> None:
    server = start_server()
    usage = [ask(server, "say abc").usage for _ in range(2)]
    with server.http() as http:
        http.get("/v1/" + "x" * 50)
        lines = http.get("/metrics").text.splitlines()
    counts = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
    assert counts['phi3_onnx_requests_total{path="/v1/chat/completions",status="200"}'] == 2
    assert counts['phi3_onnx_requests_total{path="other",status="404"}'] == 1
    assert counts['phi3_onnx_tokens_total{kind="generated",model="fake"}'] == sum(
        entry.completion_tokens for entry in usage
    )
    cached = usage[1].prompt_tokens_details.cached_tokens
    assert cached == usage[1].prompt_tokens - 1
    assert counts['phi3_onnx_tokens_total{kind="cached",model="fake"}'] == cached
    assert counts['phi3_onnx_tokens_total{kind="prompt",model="fake"}'] == usage[0].prompt_tokens + 1
    assert counts['phi3_onnx_request_seconds_count{model="fake"}'] == 2
    assert counts['phi3_onnx_engine_up{model="fake"}'] == 1
    for name in ("queue", "prefill", "time_to_first_token", "time_per_output_token"):
        assert counts[f'phi3_onnx_{name}_seconds_count{{model="fake"}}'] == 2, name
