"""Packages that phi3-onnx did not make: Microsoft's published layout, and the incumbent builder's own output."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import onnx
import openai
import pytest
from click.testing import CliRunner, Result
from phi3_onnx.cli import root
from phi3_onnx.configs import Phi3OnnxError
from phi3_onnx.configs.manifest import MANIFEST_NAME
from serving import serving

Factory = Callable[..., Path]
STEM = "phi3-mini-4k-instruct-cpu-int4-rtn-block-32-acc-level-4"


def run(*arguments: str | Path, text: str | None = None) -> Result:
    result = CliRunner().invoke(root, list(map(str, arguments)), input=text)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


def older_genai_config(model: dict[str, Any]) -> dict[str, Any]:
    """Return what the builder of ONNX Runtime GenAI 0.3 (2024) wrote for a model, with the published file name."""
    decoder = model["decoder"]
    kept = ("head_size", "hidden_size", "inputs", "outputs", "num_attention_heads", "num_hidden_layers")
    return {
        "model": {
            **{name: model[name] for name in ("bos_token_id", "context_length", "eos_token_id", "vocab_size")},
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": f"{STEM}.onnx",
                **{name: decoder[name] for name in (*kept, "num_key_value_heads")},
            },
            "pad_token_id": model["pad_token_id"],
            "type": "phi3",
        },
        "search": {
            "diversity_penalty": 0.0,
            "do_sample": False,
            "early_stopping": True,
            "length_penalty": 1.0,
            "max_length": model["context_length"],
            "min_length": 0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }


@pytest.fixture
def published(tiny_package: Factory, tmp_path: Path) -> Path:
    """One of our packages in the shape of `microsoft/Phi-3-mini-4k-instruct-onnx`: its names, no manifest of ours."""
    folder = Path(shutil.copytree(tiny_package("plain"), tmp_path / "cpu-int4-rtn-block-32-acc-level-4"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{STEM}.onnx.data"
    (folder / f"{STEM}.onnx").write_bytes(model.SerializeToString())
    (folder / "model.onnx.data").rename(folder / f"{STEM}.onnx.data")
    genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    (folder / "genai_config.json").write_text(json.dumps(older_genai_config(genai["model"])), encoding="utf-8")
    # There the template is a value of tokenizer_config.json, and there is no generation_config.json.
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in ("model.onnx", "chat_template.jinja", "generation_config.json", MANIFEST_NAME):
        (folder / name).unlink()
    (folder / "configuration_phi3.py").write_text("raise SystemExit('code of a checkpoint was run')", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(tiny: Factory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 package that ONNX Runtime GenAI's own builder makes of the same checkpoint."""
    folder = tmp_path_factory.mktemp("built") / "built"
    cache = tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(tiny("plain")), "-o", str(folder)]
    command += ["-p", "fp32", "-e", "cpu", "-c", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the installed builder does not run: {done.stderr.strip().splitlines()[-1]}")
    return folder


def check(folder: Path, checkpoint: Path, ours: Path) -> None:
    shown = run("show", folder).stdout
    assert "not phi3-onnx" in shown
    assert "GroupQueryAttention" in shown
    described = json.loads(run("show", folder, "--json").stdout)
    assert described["layers"] == 2
    assert described["graph"]["operators"]["GroupQueryAttention"] == 2
    # The same weights in float32 give the same greedy answer as our own package.
    question = "What is the capital of France?"
    expected = run("generate", ours, "-p", question, "-n", "12").stdout
    assert run("generate", folder, "-p", question, "-n", "12").stdout == expected
    assert run("chat", folder, text="Hello there\n").stdout.strip()
    check_served(folder, question, expected)
    verified = json.loads(run("verify", folder, "--reference", checkpoint, "--steps", "8", "--json").stdout)
    rows = {row["name"]: row["value"] for row in verified["rows"]}
    assert verified["target"] is None
    assert rows["token_ids"] == rows["chat_template"] == 1
    # Float32 against float32: what a wrong graph would show is larger by orders of magnitude.
    assert rows["mean_kl"] < 1e-6
    assert not (folder / MANIFEST_NAME).exists()


def check_served(folder: Path, question: str, expected: str) -> None:
    """Ask over HTTP with the official client, at once and streamed: the answers are those of `generate`."""
    with serving(folder) as url:
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        (model,) = client.models.list().data
        assert model.id == folder.name
        asked: dict[str, Any] = {"model": model.id, "messages": [{"role": "user", "content": question}]}
        whole = client.chat.completions.create(**asked, max_tokens=12)
        chunks = list(client.chat.completions.create(**asked, max_tokens=12, stream=True))
    assert whole.choices[0].message.content == expected.removesuffix("\n")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"


def test_the_published_layout(published: Path, tiny: Factory, tiny_package: Factory) -> None:
    check(published, tiny("plain"), tiny_package("plain"))
    assert json.loads(run("show", published, "--json").stdout)["graph"]["file"] == f"{STEM}.onnx"


def test_what_the_builder_makes(built: Path, tiny: Factory, tiny_package: Factory) -> None:
    check(built, tiny("plain"), tiny_package("plain"))


def test_a_package_with_our_target_is_judged_by_it(published: Path, tiny: Factory) -> None:
    found = run("verify", published, "--reference", tiny("plain"), "-t", "cpu-fp32", "--steps", "4").stdout
    assert "at most 1e-05" in found
    assert "FAILED" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "PACKAGE", "--plot", "errors.svg"), r"has no phi3_onnx.json, .*; leave --plot out"),
        (("show", "PACKAGE", "--tensors"), r"has no phi3_onnx.json, .*; leave --tensors out"),
        (("export", "PACKAGE", "-o", "out"), "is a package that phi3-onnx did not make, .* name the checkpoint"),
        (("verify", "PACKAGE"), "does not say what it was made from; name its checkpoint with --reference"),
    ],
    ids=lambda value: "-".join(value[:1] + value[2:]) if isinstance(value, tuple) else "",
)
def test_what_only_our_own_packages_know_is_said(published: Path, arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(root, [str(published) if word == "PACKAGE" else word for word in arguments])
    assert isinstance(result.exception, Phi3OnnxError)
    assert re.search(message, str(result.exception))
