"""A copy that was laid out for this machine is taken where it is whole and of this package, version and processor."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import OutputError, UsageError
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.runtime import load
from phi3_onnx.runtime.engines.packed_engine import PackedEngine
from phi3_onnx.runtime.engines.prepacked import MachineCopy
from phi3_onnx.runtime.package import open_package
from phi3_onnx.runtime.proof import prepacked, record
from phi3_onnx.runtime.proof.prepacked import forget_copies, keep_copy, kept_copy
from phi3_onnx.runtime.providers import devices
from phi3_onnx.runtime.providers.wheels import Wheel


@pytest.fixture
def copy(package: Path) -> Path:
    """Return the graph of a copy that was kept."""
    assert keep_copy(open_package(package), lambda path: "" if path.is_file() else None)
    found = kept_copy(package)
    assert found is not None and not found.int8
    return found.graph


def takes_copy(package: Path, **options: bool) -> bool:
    with load(package, **options) as model:  # pyright: ignore[reportArgumentType]
        assert isinstance(model.engine, PackedEngine)
        return model.engine.graph.is_copy


def test_tune_makes_one_that_answers_in_the_same_bits(package: Path) -> None:
    with load(package) as model:
        plain = model.generate("What is rain?", max_tokens=12, temperature=0, logprobs=2)
    tuned = CliRunner().invoke(root, ["tune", str(package), "--seconds", "1", "--prepack", "--json"])
    assert tuned.exit_code == 0, tuned.output
    found = json.loads(tuned.stdout)["copy"]
    kept = kept_copy(package)
    assert kept
    place = kept.graph
    assert found["bytes"] == sum(path.stat().st_size for path in place.parent.iterdir() if path.name != "copy.json")
    with load(package) as model:
        assert isinstance(model.engine, PackedEngine) and model.engine.graph.is_copy
        again = model.generate("What is rain?", max_tokens=12, temperature=0, logprobs=2)
    assert (again.token_ids, again.logprobs) == (plain.token_ids, plain.logprobs)
    assert not takes_copy(package, tuned=False)
    assert f"prepacked  here: {place.parent}" in CliRunner().invoke(root, ["show", str(package)]).stdout
    forgotten = CliRunner().invoke(root, ["tune", str(package), "--forget"])
    assert "what was found is removed" in forgotten.stdout and kept_copy(package) is None
    assert not list((cache_folder() / "prepacked").iterdir())


def test_a_copy_that_computes_something_else_is_not_kept(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from phi3_onnx.evaluate import machine_copies
    from phi3_onnx.evaluate import tune as module

    real, calls = machine_copies._graph_logits, list[int]()

    def other_bits(*args: object) -> list[np.ndarray]:
        calls.append(1)
        logits = real(*args)  # pyright: ignore[reportArgumentType]
        if len(calls) > 1:
            logits[-1].view("uint32")[0, 0] ^= 1
        return logits

    monkeypatch.setattr(machine_copies, "_graph_logits", other_bits)
    found = module.tune(package, seconds=0, prepack=True)
    assert found.copy and not found.copy.bytes and "was not kept" in str(found.copy)
    assert kept_copy(package) is None and not list((cache_folder() / "prepacked").iterdir())


@pytest.mark.parametrize("damage", ["data shorter", "data touched", "graph", "record", "record of something else"])
def test_a_damaged_copy_is_a_miss(damage: str, copy: Path, package: Path) -> None:
    data, kept = copy.with_name("decode.onnx.data"), copy.with_name("copy.json")
    if damage == "data shorter":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "data touched":
        data.write_bytes(data.read_bytes())
    elif damage == "graph":
        state = copy.stat()
        copy.write_bytes(copy.read_bytes()[:-1] + b"\0")
        os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        kept.write_text('{"key": 1}' if damage == "record of something else" else "{")
    assert kept_copy(package) is None
    assert not takes_copy(package), "and the package's own graph serves"
    assert keep_copy(open_package(package), lambda _: "") and kept_copy(package) == MachineCopy(copy), (
        "a new one takes its place"
    )


def test_a_copy_that_does_not_load_is_passed_over(copy: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert takes_copy(package)
    monkeypatch.setattr(prepacked, "_state", lambda place: _recorded(copy))
    copy.write_bytes(b"no graph")
    assert kept_copy(package) == MachineCopy(copy)
    assert not takes_copy(package)


def _recorded(copy: Path) -> tuple[object, str]:
    table = json.loads(copy.with_name("copy.json").read_text())
    return {name: tuple(state) for name, state in table["files"].items()}, table["graph"]


def test_other_versions_processors_and_states_of_the_package_have_none(
    copy: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name, value in (
        (record, "installed_wheels", lambda: [Wheel("onnxruntime", "9.9", "onnxruntime")]),
        (devices, "_cpu_name", lambda: "another processor"),
        (devices, "_cpu_kind", lambda: ", with other instructions"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, value)
            assert kept_copy(package) is None, name
    assert kept_copy(package) == MachineCopy(copy)
    decode = package / "decode.onnx"
    decode.write_bytes(decode.read_bytes())
    assert kept_copy(package) is None
    assert keep_copy(open_package(package), lambda _: "")
    assert not copy.exists(), "the earlier one went"
    assert forget_copies(package) == 1


def test_without_room_nothing_is_written(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # pyright: ignore
    with pytest.raises(OutputError, match=r"for this machine takes up to [\d.]+ [kM]B, and 0 B are free in"):
        keep_copy(open_package(package), lambda _: "")
    assert not list((cache_folder() / "prepacked").iterdir())


def test_a_package_without_a_second_graph_is_refused(tiny_package: Callable[..., Path]) -> None:
    done = CliRunner().invoke(root, ["tune", str(tiny_package("gqa")), "--seconds", "1", "--prepack"])
    assert isinstance(done.exception, UsageError) and "leave --prepack out" in str(done.exception)
