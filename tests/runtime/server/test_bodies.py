"""Bodies that well-known clients send, from their documentation: each is answered, warned of, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.runtime.server.parameters import WARNING_HEADER

from .conftest import RunningServer

FOLDER = Path(__file__).parents[2] / "data" / "bodies"
BODIES = sorted(FOLDER.glob("*.json"))


def last_of(text: str) -> tuple[list[Any], str]:
    """Return the chunks of a stream, and what it ends with."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines[:-1]], lines[-1]


def test_there_are_bodies_of_each_outcome() -> None:
    outcomes = [json.loads(path.read_text(encoding="utf-8"))["expected"] for path in BODIES]
    assert len(BODIES) >= 40
    assert {outcome["status"] for outcome in outcomes} == {200, 400} and any(
        "warned" in outcome for outcome in outcomes
    )


@pytest.mark.parametrize("path", BODIES, ids=lambda path: path.stem)
def test_the_body_of_a_client_meets_its_outcome(server: RunningServer, path: Path) -> None:
    entry = json.loads(path.read_text(encoding="utf-8"))
    body, expected = entry["body"], entry["expected"]
    with server.http() as http:
        reply = http.post(entry["path"], json=body)
    assert reply.status_code == expected["status"], reply.text
    assert reply.headers.get(WARNING_HEADER, "") == expected.get("warned", "")
    if reply.status_code != 200:
        assert reply.json()["error"]["param"] == expected["param"]
        return
    if not body.get("stream"):
        assert all(choice["finish_reason"] for choice in reply.json()["choices"])
        return
    chunks, end = last_of(reply.text)
    assert end == "[DONE]" and not any("error" in chunk for chunk in chunks)
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert any(reasons)
    assert bool(chunks[-1].get("usage")) == bool((body.get("stream_options") or {}).get("include_usage"))
