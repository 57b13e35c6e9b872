"""A disk that fills up while a package is written: one line with both numbers, and nothing left behind."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from phi3_onnx.configs import OutputError
from phi3_onnx.export import export
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
