"""What generation returns, to a program, a chat and a server alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .sampling import TokenLogprobs

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Response:
    """One answer, and what it took."""

    text: str
    token_ids: tuple[int, ...]
    """The generated tokens, an end token included."""
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were in the KV cache already."""
    prefill_seconds: float
    """From the request to the first token."""
    decode_seconds: float
    """From the first token to the last."""
    finish_reason: FinishReason
    """`stop`: an end token or a stop string; `length`: max_tokens or the context's end; `cancelled`: by the caller."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One entry for each of `token_ids`, where asked for."""
    drafted_tokens: int = 0
    """Tokens that were run ahead of the answer; see `speculation`."""
    accepted_tokens: int = 0
    """How many of them came true."""
    stop: str | None = None
    """The stop string that ended it, where one did."""

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated, an end token included."""
        return len(self.token_ids)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens run (not those from the cache) by time to the first token; 0 where nothing was generated."""
        run = self.prompt_tokens - self.cached_tokens
        return run / self.prefill_seconds if self.token_ids and self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first by the time they took; 0 where there are none."""
        more = self.completion_tokens - 1
        return more / self.decode_seconds if more > 0 and self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it comes: one for each token, and a last one with the response."""

    text: str
    """What became certain with this token; often nothing, while a character or a stop string may be under way."""
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    response: Response | None = None
    """Set on the last chunk, and on no other."""


def last_response(chunks: Iterator[Chunk]) -> Response:
    """Return the response at the end of a stream."""
    for chunk in chunks:
        if chunk.response:
            return chunk.response
    raise RuntimeError("a stream of chunks ended without a response")
