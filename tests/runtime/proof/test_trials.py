"""What trying a graph out showed is kept for the next load, and for nothing else."""

import json
from pathlib import Path

import pytest
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.runtime import load
from phi3_onnx.runtime.engines.packed import PackedGraph
from phi3_onnx.runtime.engines.packed_engine import PackedEngine
from phi3_onnx.runtime.engines.padding import Padding, Trial
from phi3_onnx.runtime.proof import record
from phi3_onnx.runtime.proof.trials import keep_trial, kept_trial
from phi3_onnx.runtime.providers import devices
from phi3_onnx.runtime.providers.hardware import THREADS_VARIABLE
from phi3_onnx.runtime.providers.wheels import Wheel


@pytest.fixture
def package(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(THREADS_VARIABLE, "1")
    return package


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each trial."""
    seen, real = list[int](), PackedGraph._settle_padding

    def counted(self: PackedGraph) -> Padding | None:
        seen.append(1)
        return real(self)

    monkeypatch.setattr(PackedGraph, "_settle_padding", counted)
    return seen


def loaded(package: Path, **options: object) -> Trial:
    with load(package, **options) as model:  # pyright: ignore[reportArgumentType]
        assert isinstance(model.engine, PackedEngine)
        return model.engine.graph.trial


def test_the_second_load_tries_nothing_and_knows_the_same(package: Path, trials: list[int]) -> None:
    first = loaded(package)
    assert first.padding is not None and min(first.seconds.values()) > 0
    assert loaded(package) == first == kept_trial(package, 1)
    assert len(trials) == 1


def test_other_threads_versions_processors_and_files_are_tried(
    package: Path, trials: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(package)
    loaded(package, threads=2)
    loaded(package, threads=2)
    assert len(trials) == 2, "time depends on threads"
    for place, name, value in (
        (record, "installed_wheels", lambda: [Wheel("onnxruntime", "9.9", "onnxruntime")]),
        (devices, "_cpu_kind", lambda: ", with other instructions"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, value)
            assert kept_trial(package, 1) is None, name
    assert kept_trial(package, 1)
    decode = package / "decode.onnx"
    decode.write_bytes(decode.read_bytes())
    assert kept_trial(package, 1) is None
    loaded(package, tuned=False)
    loaded(package, tuned=False)
    assert len(trials) == 4 and kept_trial(package, 1) is None, "whoever wants nothing kept gets nothing kept"


@pytest.mark.parametrize(
    "damage",
    ["{", "{}", '{"padding": [3, 3]}', '{"padding": 1}', '{"seconds": {}}', '{"seconds": {"1": -1}}', '{"key": {}}'],
)
def test_a_damaged_file_is_none(damage: str, package: Path) -> None:
    keep_trial(package, 1, Trial(Padding(2, 2), {2: 0.5}))
    assert kept_trial(package, 1) == Trial(Padding(2, 2), {2: 0.5})
    (path,) = (cache_folder() / "trials").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **json.loads(damage)}) if ":" in damage else damage)
    assert kept_trial(package, 1) is None


def test_a_machine_where_nothing_helps_is_remembered_too(package: Path) -> None:
    keep_trial(package, 1, Trial(None, {1: 0.5}))
    assert kept_trial(package, 1) == Trial(None, {1: 0.5})
    with load(package) as model:
        assert "may differ by rounding" in model.engine.name
