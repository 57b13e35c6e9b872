"""Runs in Windows: collects what was checked as JSON lines, flushed one by one, so that a crash loses none."""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path


class Report:
    """Rows of check, case, outcome, detail and seconds in a file."""

    def __init__(self, path: str, tier: str) -> None:
        """Begin a file anew."""
        self._path, self._tier = Path(path), tier
        self._path.write_bytes(b"")

    def check(self, check: str, case: str, run: Callable[[], str]) -> None:
        """Run one check: it returns its detail, and raises where it fails (`Skipped` where it does not apply)."""
        start = time.perf_counter()
        try:
            outcome, detail = "ok", run()
        except Skipped as reason:
            outcome, detail = "skipped", str(reason)
        except AssertionError as error:
            outcome, detail = "failed", str(error) or traceback.format_exc(limit=1)
        except Exception as error:
            outcome, detail = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
        seconds = round(time.perf_counter() - start, 1)
        row = {"tier": self._tier, "check": check, "case": case, "outcome": outcome, "detail": detail[:600]}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"seconds": seconds}) + "\n")


class Skipped(Exception):  # noqa: N818  # it is no error
    """What keeps a check from being run here."""
