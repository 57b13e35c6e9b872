"""Jinja's sandbox with limits: a chat template comes from a file, and a file can ask for endless loops and all memory.

Jinja keeps a template from Python's internals. What it leaves open is how long a template runs and how much it makes:
nested loops, a string that doubles, `center(3000000000)`. Steps, lengths and time are counted here.
"""

import operator
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 1_000_000
"""Rounds of all loops, and calls, in one rendering."""
MOST_CHARACTERS = 32 * 1024 * 1024
"""Of the prompt, and of any string on the way; a request's body has 4 MiB at most."""
MOST_SECONDS = 20.0
MOST_SOURCE = 1024 * 1024
"""Characters of a template; those of published models have up to some ten thousand."""
_MOST_POWER = 1024
"""Bits of a number."""
_WIDE = re.compile(r"\d{5,}")
"""A width in a format, of more than 9,999 characters."""
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "**": operator.pow,
    "%": operator.mod,
}
_WIDTHS = frozenset(
    ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson", "wordwrap", "batch", "slice")
)


class LimitError(Exception):
    """A template asks for more than the limits give."""


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that count what they do; one rendering at a time."""

    intercepted_binops = frozenset(_OPERATORS)

    def __init__(self, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(optimized=False, **options)  # constants would be worked out uncounted
        self.globals.pop("lipsum", None)
        every = {**self.filters, **filters}
        self.filters = {name: _counted(self, name, function) for name, function in every.items()}
        self.filters["limits_loop"] = self._loop
        self.filters["limits_join"] = self._join
        self._steps, self._until = 0, float("inf")

    def render_limited(self, template: Any, variables: Mapping[str, Any]) -> str:
        """Return what a template makes.

        Raises:
            LimitError: it passes a limit.

        """
        self._steps, self._until = 0, time.monotonic() + MOST_SECONDS
        pieces: list[str] = []
        length = 0
        for piece in template.generate(**variables):
            self.step()
            length += len(piece)
            check_length(length)
            pieces.append(piece)
        return "".join(pieces)

    def step(self, count: int = 1) -> None:
        """Count steps, and look at the clock."""
        self._steps += count
        if self._steps > MOST_STEPS:
            raise LimitError(f"it takes more than {MOST_STEPS:,} steps")
        if time.monotonic() > self._until:
            raise LimitError(f"it takes more than {MOST_SECONDS:g} s")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MOST_SOURCE:
            raise LimitError(f"it has {len(source):,} characters, more than {MOST_SOURCE:,}")
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(cast("nodes.Expr", loop.iter), "limits_loop")
        _replace_joins(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Work out `left operator right` where what comes out is not too long."""
        self.step()
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(count, int):
                    check_length(len(text) * count)
        elif operator == "+" and isinstance(left, str | list) and isinstance(right, str | list):
            check_length(len(left) + len(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if abs(right) * max(1, left.bit_length()) > _MOST_POWER:
                raise LimitError(f"a number has more than {_MOST_POWER} bits")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, (right if isinstance(right, tuple) else (right,)))
        return _OPERATORS[operator](left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # Jinja's own names
        """Call a function where what it returns is not too long."""
        __self.step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            _check_method(owner, name, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return what stands for a string's `format` in templates, which Jinja replaces by one that is safe."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> str:
            _check_method(value.__self__, "format", args, kwargs)
            return wrapped(*args, **kwargs)

        return limited

    def _loop(self, values: Any) -> Any:
        try:
            self.step(len(values))
        except TypeError:
            return self._each(values)
        return values

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.step()
            yield value

    def _join(self, values: Iterable[Any]) -> str:
        parts = [str(value) for value in values]
        check_length(sum(map(len, parts)))
        return "".join(parts)


def check_length(count: int) -> None:
    """Refuse a string, or a prompt, of more characters than there may be."""
    if count > MOST_CHARACTERS:
        raise LimitError(f"it makes a text of more than {MOST_CHARACTERS:,} characters")


def _counted(environment: LimitedEnvironment, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = next((kind for kind in ("jinja_pass_arg",) if hasattr(function, kind)), None)

    def limited(*args: Any, **kwargs: Any) -> Any:
        environment.step()
        values = args[1:] if passed else args
        if values:
            _check_method(values[0], name, values[1:], kwargs)
        found = function(*args, **kwargs)
        if isinstance(found, str):
            check_length(len(found))
        return found

    if passed:
        setattr(limited, passed, getattr(function, passed))
    return limited


def _check_method(text: Any, name: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse a method or filter whose result would be too long, before it is made."""
    values = (*args, *named.values())
    size = len(text) if isinstance(text, str | list | tuple | dict) else 1
    if name in _WIDTHS:
        width = max((int(value) for value in values if isinstance(value, int | float)), default=0)
        lines = size if name in ("indent", "tojson", "expandtabs") else 1
        check_length(width * max(1, lines))
    elif name == "replace" and isinstance(text, str) and len(args) >= 2:
        check_length(text.count(str(args[0])) * len(str(args[1])) + size)
    elif name == "join":
        parts, glue = (args[0], text) if isinstance(text, str) and args else (text, args[0] if args else "")
        if isinstance(parts, list | tuple):
            check_length(len(str(glue)) * len(parts) + sum(len(part) for part in parts if isinstance(part, str)))
    elif name in ("format", "format_map"):
        _check_format(str(text), values)


def _check_format(form: str, values: Iterable[Any]) -> None:
    if _WIDE.search(form):
        raise LimitError("it formats a value with a width of more than 9,999 characters")
    if "{:{" in form or "*" in form:
        check_length(max((value for value in values if isinstance(value, int)), default=0))


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _replace_joins(tree: nodes.Node) -> None:
    """Have `a ~ b` count what it makes."""
    for node in list(tree.find_all(nodes.Node)):
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(node, field, _joined(value))
            elif isinstance(value, list):
                value[:] = [_joined(entry) if isinstance(entry, nodes.Concat) else entry for entry in value]


def _joined(node: nodes.Concat) -> nodes.Filter:
    return _filtered(nodes.List(node.nodes, lineno=node.lineno), "limits_join")
