"""The command `llm`, which is told of the server by a file of its own."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import json
import os
import subprocess
import sys
from pathlib import Path

from checks import MODEL, RESULT, URL, check

home = RESULT.with_name("llm-home")
home.mkdir(exist_ok=True)
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: {MODEL}\n  model_name: {MODEL}\n  api_base: {URL}/v1\n"
    "  supports_schema: true\n  supports_tools: true\n",
    encoding="utf-8",
)
environment = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"}


def llm(*words: str) -> str:
    command = [str(Path(sys.executable).with_name("llm")), "-m", MODEL, "-o", "temperature", "0", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@check("chat", "whole equals streamed")
def chat() -> None:
    asked = ("-o", "max_tokens", "24", "What is the capital of France?")
    assert llm("--no-stream", *asked) == llm(*asked) != ""


@check("chat", "an answer follows a schema")
def schema() -> None:
    # A small model repeats itself inside of a string until its tokens run out.
    bounds = ("-o", "max_tokens", "200", "-o", "frequency_penalty", "1")
    assert set(json.loads(llm("--schema", "name, age int", *bounds, "Ada is 36. Who is she?"))) == {
        "name",
        "age",
    }


@check("chat", "tools are sent")
def tools() -> None:
    assert llm("-T", "llm_version", "-o", "max_tokens", "50", "Say hello.") is not None
