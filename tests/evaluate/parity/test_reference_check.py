"""The reference is itself held against transformers: a fault of its layers fails the verification."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from phi3_onnx.evaluate.parity.reference_check import check_reference
from phi3_onnx.evaluate.parity.result import Row
from phi3_onnx.export import open_checkpoint
from phi3_onnx.quantize import exact

Make = Callable[..., Path]
SEQUENCES = [np.random.default_rng(0).integers(0, 512, 90)]


def row(folder: Path, sequences: list[np.ndarray] = SEQUENCES) -> Row:
    found = check_reference(open_checkpoint(folder), sequences)
    assert isinstance(found, Row), found
    return found


@pytest.mark.parametrize("kind", ["plain", "gqa", "partial", "window", "tied", "ragged", "llama"])
def test_the_reference_is_transformers_model(kind: str, tiny: Make) -> None:
    found = row(tiny(kind))
    assert found.passed
    assert found.value < 1e-5
    assert found.detail.endswith(f"against transformers {transformers.__version__}, 90 tokens")


def test_both_sets_of_longrope_factors_are_compared(tiny: Make) -> None:
    assert row(tiny("longrope"), [*SEQUENCES, np.arange(4100) % 512]).value < 1e-5


def test_a_wrong_window_is_seen(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exact._window_mask
    monkeypatch.setattr(exact, "_window_mask", lambda window, tokens: right(window + 1, tokens))
    assert row(tiny("window")).passed is False


def test_wrong_rotary_tables_are_seen(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # The graph takes the same tables: without this row, both sides of a verification would be wrong alike.
    right = exact.rotary_tables

    def turned(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = right(*arguments)
        return cos * 1.01, sin * 1.01

    monkeypatch.setattr(exact, "rotary_tables", turned)
    assert row(tiny("plain")).passed is False


@pytest.mark.parametrize("name", ["Phi3Model", "Phi3Config"])
def test_a_release_of_transformers_that_works_otherwise_is_told(
    name: str, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*_: Any, **__: Any) -> None:
        raise TypeError("missing 1 required positional argument: 'cache'")

    folder = tiny("plain")
    assert row(folder).passed
    # Not the module that was imported above: transformers puts another in its place when it first loads a class.
    monkeypatch.setattr(sys.modules["transformers"], name, changed)
    found = check_reference(open_checkpoint(folder), SEQUENCES)
    assert found == (
        f"the reference's layers were not compared with transformers {transformers.__version__}'s, which fails: "
        "missing 1 required positional argument: 'cache'"
    )
