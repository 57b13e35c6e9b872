"""What the tests of the command line share."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from phi3_onnx.cli import main


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line and gives its exit code, stdout and stderr."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["phi3-onnx", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Ran(int(caught.value.code or 0), captured.out, captured.err)

    return call
