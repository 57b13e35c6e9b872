"""A copy of a graph whose weights lie as this machine's kernels want them: its file is mapped, and processes share it.

ONNX Runtime otherwise lays all weights out anew at each load, in memory of each process. Another processor, or another
version, may want another layout, and nothing in the copy says which it has: who keeps one has to know.
"""

from dataclasses import dataclass
from pathlib import Path

from ...configs import OutputError, PackageError
from ...configs.errors import first_line
from ..providers.imports import import_onnxruntime
from .cpu_options import cpu_options

# Smaller constants stay in the graph.
_LEAST_BYTES = 1024


@dataclass(frozen=True)
class MachineCopy:
    """A copy of a package's second graph for this machine."""

    graph: Path
    int8: bool = False
    """Whether it multiplies integers, and computes other bits than the package's own."""


def write_prepacked(graph: Path, copy: Path, layer_bytes: int) -> None:
    """Write a copy of a graph with prepacked weights; they go into a file of its name and `.data`.

    Args:
        graph: an ONNX file.
        copy: where the copy goes, in a folder that is there.
        layer_bytes: see `cpu_options`.

    Raises:
        PackageError: the graph cannot be loaded.
        OutputError: the copy cannot be written.

    """
    ort = import_onnxruntime()
    options = cpu_options(layer_bytes, None)
    options.log_severity_level = 4  # it warns that the copy is for this machine alone
    options.optimized_model_filepath = str(copy)
    for name, value in {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": f"{copy.name}.data",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_LEAST_BYTES),
    }.items():
        options.add_session_config_entry(name, value)
    try:
        ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common base but this
        raise PackageError(
            f"{graph} cannot be laid out for this processor by onnxruntime {ort.__version__}: {first_line(error)}"
        ) from error
    if not copy.is_file():
        raise OutputError(f"{copy} was not written by onnxruntime {ort.__version__}")
