"""A package is replaced in one step, or a run that is killed between two leaves what the next verb can finish."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from phi3_onnx.configs import OutputError, find_package, list_packages
from phi3_onnx.configs.exchange import beside, put_in_place, settle
from phi3_onnx.configs.locks import lock_owner, try_lock
from phi3_onnx.configs.store import home
from phi3_onnx.export.package.destination import building, check_destination

REPLACE = """
import os, sys
from pathlib import Path
import phi3_onnx.configs.exchange as exchange
from phi3_onnx.export.package.destination import building

output, die_at, before, one_step = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "before", sys.argv[4] == "one"
renamed, calls = os.replace, 0
def replace(*paths):
    global calls
    calls += 1
    if calls == die_at and before:
        os._exit(9)
    renamed(*paths)
    if calls == die_at:
        os._exit(9)
if not one_step:
    exchange._exchange = lambda *_: False
os.replace = replace
with building(output) as folder:
    (folder / "genai_config.json").write_text("new")
"""
"""Replaces a package, and ends at one of its renames as a killed process does: without a word, locks freed."""


def package_at(folder: Path, content: str = "earlier") -> Path:
    folder.mkdir(parents=True)
    (folder / "genai_config.json").write_text(content)
    return folder


def content(folder: Path) -> str:
    return (folder / "genai_config.json").read_text()


def replace_and_die(output: Path, die_at: int, when: str, steps: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", REPLACE, str(output), str(die_at), when, steps], check=False
    ).returncode


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("die_at", [1, 2, 3, 4, 5])
def test_no_kill_loses_both_packages(tmp_path: Path, die_at: int, when: str, caplog: pytest.LogCaptureFixture) -> None:
    output = package_at(tmp_path / "w")
    died = replace_and_die(output, die_at, when, "two") == 9
    assert died or die_at > 4, "a replacement in two steps has four renames"
    assert find_package(str(output)) == output
    assert content(output) in ("earlier", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    if die_at == 2 and when == "after":  # nothing had the final name: the verb says what it did
        assert content(output) == "new"
        assert "the new one is complete and in place" in caplog.text


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no exchange in one step there")
def test_where_the_system_can_it_is_one_step(tmp_path: Path) -> None:
    output = package_at(tmp_path / "w")
    assert replace_and_die(output, 1, "before", "one") == 0, "a folder was renamed by itself"
    assert content(output) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def can_trace() -> bool:
    strace = shutil.which("strace")
    if strace is None:
        return False
    traced = subprocess.run([strace, "-e", "trace=none", "true"], capture_output=True, check=False)
    return traced.returncode == 0


@pytest.mark.skipif(not can_trace(), reason="strace is not here, or may not trace")
@pytest.mark.parametrize("call", ["rename", "renameat2"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_real_kill_at_a_rename(tmp_path: Path, call: str, nth: int) -> None:
    output = package_at(tmp_path / "w")
    trace = ["strace", "-f", "-o", str(tmp_path / "trace"), "-e", f"trace={call}"]
    trace += ["-e", f"inject={call}:signal=KILL:when={nth}"]
    killed = subprocess.run(
        [*trace, sys.executable, "-c", REPLACE, str(output), "0", "before", "one"], capture_output=True, check=False
    )
    assert content(output) in ("earlier", "new"), "no package has the name that one had before"
    if (call, nth) == ("renameat2", 1) and sys.platform == "linux":
        assert killed.returncode != 0
    (tmp_path / "trace").unlink()
    check_destination(output, 0, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_what_a_live_process_writes_stays(tmp_path: Path) -> None:
    output = package_at(tmp_path / "w")
    with building(output) as folder:
        # Another process looks: locks are one for each opening of a file, so this one can play it.
        settle(output)
        assert folder.is_dir()
        with (
            pytest.raises(OutputError, match=rf"is being written by process {os.getpid()} on .*since"),
            building(output),
        ):
            pass
        assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_the_store_is_settled_by_whoever_lists_it(caplog: pytest.LogCaptureFixture) -> None:
    place = home() / "packages" / "phi" / "cpu-fp32"
    place.parent.mkdir(parents=True)
    package_at(beside(place, "old"))
    package_at(beside(place, "partial"), "half")
    beside(place, "lock").write_text("process 1")
    with caplog.at_level(logging.WARNING):
        list_packages()
    assert content(place) == "earlier"
    assert [path.name for path in place.parent.iterdir()] == ["cpu-fp32"]
    assert "the earlier one was put back" in caplog.text


def test_a_refused_replacement_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, finished = package_at(tmp_path / "w"), package_at(beside(tmp_path / "w", "partial"), "new")
    monkeypatch.setattr("phi3_onnx.configs.exchange._exchange", lambda *_: False)
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(source) == output:  # as on Windows, while somebody has a file of it open
            raise PermissionError(13, "Permission denied")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(
            OutputError, match=r"cannot be replaced: Permission denied; the new one is kept as .*\.w\.new"
        ):
            put_in_place(finished, output)
    assert content(output) == "earlier"
    settle(output)
    assert content(output) == "new"


def test_a_lock_is_free_once_its_owner_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from phi3_onnx.configs.locks import try_lock\n"
        "lock = try_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None and owner.stdout.readline().strip() == b"held"
        assert try_lock(path) is None
        assert f"process {owner.pid} " in str(lock_owner(path))
    finally:
        owner.kill()
        owner.wait()
    assert path.exists(), "a killed process removes nothing"
    assert lock_owner(path) is None
    assert not path.exists()
