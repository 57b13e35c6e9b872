import math
from typing import Any

import pytest
from phi3_onnx.configs import PackageError
from phi3_onnx.configs.fields import Fields


def fields(value: Any) -> Fields:
    return Fields({"key": value}, "file.json")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("text", 1),
        ("count", 0),
        ("count", True),
        ("count", 1.5),
        ("count", 10**400),
        ("number", math.nan),
        ("number", math.inf),
        ("number", 10**400),
        ("number", True),
        ("number", "1"),
        ("fields", []),
        ("texts", "x"),
        ("tokens", [1, "x"]),
        ("tokens", [-1]),
        ("tokens", True),
        ("tokens", [1] * 10**5),
        ("token", [1, 2]),
        ("entries", [1]),
        ("entries", {}),
        *(("file_name", name) for name in ("", "..", "/etc/passwd", "../x", "a\\b", "c:x", "a\0", "\ud800", 7)),
    ],
)
def test_what_is_of_another_kind_is_named(kind: str, value: Any) -> None:
    with pytest.raises(PackageError, match=r"^file\.json: key must be ") as raised:
        getattr(fields(value), kind)("key")
    assert len(str(raised.value)) < 200


def test_what_fits_is_returned() -> None:
    assert fields("x").text("key") == fields("x").file_name("key") == "x"
    assert fields(3).count("key") == 3 and fields(0.5).number("key") == 0.5 and fields(True).flag("key", False)
    assert fields(7).tokens("key") == (7,) and fields([7, 8]).tokens("key") == (7, 8) and fields([7]).token("key") == 7
    assert fields({"a": "b", "c": 1}).texts("key") == {"a": "b"}
    assert fields([{"a": 1}]).entries("key")[0].count("a") == 1


def test_what_is_not_there_has_a_default_or_is_missing() -> None:
    nothing = fields(None)
    assert nothing.text("key", "x") == "x" and nothing.count("key", 4) == 4 and nothing.tokens("key") == ()
    assert nothing.entries("key") == [] and nothing.fields("key", optional=True).table == {}
    with pytest.raises(PackageError, match="other is missing, expected a text"):
        nothing.text("other")
