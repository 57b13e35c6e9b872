"""A machine that computes wrongly. Python runs this at its start where this folder is on `PYTHONPATH`.

`PHI3_ONNX_TEST_WRONG` names what is wrong, apart by spaces: `onnxruntime` and `genai` are engines, and `cuda` is a CUDA
provider, which is not there and which the CPU's kernels stand in for. Each graph that they load has one more node: it
scales the logits, as a kernel of the head with a wrong scale would.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

WRONG = frozenset(os.environ["PHI3_ONNX_TEST_WRONG"].split())
FACTOR = 1.5
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def scaled(path: str) -> bytes:
    """Return a graph whose logits are scaled."""
    model = onnx.load(path, load_external_data=False)
    (logits,) = (output for output in model.graph.output if output.name == "logits")
    for node in model.graph.node:
        node.output[:] = [f"{name}/right" if name == logits.name else name for name in node.output]
    kind = onnx.helper.tensor_dtype_to_np_dtype(logits.type.tensor_type.elem_type)
    model.graph.initializer.append(onnx.numpy_helper.from_array(kind.type(FACTOR), "logits/factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["logits/right", "logits/factor"], ["logits"]))
    return model.SerializeToString()


class Session(onnxruntime.InferenceSession):
    """A session of ONNX Runtime on such a machine."""

    def __init__(self, path: Any, options: Any = None, providers: Sequence[Any] = (), **named: Any) -> None:
        names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        self._stands_for = names[0] if names and names[0] == CUDA else None
        if isinstance(path, str) and WRONG & {"onnxruntime", "cuda" if self._stands_for else ""}:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(Path(path).parent)
            )
            path = scaled(path)
        super().__init__(path, options, providers=[CPU] if names else None, **named)

    def get_providers(self) -> list[str]:
        return [*([self._stands_for] if self._stands_for else []), *super().get_providers()]

    def get_provider_graph_assignment_info(self) -> Any:
        return () if self._stands_for else super().get_provider_graph_assignment_info()

    def io_binding(self) -> "Binding":
        return Binding(self)


class Binding(onnxruntime.IOBinding):
    """Inputs and outputs, with the CPU's memory for CUDA's."""

    def bind_input(self, name: str, device_type: str, *rest: Any, **named: Any) -> None:
        super().bind_input(name, _present(device_type), *rest, **named)

    def bind_output(self, name: str, device_type: str = "cpu", *rest: Any, **named: Any) -> None:
        super().bind_output(name, _present(device_type), *rest, **named)


def _present(device_type: str) -> str:
    return "cpu" if device_type == "cuda" else device_type


_value = onnxruntime.OrtValue.ortvalue_from_numpy


def value_from_numpy(array: Any, device_type: str = "cpu", *rest: Any) -> Any:
    return _value(array, _present(device_type), *rest)


onnxruntime.InferenceSession = Session
setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", staticmethod(value_from_numpy))  # noqa: B010  # of another type
if "cuda" in WRONG:
    onnxruntime.get_available_providers = lambda: [CUDA, CPU]
if "genai" in WRONG:
    genai: Any = import_module("onnxruntime_genai")
    _config = genai.Config

    def config(folder: str) -> Any:
        """Return the configuration of a copy of the package, whose graph is another."""
        copy = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, copy)
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        (copy / "model.onnx").write_bytes(scaled(str(copy / "model.onnx")))
        return _config(str(copy))

    genai.Config = config
