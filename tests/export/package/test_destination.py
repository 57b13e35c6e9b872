"""Where a package goes: refused early, built beside its place, swapped in whole or not at all."""

import os
from pathlib import Path

import pytest
from phi3_onnx.configs import OutputError
from phi3_onnx.export.package.destination import building, check_destination


def package_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "genai_config.json").write_text("{}")
    return folder


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_new_or_empty_folder_is_fine(tmp_path: Path) -> None:
    check_destination(tmp_path / "a" / "b" / "new", 1, force=False)
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty", 1, force=False)


def test_a_taken_folder_needs_force(tmp_path: Path) -> None:
    taken = package_at(tmp_path / "taken")
    with pytest.raises(OutputError, match=r"already exists.*--force"):
        check_destination(taken, 1, force=False)
    check_destination(taken, 1, force=True)


def test_force_replaces_packages_only(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(OutputError, match="is not a package"):
        check_destination(tmp_path / "thesis", 1, force=True)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_destination(tmp_path / "file", 1, force=True)
    with pytest.raises(OutputError, match="is not a folder"):
        check_destination(tmp_path / "file" / "package", 1, force=False)


def test_a_full_disk_is_said_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"GB free, the package needs 1000000\.00 GB"):
        check_destination(tmp_path / "new", 10**15, force=False)


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the answer of the operating system is played here.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        check_destination(tmp_path / "new", 1, force=False)


def test_the_package_appears_only_when_whole(tmp_path: Path) -> None:
    output = tmp_path / "store" / "package"
    with building(output) as folder:
        (folder / "model.onnx").write_text("graph")
        assert not output.exists()
    assert (output / "model.onnx").read_text() == "graph"
    assert names(output.parent) == ["package"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_and_loses_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    output = package_at(tmp_path / "package")

    def fail() -> None:
        with building(output) as folder:
            (folder / "model.onnx").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["package"]
    assert names(output) == ["genai_config.json"]


def test_a_package_is_replaced_whole(tmp_path: Path) -> None:
    output = package_at(tmp_path / "package")
    with building(output) as folder:
        (folder / "model.onnx").write_text("new")
    assert names(output) == ["model.onnx"]
    assert names(tmp_path) == ["package"]
