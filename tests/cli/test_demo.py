"""`phi3-onnx demo`: what it refuses. `tests/test_readme.py` runs all of it."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import UsageError


def test_an_unknown_target_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("phi3_onnx.export.sources.small_model.fetch_small_model", lambda *_, **__: tmp_path)
    ran = CliRunner().invoke(root, ["demo", "-t", "cpu-int5"])
    assert isinstance(ran.exception, UsageError)
    assert "unknown target 'cpu-int5'" in str(ran.exception)
