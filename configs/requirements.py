"""Says what to install when something needs an extra that is not there, or a package in another version."""

from importlib.metadata import PackageNotFoundError, version

from .errors import Phi3OnnxError
from .extras import ONNXRUNTIME, WHEELS, with_extras
from .origin import install_command
from .releases import GROUPS, check_versions


class MissingExtraError(Phi3OnnxError):
    """Packages of an extra are not installed."""


def require_export() -> None:
    """Check that the packages of the `export` extra are there, in versions that work.

    Raises:
        MissingExtraError: some are not there; the message has the command that installs them.
        VersionError: one is there in a version that is known not to work.

    """
    _require("export")


def require_server() -> None:
    """Check that the packages of the `server` extra are there; see `require_export`."""
    _require("server")


def require_hub() -> None:
    """Check that the packages of the `hub` extra are there; see `require_export`."""
    _require("hub")


def require_sign() -> None:
    """Check that the packages of the `sign` extra are there; see `require_export`."""
    _require("sign")


def _require(extra: str) -> None:
    packages = GROUPS[extra]
    missing = [name for name in packages if not _installed(name)]
    if missing:
        wheels = [name for name in WHEELS[ONNXRUNTIME] if _installed(name)]
        # The hub's verbs run nothing, and `serve` says itself which ONNX Runtime it wants.
        command = with_extras(wheels, extra) if extra == "export" else install_command(extra)
        raise MissingExtraError(
            f"this needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            remedy=f"run: {command}",
        )
    check_versions(packages)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
