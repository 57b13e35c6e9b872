"""What ONNX Runtime's sessions are opened with, on the CPU and beside a GPU."""

from typing import Any

from ..providers.hardware import default_threads, spinning_option
from ..providers.imports import import_onnxruntime


def cpu_options(layer_bytes: int, threads: int | None, *, takes_turns: bool = False) -> Any:
    """Return new `onnxruntime.SessionOptions` with this machine's threads.

    Args:
        layer_bytes: bytes of weights in one layer, by which threads spin or sleep between operators.
        threads: threads of one operator; by default the physical cores.
        takes_turns: whether another session runs on the same cores between this one's runs. Threads then sleep as soon
            as a run has ended: while they still spin, they hold the cores that the other session needs.

    """
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    for key, value in spinning_option(layer_bytes).items():
        options.add_session_config_entry(key, value)
    if takes_turns:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
