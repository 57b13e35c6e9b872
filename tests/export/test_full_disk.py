"""A disk that fills up while a package is written: one line with both numbers, and nothing left behind."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from phi3_onnx.configs import OutputError
from phi3_onnx.export import export
from phi3_onnx.export.weights.calibration_data import CalibrationOptions
from phi3_onnx.export.weights.data_file import DataFile


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(
    number: int, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: DataFile) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(DataFile, "create", full)
    with pytest.raises(OutputError, match=r"is full: the package needs [\d.]+ MB, [\d.]+ [A-Z]+ are left") as raised:
        export(tiny("plain"), "cpu-fp32", tmp_path / "package")
    assert "0.00" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="no room can be asked for there")
def test_a_disk_that_has_no_room_for_the_hidden_states(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # A sparse file would be mapped, and the process would end by SIGBUS where a page of it finds no room.
    monkeypatch.setattr(os, "posix_fallocate", full)
    options = CalibrationOptions(num_samples=2, sequence_length=32)
    with pytest.raises(OutputError, match=r"the disk of .*states-0\.f32 is full, [\d.]+ [A-Z]+ are left"):
        export(tiny("plain"), "cpu-int4-awq", tmp_path / "package", calibration=options)
    assert not list(tmp_path.iterdir())
    assert not list(isolated.rglob("*.f32"))
