"""Many models behind one server: loaded when asked for, unloaded for room, each answering for itself."""

import asyncio
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import serving
import uvicorn
from fake_engine import FakeLoader
from phi3_onnx.configs.store import home
from phi3_onnx.runtime.package import open_package, weight_bytes
from phi3_onnx.runtime.server import pool as pool_module
from phi3_onnx.runtime.server.many import create_app_of_many
from phi3_onnx.runtime.server.metrics import Metrics
from phi3_onnx.runtime.server.offers import needed_bytes, offered
from phi3_onnx.runtime.server.parameters import WARNING_HEADER
from phi3_onnx.runtime.server.pool import Offer, Pool
from phi3_onnx.runtime.server.run import address, listen
from phi3_onnx.runtime.server.settings import Settings


class RunningMany:
    """A server of many models in a thread, and what it said of loading."""

    def __init__(self, offers: Sequence[Offer], settings: Settings, free: Callable[[], int | None]) -> None:
        self.said: list[str] = []
        self.offered: Callable[[], Sequence[Offer]] = lambda: offers
        metrics = Metrics()
        self._listener = listen("127.0.0.1", 0)
        self.url = address(self._listener)
        self._loop = asyncio.new_event_loop()
        self.pool = Pool(lambda: self.offered(), settings, metrics, free=free, notify=self.said.append)
        app = create_app_of_many(self.pool, settings, metrics)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        async def main() -> None:
            await self.pool.start()
            await self._server.serve(sockets=[self._listener])

        self._loop.run_until_complete(main())

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)

    def ask(self, model: str | None, text: str = "hi", **options: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": f"say {text}"}], **options}
        return httpx.post(
            f"{self.url}/v1/chat/completions", json=body | ({"model": model} if model else {}), timeout=60
        )

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=60)


@pytest.fixture
def start(fake_package: Path) -> Iterator[Callable[..., RunningMany]]:
    """Return `start(needs..., free=, **settings)`: a server of models a, b, ... that need so many bytes."""
    running: list[RunningMany] = []

    def begin(*needs: int, free: Callable[[], int | None] = lambda: None, **settings: Any) -> RunningMany:
        offers = [
            Offer(f"{letter}/int4", FakeLoader(fake_package), count, (letter,), 1e9)
            for letter, count in zip("abcdef", needs, strict=False)
        ]
        offers.append(Offer("broken/int4", FakeLoader(fake_package, fail=True), 1))
        running.append(RunningMany(offers, Settings(**settings), free))
        return running[-1]

    yield begin
    for server in running:
        server.close()


def answer(reply: httpx.Response) -> tuple[str, str]:
    assert reply.status_code == 200, reply.text
    assert WARNING_HEADER not in reply.headers
    return reply.json()["model"], reply.json()["choices"][0]["message"]["content"]


def waits_for(gate: Path) -> list[dict[str, str]]:
    """Return messages that the fake model answers when a file is there."""
    return [{"role": "user", "content": f"wait {gate}"}]


def wait_until(condition: Callable[[], Any]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within a minute")


def test_each_is_loaded_by_its_name_or_alias_and_the_longest_unused_makes_room(
    start: Callable[..., RunningMany],
) -> None:
    server = start(100, 200, 300)
    assert server.get("/health").json()["models"] == {} and not server.said
    listed = server.get("/v1/models").json()["data"]
    assert [(card["id"], card["loaded"]) for card in listed[:3]] == [(f"{x}/int4", False) for x in "abc"]
    assert answer(server.ask("a/int4", "one")) == ("a/int4", "one")
    assert answer(server.ask("b", "two")) == ("b/int4", "two")
    assert answer(server.ask("a", "three")) == ("a/int4", "three")
    assert set(server.get("/health").json()["models"]) == {"a/int4", "b/int4"}
    told = server.get("/metrics").text
    for name in "ab":
        assert f'phi3_onnx_engine_up{{model="{name}/int4"}} 1.0' in told
        assert f'phi3_onnx_tokens_total{{kind="generated",model="{name}/int4"}}' in told
    assert answer(server.ask("c", "four")) == ("c/int4", "four")
    assert set(server.get("/health").json()["models"]) == {"a/int4", "c/int4"}
    assert 'phi3_onnx_engine_up{model="b/int4"}' not in server.get("/metrics").text
    assert server.said == [
        "loading a/int4: it takes about 100 B",
        "loading b/int4: it takes about 200 B",
        "unloading b/int4: c/int4 is wanted, and 2 can be loaded at a time",
        "loading c/int4: it takes about 300 B",
    ]
    card = server.get("/v1/models/c").json()
    assert card["loaded"] and card["context_length"] == 4096


def test_memory_makes_room_and_its_numbers_are_said_first(start: Callable[..., RunningMany]) -> None:
    free = [1000]
    server = start(400, 500, 2000, free=lambda: free[0], model_bytes=800, most_loaded=9)
    assert answer(server.ask("a"))[0] == "a/int4"
    assert answer(server.ask("b"))[0] == "b/int4"  # 400 + 500 is past the bound
    free[0] = 300
    assert server.ask("a").status_code == 503
    free[0] = 1000
    assert answer(server.ask("a"))[0] == "a/int4"
    refused = server.ask("c")
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "memory_short"
    assert "takes about 2.00 kB" in refused.json()["error"]["message"]
    assert server.said[1] == "unloading a/int4: b/int4 takes about 500 B, 400 B of 800 B are taken"
    assert server.said[3] == "unloading b/int4: a/int4 takes about 400 B, 500 B of 800 B are taken"
    assert server.said[2] == "loading b/int4: it takes about 500 B, and 1.00 kB are free"


def test_a_model_that_answers_stays_and_others_wait(start: Callable[..., RunningMany]) -> None:
    server = start(1, 1, most_loaded=1)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    messages: Any = [{"role": "user", "content": "for-ever"}]
    with client.chat.completions.create(model="a", messages=messages, stream=True) as endless:
        next(iter(endless))
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(server.ask, "b", "two")
            time.sleep(0.3)
            assert not second.done() and set(server.pool.loaded) == {"a/int4"}
            endless.close()
            assert answer(second.result(60)) == ("b/int4", "two")
    assert set(server.pool.loaded) == {"b/int4"}


def test_many_clients_of_two_models_that_do_not_fit_together_are_all_answered(
    start: Callable[..., RunningMany],
) -> None:
    server = start(1, 1, most_loaded=1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: answer(server.ask("ab"[number % 2], str(number))), range(8)))
    assert found == [(f"{'ab'[number % 2]}/int4", str(number)) for number in range(8)]


def test_a_model_that_is_never_idle_makes_room_too_while_others_go_on(
    start: Callable[..., RunningMany], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool_module, "_PATIENCE", 0.0)
    server = start(1, 1, 1, most_loaded=2)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0)
    endless: Any = [{"role": "user", "content": "for-ever"}]
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(server.ask, "a", messages=waits_for(tmp_path / "first"))
        wait_until(lambda: "a/int4" in server.pool.loaded)
        with client.chat.completions.create(model="b", messages=endless, stream=True) as stream:
            next(iter(stream))
            third = pool.submit(server.ask, "c", "three")
            wait_until(lambda: "a/int4 takes no more requests" in server.said[-1])
            second = pool.submit(server.ask, "a", messages=waits_for(tmp_path / "second"))
            wait_until(lambda: len(server.pool._loads) == 2)
            assert answer(server.ask("b", "meanwhile")) == ("b/int4", "meanwhile")
            (tmp_path / "first").touch()
            assert answer(first.result(60)) == ("a/int4", "done")
            assert answer(third.result(60)) == ("c/int4", "three")
            assert not second.done()
            (tmp_path / "second").touch()
            assert answer(second.result(60)) == ("a/int4", "done")
    assert [line.partition(":")[0] for line in server.said][:5] == [
        "loading a/int4",
        "loading b/int4",
        "a/int4 takes no more requests",
        "unloading a/int4",
        "loading c/int4",
    ]


def test_a_model_that_was_to_leave_stays_where_another_made_room(
    start: Callable[..., RunningMany], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pool_module, "_PATIENCE", 0.0)
    server = start(1, 1, 1, most_loaded=2)
    with ThreadPoolExecutor(4) as pool:
        busy = {name: pool.submit(server.ask, name, messages=waits_for(tmp_path / name)) for name in "ab"}
        wait_until(lambda: len(server.pool.loaded) == 2)
        first, second = (name[0] for name in server.pool.loaded)
        third = pool.submit(server.ask, "c")
        wait_until(lambda: f"{first}/int4 takes no more requests" in server.said[-1])
        waiting = pool.submit(server.ask, first, "again")
        wait_until(lambda: len(server.pool._loads) == 2)
        (tmp_path / second).touch()
        assert answer(busy[second].result(60)) == (f"{second}/int4", "done")
        assert answer(third.result(60))[0] == "c/int4"
        (tmp_path / first).touch()
        assert answer(busy[first].result(60)) == (f"{first}/int4", "done")
        assert answer(waiting.result(60)) == (f"{first}/int4", "again")
    assert sum("loading" in line for line in server.said) == 4  # three models, and one of them unloaded


def test_all_that_wait_for_a_model_are_let_in_when_it_is_loaded(
    start: Callable[..., RunningMany], tmp_path: Path
) -> None:
    server = start(1, 1, most_loaded=1)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.ask, "a", messages=waits_for(tmp_path / "gate"))
        wait_until(lambda: "a/int4" in server.pool.loaded)
        waiting = [pool.submit(server.ask, "b", str(number)) for number in range(3)]
        wait_until(lambda: "b/int4" in (loads := server.pool._loads) and loads["b/int4"].requests == 3)
        after = pool.submit(server.ask, "a", "3")
        (tmp_path / "gate").touch()
        answer(first.result(60))
        assert [answer(each.result(60))[1] for each in [*waiting, after]] == ["0", "1", "2", "3"]
    assert sum(line.startswith("loading b/int4") for line in server.said) == 1


def test_a_request_leaves_the_wait_for_a_model_when_its_client_hangs_up(
    start: Callable[..., RunningMany], fake_package: Path, tmp_path: Path
) -> None:
    server, gate = start(), tmp_path / "gate"
    offer = Offer("a/int4", FakeLoader(fake_package, gate=gate), 1)
    server.offered = lambda: [offer]
    url = httpx.URL(server.url)

    def waiting() -> int:
        return sum(load.requests for load in server.pool._loads.values())

    def hang_up_after(condition: Callable[[], Any]) -> None:
        with socket.create_connection((url.host, url.port)) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
            wait_until(condition)

    hang_up_after(lambda: gate.with_suffix(".waits").exists())
    wait_until(lambda: not server.pool._loads)  # nobody waits: the load is given up
    assert not server.pool.loaded
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(server.ask, "a/int4", "hello")
        wait_until(lambda: waiting() == 1)
        hang_up_after(lambda: waiting() == 2)
        wait_until(lambda: waiting() == 1)
        gate.touch()
        assert answer(other.result(60)) == ("a/int4", "hello")
    wait_until(lambda: not server.pool.loaded["a/int4"].active)
    assert len(server.said) == 2  # the load that another waited for went on


def test_a_load_that_is_given_up_before_it_begins_leaves_nothing_behind(fake_package: Path) -> None:
    offer = Offer("a/int4", FakeLoader(fake_package), 1)
    pool = Pool(lambda: [offer], Settings(), Metrics())

    async def ask() -> str:
        async with pool.use("a/int4") as entry:
            return entry.offer.name

    async def main() -> str:
        request = asyncio.create_task(pool._when_loaded(offer))
        asyncio.get_running_loop().call_soon(request.cancel)  # runs before the load's own task does
        with pytest.raises(asyncio.CancelledError):
            await request
        assert not pool._loads
        try:
            return await asyncio.wait_for(ask(), 60)
        finally:
            await pool.stop()

    assert asyncio.run(main()) == "a/int4"


def test_a_failure_to_load_is_remembered_for_a_while(
    start: Callable[..., RunningMany], monkeypatch: pytest.MonkeyPatch, fake_package: Path
) -> None:
    server = start(1)

    def loads() -> int:
        return sum(line.startswith("loading broken/int4") for line in server.said)

    refusals = [server.ask("broken/int4") for _ in range(3)]
    assert [reply.status_code for reply in refusals] == [500] * 3 and loads() == 1
    assert len({reply.json()["error"]["message"] for reply in refusals}) == 1
    changed = [Offer("broken/int4", FakeLoader(fake_package, fail=True), 2)]
    server.offered = lambda: changed
    monkeypatch.setattr(pool_module, "_REMEMBERED", (0.0, 0.0))
    assert server.ask("broken/int4").status_code == 500 and loads() == 2  # the offer changed
    assert server.ask("broken/int4").status_code == 500 and loads() == 3  # the time was over
    changed[0] = Offer("broken/int4", FakeLoader(fake_package), 2)
    assert answer(server.ask("broken/int4"))[0] == "broken/int4"


def test_the_server_answers_while_the_store_is_read(start: Callable[..., RunningMany]) -> None:
    server, go_on, reading = start(1), threading.Event(), threading.Semaphore(0)

    def slow() -> Sequence[Offer]:
        reading.release()
        assert go_on.wait(60), "the event loop waits for the store"
        return []

    server.offered = slow
    asking: list[Callable[[], httpx.Response]] = [
        lambda: server.get("/v1/models"),
        lambda: server.get("/v1/models/nowhere"),
        lambda: server.get("/api/tags"),
        lambda: server.ask("nowhere"),
    ]
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(ask) for ask in asking]
        for _ in asking:
            assert reading.acquire(timeout=60)
        assert server.get("/health").status_code == 200
        go_on.set()
        assert [reply.result(60).status_code for reply in replies] == [200, 404, 200, 404]


def test_what_nobody_asks_for_is_unloaded(start: Callable[..., RunningMany]) -> None:
    server = start(1, keep_alive=0.2)
    assert answer(server.ask("a"))[0] == "a/int4"
    wait_until(lambda: not server.pool.loaded)
    assert server.said[-1] == "unloading a/int4: nobody asked for it in 0.2 s"
    assert answer(server.ask("a"))[0] == "a/int4"


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("nowhere", 404, "there is no model 'nowhere'; there are: a/int4, b/int4, broken/int4"),
        (None, 400, "model must be named"),
        ("broken/int4", 500, "broken/int4 cannot be loaded: the engine's process ended with exit code 3"),
    ],
)
def test_what_cannot_be_had_is_said(
    start: Callable[..., RunningMany], model: str | None, status: int, words: str
) -> None:
    server = start(1, 1)
    reply = server.ask(model)
    assert reply.status_code == status and words in reply.json()["error"]["message"]
    assert answer(server.ask("a"))[0] == "a/int4"
    assert answer(server.ask(None))[0] == "a/int4"  # the only one that is loaded


def test_all_protocols_and_what_names_no_model(start: Callable[..., RunningMany]) -> None:
    server = start(1, 1, max_request_bytes=2000)
    messages = [{"role": "user", "content": "say hi"}]
    ollama = httpx.post(
        f"{server.url}/api/chat", json={"model": "a", "messages": messages, "stream": False}, timeout=60
    )
    assert ollama.json()["message"]["content"] == "hi"
    anthropic = {"model": "b", "messages": messages, "max_tokens": 9}
    assert httpx.post(f"{server.url}/v1/messages", json=anthropic, timeout=60).json()["content"][0]["text"] == "hi"
    kept = httpx.post(f"{server.url}/v1/responses", json={"model": "b", "input": "say hi"}, timeout=60).json()
    assert server.get(f"/v1/responses/{kept['id']}").json() == kept
    assert server.get("/v1/responses/resp_none").status_code == 404
    assert [entry["name"] for entry in server.get("/api/ps").json()["models"]] == ["a/int4", "b/int4"]
    assert len(server.get("/api/tags").json()["models"]) == 3
    assert server.get("/").status_code == 200 and server.get("/nowhere").status_code == 404
    assert server.get("/api/version").status_code == 200
    assert server.ask("a", "x" * 3000).status_code == 413
    assert httpx.post(f"{server.url}/v1/completions", content=b"{", headers={"Content-Type": "application/json"},
                      timeout=60).status_code == 400  # fmt: skip
    assert 'phi3_onnx_requests_total{path="/v1/messages",status="200"} 1.0' in server.get("/metrics").text


def test_strangers_are_kept_out(start: Callable[..., RunningMany]) -> None:
    server = start(1, api_key="k")
    assert server.ask("a").status_code == 401 and not server.pool.loaded


@pytest.fixture
def store(tiny_package: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the data folder, with two packages that GenAI runs in its store."""
    monkeypatch.setenv("PHI3_ONNX_HOME", str(tmp_path))
    for name in ("one", "two"):
        shutil.copytree(tiny_package("gqa"), tmp_path / "packages" / "tiny" / name)
    return tmp_path


def test_the_store_is_what_is_offered(store: Path) -> None:
    from click.testing import CliRunner
    from phi3_onnx.cli.alias import command

    run = CliRunner().invoke
    assert home() == store and "no aliases" in run(command, []).stderr
    assert "best is tiny/two" in run(command, ["best", "tiny/two"]).stderr
    elsewhere = store / "elsewhere"
    shutil.copytree(store / "packages" / "tiny" / "one", elsewhere)
    run(command, ["mine", str(elsewhere)])
    assert run(command, []).stdout.splitlines() == ["best  tiny/two", f"mine  {elsewhere}"]
    offers = {offer.name: offer for offer in offered("auto", lambda folder: lambda: folder)}
    assert set(offers) == {"tiny/one", "tiny/two", "mine"}
    assert offers["tiny/two"].aliases == ("best",) and offers["mine"].loader() == elsewhere
    package = open_package(elsewhere)
    cache = package.kv_bytes_per_token * min(4096, package.context_length)
    assert offers["mine"].needs == round(weight_bytes(elsewhere) * 1.1) + cache and cache > 0
    beside = {offer.name: offer.needs for offer in offered("auto", lambda folder: lambda: folder, elsewhere)}
    assert beside == {name: offer.needs + needed_bytes(elsewhere) for name, offer in offers.items()}
    run(command, ["mine", "--remove"])
    assert run(command, []).stdout.splitlines() == ["best  tiny/two"]
    for arguments, problem in (
        (["a b", "tiny/one"], "cannot be an alias"),
        (["x", "nowhere"], "neither a folder nor a package"),
        (["x"], "name the package"),
        (["x", "--remove"], "is no alias"),
    ):
        assert problem in str(run(command, arguments).exception)


def test_the_command_line_serves_the_store_within_a_bound_of_memory(store: Path) -> None:
    bound = needed_bytes(store / "packages" / "tiny" / "one") * 1.5 / 1e9
    process, url, lines = serving.start("--model-memory", f"{bound:.9f}", "--preload", "tiny/one")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=120)
    for name in ("tiny/one", "tiny/two", "tiny/one"):
        done = client.completions.create(model=name, prompt="Once", max_tokens=4)
        assert done.model == name and done.usage and done.usage.completion_tokens == 4
    process.send_signal(signal.SIGTERM)
    said = "".join(lines) + process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert said.count("unloading") == 2 and "are taken" in said and said.count("loading tiny/one") == 3
