"""`canitoolcall probe`: tool calls in nine scenes, whole and streamed; each result is a check."""

import json
import subprocess
import sys

from checks import MODEL, RESULT, URL, check

report = RESULT.with_suffix(".probe.json")
command = [sys.executable, "-m", "canitoolcall", "probe", "--base-url", f"{URL}/v1", "--model", MODEL]
# A small model that is free to say what it likes goes on until its context is full.
subprocess.run([*command, "--timeout", "900", "--concurrency", "2", "--json", str(report)], check=False)
for outcome in json.loads(report.read_text(encoding="utf-8"))["outcomes"]:
    way = "streamed" if outcome["stream"] else "whole"
    if outcome["check"] == "stream_equals_nonstream":
        way = "streamed = whole"

    @check("chat", f"{outcome['scenario_id']}, {way}")
    def told(outcome=outcome) -> None:
        assert outcome["status"] == "pass", f"{outcome['status']}: {outcome['detail']}"
