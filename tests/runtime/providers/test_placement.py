"""How many nodes land on another provider than the one named: counted on real sessions, where this machine has two."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from click.testing import CliRunner
from phi3_onnx.cli import verify as verify_verb
from phi3_onnx.cli.generate import command
from phi3_onnx.configs import ProviderError
from phi3_onnx.runtime import load
from phi3_onnx.runtime.engines import genai
from phi3_onnx.runtime.engines import load as engines_load
from phi3_onnx.runtime.engines.session import open_session
from phi3_onnx.runtime.providers.placement import (
    Placement,
    ask_for_placement,
    cached_placement,
    keep_placement,
    read_placement,
)

Make = Callable[..., Path]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SPLIT = Placement(CUDA, {CUDA: 58, CPU: 3})
# It is in every build for Linux, and takes none of our operators: a split that really happens.
AZURE = "AzureExecutionProvider"
with_azure = pytest.mark.skipif(AZURE not in onnxruntime.get_available_providers(), reason="no second provider here")


def session_of(package: Path, providers: list[str]) -> Any:
    options = onnxruntime.SessionOptions()
    ask_for_placement(options)
    return onnxruntime.InferenceSession(str(package / "model.onnx"), options, providers=providers)


def test_a_real_graph_is_counted_whole(tiny_package: Make) -> None:
    import onnx

    found = read_placement(session_of(tiny_package("gqa"), [CPU]), CPU)
    assert found is not None
    graph = onnx.load(str(tiny_package("gqa") / "model.onnx"), load_external_data=False).graph
    # ONNX Runtime folds constants before it divides the graph, and fuses some nodes.
    assert 0.5 * len(graph.node) < found.total <= len(graph.node)
    assert found.elsewhere == 0


@with_azure
def test_a_real_graph_on_two_providers(tiny_package: Make) -> None:
    found = read_placement(session_of(tiny_package("gqa"), [AZURE, CPU]), AZURE)
    assert found is not None
    assert found.elsewhere == found.total == found.nodes[CPU]
    assert str(found) == f"{found.total} of {found.total} nodes are not on {AZURE}: {found.total} on {CPU}"


@with_azure
@pytest.mark.parametrize("engine", ["genai", "session"])
def test_a_provider_that_runs_nothing_is_no_silent_run_on_the_cpu(tiny_package: Make, engine: str) -> None:
    with pytest.raises(ProviderError, match=r"provider Azure cannot run here: it runs none of the graph's \d+ nodes"):
        load(tiny_package("gqa"), provider="azure") if engine == "genai" else open_session(tiny_package("gqa"), "azure")


def test_a_session_that_did_not_note_it_says_nothing(tiny_package: Make) -> None:
    path = str(tiny_package("gqa") / "model.onnx")
    assert read_placement(onnxruntime.InferenceSession(path, providers=[CPU]), CPU) is None
    assert read_placement(SimpleNamespace(), CPU) is None  # ONNX Runtime before 1.24


def test_nodes_of_compiled_parts_count_each() -> None:
    def part(name: str, nodes: int) -> Any:
        return SimpleNamespace(ep_name=name, get_nodes=lambda: [object()] * nodes)

    session = SimpleNamespace(get_provider_graph_assignment_info=lambda: [part(CUDA, 55), part(CPU, 3), part(CUDA, 3)])
    found = read_placement(session, CUDA)
    assert found == SPLIT
    assert str(found) == f"3 of 61 nodes are not on {CUDA}: 3 on {CPU}"


def test_it_is_kept_until_the_graph_changes(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"one")
    assert cached_placement(graph, CUDA) is None
    keep_placement(graph, SPLIT)
    assert cached_placement(graph, CUDA) == SPLIT
    assert cached_placement(graph, AZURE) is None
    graph.write_bytes(b"another")
    assert cached_placement(graph, CUDA) is None


class TestWhatIsSaid:
    """With a placement of CUDA's, which no machine of the tests has."""

    def test_generate(self, tiny_package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = genai.load_engine

        def split(*arguments: Any, **options: Any) -> Any:
            engine, choice = plain(*arguments, **options)
            return engine, replace(choice, placement=SPLIT)

        monkeypatch.setattr(engines_load, "load_engine", split)
        result = CliRunner().invoke(command, [str(tiny_package("gqa")), "-p", "Hi", "-n", "2", "--json"])
        assert f"; 3 of 61 nodes are not on {CUDA}: 3 on {CPU})" in result.stderr.splitlines()[0]
        assert json.loads(result.stdout)["nodes_elsewhere"] == 3

    def test_nothing_where_all_are_where_they_should_be(self, tiny_package: Make) -> None:
        result = CliRunner().invoke(command, [str(tiny_package("gqa")), "-p", "Hi", "-n", "2", "--json"])
        assert "nodes" not in result.stderr
        assert "nodes_elsewhere" not in json.loads(result.stdout)

    @pytest.mark.parametrize(("nodes", "said"), [(SPLIT.nodes, True), ({CUDA: 61}, False), (None, False)])
    def test_verify(
        self, tiny: Make, tiny_package: Make, monkeypatch: pytest.MonkeyPatch, nodes: Any, said: bool
    ) -> None:
        from phi3_onnx.evaluate.parity import verify as verify_module

        plain = verify_module.verify
        monkeypatch.setattr(
            verify_module, "verify", lambda *a, **o: replace(plain(*a, **{**o, "steps": 1}), nodes=nodes, provider=CUDA)
        )
        arguments = [str(tiny_package("gqa")), "--reference", str(tiny("gqa")), "--no-record"]
        result = CliRunner().invoke(verify_verb.command, arguments)
        assert (f"3 of 61 nodes are not on {CUDA}: 3 on {CPU}" in result.stdout) is said
        if said:
            as_json = json.loads(CliRunner().invoke(verify_verb.command, [*arguments, "--json"]).stdout)
            assert as_json["nodes"] == {CUDA: 58, CPU: 3}
