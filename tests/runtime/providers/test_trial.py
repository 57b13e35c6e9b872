"""Whether a provider runs is tried, and whatever it does is survived."""

import sys
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.runtime.providers import trial
from phi3_onnx.runtime.providers.trial import ProviderTrial, matmul_model, run_trial, try_provider


def test_the_model_in_the_file_is_the_one_that_is_meant() -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    a, b = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in "ab")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "a"], ["b"])], "tiny", [a], [b])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    assert onnx.load_from_string(matmul_model()) == model


def test_the_cpu_is_tried_here_and_in_a_process_of_its_own() -> None:
    assert run_trial("cpu").runs
    assert try_provider("cpu").runs


def test_a_provider_that_is_not_built_in_says_so() -> None:
    result = try_provider("dml")
    assert (result.provider, result.runs) == ("dml", False)
    assert "is built without it" in result.reason


def test_a_wrong_result_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "np", _Doubling())
    assert "it computes wrongly" in run_trial("cpu").reason


def test_what_onnx_runtime_says_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "matmul_model", lambda: b"no model")
    result = run_trial("cpu")
    assert not result.runs and result.reason and "[ONNXRuntimeError]" not in result.reason


class _Doubling:
    """numpy, but for the input of the trial, which is doubled."""

    float32 = np.float32
    array_equal = staticmethod(np.array_equal)

    @staticmethod
    def asarray(values: object, dtype: type) -> np.ndarray:
        return 2 * np.asarray(values, dtype=dtype)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not exit codes there")
def test_a_provider_that_takes_its_process_along_is_survived(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    assert try_provider("cuda") == ProviderTrial("cuda", False, "the process that tried it ended with signal 11")
