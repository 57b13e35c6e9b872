"""The line of progress: on a terminal it counts, and is gone at the end; elsewhere there is none."""

import contextlib
import os
import re
import sys
from pathlib import Path

import pytest
from phi3_onnx.cli.progress import progress_line
from phi3_onnx.configs.progress import Counter, labelled

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, *, still: bool) -> str:
    """Return what a terminal of 100 columns is sent."""
    leader, follower = pty.openpty()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(follower, "w", encoding="utf-8") as terminal, os.fdopen(leader, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_line("reading", still=still) as progress:
            counter = Counter(labelled(progress, "package"), "text", 2300, "tokens")
            counter.add(1150)
            counter.add(1150)
            progress("hashing")
            progress("writing", 1_000_000, 4_000_000, "bytes")
        terminal.close()
        sent = b""
        with contextlib.suppress(OSError):  # how a pseudo-terminal ends
            while piece := screen.read(1 << 16):
                sent += piece
        return sent.decode()


@pytest.mark.parametrize("still", [True, False])
def test_a_terminal_sees_counts_and_an_empty_line_at_the_end(monkeypatch: pytest.MonkeyPatch, still: bool) -> None:
    sent = on_a_terminal(monkeypatch, still=still)
    assert "1.00 MB of 4.00 MB" in sent
    assert sent.rstrip().endswith("\x1b[2K")  # the line is erased
    if still:  # each report is drawn, and nothing between
        assert "package: text" in sent and "1150 of 2300 tokens" in sent and "2300 of 2300 tokens" in sent
        hashing = next(line for line in re.sub(r"\x1b\[[0-9;?]*\w", "", sent).split("\r") if "hashing" in line)
        assert hashing.rstrip().endswith("0:00")  # the time that it has taken: nobody knows how much there is


def test_a_file_sees_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stderr", file)
        with progress_line("reading") as progress:
            progress("writing", 1, 4, "bytes")
    assert (tmp_path / "log").read_text(encoding="utf-8") == ""
