"""Errors planted in packages: the matrix catches each, and the row that names it is the one that fails."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo
from phi3_onnx.configs import read_manifest
from phi3_onnx.configs.manifest import MANIFEST_NAME, FileEntry, file_sha256
from phi3_onnx.evaluate.matrix.cells import Matrix
from phi3_onnx.evaluate.matrix.plan import plan_matrix
from phi3_onnx.evaluate.matrix.run import run_matrix
from phi3_onnx.export import open_checkpoint

Factory = Callable[..., Path]
Plant = Callable[[Path], None]


def run(checkpoint: Path, package: Path, tmp_path: Path, plant: Plant | None) -> Matrix:
    """Return the matrix of one package, with something planted in a copy of it as though the export had made it so."""
    target = read_manifest(package).target.name
    copy = tmp_path / target
    shutil.copytree(package, copy)
    if plant:
        plant(copy)
        manifest = read_manifest(copy)
        files = {name: FileEntry((copy / name).stat().st_size, file_sha256(copy / name)) for name in manifest.files}
        (copy / MANIFEST_NAME).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
    plan = plan_matrix([target], ["cpu"], output=tmp_path, steps=8, speed=False)
    matrix = run_matrix(open_checkpoint(checkpoint), plan)
    assert not matrix.packages[0].exported, "the planted package has to be the one that is judged"
    return matrix


def failed_rows(matrix: Matrix) -> dict[str, str]:
    """Return the rows that failed, by name, with their details."""
    verification = matrix.cells[0].verification
    assert verification is not None, matrix.cells[0].reason
    rows = (*matrix.packages[0].rows, *verification.rows)
    return {row.name: row.detail for row in rows if row.passed is False}


def edit(folder: Path, tensor: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the stored values of an initializer in place."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    found = next(value for value in model.graph.initializer if value.name == tensor)
    info, dtype = ExternalDataInfo(found), onnx.helper.tensor_dtype_to_np_dtype(found.data_type)
    values = np.memmap(folder / info.location, dtype, "r+", int(info.offset or 0), tuple(found.dims))
    values[:] = change(np.array(values))
    values.flush()


def one_wrong_scale(folder: Path) -> None:
    def change(scales: np.ndarray) -> np.ndarray:
        scales[5, 1] *= 2
        return scales

    edit(folder, "model.layers.1.mlp.down_proj.scales", change)


def swapped_gate_and_up(folder: Path) -> None:
    edit(folder, "model.layers.0.mlp.gate_up_proj.weight", lambda rows: np.roll(rows, len(rows) // 2, axis=0))


def wrong_window(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size":
                attribute.i += 1
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def wrong_end_token(folder: Path) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = 17
    path.write_text(json.dumps(config), encoding="utf-8")


def changed_merge(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    merges = tokenizer["model"]["merges"]
    merges[40], merges[41] = merges[41], merges[40]  # whose order decides only where both would apply
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.mark.parametrize(("kind", "target"), [("plain", "cpu-fp32"), ("window", "cpu-fp32"), ("gqa", "cuda-fp16")])
def test_nothing_planted_nothing_found(
    kind: str, target: str, tiny: Factory, tiny_package: Factory, tmp_path: Path
) -> None:
    matrix = run(tiny(kind), tiny_package(kind, target), tmp_path, None)
    assert matrix.failures == ()
    assert matrix.cells[0].outcome == "pass"


@pytest.mark.parametrize(
    ("kind", "target", "plant", "row", "detail"),
    [
        ("plain", "cpu-int4-rtn", one_wrong_scale, "weights", "layers.1.mlp.down_proj.weight: 1 of 256 blocks differ"),
        ("plain", "cpu-fp32", swapped_gate_and_up, "weights", "layers.0.mlp.gate_up_proj.weight: 256 of 256 blocks"),
        ("window", "cpu-fp32", wrong_window, "attention", "layer 0: local_window_size is 32, the model's 31"),
        ("plain", "cpu-fp32", wrong_end_token, "end_tokens", "genai_config.json has [17]"),
        ("plain", "cpu-fp32", changed_merge, "token_ids", "merges differ from entry 40"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_each_is_caught_by_the_row_that_names_it(
    kind: str,
    target: str,
    plant: Plant,
    row: str,
    detail: str,
    tiny: Factory,
    tiny_package: Factory,
    tmp_path: Path,
) -> None:
    matrix = run(tiny(kind), tiny_package(kind, target), tmp_path, plant)
    found = failed_rows(matrix)
    assert detail in found[row]
    assert matrix.cells[0].outcome == "fail"
    assert row in (matrix.cells[0].reason or "")


@pytest.mark.parametrize("plant", [swapped_gate_and_up, wrong_window], ids=lambda plant: plant.__name__)
def test_the_logits_show_what_changes_them(plant: Plant, tiny: Factory, tiny_package: Factory, tmp_path: Path) -> None:
    found = failed_rows(run(tiny("window"), tiny_package("window"), tmp_path, plant))
    assert {"mean_kl", "top1_agreement"} <= set(found)


def test_a_scale_of_a_few_percent_too_much_passes_for_rounding(
    tiny: Factory, tiny_package: Factory, tmp_path: Path
) -> None:
    """The limit of what the row can see, so that nobody takes it for more."""

    def slightly(folder: Path) -> None:
        edit(folder, "model.layers.1.mlp.down_proj.scales", lambda scales: scales * np.float32(1.05))

    assert "weights" not in failed_rows(run(tiny("plain"), tiny_package("plain", "cpu-int4-rtn"), tmp_path, slightly))
