"""A conversation that keeps its KV cache: each turn runs only the tokens that are new."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack, get_args

from ..configs import UsageError
from .core import ModelCore
from .decoding.generation import DEFAULT_MAX_TOKENS, GenerateOptions, Options
from .decoding.response import Chunk, Response, last_response
from .text.template import Message

Overflow = Literal["stop", "slide", "error"]
ROLES = ("system", "user", "assistant", "tool")
# Once old turns have to go, enough of them go that the rest is cached for a few turns: each slide empties the cache.
_SLIDE_TO = 0.75
_LEAST_ROOM = 256
_LEAST_SPARE = 1024


class ChatSession:
    """A conversation with a model, one answer at a time.

    Each turn renders the whole conversation anew and compares its tokens with those in the cache; what they share from
    the start is not run again, whatever the template or the tokenizer made of the earlier answers.

    `on_overflow` says what happens at the context's end: `stop` cuts the answer there and refuses the next turn;
    `slide` forgets the oldest turns, never the system message; `error` refuses a turn whose longest answer would not
    fit.
    """

    def __init__(
        self,
        model: ModelCore,
        *,
        system: str | None = None,
        on_overflow: Overflow = "stop",
        options: GenerateOptions | None = None,
    ) -> None:
        """Begin a conversation.

        Args:
            model: the model, which must stay open.
            system: the system message.
            on_overflow: `stop`, `slide` or `error`.
            options: defaults of every answer, as for `Model.generate`.

        Raises:
            UsageError: the package has no chat template, or an option makes no sense.

        """
        if model.template is None:
            raise UsageError(f"{model.package.name} has no chat template, so it cannot chat; see: phi3-onnx generate")
        if on_overflow not in get_args(Overflow):
            raise UsageError(f"on_overflow must be one of {', '.join(get_args(Overflow))}, got {on_overflow!r}")
        self._model = model
        self._cache = model.new_cache()
        self._busy = threading.Lock()
        self._turns: list[Message] = []
        self._retries = 0
        self.system = system
        self.on_overflow: Overflow = on_overflow
        self.settings: GenerateOptions = {**options} if options else {}
        """Defaults of every answer, as for `Model.generate`; may be changed between turns."""
        self.forgotten = 0
        """Messages that `slide` has dropped so far."""
        model.options(**self.settings)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, its system message first."""
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        return (*first, *self._turns)

    @messages.setter
    def messages(self, messages: Sequence[Message]) -> None:
        check_messages(messages)
        turns = list(messages)
        self.system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else None
        self._turns = turns

    @property
    def cached_tokens(self) -> int:
        """Tokens in the KV cache."""
        return len(self._cache.tokens)

    def send(
        self,
        text: str,
        *,
        cancel: threading.Event | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]:
        """Say something and stream the answer; both join the conversation when the answer ends or is cancelled.

        Args:
            text: the user's message.
            cancel: set it, from any thread, to end the answer before its next token; what there is of it is kept.
            on_prefill: called with the prompt's tokens run so far and in all.
            options: for this answer only, as for `Model.generate`.

        Yields:
            A chunk for each token, and a last one whose `response` is set. A stream that is given up before its end
            leaves the conversation as it was.

        Raises:
            UsageError: another answer is under way, or the conversation does not fit; with the first chunk.
            EngineError: the engine failed.

        """
        self._retries = 0
        return self._answer([*self._turns, {"role": "user", "content": text}], options, cancel, on_prefill)

    def ask(self, text: str, **options: Unpack[GenerateOptions]) -> Response:
        """Say something and return the answer; see `send`."""
        return last_response(self.send(text, **options))

    def regenerate(
        self,
        *,
        cancel: threading.Event | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]:
        """Answer the last message again, in place of the last answer; a seed counts up with each try. See `send`.

        Raises:
            UsageError: nothing was said yet.

        """
        turns = list(self._turns)
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise UsageError("there is nothing to answer yet")
        self._retries += 1
        return self._answer(turns, options, cancel, on_prefill)

    def undo(self) -> bool:
        """Forget the last message of the user and its answer; return whether there was one."""
        for position in range(len(self._turns) - 1, -1, -1):
            if self._turns[position]["role"] == "user":
                del self._turns[position:]
                return True
        return False

    def clear(self) -> None:
        """Forget all but the system message."""
        self._turns.clear()

    def close(self) -> None:
        """Give the KV cache's memory back."""
        self._cache.close()

    def _answer(
        self,
        turns: Sequence[Message],
        options: GenerateOptions,
        cancel: threading.Event | None,
        on_prefill: Callable[[int, int], None] | None,
    ) -> Iterator[Chunk]:
        if not self._busy.acquire(blocking=False):
            raise UsageError("this chat is answering already; let it finish, or open another with model.chat()")
        try:
            chosen = self._options(options)
            kept, prompt = self._fitted(list(turns), chosen)
            if self.on_overflow == "stop" and chosen.max_tokens:
                chosen = replace(chosen, max_tokens=min(chosen.max_tokens, self._context - len(prompt)))
            needed = len(prompt) + (chosen.max_tokens or DEFAULT_MAX_TOKENS)
            spare = max(_LEAST_SPARE, needed // 2)
            chunks = self._model.run(
                prompt, chosen, cache=self._cache, spare=spare, cancel=cancel, on_prefill=on_prefill
            )
            for chunk in chunks:
                if chunk.response:
                    self._turns = [*kept, {"role": "assistant", "content": chunk.response.text}]
                yield chunk
        finally:
            self._busy.release()

    def _options(self, options: GenerateOptions) -> Options:
        merged: GenerateOptions = {**self.settings, **options}
        if self._retries and (seed := merged.get("seed")) is not None:
            merged["seed"] = seed + self._retries
        return self._model.options(**merged)

    @property
    def _context(self) -> int:
        return self._model.context_length

    def _fitted(self, turns: list[Message], options: Options) -> tuple[list[Message], list[int]]:
        """Return the turns that fit into the context, and the tokens of the prompt that they make."""
        prompt = self._encode(turns)
        if self.on_overflow == "slide":
            room = options.max_tokens or min(_LEAST_ROOM, self._context // 4)
            if len(prompt) + room > self._context:
                return self._drop_oldest(turns, prompt, room)
        elif self.on_overflow == "error":
            room = options.max_tokens or DEFAULT_MAX_TOKENS
            if len(prompt) + room > self._context:
                raise UsageError(f"conversation {len(prompt)} tokens + {room} > context {self._context}")
        elif len(prompt) >= self._context:
            raise UsageError(
                f"the conversation has {len(prompt)} tokens and fills the context of {self._context}; "
                "clear it, undo some of it, or let it slide (--on-overflow slide)"
            )
        return turns, prompt

    def _drop_oldest(self, turns: list[Message], prompt: list[int], room: int) -> tuple[list[Message], list[int]]:
        before = len(turns)
        while len(prompt) + room > self._context * _SLIDE_TO and (later := _next_user(turns)):
            turns = turns[later:]
            prompt = self._encode(turns)
        if len(prompt) + room > self._context:
            raise UsageError(f"the last message alone, {len(prompt)} tokens + {room}, is past context {self._context}")
        self.forgotten += before - len(turns)
        return turns, prompt

    def _encode(self, turns: Sequence[Message]) -> list[int]:
        return self._model.encode(turns, system=self.system)


def check_messages(messages: Sequence[Any]) -> None:
    """Check that a conversation is one: messages with a known role and text, a system message first if at all.

    Raises:
        UsageError: it is not; the message says which and why.

    """
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise UsageError(f"message {number} must have a role, one of {', '.join(ROLES)}, got {message!r:.80}")
        if not isinstance(message.get("content"), str):
            raise UsageError(f"message {number} must have a text as content, got {message.get('content')!r:.80}")
        if message["role"] == "system" and number > 1:
            raise UsageError(f"message {number} is a system message; only the first can be")


def _next_user(turns: Sequence[Message]) -> int | None:
    """Return where the second of the user's messages stands; None where there is but one."""
    return next((i for i, turn in enumerate(turns) if i and turn["role"] == "user"), None)
