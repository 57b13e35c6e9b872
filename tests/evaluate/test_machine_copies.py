"""`tune --int8`: what is kept where it is worth it, who takes it, and what of it is told apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import UsageError
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.evaluate import machine_copies
from phi3_onnx.evaluate.bytes_read import weights_read
from phi3_onnx.evaluate.tune import tune
from phi3_onnx.export.graph.int8_copy import write_int8_graph
from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt, answer_together
from phi3_onnx.runtime.engines.packed import DECODE_NAME
from phi3_onnx.runtime.engines.packed_engine import PackedEngine
from phi3_onnx.runtime.engines.prepacked import MachineCopy
from phi3_onnx.runtime.proof import prepacked
from phi3_onnx.runtime.proof.prepacked import kept_copy

GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "logprobs": 2}


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a copy whatever it gains: that depends on the machine that tests run on."""
    monkeypatch.setattr(machine_copies, "_LEAST_GAIN", 0.0)
    monkeypatch.setattr(machine_copies, "_MOST_KL", 9.0)


def engine_of(model: Model) -> PackedEngine:
    assert isinstance(model.engine, PackedEngine)
    return model.engine


@pytest.fixture
def tuned(package: Path, worth_it: None) -> tuple[Path, dict[str, Any]]:
    done = CliRunner().invoke(root, ["tune", str(package), "--seconds", "1", "--int8", "--json"])
    assert done.exit_code == 0, done.output
    return package, json.loads(done.stdout)["copy"]


def test_a_copy_is_taken_by_whoever_loads_the_package(tuned: tuple[Path, dict[str, Any]]) -> None:
    package, found = tuned
    kept = kept_copy(package)
    assert kept and kept.int8
    files = [path for path in kept.graph.parent.iterdir() if path.name != "copy.json"]
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert 0 < found["mean_kl"] < 0.2 and min(found[name] for name in ("prompt", "single", "eight")) > 0
    with load(package, tuned=False) as own, load(package) as model, load(package) as again:
        assert not engine_of(own).graph.int8 and "int8" not in own.engine.name
        assert engine_of(model).graph.int8 and "decode.onnx in int8" in model.engine.name
        assert engine_of(own).graph.identity != engine_of(model).graph.identity
        assert engine_of(again).graph.trial == engine_of(model).graph.trial, "what the first load tried out is kept"
        assert own.generate("What is rain?", **GREEDY).logprobs != model.generate("What is rain?", **GREEDY).logprobs
    shown = CliRunner().invoke(root, ["show", str(package)]).stdout
    assert f"prepacked  here: {kept.graph.parent}, in int8: KL 0." in shown


def test_the_bytes_that_a_token_reads_are_of_what_runs(tuned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    package, _ = tuned
    write_int8_graph(package / DECODE_NAME, tmp_path / DECODE_NAME)

    def stored(folder: Path) -> int:
        weights = ir.load(folder / DECODE_NAME).graph.initializers.items()
        return sum(
            value.const_value.nbytes
            for name, value in weights
            if value.const_value and not name.startswith("int8_products.")  # constants that quantize activations
        )

    with load(package, tuned=False) as own, load(package) as model:
        before, after = weights_read(own), weights_read(model)
    assert before and after and after > before
    assert after - before == stored(tmp_path) - stored(package)


def test_answers_are_the_same_alone_and_together(tuned: tuple[Path, dict[str, Any]]) -> None:
    prompts = ["What is rain?", "Write a longer answer about dogs and foxes in the sun.", "Name a color!", "37"]
    with load(tuned[0]) as model:
        alone = [model.generate(prompt, raw=True, **GREEDY) for prompt in prompts]
        together = model.together(3, 2**24)
        assert together is not None
        jobs = [BatchPrompt(model.tokenizer.encode(prompt), model.options(**GREEDY)) for prompt in prompts]
        found = [result for _, result in sorted(answer_together(model, together, jobs))]
        cached = [model.generate(prompt, raw=True, **GREEDY) for prompt in prompts]
    for first, second, third in zip(alone, found, cached, strict=True):
        assert isinstance(second, Response)
        assert (first.token_ids, first.logprobs) == (second.token_ids, second.logprobs)
        assert (first.token_ids, first.logprobs) == (third.token_ids, third.logprobs)


def test_it_is_forgotten(tuned: tuple[Path, dict[str, Any]]) -> None:
    package, _ = tuned
    CliRunner().invoke(root, ["tune", str(package), "--forget"])
    assert kept_copy(package) is None and not list((cache_folder() / "prepacked").iterdir())


def test_one_of_the_same_bits_takes_its_place(tuned: tuple[Path, dict[str, Any]]) -> None:
    package, _ = tuned
    assert CliRunner().invoke(root, ["tune", str(package), "--seconds", "1", "--prepack"]).exit_code == 0
    kept = kept_copy(package)
    assert kept and not kept.int8


@pytest.mark.parametrize(
    ("bound", "value", "why"), [("_LEAST_GAIN", 99.0, "less than 99 times"), ("_MOST_KL", 1e-9, "more than 1e-09")]
)
def test_what_is_not_worth_it_is_not_kept(
    bound: str, value: float, why: str, package: Path, worth_it: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_copies, bound, value)
    lines: list[str] = []
    found = tune(package, seconds=0, int8=True, notify=lines.append)
    assert found.copy and not found.copy.bytes
    assert "nothing was kept" in lines[-1] and why in lines[-1]
    assert kept_copy(package) is None and not list((cache_folder() / "prepacked").iterdir())


def test_where_the_copy_does_not_load_nothing_that_was_learnt_of_it_counts(
    tuned: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    package, _ = tuned
    with load(package, tuned=False) as model:
        expected = engine_of(model).graph.padding
    with load(package):
        pass  # its trial is kept
    kept = kept_copy(package)
    assert kept
    table = json.loads(kept.graph.with_name("copy.json").read_text())
    recorded = {name: tuple(state) for name, state in table["files"].items()}, table["graph"]
    monkeypatch.setattr(prepacked, "_state", lambda place: recorded)
    kept.graph.write_bytes(b"no graph")
    assert kept_copy(package) == MachineCopy(kept.graph, int8=True)
    with load(package) as model:
        graph = engine_of(model).graph
        assert not graph.is_copy and not graph.int8 and "int8" not in model.engine.name
        assert graph.padding == expected


def test_without_memory_nothing_is_begun(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_copies, "available_memory", lambda: 1000)
    with pytest.raises(UsageError, match=r"in int8 takes up to [\d.]+ [kM]B of memory .* and 1.00 kB are free"):
        tune(package, seconds=0, int8=True)
    assert not (cache_folder() / "prepacked").exists()


def test_both_kinds_at_once_are_refused(package: Path) -> None:
    done = CliRunner().invoke(root, ["tune", str(package), "--int8", "--prepack"])
    assert done.exit_code == 2 and "leave --prepack out" in done.output


def test_a_package_without_a_second_graph_is_refused(tiny_package: Callable[..., Path]) -> None:
    done = CliRunner().invoke(root, ["tune", str(tiny_package("gqa")), "--seconds", "1", "--int8"])
    assert "leave --int8 out" in str(done.exception)
