"""Tokens as texts for `logprobs`, held back as long as the text they belong to is."""

from collections.abc import Sequence

from ..decoding.sampling import TokenLogprobs
from ..text.tokenizer import Tokenizer
from .messages import TokenText

_INCOMPLETE = "\ufffd"
# JSON has no infinity: this is what OpenAI's API reference has for a token that is as good as impossible.
_LEAST = -9999.0


class LogprobTexts:
    """Turns the tokens of one answer into `TokenText`, and lets out those whose text was shown."""

    def __init__(self, tokenizer: Tokenizer, last_of_prompt: int) -> None:
        self._tokenizer = tokenizer
        self._before = last_of_prompt
        self._decoder = tokenizer.stream()
        self._waiting: list[tuple[int, TokenText]] = []  # where its text begins in the answer, and the token
        self._length = 0
        self._shown = 0

    def push(self, token: int, logprobs: TokenLogprobs) -> None:
        """Take the next token of the answer."""
        top = tuple((self._text(other), max(value, _LEAST)) for other, value in logprobs.top)
        self._waiting.append((self._length, TokenText(self._text(token), max(logprobs.logprob, _LEAST), top)))
        self._length += len(self._decoder.push(token))
        self._before = token

    def shown(self, text: str) -> tuple[TokenText, ...]:
        """Note that more of the answer is shown, and return the tokens that this text begins or lies in."""
        self._shown += len(text)
        out = [entry for start, entry in self._waiting if start < self._shown]
        del self._waiting[: len(out)]
        return tuple(out)

    def _text(self, token: int) -> str:
        # A token's text depends on the one before it: SentencePiece drops the space of a text's first word.
        both = self._decode([self._before, token])
        alone = self._decode([self._before])
        return both[len(alone) :] if both.startswith(alone) else self._tokenizer.token_text(token)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special=False)


def text_bytes(text: str) -> list[int] | None:
    """Return the UTF-8 bytes of a token's text; None for one that is only part of a character."""
    return None if _INCOMPLETE in text else list(text.encode())
