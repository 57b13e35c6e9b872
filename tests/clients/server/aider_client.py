"""Aider: it asks for an edit of a file, streamed and whole. Whether the small model edits well is no check."""

from checks import MODEL, URL, check, command, home

for way in ("--stream", "--no-stream"):

    @check("chat", f"an edit is asked for, {way.removeprefix('--')}")
    def edit(way=way) -> None:
        folder = home()
        (folder / "hello.py").write_text('print("hello")\n', encoding="utf-8")
        quiet = ("--no-git", "--yes-always", "--no-check-update", "--no-show-model-warnings", "--no-pretty")
        said = command(
            folder,
            *("aider", "--model", f"openai/{MODEL}", "--edit-format", "whole", "--map-tokens", "0", *quiet, way),
            *("--message", "Make it print bye.", "hello.py"),
            OPENAI_API_BASE=f"{URL}/v1",
            OPENAI_API_KEY="none",
            AIDER_ANALYTICS="false",
        )
        # Errors of the server are litellm's there. An answer may go on until the small model's context is full.
        assert ("received" in said or "token limit" in said) and "litellm." not in said, said[-300:]
