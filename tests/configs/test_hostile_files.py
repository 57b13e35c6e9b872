"""Files that hold what no model does: one line of our own error class each, at once."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs import PackageError, SourceError, read_manifest
from phi3_onnx.configs.model import parse_model_config

CONFIG = {
    "model_type": "phi3",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "eos_token_id": 0,
}
LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
STRANGE = (math.nan, math.inf, -1.0, "text", [], {}, True, 10**400)


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("key", ["partial_rotary_factor", "rope_theta", "rms_norm_eps", "sliding_window"])
def test_a_figure_that_is_none(key: str, value: Any) -> None:
    with pytest.raises(SourceError, match=key) as raised:
        parse_model_config({**CONFIG, key: value})
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize("value", [math.nan, "text", [None, "x"], {}, True, 1.5], ids=repr)
def test_an_end_token_that_is_none(value: Any) -> None:
    with pytest.raises(SourceError, match="eos_token_id"):
        parse_model_config({**CONFIG, "eos_token_id": value})


@pytest.mark.parametrize("value", [math.nan, math.inf, "text", None, 0], ids=repr)
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_a_factor_that_is_none(key: str, value: Any) -> None:
    with pytest.raises(SourceError, match=key):
        parse_model_config({**CONFIG, "rope_scaling": {**LONG, key: [1.0] * 7 + [value]}})


@pytest.mark.parametrize("key", ["factor", "attention_factor", "original_max_position_embeddings"])
@pytest.mark.parametrize("value", [math.nan, "text", -1, [1]], ids=repr)
def test_a_scaling_that_is_none(key: str, value: Any) -> None:
    with pytest.raises(SourceError, match=key):
        parse_model_config({**CONFIG, "rope_scaling": {**LONG, key: value}})


def test_a_table_that_is_none() -> None:
    with pytest.raises(SourceError, match="rope_scaling must be a JSON object"):
        parse_model_config({**CONFIG, "rope_scaling": "longrope"})


def test_a_thousand_million_layers_take_no_time() -> None:
    begun = time.process_time()
    with pytest.raises(SourceError, match="num_hidden_layers must be at most 1024, got 1000000000"):
        parse_model_config({**CONFIG, "num_hidden_layers": 10**9})
    assert time.process_time() - begun < 1


MANIFEST = {
    "target": "cpu-fp32",
    "source": "x",
    "revision": None,
    "model": "m",
    "provider": "cpu",
    "io_dtype": "float32",
    "created": "2026-01-01",
    "versions": {"torch": "2"},
    "ops": {"MatMul": 1},
    "num_parameters": 1,
    "bits_per_weight": 4.5,
    "tensors": {"w": {"shape": [1, 2], "bits": 4, "block_size": 32, "symmetric": True}},
    "files": {"model.onnx": {"size": 1, "sha256": "0"}},
    "format": 1,
}


def read(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads(json.dumps(MANIFEST))
    change(table)
    (folder / "phi3_onnx.json").write_text(json.dumps(table), encoding="utf-8")
    read_manifest(folder)


@pytest.mark.parametrize("name", ["/etc/shadow", "../x", "a/b", "..", "c:\\x", "..\\x", "", "a\0b"])
def test_a_manifest_names_no_file_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError, match="not a file of the package"):
        read(tmp_path, lambda table: table["files"].update({name: {"size": 1, "sha256": "0"}}))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.update(versions={"torch": 2}),
        lambda table: table.update(versions=[]),
        lambda table: table.update(ops={"MatMul": "many"}),
        lambda table: table.update(num_parameters="many"),
        lambda table: table.update(bits_per_weight=None),
        lambda table: table.update(format="new"),
        lambda table: table.update(tensors={"w": {**MANIFEST["tensors"]["w"], "relative_error": "small"}}),
        lambda table: table.update(tensors={"w": {**MANIFEST["tensors"]["w"], "shape": 5}}),
        lambda table: table.update(files={"model.onnx": {"size": "1", "sha256": "0"}}),
        lambda table: table.update(verification={"passed": True, "rows": [{"name": "x"}]}),
        lambda table: table.update(verification={"passed": True, "rows": 7}),
        lambda table: table.pop("ops"),
        lambda table: table.update(unknown=1),
    ],
)
def test_a_manifest_of_other_kinds_is_damaged(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(PackageError, match=r"damaged"):
        read(tmp_path, change)


def test_a_whole_manifest_is_read(tmp_path: Path) -> None:
    read(tmp_path, lambda _: None)


def test_deep_json_is_no_recursion(tmp_path: Path) -> None:
    (tmp_path / "phi3_onnx.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(PackageError, match="is not valid JSON"):
        read_manifest(tmp_path)
