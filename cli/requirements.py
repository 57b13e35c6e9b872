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
    _require(("torch", "transformers", "onnx", "onnxscript", "onnx_ir"), "export,cpu")


def require_server() -> None:
    """Check that the packages of the `server` extra are there.

    Raises:
        MissingExtraError: some are not; the message has the command that installs them.

    """
    _require(("pydantic", "prometheus_client", "starlette", "uvicorn"), "server")


def require_hub() -> None:
    """Check that the packages of the `hub` extra are there.

    Raises:
        MissingExtraError: some are not; the message has the command that installs them.

    """
    _require(("huggingface_hub",), "hub")


def _require(modules: tuple[str, ...], extras: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"this needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            remedy=f'run: pip install "phi3-onnx[{extras}]"',
        )
