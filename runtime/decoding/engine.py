"""The seam between this project and what runs the graph: any object with these methods can serve a model."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, get_args

import numpy as np

from ...configs import UsageError
from .bounds import check_bounds
from .forms import lark_of, pattern_of
from .sampling import Sampling

GuidanceKind = Literal["json_schema", "regex", "lark_grammar"]


@dataclass(frozen=True)
class Guidance:
    """A form that the answer must have; the engine masks every token that would break it."""

    kind: GuidanceKind
    text: str
    """A JSON schema, a regular expression, or a grammar in llguidance's Lark dialect."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GuidanceKind):
            raise UsageError(f"guidance must be one of {', '.join(get_args(GuidanceKind))}, got {self.kind!r}")
        check_bounds(self.kind, self.text)
        if self.kind == "json_schema" and not isinstance(json.loads(self.text), dict):
            raise UsageError(f"the JSON schema must be a JSON object, got {self.text!r:.80}")

    @classmethod
    def one_of(cls, texts: Sequence[str]) -> Self:
        """Return the guidance under which an answer is one of these texts.

        Raises:
            UsageError: there are none or too many, or one is empty.

        """
        return cls("regex", pattern_of(texts))

    @classmethod
    def grammar(cls, text: str) -> Self:
        """Return the guidance of a grammar, in llguidance's Lark dialect or in llama.cpp's GBNF.

        Raises:
            UsageError: it is neither, or passes a bound.

        """
        check_bounds("lark_grammar", text)
        return cls("lark_grammar", lark_of(text))


@dataclass(frozen=True)
class GuidedDraws:
    """Guidance and how the engine itself is to draw under it."""

    guidance: Guidance
    sampling: Sampling
    seed: int | None


class TokenSequence(Protocol):
    """One text in the engine: its KV cache holds keys and values of the tokens appended so far."""

    @property
    def capacity(self) -> int:
        """Tokens that it has room for."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether the last token was put off until logits are asked for, to be run together with other sequences'."""
        ...

    def append(self, tokens: Sequence[int]) -> None:
        """Run the model on `tokens`, after those that are there.

        Raises:
            EngineError: the run failed; the sequence is of no use any more.

        """
        ...

    def logits(self) -> np.ndarray:
        """Return the logits of the last token appended, float32 [vocabulary]."""
        ...

    def run_logits(self) -> np.ndarray:
        """Return the logits of the last `append`, float32 [rows, vocabulary]: one row a token, or one in all."""
        ...

    def choose_token(self) -> int:
        """Choose the next token under the guidance it was opened with, else the most likely one.

        The next call of this or of `logits` runs the model on it first; `rewind` can still drop it before.

        Raises:
            EngineError: it failed; the sequence is of no use any more.

        """
        ...

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`; `append` has to come next."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class Engine(Protocol):
    """A loaded model. Several sequences can be open at a time; calls from several threads take turns."""

    @property
    def name(self) -> str:
        """What it is and which version, such as `onnxruntime-genai 0.18.0`."""
        ...

    @property
    def prefill_chunk(self) -> int:
        """Tokens of a prompt to append at a time, so that a long one can be stopped midway."""
        ...

    @property
    def continuous(self) -> bool:
        """Whether several tokens can be appended to a sequence that has some, without running all of them again."""
        ...

    @property
    def chooses(self) -> bool:
        """Whether sequences without guidance can `choose_token`, which spares the copy of all logits."""
        ...

    @property
    def guides(self) -> bool:
        """Whether it follows guidance by itself, when a sequence is opened with it; else the caller masks logits."""
        ...

    def open(self, capacity: int, guided: GuidedDraws | None = None) -> TokenSequence:
        """Start a sequence with room for `capacity` tokens, whose KV cache is reserved at once.

        Raises:
            EngineError: the engine cannot reserve it.
            UsageError: the engine does not understand the guidance.

        """
        ...

    def close(self) -> None:
        """Give the model's memory back."""
        ...


Prove = Callable[[Engine, str], None]
"""Lets a loaded engine pass on the provider named, or raises ProviderError: it computes wrongly there."""
