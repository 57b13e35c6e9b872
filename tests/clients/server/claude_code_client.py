"""Claude Code, which speaks Anthropic's protocol: one question without tools, one with two of its own."""

import json

from checks import MODEL, URL, check, command, home


def asked(*words: str) -> dict:
    """Ask it once, and return what it says of that."""
    folder = home()
    said = command(
        folder,
        *("claude", "-p", "Say hello.", "--system-prompt", "Be brief.", "--output-format", "json", *words),
        CLAUDE_CONFIG_DIR=str(folder),
        ANTHROPIC_BASE_URL=URL,
        ANTHROPIC_API_KEY="none",
        ANTHROPIC_MODEL=MODEL,
        ANTHROPIC_SMALL_FAST_MODEL=MODEL,
        CLAUDE_CODE_MAX_OUTPUT_TOKENS="128",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        DISABLE_AUTOUPDATER="1",
    )
    return json.loads(said.strip().splitlines()[-1])


@check("messages", "a question is answered")
def question() -> None:
    told = asked("--tools", "")
    assert not told["is_error"] and told["result"] and told["usage"]["output_tokens"] > 0, told


@check("messages", "a question is answered beside tools")
def tools() -> None:
    try:
        told = asked("--tools", "Glob,Read", "--max-turns", "3")
    except AssertionError as error:
        # A small model may go on until its tokens run out, which the server says as it should.
        if "exceeded the 128 output token maximum" not in str(error):
            raise
        return
    assert told["usage"]["output_tokens"] > 0 and told.get("api_error_status") is None, told
