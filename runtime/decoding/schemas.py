"""JSON schemas as guidance takes them: without what lets a weak model write for ever."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_TIGHT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_OTHER_KEYS = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"})
"""What says something of keys that a schema does not list."""
_SUMS = frozenset({"anyOf", "oneOf", "allOf", "$ref", "if", "not", "dependentSchemas", "$dynamicRef"})
"""What another schema adds to an object's: the keys that one of them lists are not all that there are."""
_ONE = ("items", "contains", "additionalProperties", "additionalItems", "propertyNames")
_LISTS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")


def tight_schema(text: str) -> str:
    """Return a JSON schema that leaves neither white space nor further keys free, unless it says otherwise.

    Where they were free, the small real model wrote blank lines, or key after key, for ever.
    """
    schema = closed(json.loads(text))
    schema.setdefault("x-guidance", _TIGHT)
    return json.dumps(schema)


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects hold only the keys that it lists, where it says nothing of others.

    What fits it fits the original, too. A schema stays as it is where objects are described in several parts (`allOf`
    of several, `properties` beside a reference or alternatives), as each part would shut out the keys of the others.
    """
    copied = json.loads(json.dumps(schema))
    parts = list(_parts(copied))
    if any(map(_adds_up, parts)):
        return copied
    for part in parts:
        listed = part.get("properties")
        if not isinstance(listed, dict) or not listed or _OTHER_KEYS & part.keys():
            continue
        wanted, least = part.get("required", []), part.get("minProperties", 0)
        if not isinstance(wanted, list) or not isinstance(least, int) or least > len(listed):
            continue
        if set(map(str, wanted)) <= listed.keys():
            part["additionalProperties"] = False
    return copied


def _adds_up(part: Mapping[str, Any]) -> bool:
    several = isinstance(part.get("allOf"), list) and len(part["allOf"]) > 1
    return several or ("properties" in part and bool(_SUMS & part.keys()))


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas in it; values such as constants and defaults are none."""
    if not isinstance(schema, dict):
        return
    yield schema
    for name in _ONE:
        yield from _parts(schema.get(name))
    for name in _LISTS:
        if isinstance(found := schema.get(name), list):
            for entry in found:
                yield from _parts(entry)
    for name in _MAPS:
        if isinstance(found := schema.get(name), dict):
            for entry in found.values():
                yield from _parts(entry)
