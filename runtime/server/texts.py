"""Tokens as texts for `logprobs`, held back as long as the text they belong to is."""

from collections.abc import Iterator, Sequence

from ..decoding.sampling import TokenLogprobs
from ..text.tokenizer import Tokenizer
from .messages import TokenText

_INCOMPLETE = "\ufffd"
# JSON has no infinity: this is what OpenAI's API reference has for a token that is as good as impossible.
_LEAST = -9999.0


def prompt_texts(
    tokenizer: Tokenizer, prompt: Sequence[int], logprobs: Sequence[TokenLogprobs], given: str | None
) -> Iterator[TokenText]:
    """Yield the tokens of a prompt as texts.

    Args:
        tokenizer: the model's.
        prompt: token ids.
        logprobs: those of all but the first.
        given: the prompt's text; None where token ids were given. What the tokenizer puts before it has no text.

    """
    entries = [(first, None) for first in prompt[:1]] + list(zip(prompt[1:], logprobs, strict=True))
    before = None
    for token, found in entries:
        text = _after(tokenizer, before, token)
        if given is not None and before is None and not given.startswith(text):
            text = ""
        top = [(_after(tokenizer, before, other), max(value, _LEAST)) for other, value in (found.top if found else ())]
        yield TokenText(text, max(found.logprob, _LEAST) if found else None, tuple(top))
        before = token


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
        self._waiting.append((self._length, self._entry(self._text(token), logprobs)))
        self._length += len(self._decoder.push(token))
        self._before = token

    def shown(self, text: str) -> tuple[TokenText, ...]:
        """Note that more of the answer is shown, and return the tokens that this text begins or lies in."""
        self._shown += len(text)
        out = [entry for start, entry in self._waiting if start < self._shown]
        del self._waiting[: len(out)]
        return tuple(out)

    def without_text(self, logprobs: TokenLogprobs) -> TokenText:
        """Return the entry of a token that ended the answer."""
        return self._entry("", logprobs)

    def _entry(self, text: str, logprobs: TokenLogprobs) -> TokenText:
        top = tuple((self._text(other), max(value, _LEAST)) for other, value in logprobs.top)
        return TokenText(text, max(logprobs.logprob, _LEAST), top)

    def _text(self, token: int) -> str:
        return _after(self._tokenizer, self._before, token)


def _after(tokenizer: Tokenizer, before: int | None, token: int) -> str:
    """Return the text of a token after another: SentencePiece drops the space of a text's first word."""
    if before is None:
        return tokenizer.decode([token], skip_special=False)
    both = tokenizer.decode([before, token], skip_special=False)
    alone = tokenizer.decode([before], skip_special=False)
    return both[len(alone) :] if both.startswith(alone) else tokenizer.token_text(token)


def text_bytes(text: str) -> list[int] | None:
    """Return the UTF-8 bytes of a token's text; None for one that is only part of a character."""
    return None if _INCOMPLETE in text else list(text.encode())
