"""`phi3-onnx export` and the store's verbs: what they print, and one clear line for each kind of bad input."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import Target, Thresholds, UsageError, find_target, read_manifest
from phi3_onnx.export import export
from phi3_onnx.quantize.packed import QuantizedWeight
from phi3_onnx.quantize.rtn import quantize_rtn

from .conftest import Ran, Run

Tiny = Callable[..., Path]


def assert_one_line(ran: Ran, code: int, *words: str) -> None:
    """The last line of stderr is the error, and it says these words; no traceback, nothing on stdout."""
    assert ran.code == code, ran
    line = ran.err.strip().splitlines()[-1]
    assert line.startswith("phi3-onnx: "), ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    for word in words:
        assert word in line, line


def assert_nothing_written(folder: Path) -> None:
    assert not folder.exists()
    assert not list(folder.parent.glob(".*"))


@pytest.fixture
def checkpoint(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of a tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny("plain"), tmp_path / "checkpoint"))


def test_into_the_store_and_out_again(run: Run, checkpoint: Path, isolated: Path) -> None:
    made = run("export", checkpoint, "-t", "cpu-fp32", "--no-verify")
    assert made.code == 0, made.err
    folder = isolated / "packages" / "checkpoint" / "cpu-fp32"
    assert made.out.strip() == str(folder)
    assert "phi3-onnx chat checkpoint/cpu-fp32" in made.err
    assert run("list").out.splitlines()[1].startswith("checkpoint/cpu-fp32 ")
    shown = run("show", "checkpoint/cpu-fp32")
    assert "32.00 bits per weight" in shown.out
    assert "not yet" in shown.out
    assert_one_line(run("export", checkpoint, "-t", "cpu-fp32"), 1, "already exists", "--force")
    assert run("export", checkpoint, "-t", "cpu-fp32", "--no-verify", "--force").code == 0
    assert run("rm", "checkpoint/cpu-fp32", "--yes").code == 0
    assert not folder.parent.exists()
    assert "no packages" in run("list").err


def test_a_variant_lies_beside_its_target(run: Run, checkpoint: Path, isolated: Path) -> None:
    quantized = ("--num-samples", 4, "--sequence-length", 64, "--no-verify")
    assert run("export", checkpoint, "-t", "cpu-int4-rtn", "--no-verify").code == 0
    changed = ("--quant", "gptq", "--block-size", 128)
    planned = run("export", checkpoint, *changed, "--dry-run", "--json")
    made = run("export", checkpoint, *changed, *quantized)
    assert made.code == 0, made.err
    name = "cpu-int4-rtn.gptq-block-128"
    folder = isolated / "packages" / "checkpoint" / name
    assert made.out.strip() == json.loads(planned.out)["output"] == str(folder)
    assert f"phi3-onnx chat checkpoint/{name}" in made.err
    listed = json.loads(run("list", "--json").out)
    assert {row["name"]: row["target"] for row in listed} == {
        "checkpoint/cpu-int4-rtn": "cpu-int4-rtn",
        f"checkpoint/{name}": name,
    }
    assert f"{name} (provider cpu, float32, int4 block 128 symmetric, gptq)" in run("show", name).out
    assert "block-128" not in run("show", "cpu-int4-rtn").out
    assert_one_line(run("export", checkpoint, *changed, *quantized), 1, name, "already exists", "--force")
    verified = run("verify", name, "--steps", 2, "--json")
    assert json.loads(verified.out)["target"] == name, verified.err
    # A budget gets the name of what it became.
    made = run("export", checkpoint, "--budget", "7.0bpw", *quantized)
    assert made.code == 0, made.err
    assert made.out.startswith(str(folder.parent / "cpu-int4-rtn.budget-7bpw-"))
    assert len(json.loads(run("list", "--json").out)) == 3


def test_a_target_of_ones_own_is_verified_by_its_own_thresholds(
    run: Run, tiny: Tiny, isolated: Path, tmp_path: Path
) -> None:
    own = Target("mine", "my own", "cpu", "float32", last_token_logits=False, thresholds=Thresholds(mean_kl=-1.0))
    folder = export(tiny("plain"), own)
    assert folder == isolated / "packages" / tiny("plain").name / "mine"
    assert read_manifest(folder).target == own
    assert "mine (provider cpu, float32" in run("show", "mine").out
    ran = run("verify", "mine", "--steps", 2)
    assert ran.code == 1
    assert "mean_kl" in ran.err.splitlines()[-1]
    assert "must be at most -1" in ran.err.splitlines()[-1]
    # A published target that was changed is not called by the published name.
    changed = export(tiny("plain"), replace(find_target("cpu-fp32"), opset=20))
    assert changed.name.startswith("cpu-fp32.")
    assert changed.parent == folder.parent
    with pytest.raises(UsageError, match="lower-case"):
        export(tiny("plain"), replace(own, name="../mine"), tmp_path / "package")
    assert_nothing_written(tmp_path / "package")


def test_verification_is_part_of_an_export(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    made = run("export", checkpoint, "-t", "cpu-fp32", "-o", tmp_path / "package")
    assert made.code == 0, made.err
    assert "mean_kl" in made.out
    assert read_manifest(tmp_path / "package").verified is True


def test_a_package_that_fails_its_verification_is_kept_beside(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_scales(*arguments: Any, **options: Any) -> QuantizedWeight:
        weight = quantize_rtn(*arguments, **options)
        return replace(weight, scales=weight.scales * 3)

    monkeypatch.setattr("phi3_onnx.export.weights.fill.quantize_rtn", wrong_scales)
    made = run("export", checkpoint, "-t", "cpu-int4-rtn", "-o", tmp_path / "package")
    assert made.code == 1
    assert "mean_kl" in made.err.splitlines()[-1]
    assert "package.failed" in made.err.splitlines()[-1]
    assert not (tmp_path / "package").exists()
    assert read_manifest(tmp_path / "package.failed").verified is False


def test_dry_run_plans_and_writes_nothing(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    ran = run("export", checkpoint, "-t", "cpu-int4-rtn", "-o", tmp_path / "package", "--dry-run", "--json")
    plan = json.loads(ran.out)
    assert plan["ops"]["MatMulNBits"] == 9
    assert_nothing_written(tmp_path / "package")
    run("export", checkpoint, "-t", "cpu-int4-rtn", "-o", tmp_path / "package", "--no-verify")
    size = sum(path.stat().st_size for path in (tmp_path / "package").iterdir())
    assert size == pytest.approx(plan["package_bytes"], abs=2 << 20)


def test_quantizing_a_float32_package_equals_quantizing_its_checkpoint(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    run("export", checkpoint, "-t", "cpu-fp32", "-o", tmp_path / "float", "--no-verify")
    run("export", tmp_path / "float", "-t", "cpu-int4-rtn", "-o", tmp_path / "a", "--no-verify")
    run("export", checkpoint, "-t", "cpu-int4-rtn", "-o", tmp_path / "b", "--no-verify")
    assert (tmp_path / "a" / "model.onnx.data").read_bytes() == (tmp_path / "b" / "model.onnx.data").read_bytes()
    assert_one_line(run("export", tmp_path / "a", "-o", tmp_path / "c"), 1, "quantized package", "cpu-fp32")


def test_sources_that_are_none(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "package"
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for source, code, *words in (
        (tmp_path / "missing", 1, "missing"),
        (tmp_path / "empty", 1, "config.json"),
        (tmp_path / "notes.txt", 1, ".gguf"),
        ("no such thing", 1, "hub id"),
    ):
        assert_one_line(run("export", source, "-o", output), code, *words)
        assert_nothing_written(output)


def test_the_hub_when_there_is_none(run: Run, tmp_path: Path) -> None:
    assert_one_line(run("export", "--target", "cuda-fp16", "-o", tmp_path / "package"), 1, "Phi-3-mini-4k-instruct")
    assert_nothing_written(tmp_path / "package")


def test_an_unknown_target(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    ran = run("export", checkpoint, "-t", "cpu-int3", "-o", tmp_path / "package")
    assert_one_line(ran, 2, "unknown target 'cpu-int3'", "cpu-int4-rtn")


def test_a_truncated_checkpoint(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert_one_line(run("export", checkpoint, "-o", tmp_path / "package"), 1, "model.safetensors")
    assert_nothing_written(tmp_path / "package")


def test_weights_that_are_no_numbers(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    """Found while writing: nothing stays under the final name, and no temporary folder either."""
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = np.array([np.nan], "<f4").tobytes()
    weights.write_bytes(content)
    ran = run("export", checkpoint, "-o", tmp_path / "package")
    assert_one_line(ran, 1, "NaN")
    assert_nothing_written(tmp_path / "package")


def test_an_unknown_architecture(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neox"}))
    assert_one_line(run("export", checkpoint, "-o", tmp_path / "package"), 1, "gpt_neox", "phi3")


def test_a_full_disk(run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while the weights are written."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phi3_onnx.export.weights.data_file.DataFile.write", full)
    assert_one_line(run("export", checkpoint, "-o", tmp_path / "package"), 1, "full", "MB")
    assert_nothing_written(tmp_path / "package")


def test_ctrl_c_leaves_nothing(run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("phi3_onnx.export.exporter.rope_tables", interrupt)
    ran = run("export", checkpoint, "-o", tmp_path / "package")
    assert ran.code == 130
    assert_nothing_written(tmp_path / "package")


def test_a_package_with_a_changed_byte(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    run("export", checkpoint, "-t", "cpu-fp32", "-o", package, "--no-verify")
    data = package / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    assert run("show", package).code == 0  # the size is right; sums are compared where asked
    assert_one_line(run("verify", package, "--hashes"), 1, "model.onnx.data", "sha256")
    data.write_bytes(content[:-1])
    assert_one_line(run("show", package), 1, "model.onnx.data", str(len(content)))


def test_rm_takes_names_of_the_store_only(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    run("export", checkpoint, "-t", "cpu-fp32", "-o", tmp_path / "package", "--no-verify")
    assert_one_line(run("rm", tmp_path / "package", "--yes"), 2, "not in the store")
    assert (tmp_path / "package" / "model.onnx").is_file()


def test_a_calibrated_target_and_what_it_says_of_itself(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    options = ["--num-samples", 4, "--sequence-length", 64, "--no-verify"]
    made = run("export", checkpoint, "-t", "dml-int4-awq", "-o", tmp_path / "package", *options)
    assert made.code == 0, made.err
    manifest = read_manifest(tmp_path / "package")
    assert manifest.target.quantization
    assert manifest.target.quantization.method == "awq+gptq"
    assert manifest.calibration
    assert manifest.calibration["tokens"] == 4 * 64
    report = manifest.tensors["model.layers.1.mlp.down_proj.weight"].details
    assert report["error_ratio"] <= 1
    assert "awq_ratio" in report


def test_a_text_of_ones_own_calibrates(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    lines = [{"text": "The weather was fine. " * 30}, {"messages": messages}]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    options = ["--num-samples", 4, "--sequence-length", 64, "--no-verify", "--block-size", 32]
    text = ["--calibration", tmp_path / "text.jsonl"]
    made = run("quantize", checkpoint, "-o", tmp_path / "package", *options, *text)
    assert made.code == 0, made.err
    manifest = read_manifest(tmp_path / "package")
    assert manifest.target.name == "cpu-int4-awq.block-32"
    assert manifest.tensors["model.layers.0.mlp.down_proj.weight"].block_size == 32
    (tmp_path / "text.jsonl").write_text('{"txt": "?"}')
    assert_one_line(run("quantize", checkpoint, "-o", tmp_path / "b", *options, *text), 2, "text.jsonl", "line 1")
    (tmp_path / "text.jsonl").write_text('{"text": "short"}')
    assert_one_line(run("quantize", checkpoint, "-o", tmp_path / "b", *options, *text), 2, "tokens", "--calibration")
    assert_nothing_written(tmp_path / "b")


def test_a_method_draws_as_many_samples_as_it_needs(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    options = ["-t", "cpu-int4-rtn", "--sequence-length", 32, "--no-verify"]
    assert run("export", checkpoint, *options, "-o", tmp_path / "plain").code == 0
    made = run("export", checkpoint, *options, "--quant", "imatrix", "-o", tmp_path / "package")
    assert made.code == 0, made.err
    assert f"{16 * 32} tokens" in made.err
    manifest = read_manifest(tmp_path / "package")
    assert manifest.target.name == "cpu-int4-rtn.imatrix"
    assert manifest.calibration
    assert manifest.calibration["num_samples"] == 16
    plain, weighted = ((tmp_path / name / "model.onnx.data").read_bytes() for name in ("plain", "package"))
    assert len(plain) == len(weighted)
    assert plain != weighted
    layers = [tensor for name, tensor in read_manifest(tmp_path / "package").tensors.items() if "layers" in name]
    assert all(tensor.details["error_ratio"] < 1 for tensor in layers)


def test_a_budget_of_bits_or_bytes_mixes_bits(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    options = ["--num-samples", 4, "--sequence-length", 64, "--no-verify", "-o", tmp_path / "package"]
    made = run("export", checkpoint, "-t", "cpu-int4-rtn", "--budget", "7.0bpw", *options)
    assert made.code == 0, made.err
    manifest = read_manifest(tmp_path / "package")
    assert 6.5 < manifest.bits_per_weight <= 7.0
    layers = {name: tensor for name, tensor in manifest.tensors.items() if ".layers." in name}
    assert {tensor.bits for tensor in layers.values()} == {4, 8}
    size = (tmp_path / "package" / "model.onnx.data").stat().st_size
    made = run("export", checkpoint, "-t", "cpu-int4-rtn", "--budget", f"{size - 1000}B", *options, "--force")
    assert made.code == 0, made.err
    assert 0.8 * size < (tmp_path / "package" / "model.onnx.data").stat().st_size <= size - 1000
    ran = run("export", checkpoint, "-t", "cpu-int4-rtn", "--budget", "1.0bpw", *options, "--force")
    assert_one_line(ran, 2, "raise --budget")


def test_a_picture_of_the_errors(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    run("export", checkpoint, "-t", "cpu-int4-rtn", "-o", tmp_path / "package", "--no-verify")
    shown = run("show", tmp_path / "package", "--plot", tmp_path / "errors.svg", "--tensors")
    assert shown.code == 0, shown.err
    assert (tmp_path / "errors.svg").read_text().count("<path") > 20
    assert "int4 block 32 symmetric" in shown.out
    assert_one_line(run("show", tmp_path / "package", "--plot", tmp_path / "errors.doc"), 2, ".svg")
    run("export", checkpoint, "-t", "cpu-fp32", "-o", tmp_path / "float", "--no-verify")
    assert_one_line(run("show", tmp_path / "float", "--plot", tmp_path / "none.svg"), 2, "quantized")
    assert not (tmp_path / "none.svg").exists()
