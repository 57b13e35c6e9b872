"""The manifest: what is written is read again, of older versions too, and damage is one clear line."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs import (
    Manifest,
    PackageError,
    Target,
    TensorSummary,
    Thresholds,
    find_target,
    identified,
    read_manifest,
    with_quantization,
)
from phi3_onnx.configs.manifest import FORMAT, MANIFEST_NAME, FileEntry, check_files, file_sha256

RTN = find_target("cpu-int4-rtn")
OWN = Target("mine", "my own", "cuda", "float16", aliases=("ours",), thresholds=Thresholds(mean_kl=0.125))


def manifest_of(target: Target, **values: Any) -> Manifest:
    tensors = {"lm_head.weight": TensorSummary((8, 4), 8, 32, True, 0.5, {"method": "rtn"})}
    return Manifest(
        target=target,
        source="org/Model",
        revision="c0ffee",
        model="Model",
        created="2026-01-01T00:00:00+00:00",
        versions={"torch": "2"},
        ops={"MatMul": 1},
        num_parameters=32,
        bits_per_weight=8.0,
        tensors=tensors,
        files={},
        **values,
    )


def write(folder: Path, table: dict[str, Any] | str) -> None:
    text = table if isinstance(table, str) else json.dumps(table)
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "target",
    [
        find_target("cpu-fp32"),
        find_target("dml-int4-awq"),
        with_quantization(RTN, method="gptq", block_size=128),
        identified(replace(RTN, thresholds=Thresholds(p99_kl=1.5))),
        OWN,
        with_quantization(OWN, method="rtn"),
    ],
    ids=lambda target: target.name,
)
def test_all_of_a_target_comes_back(target: Target, tmp_path: Path) -> None:
    manifest = manifest_of(target, calibration={"tokens": 4})
    write(tmp_path, manifest.to_json())
    assert read_manifest(tmp_path) == manifest
    assert (manifest.provider, manifest.io_dtype) == (target.provider, target.io_dtype)


def first_format(target: str, quantization: dict[str, Any] | None, provider: str = "cpu") -> dict[str, Any]:
    table = asdict(manifest_of(RTN))
    del table["calibration"]
    io_dtype = "float32" if provider == "cpu" else "float16"
    return table | {
        "target": target,
        "provider": provider,
        "io_dtype": io_dtype,
        "quantization": quantization,
        "format": 1,
    }


PLAIN = {
    "method": "rtn",
    "weights": "int4 block 32 symmetric",
    "accuracy_level": 4,
    "overrides": {
        "lm_head.weight": "int8 block 32 symmetric",
        "model.embed_tokens.weight": "int8 block 32 symmetric",
    },
}


def test_a_manifest_of_the_first_format_is_read(tmp_path: Path) -> None:
    write(tmp_path, first_format("cpu-int4-rtn", PLAIN))
    assert read_manifest(tmp_path).target == RTN
    write(tmp_path, first_format("cuda-fp16", None, "cuda"))
    assert read_manifest(tmp_path).target == find_target("cuda-fp16")


def test_a_variant_of_the_first_format_gets_the_name_that_it_lacked(tmp_path: Path) -> None:
    changed = PLAIN | {"method": "gptq", "weights": "int4 block 128 symmetric", "calibration": {"tokens": 4}}
    write(tmp_path, first_format("cpu-int4-rtn", changed))
    manifest = read_manifest(tmp_path)
    assert manifest.target == with_quantization(RTN, method="gptq", block_size=128)
    assert manifest.calibration == {"tokens": 4}


def test_a_target_of_ones_own_of_the_first_format_is_judged_by_nothing(tmp_path: Path) -> None:
    write(tmp_path, first_format("My Target", PLAIN))
    target = read_manifest(tmp_path).target
    assert target == Target("my-target", "", "cpu", "float32", quantization=RTN.quantization)
    assert target.thresholds == Thresholds()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": FORMAT + 1}, ["format", "upgrade"]),
        ({"target": {"name": "x"}}, ["damaged", "provider"]),
        ({"target": "cpu-fp32"}, ["damaged"]),
        ({"target": {**asdict(OWN), "name": "../../x"}}, ["damaged", "../../x"]),
        ({"target": {**asdict(OWN), "aliases": ["a/b"]}}, ["damaged", "a/b"]),
        ({"source": None, "files": {"a": {}}}, ["damaged", "sha256"]),
        ({"unknown": 1}, ["damaged", "unknown"]),
    ],
)
def test_damage_is_one_clear_line(change: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    write(tmp_path, json.loads(manifest_of(OWN).to_json()) | change)
    with pytest.raises(PackageError) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)
    for word in (MANIFEST_NAME, *words):
        assert word in str(caught.value)


def test_no_manifest_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="not a package that phi3-onnx made"):
        read_manifest(tmp_path)
    write(tmp_path, "{")
    with pytest.raises(PackageError, match=r"can ?not be read"):
        read_manifest(tmp_path)


def test_files_are_held_against_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    files = {"a": FileEntry(3, file_sha256(tmp_path / "a"))}
    manifest = replace(manifest_of(RTN), files=files)
    check_files(tmp_path, manifest, hashes=True)
    (tmp_path / "a").write_bytes(b"abd")
    check_files(tmp_path, manifest)
    with pytest.raises(PackageError, match="a has another sha256"):
        check_files(tmp_path, manifest, hashes=True)
    (tmp_path / "a").write_bytes(b"ab")
    manifest = replace(manifest, files={**files, "b": FileEntry(1, "")})
    with pytest.raises(PackageError, match="a has 2 bytes, expected 3; b is missing"):
        check_files(tmp_path, manifest)
