"""A short part of the fault suite: kills and other faults of verbs that need no second graph (tests/faults/run)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run")


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="the fault suite needs Linux and gcc")
def test_faults_at_random_moments() -> None:
    jobs = ("export", "pull", "push", "push-dry-run", "rm")
    command = [RUN, "--kills", "3", "--seed", "7", *(word for job in jobs for word in ("--job", job))]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith(tuple(f"| {job} |" for job in jobs))]
    assert len(rows) == len(jobs)
    assert all(row.endswith("| 0 |") for row in rows), done.stdout
    assert any("killed" in row for row in rows), done.stdout
