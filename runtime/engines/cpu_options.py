"""What ONNX Runtime's sessions are opened with, on the CPU and beside a GPU."""

from typing import Any

from ..providers.hardware import default_threads, spinning_option
from ..providers.imports import import_onnxruntime


def cpu_options(layer_bytes: int, threads: int | None) -> Any:
    """Return new `onnxruntime.SessionOptions` with this machine's threads.

    Args:
        layer_bytes: bytes of weights in one layer, by which threads spin or sleep between operators.
        threads: threads of one operator; by default the physical cores.

    """
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    for key, value in spinning_option(layer_bytes).items():
        options.add_session_config_entry(key, value)
    return options
