"""Folders for the while: gone at the end, and after a process that was killed with one, at the next beginning."""

import subprocess
import sys
from pathlib import Path

from phi3_onnx.configs.files import replacing
from phi3_onnx.configs.scratch import scratch_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from phi3_onnx.configs.files import replacing
from phi3_onnx.configs.scratch import scratch_folder

with scratch_folder(Path(sys.argv[1]), "fetch") as folder, replacing(Path(sys.argv[1]) / "some.json") as part:
    (folder / "half").write_text("a file")
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
"""


def test_what_a_killed_process_left_goes_at_the_next_beginning(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 3, "the folder, its lock and the part of a file"
    with scratch_folder(tmp_path, "fetch") as folder:
        assert not list(folder.iterdir())
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    with replacing(tmp_path / "some.json") as part:
        part.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["some.json"]
    assert (tmp_path / "some.json").read_text() == "whole"


def test_what_a_live_process_uses_stays(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "fetch") as first, replacing(tmp_path / "some.json") as part:
        part.write_text("being written")
        with scratch_folder(tmp_path, "fetch") as second, replacing(tmp_path / "other.json") as other:
            other.write_text("other")
            assert first.is_dir() and second.is_dir() and first != second
        assert first.is_dir()
        assert part.read_text() == "being written"
    assert {path.name for path in tmp_path.iterdir()} == {"some.json", "other.json"}
