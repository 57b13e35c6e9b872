"""Compiles guidance once, as a script in a process of its own that may be killed; imports nothing of the project.

Reads `{"kind": ..., "text": ...}` from its input. Exit code 0: it compiles. 1: it does not, and the output says why.
"""

import json
import sys

MEMORY_BYTES = 1 << 30
PROCESSOR_SECONDS = 5


def main() -> int:
    """Compile what stands in the input, and compute the first mask, where lexers are built."""
    job = json.load(sys.stdin)
    _limit()
    from llguidance import LLMatcher, LLTokenizer  # pyright: ignore[reportMissingImports]

    grammars = {
        "json_schema": LLMatcher.grammar_from_json_schema,
        "regex": LLMatcher.grammar_from_regex,
        "lark_grammar": LLMatcher.grammar_from_lark,
    }
    try:
        matcher = LLMatcher(LLTokenizer("byte"), grammars[job["kind"]](job["text"]), log_level=0)
        problem = matcher.get_error()
        if not problem:
            matcher.compute_bitmask()
            problem = matcher.get_error()
    except (ValueError, RuntimeError) as error:
        problem = str(error)
    sys.stdout.write(problem or "")
    return 1 if problem else 0


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows: the limit of time remains
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
