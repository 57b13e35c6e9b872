"""Guidance is compiled on trial in a process that is killed where it takes too long or too much."""

import asyncio
import json
from pathlib import Path

import psutil
import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.decoding.engine import Guidance
from phi3_onnx.runtime.server import limits
from phi3_onnx.runtime.server.errors import ApiError
from phi3_onnx.runtime.server.limits import GuidanceTrials

needs_llguidance = pytest.mark.skipif(not limits.can_mask(), reason="llguidance is not installed")


def check(guidance: Guidance, seconds: float = 60.0) -> None:
    asyncio.run(GuidanceTrials(seconds).check(guidance))


def trials_running() -> list[psutil.Process]:
    """Return the processes of trials; other tests' processes may live beside them."""
    return [each for each in psutil.Process().children() if str(limits._SCRIPT) in each.cmdline()]


@needs_llguidance
def test_what_compiles_passes_and_what_does_not_is_explained() -> None:
    check(Guidance("json_schema", json.dumps({"type": "object", "properties": {"a": {"type": "string"}}})))
    check(Guidance("regex", "[a-z]{1,9}"))
    with pytest.raises(UsageError, match=r"the regex is not understood: ."):
        check(Guidance("regex", "(a"))


@needs_llguidance
def test_what_the_bounds_would_let_through_meets_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3_onnx.runtime.decoding.engine.check_bounds", lambda *_: None)
    hostile = Guidance("lark_grammar", "start: " + " | ".join(f'"{i}"{{1,9000}}' for i in range(3000)))
    with pytest.raises(UsageError, match=r"more memory or time than the limit|takes more than 10 s|too"):
        check(hostile, 10.0)
    assert not trials_running()


def test_a_trial_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(limits, "_SCRIPT", script)
    monkeypatch.setattr(limits, "can_mask", lambda: True)
    with pytest.raises(UsageError, match="takes more than 1 s"):
        check(Guidance("regex", "a"), 1.0)
    assert not trials_running()


def test_a_trial_is_held_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "counting.py"
    script.write_text(f"open({str(tmp_path / 'count')!r}, 'a').write('x'); raise SystemExit(1)")
    monkeypatch.setattr(limits, "_SCRIPT", script)
    monkeypatch.setattr(limits, "can_mask", lambda: True)

    async def twice() -> None:
        trials = GuidanceTrials()
        for _ in range(2):
            with pytest.raises(UsageError, match="is not understood"):
                await trials.check(Guidance("regex", "a"))

    asyncio.run(twice())
    assert (tmp_path / "count").read_text() == "x"


def test_a_machine_that_was_busy_once_does_not_refuse_for_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "first_slow.py"
    script.write_text(
        "import pathlib, time\n"
        f"first = pathlib.Path({str(tmp_path / 'first')!r})\n"
        "if not first.exists():\n    first.touch()\n    time.sleep(600)\n"
    )
    monkeypatch.setattr(limits, "_SCRIPT", script)
    monkeypatch.setattr(limits, "can_mask", lambda: True)

    async def again() -> None:
        trials = GuidanceTrials(1.0)
        while not (tmp_path / "first").exists():
            with pytest.raises(UsageError, match="takes more than 1 s"):
                await trials.check(Guidance("regex", "a"))
        trials._seconds = 120.0
        await trials.check(Guidance("regex", "a"))

    asyncio.run(again())


def test_no_more_than_some_wait_for_their_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)"
    )
    monkeypatch.setattr(limits, "_SCRIPT", script)
    monkeypatch.setattr(limits, "can_mask", lambda: True)

    async def crowd() -> list[BaseException | None]:
        trials = GuidanceTrials(60)
        checks = [asyncio.create_task(trials.check(Guidance("regex", f"a{number}"))) for number in range(40)]
        while sum(check.done() for check in checks) < 22:
            await asyncio.sleep(0.01)
        (tmp_path / "go").touch()
        said = await asyncio.gather(*checks, return_exceptions=True)
        await trials.check(Guidance("regex", "later"))
        return said

    said = asyncio.run(crowd())
    assert said[:18] == [None] * 18
    assert {error.status for error in said[18:] if isinstance(error, ApiError)} == {429}
    assert sum(isinstance(error, ApiError) for error in said) == 22
