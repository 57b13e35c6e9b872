"""Packages that an older runtime would compute wrongly without a word are refused there, by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from phi3_onnx.configs import PackageError, ProviderError, UsageError
from phi3_onnx.runtime import model
from phi3_onnx.runtime.engines.genai import _refuse_capture
from phi3_onnx.runtime.engines.load import load_named
from phi3_onnx.runtime.package import open_package
from phi3_onnx.runtime.providers import imports as providers
from phi3_onnx.runtime.providers import known_faults
from phi3_onnx.runtime.providers.choice import ProviderChoice
from phi3_onnx.runtime.providers.graph_file import read_nodes
from phi3_onnx.runtime.providers.known_faults import refuse_known_faults, unseen_window

Make = Callable[..., Path]


@pytest.fixture
def without_zero_points(tiny_package: Make, tmp_path: Path) -> Path:
    """A graph as it was exported before zero points were stored."""
    model = onnx.load(tiny_package("gqa", "cuda-int4-rtn") / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "GatherBlockQuantized":
            assert len(node.input) == 4
            del node.input[3:]
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def pretend(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_faults, "import_onnxruntime", lambda: SimpleNamespace(__version__=version))


@pytest.mark.parametrize("version", ["1.24.4", "1.26.0", "1.28.0"])
def test_8_bit_lookup_without_zero_points_is_refused(
    version: str, without_zero_points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(version, monkeypatch)
    with pytest.raises(ProviderError, match=rf"wrongly by onnxruntime {version} on cuda: .* takes 0 for 128"):
        refuse_known_faults(without_zero_points, "cuda")
    refuse_known_faults(without_zero_points, "cpu")


@pytest.mark.parametrize("version", ["1.29.0", "1.31.1"])
def test_and_not_where_it_is_right(version: str, without_zero_points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(version, monkeypatch)
    refuse_known_faults(without_zero_points, "cuda")


def test_what_is_exported_now_is_right_everywhere(tiny_package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("1.26.0", monkeypatch)
    refuse_known_faults(tiny_package("gqa", "cuda-int4-rtn") / "model.onnx", "cuda")


def test_nodes_are_those_that_onnx_reads(tiny_package: Make) -> None:
    path = tiny_package("gqa", "cuda-int4-rtn") / "model.onnx"
    expected = onnx.load(path, load_external_data=False).graph.node
    found = read_nodes(path)
    assert [(node.operator, node.domain, list(node.inputs)) for node in found] == [
        (node.op_type, node.domain, list(node.input)) for node in expected
    ]
    for node, other in zip(found, expected, strict=True):
        integers = {a.name: a.i for a in other.attribute if a.type == onnx.AttributeProto.INT}
        assert {name: node.integers[name] for name in integers} == integers
    assert any(node.integers.get("local_window_size") == -1 for node in found)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x3a\x7fshort"])
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(PackageError, match="cannot be read as an ONNX model"):
        read_nodes(path)


@pytest.mark.parametrize(
    ("kind", "value", "refused"), [("longrope", "1", True), ("longrope", "0", False), ("gqa", "1", False)]
)
def test_cuda_graphs_with_longrope(kind: str, value: str, refused: bool, tiny_package: Make, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(tiny_package(kind, "cuda-fp16"), folder)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {"enable_cuda_graph": value}}]
    path.write_text(json.dumps(config), encoding="utf-8")
    manifest = json.loads((folder / "phi3_onnx.json").read_text(encoding="utf-8"))
    manifest["files"]["genai_config.json"]["size"] = path.stat().st_size
    (folder / "phi3_onnx.json").write_text(json.dumps(manifest), encoding="utf-8")
    package = open_package(folder)
    _refuse_capture(package, "cpu")
    if refused:
        with pytest.raises(ProviderError, match=r"has enable_cuda_graph in its genai_config\.json"):
            _refuse_capture(package, "cuda")
    else:
        _refuse_capture(package, "cuda")


class TestLibraries:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        made: list[str] = []

        def preload() -> None:
            made.append("preload")
            print("Failed to load libcublas.so.13")

        module: Any = SimpleNamespace(preload_dlls=preload)
        monkeypatch.setattr(providers, "import_onnxruntime", lambda: module)
        providers.load_libraries.cache_clear()
        return made

    def test_they_are_loaded_once_and_quietly(self, calls: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        providers.load_libraries("cuda")
        providers.load_libraries("cuda")
        assert calls == ["preload"]
        assert capsys.readouterr() == ("", "")

    def test_for_cuda_alone(self, calls: list[str]) -> None:
        providers.load_libraries("cpu")
        providers.load_libraries("CPUExecutionProvider")
        assert calls == []


def test_directml_sees_no_sliding_window(tiny_package: Make) -> None:
    graph = tiny_package("window") / "model.onnx"
    assert unseen_window(graph, "dml") == 31
    assert unseen_window(graph, "cpu") is None and unseen_window(graph, "cuda") is None
    assert unseen_window(tiny_package("gqa") / "model.onnx", "dml") is None


@pytest.mark.parametrize(("kind", "context"), [("window", 31), ("gqa", None)])
def test_so_a_text_has_no_more_tokens_than_the_window_there(
    kind: str, context: int | None, tiny_package: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_package(kind)

    def on_directml(package: Any, _: str, engine: Any, **options: Any) -> Any:
        loaded, choice = load_named(package, "cpu", engine, **options)
        return loaded, ProviderChoice("dml", choice.candidates)

    monkeypatch.setattr(model, "load_named", on_directml)
    lines: list[str] = []
    with model.load(folder, provider="dml", notify=lines.append) as loaded:
        assert loaded.context_length == (context or open_package(folder).context_length)
        assert ["31 tokens of context" in line for line in lines] == ([True] if context else [])
        if context:
            with pytest.raises(UsageError, match="31"):
                loaded.generate("many words " * 40, max_tokens=1)
