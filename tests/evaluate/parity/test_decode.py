"""Verification of the second graph, which users get on the CPU: its int8 cache is measured, and errors in it show."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import PackageError, Thresholds, find_target, read_manifest
from phi3_onnx.evaluate.parity import corpus, decode
from phi3_onnx.evaluate.parity.decode import SINGLY, decode_logits
from phi3_onnx.evaluate.parity.result import Verification
from phi3_onnx.evaluate.parity.verify import checked, verify
from phi3_onnx.export import open_checkpoint
from phi3_onnx.runtime.engines.arena import Arena
from phi3_onnx.runtime.engines.layout import RowRun
from phi3_onnx.runtime.engines.packed import PackedGraph
from phi3_onnx.runtime.package import open_package

Make = Callable[..., Path]

STEPS = 4
TARGET = "cpu-int4-rtn"
ROWS = ["decode_mean_kl", "decode_top1_agreement", "int8_cache_kl"]


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "TOKENS", 300)


@pytest.fixture
def package(tiny_package: Make, tmp_path: Path) -> Path:
    """Return a package that a test may change: its manifest knows no sizes."""
    folder = tmp_path / "package"
    shutil.copytree(tiny_package("gqa", TARGET), folder)
    (folder / "phi3_onnx.json").write_text(replace(read_manifest(folder), files={}).to_json(), encoding="utf-8")
    return folder


def values(found: Verification) -> dict[str, float]:
    return {row.name: row.value for row in found.rows}


def test_what_the_int8_cache_costs_is_measured_recorded_and_shown(package: Path, tiny: Make) -> None:
    target = find_target(TARGET)
    checked(package, open_checkpoint(tiny("gqa")), target)
    found = read_manifest(package).verification
    assert found is not None
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows)[-3:] == ROWS
    assert rows["decode_mean_kl"]["threshold"] == target.thresholds.mean_kl
    assert rows["decode_top1_agreement"]["threshold"] == target.thresholds.top1_agreement
    assert rows["int8_cache_kl"]["passed"] is None
    assert found["decoding"]["metrics"]["positions"] == found["metrics"]["positions"] == 300
    assert found["decoding"]["beside"]["positions"] == SINGLY
    # Rounding keys and values moves the logits, and by far less than rounding the weights does.
    assert 0 < rows["int8_cache_kl"]["value"] < found["metrics"]["mean_kl"] / 10
    assert rows["decode_mean_kl"]["value"] == pytest.approx(found["metrics"]["mean_kl"], rel=0.1)
    assert rows["decode_mean_kl"]["value"] != found["metrics"]["mean_kl"]
    shown = CliRunner().invoke(root, ["show", str(package)]).stdout
    assert f"int8_cache_kl         {rows['int8_cache_kl']['value']:>10.4g}" in shown


@pytest.mark.parametrize("kind", ["window", "longrope"])
def test_windows_and_both_sets_of_rotary_factors_are_run(kind: str, tiny: Make, tiny_package: Make) -> None:
    sizes = {"original_max_position_embeddings": 64, "max_position_embeddings": 256} if kind == "longrope" else {}
    found = verify(tiny_package(kind, TARGET, **sizes), open_checkpoint(tiny(kind, **sizes)), steps=STEPS)
    assert found.failures == () and found.decoding is not None
    assert found.decoding.metrics.positions == found.metrics.positions
    assert found.decoding.metrics.mean_kl == pytest.approx(found.metrics.mean_kl, rel=0.2)
    assert found.decoding.beside.mean_kl < found.metrics.mean_kl / 5


@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_wrong_scales_of_the_cache_fail_the_second_graph_alone(factor: float, package: Path, tiny: Make) -> None:
    checkpoint = open_checkpoint(tiny("gqa"))
    sound = verify(package, checkpoint, steps=STEPS)
    model = onnx.load(package / "decode.onnx", load_external_data=False)
    changed = 0
    for tensor in model.graph.initializer:
        if tensor.name.startswith("cache_scale."):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * factor, tensor.name))
            changed += 1
    assert changed == 4
    (package / "decode.onnx").write_bytes(model.SerializeToString())
    strict = replace(find_target(TARGET), thresholds=Thresholds(mean_kl=1.2 * sound.metrics.mean_kl))
    found = verify(package, checkpoint, target=strict, steps=STEPS)
    assert {row.name for row in found.failures} == {"decode_mean_kl"}
    assert values(found)["int8_cache_kl"] > 10 * values(sound)["int8_cache_kl"]
    assert found.self_test is None, "what users get is not the model"


def test_a_damaged_second_graph_is_an_error(package: Path, tiny: Make) -> None:
    (package / "decode.onnx").write_bytes(b"no graph")
    with pytest.raises(PackageError, match=r"decode\.onnx cannot be loaded by onnxruntime"):
        verify(package, open_checkpoint(tiny("gqa")), steps=STEPS)


def test_where_it_cannot_run_that_is_said(package: Path, tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "decodes_here", lambda: False)
    found = verify(package, open_checkpoint(tiny("gqa")), steps=STEPS)
    assert not set(ROWS) & set(values(found)) and "decoding" not in found.to_dict()
    assert found.skipped[-1] == "decode.onnx: not measured, it needs ONNX Runtime 1.32 or later"
    assert "it runs on the CPU alone" in (decode.why_not("CUDAExecutionProvider") or "")
    (package / "decode.onnx").unlink()
    assert not any("decode.onnx" in line for line in verify(package, open_checkpoint(tiny("gqa")), steps=STEPS).skipped)


@pytest.fixture(scope="module")
def graph(tiny_package: Make) -> PackedGraph:
    return PackedGraph(open_package(tiny_package("gqa", TARGET)))


@pytest.mark.parametrize("length", [1, 2, 64, 65, 192, 193, 300])
def test_all_positions_come_in_order_and_the_last_ones_singly(length: int, graph: PackedGraph) -> None:
    ids = np.random.default_rng(0).integers(5, 300, length)
    pieces = list(decode_logits(graph, ids))
    firsts = [first for first, _ in pieces]
    assert firsts == [sum(len(logits) for _, logits in pieces[:number]) for number in range(len(pieces))]
    assert all(len(logits) == 1 for _, logits in pieces[-min(SINGLY, length) :])
    (whole,) = graph.run(Arena(graph.shape, 1, length), [RowRun(0, 0, ids.tolist(), length)])
    assert np.array_equal(np.concatenate([logits for _, logits in pieces]), whole)


def test_the_command_prints_the_rows(package: Path, tiny: Make) -> None:
    done = CliRunner().invoke(
        root, ["verify", str(package), "--reference", str(tiny("gqa")), "--steps", "2", "--no-record", "--json"]
    )
    assert done.exit_code == 0, done.output
    table = json.loads(done.stdout)
    assert [row["name"] for row in table["rows"]][-3:] == ROWS and table["decoding"]["beside"]["positions"] == SINGLY
