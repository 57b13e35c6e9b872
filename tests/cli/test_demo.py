"""`phi3-onnx demo`: the small real model from download to answer."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import UsageError, read_manifest


@pytest.mark.real
def test_from_the_model_to_an_answer(small_gguf: Path, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3_onnx.export.sources.small_model.fetch_small_model", lambda *_, **__: small_gguf)
    ran = CliRunner().invoke(root, ["demo", "-n", "24"])
    assert ran.exit_code == 0, ran.output
    assert "mean_kl" in ran.stdout
    assert "Paris" in ran.stdout
    for step in ("1. The model", "2. Export to cpu-int4-rtn", "3. Verify", "4. Ask it: What is the capital of France"):
        assert step in ran.stderr
    (folder,) = (isolated / "packages").glob("*/cpu-int4-rtn")
    assert f"phi3-onnx chat {folder.parent.name}/cpu-int4-rtn" in ran.stderr
    assert read_manifest(folder).verified is True


def test_an_unknown_target_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("phi3_onnx.export.sources.small_model.fetch_small_model", lambda *_, **__: tmp_path)
    ran = CliRunner().invoke(root, ["demo", "-t", "cpu-int5"])
    assert isinstance(ran.exception, UsageError)
    assert "unknown target 'cpu-int5'" in str(ran.exception)
