"""A hook of schemathesis that keeps answers short, so that minutes have room for thousands of requests.

It runs in schemathesis's own environment, see `requests`. Values of wrong types stay as they are.
"""

from collections.abc import Mapping
from typing import Any

import schemathesis  # pyright: ignore[reportMissingImports]

_TOKENS, _CHOICES = 16, 4
_LIMITS: Mapping[str, Mapping[str, int]] = {
    "/v1/chat/completions": {"max_tokens": _TOKENS, "max_completion_tokens": _TOKENS, "n": _CHOICES},
    "/v1/completions": {"max_tokens": _TOKENS, "n": _CHOICES},
    "/v1/messages": {"max_tokens": _TOKENS},
    "/v1/responses": {"max_output_tokens": _TOKENS},
}
_OPTIONS = {"num_predict": _TOKENS}
"""Of Ollama's protocol."""


@schemathesis.hook  # pyright: ignore[reportUntypedFunctionDecorator, reportUnknownMemberType]
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Lower what bounds an answer, or add it."""
    body = case.body
    if not isinstance(body, dict):
        return
    _lower(body, _LIMITS.get(case.path, {}))
    if case.path in ("/api/chat", "/api/generate") and isinstance(options := body.setdefault("options", {}), dict):
        _lower(options, _OPTIONS)


def _lower(table: dict[str, Any], limits: Mapping[str, int]) -> None:
    for name, most in limits.items():
        value = table.get(name)
        if value is None or (type(value) is int and value > most):
            table[name] = most
