"""The form that a client asks an answer to have, as the guidance that the engine follows."""

import json
from typing import Any

from ..decoding.engine import Guidance
from .requests import ChatRequest, CompletionRequest


def guidance_of(request: ChatRequest | CompletionRequest) -> Guidance | None:
    """Return the form that a request asks for by any of its names; None for free text.

    Raises:
        UsageError: it makes no sense, or passes a bound.

    """
    for kind, value in request.forms.values():
        return _MAKERS[kind](value)
    return None


def _schema(value: Any) -> Guidance:
    return Guidance("json_schema", value if isinstance(value, str) else json.dumps(value))


_MAKERS = {
    "schema": _schema,
    "regex": lambda value: Guidance("regex", value),
    "choice": Guidance.one_of,
    "grammar": Guidance.grammar,
}
