"""The project's errors. Each message is one line: what, expected, got, what to do."""

_LONGEST = 2000
"""Characters of a message."""


class Phi3OnnxError(Exception):
    """Base of every error a user can cause or meet; the command line prints its message and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        """Make one.

        Args:
            message: what is wrong.
            remedy: what to do about it, such as `run: pip install ...`; it ends the line.

        """
        message = _line(message)
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.message = message
        """The line without the remedy."""
        self.remedy = remedy


class UsageError(Phi3OnnxError):
    """An option or argument that cannot be meant so: an unknown target, a name that fits nothing."""

    exit_code = 2


class SourceError(Phi3OnnxError):
    """The checkpoint is missing, damaged, or of a kind that is not supported."""


class OutputError(Phi3OnnxError):
    """The place to write to is taken, not writable, or too small."""


class PackageError(Phi3OnnxError):
    """A package on disk is incomplete, damaged, or not a package."""


class VerificationError(Phi3OnnxError):
    """A package was compared with its reference and a row is out of its threshold."""


class ProviderError(Phi3OnnxError):
    """An execution provider was named (or needed) and cannot run here."""

    exit_code = 3


class SelfTestError(ProviderError):
    """A package's self-test was replayed where it is to run, and is out of its limits there."""


class EngineError(Phi3OnnxError):
    """The engine failed while it ran a package that it had loaded, for example because memory ran out."""


_NO_MEMORY = (
    "failed to map segment from shared object",
    "cannot allocate memory",
    "can't allocate memory",
    "can't start new thread",
    "bad_alloc",
)
"""What loaders, libraries in C++ and Python say where the system gives them no memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that the system gave no memory."""
    met: BaseException | None = error
    while met is not None:
        if isinstance(met, MemoryError) or any(text in str(met).lower() for text in _NO_MEMORY):
            return True
        met = met.__cause__ or met.__context__
    return False


def _line(message: str) -> str:
    """Return a message that can be printed, whatever file or name is quoted in it: one line, not too long."""
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST - _LONGEST // 4]} ... {message[-_LONGEST // 4 :]}"
    # Control characters are orders to a terminal.
    return "".join(mark if mark.isprintable() else _escaped(mark) for mark in message)


def _escaped(mark: str) -> str:
    return " " if mark in "\r\n\t" else mark.encode("unicode_escape").decode()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something, without a final full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(". ") if lines else type(error).__name__
