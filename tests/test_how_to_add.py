"""What CONTRIBUTING says is enough to add something, done in a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TinyFactory = Callable[..., Path]
PROJECT = Path(__file__).parents[1]
_FOLDERS = ("cli", "configs", "docs", "evaluate", "export", "quantize", "runtime")


class Copy:
    """A copy of the project's code that can be changed and run; installed packages come from this environment."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "phi3_onnx"
        for name in _FOLDERS:
            shutil.copytree(PROJECT / name, self._root / name, ignore=shutil.ignore_patterns("__pycache__"))

    def write(self, path: str, text: str) -> None:
        (self._root / path).write_text(text, encoding="utf-8")

    def read(self, path: str) -> str:
        return (self._root / path).read_text(encoding="utf-8")

    def insert(self, path: str, before: str, text: str) -> None:
        """Put text in front of a line that stands in the file once."""
        whole = self.read(path)
        assert whole.count(before) == 1, f"{path} has changed: {before!r} stands there {whole.count(before)} times"
        self.write(path, whole.replace(before, text + before))

    def python(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "PYTHONPATH": str(self._root.parent), "COLUMNS": "120", "NO_COLOR": "1"}
        return subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=self._root.parent, capture_output=True, text=True
        )

    def cli(self, *arguments: str) -> str:
        done = self.python("-m", "phi3_onnx.cli", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy")


def test_a_target_is_one_file(copy: Copy, tiny: TinyFactory, tmp_path: Path) -> None:
    copy.write(
        "configs/targets/cpu-int8-rtn.toml",
        'description = "int8 weights for any CPU"\n'
        'provider = "cpu"\n'
        'io_dtype = "float32"\n'
        '[quantization]\nmethod = "rtn"\naccuracy_level = 4\n'
        "weights = { bits = 8, block_size = 32, symmetric = true }\n"
        "[thresholds]\nmean_kl = 0.01\n",
    )

    assert "cpu-int8-rtn" in copy.cli("targets")
    copy.cli("export", str(tiny("plain")), "--target", "cpu-int8-rtn", "-o", str(tmp_path / "package"))

    manifest = json.loads((tmp_path / "package" / "phi3_onnx.json").read_text(encoding="utf-8"))
    assert manifest["target"]["name"] == "cpu-int8-rtn"
    assert manifest["tensors"]["model.layers.0.mlp.down_proj.weight"]["bits"] == 8
    assert "int8 weights for any CPU" in copy.cli("targets")
    copy.cli("verify", str(tmp_path / "package"))


def test_a_quantizer_is_a_name_and_a_function(copy: Copy, tiny: TinyFactory, tmp_path: Path) -> None:
    copy.insert("configs/target.py", '"awq+gptq"]', '"thorough", ')
    copy.insert(
        "quantize/method.py",
        '        if "gptq" in self._stages:\n            tried',
        '        if self._quantization.method == "thorough":\n'
        "            every = torch.ones(weight.shape[1], dtype=torch.float64)\n"
        '            tried = round_matrix(weight, scheme, self._scale_dtype, every, "thorough")\n'
        "            error = cost(weight - tried.dequantize())\n"
        '            return _Choice("thorough", tried, error, plain) if error < plain else best\n',
    )
    package, text = tmp_path / "package", tmp_path / "text.txt"
    text.write_text("some text to calibrate with, twice over. " * 60, encoding="utf-8")

    copy.cli(
        *("export", str(tiny("plain")), "--target", "cpu-int4-rtn", "--quant", "thorough", "-o", str(package)),
        *("--calibration", str(text), "--num-samples", "2", "--sequence-length", "16", "--no-verify"),
    )

    manifest = json.loads((package / "phi3_onnx.json").read_text(encoding="utf-8"))
    assert manifest["target"]["name"] == "cpu-int4-rtn.thorough"
    assert "thorough" in {tensor.get("details", tensor).get("kept") for tensor in manifest["tensors"].values()}


def test_a_sampling_option_is_a_declaration_and_its_arithmetic(
    copy: Copy, tiny_package: Callable[..., Path], tmp_path: Path
) -> None:
    copy.insert(
        "configs/options.py",
        "class AnswerOptions(SamplingOptions",
        "    margin: Annotated[\n"
        '        float | None, Option("Draw from logits this near to the largest.", Range(0), draws=True)\n'
        "    ]\n\n\n",
    )
    copy.insert("configs/options.py", "    frequency_penalty: float = 0.0\n", "    margin: float = 0.0\n")
    copy.insert(
        "runtime/decoding/sampling.py",
        "    if sampling.min_p > 0:\n",
        "    if sampling.margin > 0:\n"
        "        kept = probabilities >= probabilities.max() * np.exp(-sampling.margin)\n"
        "        tokens, probabilities = tokens[kept], probabilities[kept] / probabilities[kept].sum()\n",
    )
    package = str(tiny_package("plain"))
    ask = ("generate", package, "-p", "Hello", "--raw", "-n", "8", "--provider", "cpu")

    assert "--margin" in copy.cli("generate", "--help")
    nearest = copy.cli(*ask, "--temperature", "1", "--top-k", "0", "--seed", "3", "--margin", "1e-9", "--json")
    assert _text(nearest) == _text(copy.cli(*ask, "--temperature", "0", "--json"))
    done = copy.python("-m", "phi3_onnx.cli", *ask, "--margin", "-1")
    assert done.returncode == 2
    assert "-1.0 is not in the range x>=0.0" in done.stderr

    lines = tmp_path / "requests.jsonl"
    lines.write_text('{"prompt": "Hello", "margin": 0.5, "max_tokens": 2}\n', encoding="utf-8")
    copy.cli("generate", package, "--jsonl", str(lines), "--raw", "--provider", "cpu")
    served = "from phi3_onnx.runtime.server.parameters import PLACES as p; print(p['chat']['margin'].kind)"
    assert copy.python("-c", served).stdout == "used\n"
    written = copy.python("phi3_onnx/docs/write_options.py")
    assert written.returncode == 0, written.stderr
    assert "| `margin` | number | 0 or more |" in copy.read("docs/options.md")


def test_a_rule_of_a_provider_is_an_entry(copy: Copy, tiny: TinyFactory, tmp_path: Path) -> None:
    copy.insert(
        "export/lint/rules.py",
        '    Rule(\n        "no zero points with 8-bit',
        '    Rule("an attention that is not wanted", "cpu", "GroupQueryAttention", _always, "use another"),\n',
    )

    done = copy.python(
        *("-m", "phi3_onnx.cli", "export", str(tiny("plain"))),
        *("--target", "cpu-fp32", "-o", str(tmp_path / "package"), "--no-verify"),
    )

    assert done.returncode == 1
    assert "an attention that is not wanted" in done.stderr
    assert not (tmp_path / "package").exists()


def _text(output: str) -> str:
    return json.loads(output.strip().splitlines()[-1])["text"]
