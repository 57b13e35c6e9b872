"""Packages that phi3-onnx did not make: Microsoft's published layout, and the incumbent builder's own output."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from phi3_onnx.cli import root
from phi3_onnx.configs.manifest import MANIFEST_NAME

Factory = Callable[..., Path]
STEM = "phi3-mini-4k-instruct-cpu-int4-rtn-block-32-acc-level-4"


def run(*arguments: str | Path, text: str | None = None) -> Result:
    result = CliRunner().invoke(root, list(map(str, arguments)), input=text)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


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
    genai["model"]["decoder"]["filename"] = f"{STEM}.onnx"
    (folder / "genai_config.json").write_text(json.dumps(genai), encoding="utf-8")
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
    prompt = ("-p", "What is the capital of France?", "-n", "12")
    assert run("generate", folder, *prompt).stdout == run("generate", ours, *prompt).stdout
    assert run("chat", folder, text="Hello there\n").stdout.strip()
    verified = json.loads(run("verify", folder, "--reference", checkpoint, "--steps", "8", "--json").stdout)
    rows = {row["name"]: row["value"] for row in verified["rows"]}
    assert verified["target"] is None
    assert rows["token_ids"] == rows["chat_template"] == 1
    # Float32 against float32: what a wrong graph would show is larger by orders of magnitude.
    assert rows["mean_kl"] < 1e-6
    assert not (folder / MANIFEST_NAME).exists()


def test_the_published_layout(published: Path, tiny: Factory, tiny_package: Factory) -> None:
    check(published, tiny("plain"), tiny_package("plain"))
    assert json.loads(run("show", published, "--json").stdout)["graph"]["file"] == f"{STEM}.onnx"


def test_what_the_builder_makes(built: Path, tiny: Factory, tiny_package: Factory) -> None:
    check(built, tiny("plain"), tiny_package("plain"))


def test_a_package_with_our_target_is_judged_by_it(published: Path, tiny: Factory) -> None:
    found = run("verify", published, "--reference", tiny("plain"), "-t", "cpu-fp32", "--steps", "4").stdout
    assert "at most 1e-05" in found
    assert "FAILED" not in found
