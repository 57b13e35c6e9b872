"""Writes the table of docs/protocols.md from the results of `run`: `python table.py RESULTS REFERENCE`.

REFERENCE has the results of the same clients with llama.cpp's server and the same model. A check that fails there, too,
or that is known to fail for a reason that is not the server's (KNOWN), is said in the table; what fails besides is said
as such, and makes the exit code 1.
"""

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "protocols.md"
BEGIN, END = "<!-- clients: tests/clients/server/run -->", "<!-- end of clients -->"
CLIENTS = {
    "openai-0": "openai",
    "openai-1": "openai",
    "openai": "openai",
    "anthropic": "anthropic",
    "ollama": "ollama",
    "litellm": "litellm",
    "langchain": "langchain-openai",
    "llm": "llm",
    "canitoolcall": "canitoolcall",
    "lm-eval": "lm_eval",
    "guidellm": "guidellm",
    "codex": "@openai/codex",
    "claude-code": "@anthropic-ai/claude-code",
    "aider": "aider-chat",
}
"""The suite's clients, and the package that each is named after."""
PASSED = "passed"
_AGAIN = (
    "the model repeats the call that it sees, and does so with llama.cpp's server, too, where it gets the same words "
    "(`wit.py`); that server leaves tools out of this model's prompt, and the answer says nothing of the weather"
)
KNOWN: dict[tuple[str, str], str] = {
    ("canitoolcall", "tool-result-followup, whole"): _AGAIN,
    ("canitoolcall", "tool-result-followup, streamed"): _AGAIN,
}
"""Reasons why checks fail that are not the server's, by client and check."""


def main(results: Path, reference: Path) -> int:
    """Write the table; return the exit code."""
    rows, bad = [], 0
    for client, package in CLIENTS.items():
        found = _read(results / f"{client}.json")
        if not found:
            rows.append((package, "", "", "not run", "", ""))
            continue
        version = _version(results / f"{client}.packages", package)
        others = _read(reference / f"{client}.json")
        for protocol, checks in found.items():
            theirs = others.get(protocol, {})
            notes = {name: _why(client, name, theirs) for name, text in checks.items() if text != PASSED}
            bad += sum(not note for note in notes.values())
            said: dict[str, list[str]] = {}
            for name, note in notes.items():
                said.setdefault(note or "failed here alone", []).append(f"`{name}`")
            told = "; ".join(f"{note}: {', '.join(names)}" for note, names in said.items())
            rows.append((package, version, protocol, _count(checks), _count(theirs), told))
    head = ("client", "version", "protocol", "result", "llama.cpp's server", "what did not pass, and why")
    table = "".join(f"| {' | '.join(line)} |\n" for line in [head, ("---",) * len(head), *rows])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}", encoding="utf-8")
    print(table)
    return int(bad > 0)


def _why(client: str, name: str, theirs: dict[str, str]) -> str:
    """Return why a check fails that is not the server's fault; empty where it is, or where that is not known."""
    if reason := KNOWN.get((client, name)):
        return reason
    return "fails with llama.cpp's server, too" if theirs.get(name, PASSED) != PASSED else ""


def _count(checks: dict[str, str]) -> str:
    if checks and all("code': 404" in text for text in checks.values()):
        return "no such endpoint"
    passed = sum(text == PASSED for text in checks.values())
    return f"{passed} of {len(checks)} passed" if checks else "not run"


def _version(packages: Path, package: str) -> str:
    wanted = package.replace("_", "-")
    return next((entry["version"] for entry in json.loads(packages.read_text()) if _plain(entry) == wanted), "")


def _plain(entry: dict[str, str]) -> str:
    return entry["name"].lower().replace("_", "-")


def _read(file: Path) -> dict[str, dict[str, str]]:
    """Return what came of each check, by protocol; nothing where the client was not run."""
    found: dict[str, dict[str, str]] = {}
    if file.is_file():
        for name, text in json.loads(file.read_text(encoding="utf-8")).items():
            protocol, _, check = name.partition(": ")
            found.setdefault(protocol, {})[check] = text
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
