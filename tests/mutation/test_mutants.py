"""The errors that are planted: each changes what it says, and nothing else."""

import ast
from pathlib import Path

import pytest

from .mutants import mutant, places

SOURCE = '''
"""A module."""
import math

def f(x: int = 3, *, on: bool = True) -> int:
    """Return a number."""
    _log.info("never %d", 5)
    if not on or x >= 2:
        raise ValueError(f"too large by {x - 2}")
    check(x)
    return min(x + 1, -x)
'''


def test_all_places_and_no_words() -> None:
    found = [mutant(SOURCE, place) for place in places(SOURCE)]
    assert [(error.before, error.after) for error in found] == [
        ("True", "False"),
        ("3", "4"),
        ("not on or x >= 2", "not on and x >= 2"),
        ("not on", "not not on"),
        ("x >= 2", "x > 2"),
        ("2", "3"),
        ("check(x)", "None"),
        ("min", "max"),
        ("x + 1", "x - 1"),
        ("1", "2"),
        ("-x", "+x"),
    ]
    whole = ast.unparse(ast.parse(SOURCE))
    for error in found:
        ast.parse(error.source)
        differing = [(a, b) for a, b in zip(whole.splitlines(), error.source.splitlines(), strict=True) if a != b]
        assert len(differing) == 1, error


@pytest.mark.parametrize("module", ["runtime/decoding/sampling.py", "quantize/packed.py"])
def test_real_modules_have_some(module: str) -> None:
    source = (Path(__file__).parents[2] / module).read_text(encoding="utf-8")
    chosen = places(source)[::7]
    assert len(chosen) > 5
    assert all(mutant(source, place).source != ast.unparse(ast.parse(source)) for place in chosen)
