"""Clients share a server: one that asks for everything leaves room, and turns, to the others."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeLoader
from phi3_onnx.runtime import load
from phi3_onnx.runtime.server.fairness import has_room, in_turns
from phi3_onnx.runtime.server.messages import Accepted, Client, Finished, FromEngine, Job
from phi3_onnx.runtime.server.parameters import Notes
from phi3_onnx.runtime.server.requests import ChatRequest, checked
from phi3_onnx.runtime.server.worker import Scheduler
from scripted import write_scripted_package

from .conftest import StartServer
from .test_lifecycle import wait_until

A, B = Client("10.0.0.1"), Client("10.0.0.2")


def test_a_client_alone_may_take_every_place_and_no_more() -> None:
    assert has_room(A, [A] * 67, 4, 64)
    assert not has_room(A, [A] * 68, 4, 64)


def test_beside_a_client_that_took_every_place_others_get_their_share() -> None:
    assert has_room(B, [A] * 68, 4, 64)
    assert has_room(B, [A] * 68 + [B] * 33, 4, 64)
    assert not has_room(B, [A] * 68 + [B] * 34, 4, 64)
    assert not has_room(A, [A] * 68 + [B], 4, 64)


def test_the_users_of_a_client_get_theirs_and_made_up_ones_shut_nobody_out() -> None:
    ann, bob = Client("10.0.0.1", "ann"), Client("10.0.0.1", "bob")
    assert has_room(bob, [ann] * 68, 4, 64)
    assert not has_room(bob, [ann] * 68 + [bob] * 32, 4, 64)
    invented = [Client("10.0.0.1", str(number)) for number in range(100)]
    assert not has_room(Client("10.0.0.1", "one more"), invented, 4, 64)
    assert has_room(B, invented, 4, 64)
    assert not has_room(B, [Client(f"10.0.1.{number}") for number in range(132)], 4, 64)


def test_without_a_queue_nobody_waits() -> None:
    assert has_room(B, [A], 2, 0)
    assert not has_room(B, [A, A], 2, 0)


def test_turns_go_round_clients_and_round_the_users_of_each() -> None:
    entries = ["a1", "a2", "a3", "b1", "a4", "b2", "c1"]
    assert in_turns(entries, lambda entry: Client(entry[0])) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]
    users = ["x.a1", "x.a2", "x.a3", "x.b1", "y.a1", "y.a2", "x.b2"]
    found = in_turns(users, lambda entry: Client(entry[0], entry[2]))
    assert found == ["x.a1", "y.a1", "x.b1", "y.a2", "x.a2", "x.b2", "x.a3"]
    assert in_turns(["a1", "a2", "a3"], lambda entry: A) == ["a1", "a2", "a3"]


def order_of_answers(scheduler: Scheduler, sent: list[FromEngine]) -> list[int]:
    """Ten requests of one client, then two of another: which answers were complete in which order."""
    options = {"max_tokens": 4, "ignore_eos": True}
    for number in range(10):
        scheduler.take(Job(number, (f"The number {number}",), 1, options, stream=False, client=A))
    while sum(isinstance(message, Accepted) for message in sent) < 10:
        scheduler.step()
    for number in (10, 11):
        scheduler.take(Job(number, (f"The number {number}",), 1, options, stream=False, client=B))
    while not scheduler.idle:
        scheduler.step()
    return [message.id for message in sent if isinstance(message, Finished)]


def test_a_later_client_does_not_wait_for_all_of_an_earlier_one_s(tiny_package: Callable[..., Path]) -> None:
    sent: list[FromEngine] = []
    with load(tiny_package("gqa", "cpu-int4-rtn"), engine="together") as model:
        order = order_of_answers(Scheduler(model, 2, sent.append), sent)
    assert sorted(order) == list(range(12))
    assert max(order.index(10), order.index(11)) < 8
    assert [number for number in order if number < 10] == list(range(10))


def test_nor_where_answers_take_turns(tmp_path: Path) -> None:
    write_scripted_package(tmp_path / "fake", context_length=4096)
    sent: list[FromEngine] = []
    order = order_of_answers(Scheduler(FakeLoader(tmp_path / "fake")(), 2, sent.append), sent)
    assert sorted(order) == list(range(12))
    assert max(order.index(10), order.index(11)) < 8
    assert [number for number in order if number < 10] == list(range(10))


@pytest.mark.parametrize("who", ["address", "user", "safety_identifier", "responses", "anthropic"])
def test_a_full_queue_has_a_place_for_who_has_none(start_server: StartServer, tmp_path: Path, who: str) -> None:
    server, gate = start_server(parallel=1, queue=2), tmp_path / "gate"

    def asked(prompt: str, name: str) -> httpx.Response:
        message = {"role": "user", "content": prompt}
        body: dict[str, Any] = {"model": "fake", "messages": [message], "max_tokens": 9}
        path, headers = "/v1/chat/completions", {}
        if who == "address":
            headers = {"X-Forwarded-For": name}
        elif who == "anthropic":
            path, body = "/v1/messages", {**body, "metadata": {"user_id": name}}
        elif who == "responses":
            path, body = "/v1/responses", {"input": prompt, "user": name}
        else:
            body[who] = name
        return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)

    with ThreadPoolExecutor() as pool:
        blocked = [pool.submit(asked, f"wait {gate}", "10.0.0.1") for _ in range(3)]
        wait_until(lambda: server.engine.jobs == 3)
        refused = asked("say hi", "10.0.0.1")
        assert refused.status_code == 429 and "3 requests" in refused.text and "Retry-After" in refused.headers
        other = pool.submit(asked, "say hi", "10.0.0.2")
        wait_until(lambda: server.engine.jobs == 4)
        gate.touch()
        assert {future.result().status_code for future in (*blocked, other)} == {200}


@pytest.mark.parametrize(
    ("given", "name"), [("ann", "ann"), (7, "7"), ({"id": "ann", "role": "admin"}, "ann"), ({}, ""), ([["x"]], "")]
)
def test_a_user_is_called_in_one_way_or_another(given: Any, name: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert checked(ChatRequest, {**body, "user": given}, Notes()).asker == name
    assert checked(ChatRequest, {**body, "safety_identifier": given}, Notes()).asker == name
