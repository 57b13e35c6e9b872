"""What a server was asked to be."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Settings of the web side."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes any that is free."""
    model_name: str | None = None
    """What clients call the model; by default the package's name."""
    model_aliases: tuple[str, ...] = ()
    """Further names of the model."""
    api_key: str | None = None
    """What clients must send as bearer token; None asks for nothing."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may read answers; `*` is all of them."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server may be called besides its own, where it listens on this machine alone."""
    parallel: int = 4
    """Answers to work on side by side, each with a KV cache of its own."""
    queue: int = 64
    """Requests that may wait beyond those; more get status 429."""
    max_request_bytes: int = 4 * 2**20
    """Size of a request's body at most; more gets status 413."""
    tool_calls: int = 8
    """Tool calls that one answer may hold."""
    strict: bool = False
    """Whether unknown parameters and names of other models are refused; else a header warns of them."""
    shared_files: Path | None = None
    """The package's folder, where clients may fetch its files under `/package/`; None where they may not."""
    keep_alive: float = 600.0
    """Of many models, how long one stays loaded that nobody asks for; below 0 until its memory is wanted."""
    most_loaded: int = 2
    """Of many models, how many may be loaded at a time."""
    model_bytes: int | None = None
    """Of many models, what those that are loaded may take together; None is what the machine has."""
    shutdown_seconds: float = 30.0
    """How long running answers may continue after SIGTERM."""

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")
