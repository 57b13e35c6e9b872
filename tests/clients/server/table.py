"""Writes the table of docs/protocols.md from the results of `run`: `python table.py RESULTS`.

A check that is known to fail for a reason that is not the server's stands in KNOWN with that reason. What fails besides
is said in the table, and makes the exit code 1.
"""

import json
import sys
from collections.abc import Iterator
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
}
"""The suite's clients, and the package that each is named after."""
KNOWN: dict[tuple[str, str], str] = {}
"""Reasons why checks fail that are not the server's, by client and check."""


def main(results: Path) -> int:
    """Write the table; return the exit code."""
    rows, bad = [], 0
    for client, package in CLIENTS.items():
        file = results / f"{client}.json"
        if not file.is_file():
            rows.append((package, "", "", "not run", ""))
            continue
        version = _version(results / f"{client}.packages", package)
        for protocol, checks in _by_protocol(json.loads(file.read_text(encoding="utf-8"))):
            failed = {name: text for name, text in checks.items() if text != "passed"}
            known = {name: KNOWN[client, name] for name in failed if (client, name) in KNOWN}
            bad += len(failed) - len(known)
            notes = [f"{name}: {known.get(name, 'failed')}" for name in failed]
            passed = f"{len(checks) - len(failed)} of {len(checks)} passed"
            rows.append((package, version, protocol, passed, "; ".join(notes)))
    lines = [("client", "version", "protocol", "result", "what did not pass, and why"), ("---",) * 5, *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}", encoding="utf-8")
    print(table)
    return int(bad > 0)


def _version(packages: Path, package: str) -> str:
    wanted = package.replace("_", "-")
    return next((entry["version"] for entry in json.loads(packages.read_text()) if _plain(entry) == wanted), "")


def _plain(entry: dict[str, str]) -> str:
    return entry["name"].lower().replace("_", "-")


def _by_protocol(results: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    found: dict[str, dict[str, str]] = {}
    for name, text in results.items():
        protocol, _, check = name.partition(": ")
        found.setdefault(protocol, {})[check] = text
    yield from found.items()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
