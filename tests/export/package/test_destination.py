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
    with pytest.raises(OutputError, match=r"[GM]B free, the package needs 1\.00 PB"):
        check_destination(tmp_path / "new", 10**15, force=False)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not UTF-8 text"):
        check_destination(tmp_path / "a\udcff", 1, force=False)


def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the answer of the operating system is played here.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="not writable"):
        check_destination(tmp_path / "new", 1, force=False)


def refuse(output: Path, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        check_destination(output, 1, force=True)


@pytest.mark.skipif(not Path("/proc/mounts").is_file(), reason="no Linux")
def test_a_mount_point_is_refused_before_the_work() -> None:
    refuse(Path("/dev/shm"), "is where a disk begins")
    refuse(Path("/"), "is where a disk begins")


def test_names_that_no_file_system_takes(tmp_path: Path) -> None:
    refuse(tmp_path / ("x" * 300), "the name x{40}... is too long")
    refuse(tmp_path / ("x" * 250), "is too long")  # no room for what stands beside it while it is made
    refuse(tmp_path / ("\u4e2d" * 90), "is too long")
    refuse(tmp_path / ("x" * 300) / "package", "is too long")
    refuse(tmp_path.joinpath(*["x" * 200] * 30), "cannot be made: File name too long")
    with building(check_destination(tmp_path / ("x" * 230), 1, force=False)) as folder:
        (folder / "model.onnx").write_text("graph")


def test_links_lead_to_what_is_replaced(tmp_path: Path) -> None:
    package_at(tmp_path / "behind")
    link = tmp_path / "link"
    link.symlink_to("behind")
    with building(check_destination(link, 1, force=True)) as folder:
        (folder / "model.onnx").write_text("new")
    assert link.is_symlink()
    assert names(tmp_path / "behind") == ["model.onnx"]


def test_links_to_nothing_and_in_circles(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    refuse(tmp_path / "dangling", "is a link to nowhere, which does not exist")
    refuse(tmp_path / "dangling" / "package", "is a link to nowhere, which does not exist")
    (tmp_path / "circle").symlink_to("circle")
    refuse(tmp_path / "circle", "is a link to circle")


def test_the_folder_that_the_command_runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = package_at(tmp_path / "package") / "inside"
    inside.mkdir()
    for here, output in ((inside.parent, "."), (inside.parent, inside.parent), (inside, "..")):
        monkeypatch.chdir(here)
        refuse(Path(output), "is the folder that this command runs in|is where a disk begins")


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
