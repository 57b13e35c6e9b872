"""What the Ray deployments do without Ray; with it, `tests/deploy/run` does the rest."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.deploy.ray_data import as_row, done
from phi3_onnx.deploy.ray_serve import Arguments, beginning
from phi3_onnx.runtime.server.messages import Conversation, Job, Prompt
from pydantic import ValidationError

FOLDER = Path(__file__).parents[2]


def job(prompt: Prompt) -> Job:
    return Job(0, (prompt,), 1, {}, stream=False)


def chat(*texts: str) -> Job:
    return job(Conversation(tuple({"role": "user" if n % 2 else "system", "content": t} for n, t in enumerate(texts))))


def test_one_conversation_has_one_beginning() -> None:
    first = beginning(chat("Be brief.", "Hello"))
    assert beginning(chat("Be brief.", "Hello", "Hi!", "And now?")) == first
    assert beginning(chat("Be brief.", "Other")) != first
    assert beginning(chat("Be long.", "Hello")) != first


def test_texts_and_tokens_are_told_apart_by_their_beginning() -> None:
    assert beginning(job("a" * 512 + "b")) == beginning(job("a" * 512 + "c"))
    assert beginning(job((1, 2, 3))) != beginning(job((1, 2, 4)))


def test_arguments_of_the_command_line_come_as_texts() -> None:
    arguments = Arguments.model_validate({"package": "p", "replicas": "2", "cpus": "3.5", "affinity": "false"})
    assert arguments.most_replicas == 2
    assert arguments.affinity is False
    assert arguments.loader().threads == 3
    settings = arguments.settings()
    assert settings.parallel == 8
    assert not settings.local


@pytest.mark.parametrize(
    "wrong", [{}, {"package": "p", "replica": "2"}, {"package": "p", "replicas": "3", "max_replicas": "2"}]
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Arguments.model_validate(wrong)


def test_what_is_there_is_done_and_half_a_line_is_cut_off(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert done(output) == set()
    output.write_text('{"id": 1, "text": "a"}\n{"id": "two", "error": "b"}\n{"id": 3, "te', encoding="utf-8")
    assert done(output) == {1, "two"}
    assert output.read_text(encoding="utf-8").endswith('"b"}\n')


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "notes.txt"
    output.write_text("my notes\nmore", encoding="utf-8")
    with pytest.raises(UsageError, match="line 1, is not an answer of an earlier run"):
        done(output)
    assert output.read_text(encoding="utf-8") == "my notes\nmore"


def test_rows_come_from_lines_or_columns() -> None:
    assert as_row({"text": '{"id": 1, "prompt": "x"}'}) == {"id": 1, "prompt": "x"}
    assert as_row({"id": 1, "prompt": "x"}) == {"id": 1, "prompt": "x"}
    assert as_row({"text": "no JSON"}) == as_row({"text": "[1]"}) == {}


def test_the_container_installs_extras_that_there_are() -> None:
    extras = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = (FOLDER / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
    named = {name for found in re.findall(r"\[([a-z0-9,]+)\]", text) for name in found.split(",")}
    assert named
    assert named <= extras.keys()


def test_the_inference_service_serves_the_port_that_it_names() -> None:
    service = json.loads((FOLDER / "deploy/kserve/inference_service.json").read_text(encoding="utf-8"))
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (container,) = service["spec"]["predictor"]["containers"]
    port = container["ports"][0]["containerPort"]
    assert str(port) == container["args"][container["args"].index("--port") + 1]
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": port}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in service["spec"]["predictor"]["volumes"]}
