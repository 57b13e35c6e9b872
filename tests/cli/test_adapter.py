"""`--adapter` of export, quantize and verify, and what show, verify and push make of the package afterwards."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs import read_manifest
from phi3_onnx.evaluate.parity import corpus
from safetensors.torch import load_file, save_file

from .conftest import Ran, Run

Make = Callable[..., Path]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpus, "TOKENS", 300)
    return tiny("plain")


@pytest.fixture
def adapter(base: Path, adapter_of: Make, tmp_path: Path) -> Path:
    """An adapter that a test may change."""
    return Path(shutil.copytree(adapter_of(base, target_modules=["qkv_proj", "down_proj"]), tmp_path / "my-lora"))


def last_line(ran: Ran) -> str:
    assert "Traceback" not in ran.err
    return ran.err.strip().splitlines()[-1]


def test_export_verifies_against_the_merged_model_and_says_what_it_merged(
    run: Run, base: Path, adapter: Path, isolated: Path
) -> None:
    made = run("export", base, "--adapter", adapter, "-t", "cpu-fp32")
    assert made.code == 0, made.err
    package = isolated / "packages" / "tiny-plain-my-lora" / "cpu-fp32"
    assert made.out.splitlines()[-1] == str(package)
    assert f"merging {adapter}: LoRA, rank 4, 4 matrices" in made.err
    assert f"against {base} with adapter {adapter} in float32" in made.out
    manifest = read_manifest(package)
    assert manifest.verified is True
    sha256 = hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()
    assert f"adapter    {adapter} (LoRA, rank 4, 4 matrices), sha256 {sha256}" in run("show", package).out.splitlines()
    assert json.loads(run("show", package, "--json").out)["adapter"]["sha256"] == sha256


def test_verify_takes_the_packages_adapter_or_what_is_named(
    run: Run, base: Path, adapter: Path, tmp_path: Path
) -> None:
    package = tmp_path / "package"
    assert run("export", base, "--adapter", adapter, "-t", "cpu-fp32", "-o", package, "--no-verify").code == 0
    assert run("verify", package, "--steps", 4).code == 0
    assert run("evaluate", package, "--max-tokens", 40).code == 0
    without = run("verify", package, "--reference", base, "--steps", 4, "--no-record")
    assert without.code == 1
    assert "mean_kl is" in last_line(without)
    assert run("verify", package, "--reference", base, "--adapter", adapter, "--steps", 4).code == 0

    settings = adapter / "adapter_config.json"
    kept = settings.read_bytes()
    settings.write_text(json.dumps(json.loads(kept) | {"lora_alpha": 13}))
    sums = [hashlib.sha256(content).hexdigest() for content in (kept, settings.read_bytes())]
    changed = run("verify", package)
    assert changed.code == 1
    assert f"any more: expected sha256 {sums[0]} of its adapter_config.json, got {sums[1]};" in last_line(changed)
    settings.write_bytes(kept)

    tensors = load_file(adapter / WEIGHTS)
    next(iter(tensors.values())).mul_(2)
    save_file(tensors, adapter / WEIGHTS)
    changed = run("verify", package)
    assert changed.code == 1
    merged = read_manifest(package).adapter
    assert merged and f"any more: expected sha256 {merged.sha256} of its weights" in last_line(changed)
    shutil.rmtree(adapter)
    assert "does not exist (the package was made from it; name another with" in last_line(run("verify", package))


def test_quantize_merges_too(run: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    made = run("quantize", base, "--adapter", adapter, "-t", "cpu-int4-rtn", "-o", first, "--no-verify")
    assert made.code == 0, made.err
    assert run("export", base, "--adapter", adapter, "-t", "cpu-fp32", "-o", tmp_path / "fp32", "--no-verify").code == 0
    assert run("quantize", tmp_path / "fp32", "-t", "cpu-int4-rtn", "-o", second, "--no-verify").code == 0
    assert (first / "model.onnx.data").read_bytes() == (second / "model.onnx.data").read_bytes()


def test_the_matrix_takes_packages_of_the_same_adapter_only(
    run: Run, base: Path, adapter: Path, tmp_path: Path
) -> None:
    options = ["-t", "cpu-fp32", "-p", "cpu", "--no-speed", "--steps", 2, "-o", tmp_path / "all"]
    made = run("matrix", base, "--adapter", adapter, *options)
    assert made.code == 0, made.err
    assert run("matrix", base, "--adapter", f"{adapter}/", *options).code == 0
    other = run("matrix", base, *options)
    assert other.code == 1
    assert f"is a cpu-fp32 package of {base} with adapter {adapter}; replace it with --force" in last_line(other)


def test_plans_name_the_adapter(run: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = run("export", base, "--adapter", adapter, "--dry-run", "--json", "-o", tmp_path / "x")
    assert json.loads(plan.out)["adapter"] == str(adapter)
    assert "adapter " not in run("export", base, "--dry-run", "-o", tmp_path / "x").out
    assert not (tmp_path / "x").exists()


def test_the_adapter_as_source_gives_a_command_that_works(run: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    wrong = run("export", adapter, "-o", tmp_path / "x")
    assert wrong.code == 1
    assert str(adapter) in last_line(wrong)
    command = last_line(wrong).partition("phi3-onnx export ")[2].split()
    assert command == [str(base), "--adapter", str(adapter)]
    assert run("export", *command, "-t", "cpu-fp32", "-o", tmp_path / "x", "--no-verify").code == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverged_is_refused_before_anything_is_written(
    run: Run, base: Path, adapter: Path, tmp_path: Path, value: float
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    list(tensors.values())[-1][0, 0] = value
    save_file(tensors, adapter / WEIGHTS)
    ran = run("export", base, "--adapter", adapter, "-o", tmp_path / "x")
    assert (ran.code, ran.out) == (1, "")
    assert "holds NaN or infinite values" in last_line(ran)
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_hub_adapter_without_the_hub_is_one_line(run: Run, base: Path, tmp_path: Path) -> None:
    ran = run("export", base, "--adapter", "org/my-lora", "-o", tmp_path / "x")
    assert (ran.code, ran.out) == (1, "")
    assert "org/my-lora is not on this machine, and the hub is out of reach" in last_line(ran)


def test_a_card_names_the_adapter_and_its_own_licence(run: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    assert run("export", base, "--adapter", adapter, "-t", "cpu-fp32", "-o", package).code == 0
    to: list[Any] = ["push", package, "org/tiny-onnx", "--base-model", "microsoft/Phi-3-mini-4k-instruct"]
    assert f"the licence of {adapter} is not known here" in last_line(run(*to, "--dry-run", tmp_path / "dry"))
    assert run(*to, "--licence", "mit", "--dry-run", tmp_path / "dry").code == 0
    card = (tmp_path / "dry" / "README.md").read_text(encoding="utf-8")
    assert "base_model_relation: finetune\n" in card
    assert f"with the fine-tune (PEFT adapter) `{adapter}` merged into its weights, as ONNX packages" in card
