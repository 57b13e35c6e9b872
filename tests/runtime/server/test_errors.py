"""Errors have the shape of the protocol whose path was asked, wherever on the way they arise."""

from typing import Any

import pytest

from .conftest import StartServer


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/nothing", {"error": {"message": "{}", "type": "not_found_error", "param": None, "code": None}}),
        ("/v1/messages/nothing", {"type": "error", "error": {"type": "not_found_error", "message": "{}"}}),
        ("/api/nothing", {"error": "{}"}),
    ],
)
def test_a_path_that_is_not_there(start_server: StartServer, path: str, expected: dict[str, Any]) -> None:
    with start_server(api_key="k").http() as http:
        refused = http.get(path)
        found = http.get(path, headers={"x-api-key": "k"})
    assert refused.status_code == 401 and refused.json().keys() == expected.keys()
    assert "the API key is missing or wrong" in refused.text
    assert found.status_code == 404
    assert found.json() == filled(expected, f"there is nothing at {path}")


def filled(table: Any, text: str) -> Any:
    if isinstance(table, dict):
        return {name: filled(value, text) for name, value in table.items()}
    return text if table == "{}" else table
