"""The folder that a calibration works in: its own, and gone on from only where everything in it is whole."""

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from phi3_onnx.configs import find_target
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.export import open_checkpoint
from phi3_onnx.export.weights.calibration_data import CalibrationOptions, calibrated_layers, prepare_calibration
from phi3_onnx.quantize.calibrate import QuantizedLayer

Layers = dict[int, QuantizedLayer]
Begin = Callable[[], Generator[tuple[int, QuantizedLayer], None, None]]


@pytest.fixture
def layers(tiny: Callable[..., Path]) -> Begin:
    checkpoint, target = open_checkpoint(tiny("plain")), find_target("cpu-int4-awq")
    assert target.quantization is not None
    options = CalibrationOptions(num_samples=2, sequence_length=32)
    calibration = prepare_calibration(checkpoint, options, target.quantization)
    return lambda: cast(
        "Generator[tuple[int, QuantizedLayer], None, None]", calibrated_layers(checkpoint, target, calibration)
    )


def same(first: Layers, second: Layers) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(weight.packed, second[index].matrices[name].packed)
        for index, layer in first.items()
        for name, weight in layer.matrices.items()
    )


def test_two_runs_of_one_model_work_apart(layers: Begin, caplog: pytest.LogCaptureFixture) -> None:
    first = layers()
    begun = dict([next(first)])
    beside = dict(layers())
    begun |= dict(first)
    assert same(begun, beside)
    assert f"process {os.getpid()} on" in caplog.text
    assert "works apart" in caplog.text
    assert not list((cache_folder() / "calibration").iterdir())


def test_what_a_run_left_that_worked_apart_is_gone_on_from(layers: Begin) -> None:
    interrupted = layers()
    next(interrupted)
    interrupted.close()
    (work,) = (path for path in (cache_folder() / "calibration").iterdir() if path.is_dir())
    work.replace(work.with_name(f"{work.name}-2"))
    again = layers()
    next(again)
    assert (work / "layer-000.npz").is_file()
    assert not work.with_name(f"{work.name}-2").exists()
    list(again)
    assert not list((cache_folder() / "calibration").iterdir())


@pytest.mark.parametrize("name", ["layer-000.npz", "progress.json", "states-1.f32"])
def test_a_damaged_work_folder_is_begun_anew(layers: Begin, name: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = dict(layers())
    interrupted = layers()
    next(interrupted)
    next(interrupted)
    interrupted.close()
    (work,) = (path for path in (cache_folder() / "calibration").iterdir() if path.is_dir())
    (work / "progress.json").write_text('{"layers_done": 1}')  # where a kill after the first layer leaves it
    os.truncate(work / name, (work / name).stat().st_size // 2)
    assert same(whole, dict(layers()))
    assert "calibrating anew" in caplog.text
