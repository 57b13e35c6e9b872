"""The table of parameters: what derives from it agrees with it, and bodies of many clients meet what it says."""

import logging
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from phi3_onnx.runtime.server import requests
from phi3_onnx.runtime.server.parameters import PLACES, WARNING_HEADER, Notes, OnceAClient, Places
from phi3_onnx.runtime.server.protocols import anthropic_requests, ollama_requests, responses_requests
from phi3_onnx.runtime.server.protocols.anthropic_requests import ANTHROPIC
from phi3_onnx.runtime.server.protocols.ollama_requests import OLLAMA
from phi3_onnx.runtime.server.protocols.responses_requests import RESPONSES

from .conftest import RunningServer, StartServer

DOCS = Path(__file__).parents[3] / "docs"
ASK: list[dict[str, Any]] = [{"role": "user", "content": "say hi"}]
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def after(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a body in which an earlier answer is given back."""
    return {"messages": [*ASK, {"role": "assistant", "content": "hi", **answer}, *ASK]}


@pytest.mark.parametrize(
    ("module", "places"),
    [(requests, PLACES), (ollama_requests, OLLAMA), (anthropic_requests, ANTHROPIC), (responses_requests, RESPONSES)],
)
def test_used_parameters_are_the_fields_of_the_requests(module: ModuleType, places: Places) -> None:
    fields: dict[str, set[str]] = {place: set() for place in places}
    for part in vars(module).values():
        if not (isinstance(part, type) and issubclass(part, requests.Part) and part.table is places):
            continue
        if isinstance(getattr(part, "place", None), str):
            fields[part.place] |= {field.alias or name for name, field in part.model_fields.items()}
    used = {
        place: {entry.name for entry in table.values() if entry.kind == "used" and not entry.same_as}
        for place, table in places.items()
    }
    assert fields == used


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "write_parameters.py"))["page"]()
    assert (DOCS / "parameters.md").read_text(encoding="utf-8") == page, "run docs/write_parameters.py"


@pytest.mark.parametrize(
    ("body", "warned"),
    [
        ({"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}, ""),
        ({"store": True, "metadata": {"team": "a"}, "user": "me", "service_tier": "flex"}, ""),
        ({"reasoning_effort": "low", "verbosity": "low", "prompt_cache_key": "k", "safety_identifier": "s"}, ""),
        ({"prediction": {"type": "content", "content": "hi"}}, ""),
        ({"modalities": ["text"], "audio": None, "web_search_options": None, "seed": None}, ""),
        ({"logit_bias": {"15": -100, "16": 2.5}, "min_tokens": 1, "ignore_eos": False, "typical_p": 0.9}, ""),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.1}, ""),
        ({"logit_bias": {}, "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "top_logprobs": 0}, ""),
        ({"max_tokens": -1, "temperature": 0.7}, ""),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, ""),
        ({"tools": [{**TOOL, "cache_control": {"type": "ephemeral"}}]}, ""),
        ({"best_of": 1, "use_beam_search": False, "skip_special_tokens": True, "length_penalty": 1.0}, ""),
        ({"cache_prompt": True, "id_slot": -1, "mirostat": 0, "tfs_z": 1, "dry_multiplier": 0, "samplers": []}, ""),
        ({"samplers": ["top_k", "top_p", "min_p", "temperature"], "repeat_last_n": 64, "sampler_seq": "kpmt"}, ""),
        ({"thinking": {"type": "disabled"}, "enable_thinking": False, "reasoning": {"effort": "low"}}, ""),
        ({"provider": {"order": ["a"]}, "transforms": [], "usage": {"include": True}, "keep_alive": "5m"}, ""),
        (after({"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}), ""),
        (after({"reasoning_content": "well", "provider_specific_fields": {}}), ""),
        (after({"tool_calls": [{**CALL, "index": 0}]}), ""),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]}, ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": {}}}},
            "",
        ),
        ({"unheard_of": 1}, "unknown and ignored: unheard_of"),
        ({"chat_id": "a", "session_id": "b"}, "unknown and ignored: chat_id, session_id"),
        (after({"mood": "good"}), "unknown and ignored: messages[].mood"),
        ({"a\r\nSet-Cookie: b": 1, "é": 2}, r"unknown and ignored: a\r\nSet-Cookie: b, \u00e9"),
        ({"model": "gpt-4o-mini"}, "the model 'gpt-4o-mini' is not served; 'fake' answers instead"),
    ],
)
def test_bodies_of_clients_are_answered(server: RunningServer, body: dict[str, Any], warned: str) -> None:
    with server.http() as http:
        reply = http.post("/v1/chat/completions", json={"messages": ASK, **body})
    assert reply.status_code == 200, reply.text
    assert reply.headers.get(WARNING_HEADER, "") == warned


def test_a_hint_is_logged_once_a_client(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "phi3_onnx.runtime.server.service")
    with start_server().http() as http:
        for _ in range(2):
            assert http.post("/v1/completions", json={"prompt": "x", "store": True}).status_code == 200
    said = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert said == ["127.0.0.1 sends store, which has no effect on answers"]


def test_what_is_remembered_and_what_a_header_holds_is_bounded() -> None:
    seen = OnceAClient(most=2)
    assert seen.new("a", {"x", "y"}) == ["x", "y"] and seen.new("b", {"x"}) == ["x"]
    assert seen.new("a", {"x"}) == ["x"]
    warning = Notes(unknown=dict.fromkeys([str(number) * 500 for number in range(100)])).warning
    assert len(warning) < 2000 and warning.endswith("and 84 more")
