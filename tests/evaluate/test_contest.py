"""Models in turn: who takes part, what is compared with what, and what is wrong. Nothing here looks at a clock."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import PackageError, UsageError
from phi3_onnx.evaluate.contest import contenders
from phi3_onnx.evaluate.contest.contenders import Entry, open_contender
from phi3_onnx.evaluate.contest.contest import Loaded, Turn, results_of

SHORT = ["-p", "8", "-n", "2", "--repeat", "2", "--threads", "1"]


def test_packages_have_their_turns(tiny_package: Callable[..., Path]) -> None:
    first, second = tiny_package("gqa", "cpu-int4-rtn"), tiny_package("plain")
    ran = CliRunner().invoke(root, ["bench", str(first), "--against", str(second), *SHORT, "-o", "json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert [(entry["name"], entry["kind"], entry["tokens"], entry["depth"]) for entry in found] == [
        (name, *work)
        for name in ("tiny-gqa/cpu-int4-rtn", "tiny-plain/cpu-fp32")
        for work in (("prefill", 8, 0), ("decode", 2, 8))
    ]
    assert [entry["ratio"] is None for entry in found] == [True, True, False, False]
    for entry in found:
        assert 0 < entry["least"] <= entry["tokens_per_second"] <= entry["most"]
        assert entry["peak_memory_bytes"] > 10 << 20


def test_ratios_are_those_of_a_round() -> None:
    loaded = [Loaded(name, "", 1.0, 1.0) for name in "ab"]
    turns = [[Turn(1.0, 2.0), Turn(4.0, 2.0), Turn(1.0, 2.0)], [Turn(3.0, 1.0), Turn(8.0, 1.0), Turn(1.0, 4.0)]]
    _, _, prefill, decode = results_of(loaded, turns, [1, 2], prompt_tokens=8, decoded_tokens=4)
    assert (prefill.ratio, prefill.ratio_least, prefill.ratio_most) == (2.0, 1.0, 3.0)
    assert (decode.ratio, decode.ratio_least, decode.ratio_most) == (0.5, 0.5, 2.0)
    assert (decode.tokens_per_second, decode.least, decode.most, decode.peak_memory_bytes) == (4.0, 1.0, 4.0, 2)


def test_what_is_not_there_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PackageError, match=r"there is no file .*none\.gguf"):
        Entry.named(str(tmp_path / "none.gguf"))
    with pytest.raises(PackageError, match="neither a folder nor a package"):
        Entry.named("nothing")
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    (tmp_path / "model.GGUF").touch()
    with pytest.raises(UsageError, match=r"runs in llama\.cpp, .* pip install llama-cpp-python$"):
        Entry.named(str(tmp_path / "model.GGUF"))
    (tmp_path / "openvino_model.xml").touch()
    with pytest.raises(UsageError, match=r"runs in openvino, .* pip install openvino$"):
        Entry.named(str(tmp_path))


def test_lengths_do_not_sweep_beside_others(tiny_package: Callable[..., Path]) -> None:
    package = str(tiny_package("plain"))
    ran = CliRunner().invoke(root, ["bench", package, "--against", package, "-p", "8,16"])
    assert isinstance(ran.exception, UsageError) and "--against compares one prompt length" in str(ran.exception)


def test_a_package_runs_what_it_is_given(tiny_package: Callable[..., Path]) -> None:
    entry = Entry.named(str(tiny_package("plain")), threads=1)
    contender = open_contender(entry, 12)
    for _ in range(2):
        contender.prefill([1, 2, 3])
        for token in range(9):
            contender.step(token)
    assert contender.name == "tiny-plain/cpu-fp32"
    with pytest.raises(UsageError, match="5000 tokens do not fit"):
        open_contender(entry, 5000)


class Llama:
    """As much of llama-cpp-python's class as is used."""

    def __init__(self, path: str, **options: Any) -> None:
        if "broken" in path:
            raise ValueError("Failed to load model from file\nand more")
        self.options, self.calls = options, list[Any]()

    def n_vocab(self) -> int:
        return 100

    def reset(self) -> None:
        self.calls.append("reset")

    def eval(self, tokens: list[int]) -> None:
        self.calls.append(tokens)


def test_llama_cpp_gets_the_same_threads_and_forgets_the_text_before(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("llama_cpp")
    module.Llama, module.__version__ = Llama, "0.9"
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    contender: Any = open_contender(Entry("llama.cpp", Path("a.gguf"), threads=3), 20)
    contender.prefill([1, 2])
    contender.step(3)
    contender.prefill([4])
    llama = contender._llama
    assert llama.calls == ["reset", [1, 2], [3], "reset", [4]]
    assert (llama.options["n_threads"], llama.options["n_threads_batch"], llama.options["n_ctx"]) == (3, 3, 20)
    assert (contender.engine, contender.vocab_size) == ("llama-cpp-python 0.9", 100)
    with pytest.raises(PackageError, match=r"llama\.cpp cannot load broken\.gguf: Failed to load model from file$"):
        open_contender(Entry("llama.cpp", Path("broken.gguf")), 20)


class Request:
    """As much of an OpenVINO request as is used."""

    def __init__(self) -> None:
        self.calls = list[Any]()

    def reset_state(self) -> None:
        self.calls.append("reset")

    def infer(self, feeds: dict[str, np.ndarray]) -> None:
        self.calls.append({name: value.tolist() for name, value in feeds.items()})


def openvino(request: Request, names: list[str]) -> Any:
    """Return a stand-in for the module, whose every model has these inputs."""
    ports = [SimpleNamespace(names={name}) for name in names]
    logits = SimpleNamespace(partial_shape=[1, 1, SimpleNamespace(get_length=lambda: 77)])
    compiled = SimpleNamespace(inputs=ports, outputs=[logits], create_infer_request=lambda: request)
    module: Any = ModuleType("openvino")
    module.Core, module.__version__ = (lambda: SimpleNamespace(compile_model=lambda *_: compiled)), "2026.4.1-2-abc"
    return module


def test_openvino_gets_the_inputs_that_its_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    request, names = Request(), ["input_ids", "attention_mask", "position_ids"]
    monkeypatch.setitem(sys.modules, "openvino", openvino(request, names))
    contender = open_contender(Entry("openvino", Path("folder")), 20)
    contender.prefill([5, 6])
    contender.step(7)
    assert request.calls == [
        "reset",
        {"input_ids": [[5, 6]], "attention_mask": [[1, 1]], "position_ids": [[0, 1]]},
        {"input_ids": [[7]], "attention_mask": [[1, 1, 1]], "position_ids": [[2]]},
    ]
    assert (contender.engine, contender.vocab_size) == ("openvino 2026.4.1", 77)
    monkeypatch.setitem(sys.modules, "openvino", openvino(request, ["pixels"]))
    with pytest.raises(PackageError, match="folder has no input input_ids"):
        open_contender(Entry("openvino", Path("folder")), 20)
