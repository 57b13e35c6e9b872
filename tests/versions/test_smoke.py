"""What has to work with the newest and the lowest versions of every package: the main verbs, on the small real model.

`tests/versions/run` makes an environment for it; in the pinned one it is a test among the others.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import serving

pytestmark = [pytest.mark.smoke, pytest.mark.real]


def phi3_onnx(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, deprecation warnings of the libraries shown on stderr."""
    command = [sys.executable, "-m", "phi3_onnx.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def package(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke") / "package"
    done = phi3_onnx("export", small_gguf, "--target", "cpu-int4-rtn", "--no-verify", "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_export_writes_a_package(package: Path) -> None:
    assert {"model.onnx", "genai_config.json", "phi3_onnx.json", "tokenizer.json"} <= {
        path.name for path in package.iterdir()
    }


def test_verify_finds_the_same_model(package: Path, small_gguf: Path) -> None:
    done = phi3_onnx("verify", package, "--reference", small_gguf, "--steps", 8, "--no-record")
    assert done.returncode == 0, done.stdout + done.stderr


def test_generate_answers(package: Path) -> None:
    done = phi3_onnx(
        "generate", package, "-p", "What is the capital of France?", "-n", 24, "--temperature", 0, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in json.loads(done.stdout)["text"]


@pytest.fixture
def server(package: Path) -> Iterator[str]:
    with serving(package) as address:
        yield address


def test_serve_answers_one_request(server: str) -> None:
    with urllib.request.urlopen(f"{server}/v1/models", timeout=60) as answer:
        (model,) = json.load(answer)["data"]
    body = {"model": model["id"], "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        message = json.load(answer)["choices"][0]["message"]
    assert message["role"] == "assistant" and message["content"]
