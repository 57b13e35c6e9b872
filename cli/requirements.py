"""Say what to install when a verb needs an extra that is not there."""

from importlib.util import find_spec

from ..configs import Phi3OnnxError


class MissingExtraError(Phi3OnnxError):
    """Packages of an extra are not installed."""


def require_export() -> None:
    """Check that the packages of the `export` extra are there.

    Raises:
        MissingExtraError: some are not; the message has the command that installs them.

    """
    missing = [name for name in ("torch", "transformers", "onnx", "onnxscript", "onnx_ir") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"this needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            'run: pip install "phi3-onnx[export,cpu]"'
        )
