"""What `tune` finds is used for one package, version and machine, and changes no bit. Nothing here reads a clock."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.evaluate import tune as module
from phi3_onnx.evaluate.tune import tune
from phi3_onnx.runtime import load
from phi3_onnx.runtime.decoding.speculation import OFF
from phi3_onnx.runtime.engines import load as loading
from phi3_onnx.runtime.engines.packed_engine import PackedEngine
from phi3_onnx.runtime.engines.settings import EngineSettings
from phi3_onnx.runtime.proof import record, tuning
from phi3_onnx.runtime.proof.tuning import Tuning, keep_tuning, kept_tuning, tuning_key
from phi3_onnx.runtime.providers.hardware import THREADS_VARIABLE
from phi3_onnx.runtime.providers.wheels import Wheel


@pytest.fixture
def package(tiny_package: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)  # which wins over what is found; several test processes have it
    return tiny_package("gqa", "cpu-int4-rtn")


def kept(package: Path, **changes: object) -> Tuning:
    found = Tuning(
        tuning_key(package, "together"), EngineSettings(1, 32, {1: 0.01, 4: 0.015}), True, "by hand", "2026-01-01"
    )
    found = replace(found, **changes)  # pyright: ignore[reportArgumentType]
    assert keep_tuning(found)
    return found


def threads_of(package: Path, monkeypatch: pytest.MonkeyPatch, **options: int) -> int | None:
    """Return the threads that an engine is loaded with."""
    seen = list[int | None]()
    real = loading.load_packed_engine

    def spy(*args: object, threads: int | None, **named: object) -> object:
        seen.append(threads)
        return real(*args, threads=threads, **named)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patched:
        patched.setattr(loading, "load_packed_engine", spy)
        load(package, **options).close()  # pyright: ignore[reportArgumentType]
    return seen[0]


def test_what_is_found_is_kept_and_used(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROUNDS", 1)
    ran = CliRunner().invoke(root, ["tune", str(package), "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    settings = found["tuning"]["settings"]
    known = kept_tuning(package, "together")
    assert known is not None and known.settings.threads == settings["threads"]
    assert all(entry["same"] for entry in found["comparisons"]), "neither threads nor chunks change a bit here"
    assert sorted(map(int, settings["step_seconds"]))[-1] == 16
    with load(package) as model:
        assert isinstance(model.engine, PackedEngine)
        assert model.engine.prefill_chunk == settings["prefill_chunk"]
    shown = CliRunner().invoke(root, ["show", str(package)])
    assert f"tuned      here, for together: {known}" in shown.stdout.splitlines()
    assert "what was found is removed" in CliRunner().invoke(root, ["tune", str(package), "--forget"]).stdout
    assert kept_tuning(package, "together") is None


def test_what_a_user_says_wins(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_of(package, monkeypatch) is None
    kept(package)
    assert threads_of(package, monkeypatch) == 1
    assert threads_of(package, monkeypatch, threads=2) == 2
    monkeypatch.setenv("PHI3_ONNX_THREADS", "2")
    assert threads_of(package, monkeypatch) is None


def test_steps_are_weighed_by_what_they_were_measured_to_take(package: Path) -> None:
    kept(package)
    with load(package) as model:
        assert isinstance(model.engine, PackedEngine)
        assert model.engine.graph.trial_seconds[4] == 0.015
    with load(package, threads=2) as model:
        assert isinstance(model.engine, PackedEngine)
        assert model.engine.graph.trial_seconds.get(4) != 0.015, "it was measured with other threads"
    with load(package, tuned=False) as model:
        assert isinstance(model.engine, PackedEngine)
        assert model.engine.graph.trial_seconds.get(4) != 0.015 and model.engine.prefill_chunk == 128


def test_where_no_draft_pays_nothing_runs_ahead_unless_it_is_asked_for(package: Path) -> None:
    kept(package, speculate=False)
    with load(package) as model:
        assert model.speculation == OFF
    with load(package, speculate=3) as model:
        assert model.speculation.most == 3
    assert not module._pays({1: 1.0, 4: 4.0}) and module._pays({1: 1.0, 4: 1.6}) and module._pays({})


def test_other_versions_and_machines_have_their_own(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(package)
    assert kept_tuning(package, "together") and not kept_tuning(package, "genai")
    for place, name, value in (
        (record, "installed_wheels", lambda: [Wheel("onnxruntime", "9.9", "onnxruntime")]),
        (record, "device_identity", lambda provider, number: "another processor"),
        (tuning, "physical_cores", lambda: 99),
        (tuning, "version", lambda name: "9.9"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, value)
            assert kept_tuning(package, "together") is None, name
    assert kept_tuning(package, "together")


@pytest.mark.parametrize("damage", ["", "{}", "[]", '"threads": 0', '"threads": "2"', '"speculate": 1'])
def test_a_damaged_file_is_none(damage: str, package: Path) -> None:
    found = kept(package)
    (path,) = (cache_folder() / "tuned").iterdir()
    text = path.read_text()
    name = damage.partition(":")[0]
    true = {'"threads"': '"threads": 1', '"speculate"': '"speculate": true'}.get(name)
    path.write_text(text.replace(true, damage) if true else damage)
    assert kept_tuning(package, "together") is None
    path.write_text(text)
    assert kept_tuning(package, "together") == found


def test_a_setting_that_changes_a_bit_is_left_out(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = module._logits, list[int]()

    def other_bits(model: object) -> object:
        calls.append(1)
        logits = real(model)  # pyright: ignore[reportArgumentType]
        if len(calls) > 1:
            logits[-1].view("uint32")[0] ^= 1
        return logits

    monkeypatch.setattr(module, "_logits", other_bits)
    monkeypatch.setattr(module, "_ROUNDS", 1)
    found = tune(package)
    assert found.comparisons and not any(entry.taken or entry.same for entry in found.comparisons)
    assert found.tuning.settings.prefill_chunk == 128


def test_without_time_nothing_is_tried_and_that_is_said(package: Path) -> None:
    found = tune(package, seconds=0)
    assert found.comparisons == [] and found.tuning.settings.step_seconds == {}
    assert found.left and all("(no time left)" in line for line in found.left)
