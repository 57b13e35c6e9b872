"""Small errors in a module: another operator, another number, a condition turned round, a statement left out.

What only words see is left alone: messages, logging, annotations, decorators.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Add,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "argmin": "argmax",
    "argmax": "argmin",
    "minimum": "maximum",
    "maximum": "minimum",
    "sum": "mean",
    "mean": "sum",
    "amax": "amin",
    "amin": "amax",
    "zeros": "ones",
    "ones": "zeros",
}
_WORDS = (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Mutant:
    """A module with one error."""

    line: int
    before: str
    after: str
    source: str


def places(source: str) -> list[tuple[int, int]]:
    """Return what names each mutant of a module: the number of its place, and of the change there."""
    found = _places(ast.parse(source))
    return [(number, which) for number, node in enumerate(found) for which in range(len(_changes(node)))]


def mutant(source: str, place: tuple[int, int]) -> Mutant:
    """Return one of the mutants that `places` names."""
    number, which = place
    tree = ast.parse(source)
    node = list(_places(tree))[number]
    before = _short(node)
    _changes(node)[which]()
    ast.fix_missing_locations(tree)
    return Mutant(node.lineno, before, _short(node), ast.unparse(tree))


def _short(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:90]


def _places(tree: ast.AST) -> Iterator[Any]:
    """Yield what can be changed, annotations and words left out."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, _WORDS) or _is_talk(node):
                continue
            if _changes(node):
                yield node
            yield from _places(node)


def _is_talk(node: ast.AST) -> bool:
    """Whether a statement is a docstring, or tells a log."""
    if not isinstance(node, ast.Expr):
        return False
    call = node.value
    if isinstance(call, ast.Constant):
        return True
    owner = call.func.value if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id.lower().strip("_") == "log"


def _changes(node: Any) -> list[Callable[[], None]]:
    """Return what can be done to a node of the tree."""

    def put(field: str, value: Any, index: int | None = None) -> Callable[[], None]:
        def change() -> None:
            if index is None:
                setattr(node, field, value)
            else:
                getattr(node, field)[index] = value

        return change

    found: list[Callable[[], None]] = []
    if isinstance(node, ast.Compare):
        found += [put("ops", _SWAPPED[type(op)](), i) for i, op in enumerate(node.ops)]
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
        if type(node.op) in _SWAPPED and not _joins_texts(node):
            found.append(put("op", _SWAPPED[type(node.op)]()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found.append(put("operand", ast.UnaryOp(ast.Not(), node.operand)))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        found.append(put("op", ast.UAdd()))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            found.append(put("value", not node.value))
        elif isinstance(node.value, int):
            found.append(put("value", node.value + 1))
        elif isinstance(node.value, float):
            found.append(put("value", node.value * 2 or 1.0))
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        found.append(put("attr", _NAMES[node.attr]))
    elif isinstance(node, ast.Name) and node.id in _NAMES:
        found.append(put("id", _NAMES[node.id]))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        found.append(put("value", ast.Constant(None)))
    return found


def _joins_texts(node: ast.AST) -> bool:
    return any(isinstance(part, ast.JoinedStr) or _is_text(part) for part in ast.walk(node))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
