"""Loading proves a package where it has not been proven, refuses what computes wrongly, and remembers what it saw."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import PackageError, SelfTestError
from phi3_onnx.configs.manifest import SELF_TEST_NAME
from phi3_onnx.runtime import load
from phi3_onnx.runtime.engines import genai, ort, packed
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.model import load_to_batch, load_to_serve
from phi3_onnx.runtime.proof import prove
from phi3_onnx.runtime.proof.record import proofs_of
from phi3_onnx.runtime.proof.self_test import Distance, SelfTest, Text, expect
from phi3_onnx.runtime.server.worker import PackageLoader

LENGTHS = {20: (9, 15, 16, 17, 18, 19), 12: (5, 11)}


def self_test(package: Path) -> SelfTest:
    """Return a self-test of a package's own logits, as verification makes one of the reference's."""
    session, texts = LogitsSession(package), []
    for length, positions in LENGTHS.items():
        tokens = tuple((11 + 7 * i) % 400 for i in range(length))
        logits = np.concatenate([rows for _, rows in session.logits(np.array(tokens), chunk=length)])
        texts.append(
            Text(tokens, tuple(expect(logits[position], logits[position], position) for position in positions))
        )
    return SelfTest(tuple(texts), Distance(0.0, 0.0), Distance(0.015, 0.1), session.provider)


@pytest.fixture
def package(package: Path) -> Path:
    """Return a copy of a package with `decode.onnx`, with a self-test of its own."""
    (package / SELF_TEST_NAME).write_text(self_test(package).to_json(), encoding="utf-8")
    return package


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the engines on which self-tests are replayed."""
    seen: list[str] = []
    real = prove.replay

    def counted(self_test: SelfTest, engine: Any) -> Any:
        seen.append(engine.name)
        return real(self_test, engine)

    monkeypatch.setattr(prove, "replay", counted)
    return iter([seen])


ENGINES = ["genai", "onnxruntime", "together"]
ENGINE_CLASSES = {
    "genai": (genai.GenAiSequence, "logits"),
    "onnxruntime": (ort.SlotSequence, "logits"),
    "together": (packed.PackedGraph, "run"),
}


def scale(monkeypatch: pytest.MonkeyPatch, engine: str, factor: float) -> None:
    """Let an engine's logits come out scaled."""
    owner, name = ENGINE_CLASSES[engine]
    real = getattr(owner, name)

    def scaled(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        return [rows * factor for rows in found] if isinstance(found, list) else found * factor

    monkeypatch.setattr(owner, name, scaled)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_package_is_proven_once(engine: Any, package: Path, replays: Iterator[list[str]]) -> None:
    (seen,), said = replays, list[str]()
    for _ in range(2):
        load(package, engine=engine, notify=said.append).close()
    assert len(seen) == len(said) == 1
    assert "self-test on cpu, onnxruntime" in said[0]
    assert "passed" in said[0]
    (proof,) = proofs_of(package)
    assert (proof.passed, proof.key.provider, proof.key.engine) == (True, "cpu", seen[0])


def test_every_engine_is_proven_by_itself(package: Path, replays: Iterator[list[str]]) -> None:
    (seen,) = replays
    for engine in ENGINES:
        load(package, engine=engine).close()  # pyright: ignore[reportArgumentType]
    assert len(set(seen)) == len(seen) == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_scales_its_logits_is_refused(
    engine: Any, package: Path, replays: Iterator[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (seen,) = replays
    with monkeypatch.context() as patched:
        scale(patched, engine, 1.5)
        for _ in range(2):  # and is not let through because it was seen before
            with pytest.raises(SelfTestError, match=r"computed wrongly on cpu by .* nats"):
                load(package, engine=engine)
        load(package, engine=engine, self_test=False).close()
    assert [proof.passed for proof in proofs_of(package)] == [False]
    load(package, engine=engine).close()
    assert len(seen) == 3
    assert [proof.passed for proof in proofs_of(package)] == [True]


def test_what_is_wrong_in_decoding_alone_is_seen(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = genai.GenAiSequence.append
    logits = genai.GenAiSequence.logits
    monkeypatch.setattr(
        genai.GenAiSequence,
        "append",
        lambda self, tokens: (setattr(self, "decodes", len(tokens) == 1), real(self, tokens))[1],
    )
    monkeypatch.setattr(genai.GenAiSequence, "logits", lambda self: logits(self) * (np.nan if self.decodes else 1))
    with pytest.raises(SelfTestError, match="not finite, with single tokens"):
        load(package, engine="genai")


def test_what_is_wrong_from_the_second_piece_on_is_seen(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LogitsSession.feeds

    def astray(self: LogitsSession, ids: np.ndarray, starts: Any) -> dict[str, np.ndarray]:
        feeds = real(self, ids, starts)
        if max(starts) and ids.shape[1] > 1:
            feeds["input_ids"] = feeds["input_ids"][:, ::-1].copy()
        return feeds

    monkeypatch.setattr(LogitsSession, "feeds", astray)
    with pytest.raises(SelfTestError, match=r"with (a further piece|single tokens)"):
        load(package, engine="onnxruntime")


def test_auto_goes_on_to_the_next_provider(
    tiny_package: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(tiny_package("gqa", "cuda-fp16"), folder)
    (folder / SELF_TEST_NAME).write_text(self_test(folder).to_json(), encoding="utf-8")
    # A GPU that answers as the CPU does, and wrongly.
    real = genai._config
    monkeypatch.setattr(genai, "_config", lambda og, package, provider, *rest: real(og, package, "cpu", *rest))
    monkeypatch.setattr(genai, "_placement", lambda *_: None)
    monkeypatch.setattr(genai, "_DEVICE_TYPES", {})
    monkeypatch.setattr(genai, "refuse_known_faults", lambda *_: None)
    logits = genai.GenAiSequence.logits
    wrong = {"cuda": 1.5, "dml": np.nan}
    monkeypatch.setattr(genai.GenAiSequence, "logits", lambda self: logits(self) * wrong.get(self._engine.provider, 1))
    with caplog.at_level(logging.WARNING, "phi3_onnx"), load(folder) as model:
        assert model.provider == "cpu"
        assert "cuda: not chosen, " in str(model.choice)
        assert "computed wrongly on cuda" in str(model.choice)
        assert "computed wrongly on dml" in str(model.choice)
    said = [record.message for record in caplog.records if record.name.endswith("choice")]
    assert all(line.startswith("warning: tiny-gqa/cuda-fp16 is computed wrongly") for line in said)
    assert len(said) == 2
    assert {proof.key.provider: proof.passed for proof in proofs_of(folder)} == {
        "cuda": False,
        "dml": False,
        "cpu": True,
    }


def test_servers_and_batches_pass_over_a_graph_that_computes_wrongly(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale(monkeypatch, "together", 1.5)
    with load_to_serve(package) as model:
        assert "genai" in model.engine.name
        assert "computed wrongly on cpu" in str(model.turns_because)
    said = list[str]()
    with load_to_batch(package, notify=said.append) as model:
        assert model.engine.name.startswith("onnxruntime ")
    assert any("warning: " in line and "computed wrongly" in line for line in said)
    with PackageLoader(str(package), self_test=False)() as model:
        assert "decode.onnx" in model.engine.name


def test_the_second_engine_of_a_batch_is_proven_too(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(package) as model:
        scale(monkeypatch, "onnxruntime", 1.5)
        with pytest.raises(SelfTestError):
            model.batching_engine()


def test_a_changed_file_is_proven_again(package: Path, replays: Iterator[list[str]]) -> None:
    (seen,) = replays
    load(package).close()
    os.utime(package / "model.onnx", ns=(1, 1))
    load(package).close()
    assert len(seen) == 2


def test_a_package_without_a_self_test_loads(package: Path, replays: Iterator[list[str]]) -> None:
    (seen,) = replays
    (package / SELF_TEST_NAME).unlink()
    load(package).close()
    assert seen == []


def test_a_damaged_self_test_is_one_line(package: Path) -> None:
    table = json.loads((package / SELF_TEST_NAME).read_text())
    del table["expected"]
    (package / SELF_TEST_NAME).write_text(json.dumps(table))
    for how in (load, load_to_serve):
        with pytest.raises(PackageError, match=r"selftest\.json is damaged: it has no 'expected'; .*--no-self-test"):
            how(package)
    load(package, self_test=False).close()
