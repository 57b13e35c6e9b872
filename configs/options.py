"""The options of an answer, each declared once: the command line, `/set`, JSON lines, the server and Python follow.

To add one that changes how tokens are drawn: a line in `SamplingOptions`, a field in `Sampling`, and its arithmetic in
`runtime/decoding/sampling.py`. One that does something else: a line in `AnswerOptions` and a field in
`runtime/decoding/generation.py`'s `Options`. `docs/write_options.py` then writes the table of the documentation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType, UnionType
from typing import Annotated, Any, TypedDict, Union, get_args, get_origin, get_type_hints

from .errors import UsageError


@dataclass(frozen=True)
class Range:
    """The numbers that an option may have."""

    least: float = -math.inf
    most: float = math.inf
    open: bool = False
    """Whether `least` itself is excluded."""
    zero: str = ""
    """What 0 stands for, where that is not plain."""

    def __contains__(self, value: float) -> bool:
        finite = isinstance(value, int) or math.isfinite(value)
        return finite and (self.least < value if self.open else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        if self.open:
            return f"above {self.least:g}" + (f" and at most {self.most:g}" if self.most < math.inf else "")
        least = f"{self.least:g}" + (f" ({self.zero})" if self.zero else "")
        return f"{least} or more" if self.most == math.inf else f"{least} to {self.most:g}"


@dataclass(frozen=True)
class Option:
    """What is known of one option besides its name and type."""

    help: str
    """One line, for the command line and the documentation."""
    range: Range = Range()
    default: str = "the model's"
    """What is taken where nothing is said."""
    short: tuple[str, ...] = ()
    """Further flags of the command line."""
    server: Range | None = None
    """What the server takes, where the protocol or its clients need another range."""
    draws: bool = False
    """Whether it only matters where tokens are drawn: not where the most likely one is taken."""
    guided: bool = False
    """Whether ONNX Runtime GenAI can follow guidance with it: its search has an option of the same name. With others,
    guidance is a mask on the logits."""
    spellings: tuple[str, ...] = ()
    """Other names that it is given by."""
    name: str = ""
    kind: type = float
    """`float`, `int`, `bool`, `tuple` for texts, or `dict` for numbers by token id; like the name, it is taken from the
    declaration."""

    def check(self, value: Any) -> None:
        """Check a number's range, or that of each number by token id.

        Raises:
            UsageError: it is out of range.

        """
        if self.kind in (float, int) and value not in self.range:
            raise UsageError(f"{self.name} must be {self.range}, got {value}")
        if self.kind is dict:
            for token, number in value:
                if number not in self.range:
                    raise UsageError(f"{self.name} of token {token} must be {self.range}, got {number}")

    @property
    def label(self) -> str:
        """The name as it is written in a sentence."""
        return self.name.replace("_penalty", " penalty").replace("_", "-")


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn. None stands for what the model's `generation_config.json` says.

    That is greedy where it does not ask for sampling; naming any option that draws asks for it, with temperature 1 and
    top_k 50 if unnamed.
    """

    temperature: Annotated[
        float | None,
        Option(
            "0 takes the most likely token always.",
            Range(0),
            server=Range(0, 2),
            draws=True,
            guided=True,
        ),
    ]
    top_p: Annotated[
        float | None,
        Option("Draw from tokens with this probability in all.", Range(0, 1, open=True), draws=True, guided=True),
    ]
    top_k: Annotated[
        int | None,
        Option(
            "Draw from this many tokens at most; 0 draws from all.",
            Range(0, zero="all tokens"),
            server=Range(-1),  # as vLLM has "all tokens"
            draws=True,
            guided=True,
        ),
    ]
    min_p: Annotated[
        float | None,
        Option("Draw from tokens at least this share as likely as the most likely one.", Range(0, 1), draws=True),
    ]
    typical_p: Annotated[
        float | None,
        Option(
            "Draw from the tokens whose surprise is nearest to the expected one, with this probability in all.",
            Range(0, 1, open=True),
            draws=True,
        ),
    ]
    repetition_penalty: Annotated[
        float | None,
        Option(
            "Above 1, repeat less.",
            Range(0, open=True),
            server=Range(0.01, 100),
            guided=True,
            spellings=("repeat_penalty",),
        ),
    ]
    presence_penalty: Annotated[
        float | None,
        Option("Taken from the logits of tokens that the answer holds.", Range(-100, 100), server=Range(-2, 2)),
    ]
    frequency_penalty: Annotated[
        float | None,
        Option(
            "Taken from logits once for each time that the answer holds the token.",
            Range(-100, 100),
            server=Range(-2, 2),
        ),
    ]
    logit_bias: Annotated[
        Mapping[int, float] | None,
        Option("Added to the logits of tokens, by their ids; -100 bars a token.", Range(-100, 100), default="none"),
    ]


class AnswerOptions(SamplingOptions, total=False):
    """What an answer may be told; None stands for the default."""

    max_tokens: Annotated[
        int | None, Option("Longest answer.", Range(1), default="1024, or what fits", short=("-n",), guided=True)
    ]
    min_tokens: Annotated[
        int | None,
        Option("Shortest answer: before, no end token is drawn and no stop text looked for.", Range(0), default="0"),
    ]
    ignore_eos: Annotated[
        bool | None,
        Option("Draw no end token: an answer ends at max_tokens or a stop text.", default="false"),
    ]
    seed: Annotated[
        int | None,
        Option(
            "The same seed gives the same text.",
            Range(0),
            default="differs from run to run",
            server=Range(-(2**63), 2**63 - 1),
            guided=True,
        ),
    ]
    stop: Annotated[
        str | Sequence[str] | None,
        Option("End the answer before this text; may be repeated.", default="none", guided=True),
    ]


def _table(declaration: type) -> Mapping[str, Option]:
    hints = get_type_hints(declaration, include_extras=True)
    found = {}
    for name, hint in hints.items():
        if option := next((part for part in get_args(hint)[1:] if isinstance(part, Option)), None):
            found[name] = replace(option, name=name, kind=_kind(get_args(hint)[0]))
    return MappingProxyType(found)


def _kind(hint: Any) -> type:
    kinds = [part for part in get_args(hint) if part is not type(None)] if _is_union(hint) else [hint]
    if len(kinds) > 1:
        return tuple
    return dict if get_origin(kinds[0]) is Mapping else kinds[0]


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


OPTIONS = _table(AnswerOptions)
"""Every option by name, in the order of the declarations."""
SAMPLING = _table(SamplingOptions)
"""Those of them that are fields of `Sampling`."""
SPELLINGS = MappingProxyType({other: option.name for option in OPTIONS.values() for other in option.spellings})
"""Other names of options, and what each stands for."""


def spelled(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their own names.

    Raises:
        UsageError: an option is given by two names.

    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        own = SPELLINGS.get(name, name)
        if own in found:
            raise UsageError(f"{own} is given twice, under two names")
        found[own] = value
    return found


def biases(given: Any) -> tuple[tuple[int, float], ...]:
    """Return numbers by token id in the order of the ids.

    Args:
        given: a mapping, whose keys are whole numbers or such in digits, or pairs.

    Raises:
        UsageError: it is neither.

    """
    pairs = given.items() if isinstance(given, Mapping) else given
    try:
        found = {int(token): float(number) for token, number in pairs if _is_id(token)}
        if len(found) == len(pairs):
            return tuple(sorted(found.items()))
    except (TypeError, ValueError):
        pass
    raise UsageError(f"logit_bias must be numbers by token id, such as {{15043: -100}}, got {given!r:.80}")


def _is_id(token: Any) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) if not isinstance(token, str) else token.isdecimal()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the steps and their order are those of transformers' `generate`."""

    temperature: float = 1.0
    """0 takes the most likely token always."""
    top_k: int = 50
    """Draw from this many tokens at most; 0 draws from all. 50 is transformers' default."""
    top_p: float = 1.0
    """Draw from the fewest tokens that have this probability together."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that are in the text already (multiplies negative ones); 1 changes nothing."""
    min_p: float = 0.0
    """Draw only from tokens whose probability is at least this times the largest (arXiv:2407.01082); 0 from all."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer, not the prompt, holds; negative values favor them."""
    frequency_penalty: float = 0.0
    """Taken from the logits of tokens that the answer holds, times how often it does."""
    typical_p: float = 1.0
    """Draw from the tokens nearest to the expected surprise that have this probability together (arXiv:2202.00666)."""
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    """Added to logits before all else, by token id; kept as pairs in the order of the ids."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", biases(self.logit_bias))
        for name, option in SAMPLING.items():
            option.check(getattr(self, name))

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken always."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def changed(self) -> Mapping[str, Any]:
        """The values that are not the defaults of this class."""
        return {entry.name: value for entry in fields(self) if (value := getattr(self, entry.name)) != entry.default}

    @property
    def changes_logits(self) -> bool:
        """Whether the most likely token may be another one than that of the model's logits."""
        return any(not SAMPLING[name].draws for name in self.changed)

    def __str__(self) -> str:
        shown = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, **self.changed}
        parts = [
            f"{SAMPLING[name].label} {f'of {len(value)} tokens' if isinstance(value, tuple) else format(value, 'g')}"
            for name, value in shown.items()
            if not (self.greedy and SAMPLING[name].draws)
        ]
        return ", ".join(["greedy", *parts] if self.greedy else parts)
