"""`/tokenize` and `/detokenize`."""

from typing import Any

import pytest
from phi3_onnx.runtime.server.parameters import WARNING_HEADER

from .conftest import RunningServer


@pytest.mark.parametrize("text", ["say hi", "say hi " * 500])
def test_tokens_lead_back_to_the_text_and_are_those_of_a_prompt(server: RunningServer, text: str) -> None:
    with server.http() as http:
        told = http.post("/tokenize", json={"model": "fake", "prompt": text}).json()
        back = http.post("/detokenize", json={"tokens": told["tokens"]}).json()
        usage = http.post("/v1/completions", json={"prompt": text, "max_tokens": 1}).json()["usage"]
    assert back["prompt"].strip() == text.strip()
    assert told["count"] == len(told["tokens"]) == usage["prompt_tokens"]
    assert told["max_model_len"] == 4096


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, 400),
        ("/tokenize", {"messages": []}, 400),
        ("/detokenize", {"tokens": [10**9]}, 400),
        ("/detokenize", {"tokens": []}, 400),
        ("/detokenize", {"tokens": [1] * 4097}, 400),
    ],
)
def test_what_cannot_be_had_is_refused(server: RunningServer, path: str, body: dict[str, Any], status: int) -> None:
    with server.http() as http:
        reply = http.post(path, json=body)
        assert reply.status_code == status and reply.json()["error"]["message"]
        assert http.get("/health").json()["running"] == 0


def test_an_empty_text_has_no_tokens(server: RunningServer) -> None:
    with server.http() as http:
        told = http.post("/tokenize", json={"prompt": ""})
        refused = http.post("/v1/completions", json={"prompt": ""})
    assert told.status_code == 200 and (told.json()["tokens"], told.json()["count"]) == ([], 0)
    assert refused.status_code == 400 and "holds no tokens" in refused.json()["error"]["message"]


def test_another_models_name_gets_a_warning(server: RunningServer) -> None:
    with server.http() as http:
        reply = http.post("/tokenize", json={"prompt": "a", "model": "other"})
        assert reply.status_code == 200
        assert "'other'" in reply.headers[WARNING_HEADER]
