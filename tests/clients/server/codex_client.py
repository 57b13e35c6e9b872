"""OpenAI's Codex, which speaks `/v1/responses`: one task, with its own tools, in a sandbox that only reads."""

import json
from pathlib import Path

from checks import MODEL, URL, check, command, home

# Its own instructions do not fit into the context of the small model; its tools do.
CONFIG = """\
model = "{model}"
model_provider = "local"
model_context_window = 8192
model_instructions_file = "{instructions}"
web_search = "disabled"

[model_providers.local]
name = "local"
base_url = "{url}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0

[analytics]
enabled = false

"""


def events(folder: Path) -> list[dict]:
    """Let it work once, and return what it says of that."""
    instructions = folder / "instructions.md"
    instructions.write_text("You are a coding agent. Answer in one sentence.\n", encoding="utf-8")
    config = CONFIG.format(model=MODEL, url=URL, instructions=instructions)
    (folder / "config.toml").write_text(config, encoding="utf-8")
    words = ("exec", "--skip-git-repo-check", "--sandbox", "read-only", "--json", "Say hello.")
    try:
        said = command(folder, "codex", *words, CODEX_HOME=str(folder))
    except AssertionError as error:
        # A small model may go on until its context is full, which is an incomplete response, as it should be.
        if "Incomplete response returned, reason: max_output_tokens" not in str(error):
            raise
        return []
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@check("responses", "a task is done")
def task() -> None:
    told = events(home())
    kinds = [event["type"] for event in told]
    assert not told or ("turn.completed" in kinds and "turn.failed" not in kinds), told
    assert all(event["usage"]["output_tokens"] > 0 for event in told if event["type"] == "turn.completed")
