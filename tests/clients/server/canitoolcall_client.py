"""`canitoolcall probe`: tool calls in nine scenes, whole and streamed; each result is a check."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false

from dataclasses import replace

from canitoolcall.probe import BUILTIN_SCENARIOS, EQUIVALENCE_CHECK, probe
from checks import MODEL, URL, check

# A small model that is free to say what it likes goes on until its context is full.
scenes = [replace(scene, extra_body={**scene.extra_body, "max_tokens": 256}) for scene in BUILTIN_SCENARIOS]
report = probe(f"{URL}/v1", MODEL, scenarios=scenes, timeout_s=900, concurrency=2)
for outcome in report.outcomes:
    way = "streamed" if outcome.stream else "whole"
    if outcome.check == EQUIVALENCE_CHECK:
        way = "streamed = whole"

    @check("chat", f"{outcome.scenario_id}, {way}")
    def told(outcome=outcome) -> None:
        assert outcome.status == "pass", f"{outcome.status}: {outcome.detail}"
