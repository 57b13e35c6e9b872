"""The project on Windows, under Wine, where a machine was made for it or PHI3_ONNX_WINE says where to make one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CANNOT = 77
# Read before tests are isolated from the user's folders.
_VARIABLE = os.environ.get("PHI3_ONNX_WINE")


def _prepared() -> Path | None:
    from phi3_onnx.configs.store import cache_folder

    root = Path(_VARIABLE) if _VARIABLE else cache_folder() / "windows"
    return root if _VARIABLE or (root / ".ready").is_file() else None


_ROOT = _prepared()
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        _ROOT is None,
        reason="no Windows machine was made here: run tests/windows/run --prepare, or set PHI3_ONNX_WINE to a folder",
    ),
]


def run(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run one tier and return its rows; skip with the reason where the machine cannot be made."""
    results = tmp_path / "rows.json"
    command = [sys.executable, str(HERE / "tiers.py"), "--cache", str(_ROOT), "--json", str(results), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert results.is_file(), done.stderr[-2000:]
    return json.loads(results.read_text(encoding="utf-8"))


@pytest.mark.parametrize("tier", ["1", "2"])
def test_every_check_is_well(tmp_path: Path, tier: str) -> None:
    rows = run(tmp_path, "--tier", tier)
    assert len(rows) > 10
    assert [row for row in rows if row["outcome"] == "failed"] == []
