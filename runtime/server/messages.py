"""What the web process and the engine's process say to each other; `channel` carries it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

from ..decoding.response import FinishReason
from ..text.template import Dialect, Message
from .facts import Facts


@dataclass(frozen=True)
class Conversation:
    """A prompt that the chat template renders."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    variables: Mapping[str, Any] | None = None
    """Further names that the template reads."""
    opens: bool = True
    """Whether to open the assistant's next message."""
    continues: bool = False
    """Whether the answer continues the last message."""


Prompt = Conversation | str | tuple[int, ...]
"""A conversation, a text to continue as it is, or token ids."""


@dataclass(frozen=True)
class Client:
    """Who asks: clients share the engine equally, and so do the users of one client."""

    host: str = ""
    """The address that the request came from; behind a proxy on this machine, the one in `X-Forwarded-For`."""
    user: str = ""
    """What the request calls its user."""


@dataclass(frozen=True)
class Job:
    """One request: every prompt is answered `choices` times."""

    id: int
    prompts: tuple[Prompt, ...]
    choices: int
    options: Mapping[str, Any]
    """As for `Model.options`; a seed counts up with each choice of a prompt."""
    stream: bool
    """Whether to send the answer piece by piece, or whole at its end."""
    echo: bool = False
    """Whether each answer begins with its prompt, whose tokens have log probabilities where those of answers do."""
    silent: bool = False
    """Whether answers have no tokens of their own: for the prompt's log probabilities alone."""
    tokens_only: bool = False
    """Whether to return the prompts' tokens (`Tokenized`) instead of answers."""
    client: Client = Client()
    """Who asks."""


@dataclass(frozen=True)
class Cancel:
    """Give a job up: nobody waits for it any more."""

    id: int


@dataclass(frozen=True)
class Shutdown:
    """End the process."""


ToEngine = Job | Cancel | Shutdown


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    model: str
    provider: str
    choice: str
    """Why this provider and no other."""
    engine: str
    context_length: int
    can_chat: bool
    """Whether the package has a chat template."""
    tools: Dialect
    """How that template has the model told of tools."""
    facts: Facts
    turns_because: str | None = None
    """Why answers are not decoded together; None where they are."""


@dataclass(frozen=True)
class LoadFailed:
    """The model cannot be loaded; the process ends."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class Accepted:
    """A job makes sense, and waits for its turn."""

    id: int
    prompt_tokens: int
    """Of all prompts together."""


@dataclass(frozen=True)
class Tokenized:
    """The tokens of each prompt of a job, and the text of each, special tokens included; the job is complete."""

    id: int
    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


class TokenText(NamedTuple):
    """A token of the answer as text, with its log probability and those of the most likely tokens at its place."""

    text: str
    logprob: float | None
    """None for the first of a prompt."""
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Piece:
    """Some more of one answer of a streamed job."""

    id: int
    choice: int
    """Prompts one after another, each with its choices: prompt * choices + choice."""
    text: str
    logprobs: tuple[TokenText, ...]
    tokens: int = 0
    """Of this answer so far."""


@dataclass(frozen=True)
class Finished:
    """One answer is complete."""

    id: int
    choice: int
    text: str
    """The whole answer where the job is not streamed, else what was not sent yet."""
    logprobs: tuple[TokenText, ...]
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Tokens of its prompt that needed no run."""
    prefill_seconds: float
    decode_seconds: float
    last: bool
    """Whether it is the last answer of its job."""
    queue_seconds: float = 0.0
    """From the job's arrival at the engine to the beginning of this answer."""
    stop: str | None = None
    """The stop text that ended it, where one did."""
    drafted_tokens: int = 0
    """Tokens that were run ahead of it."""
    accepted_tokens: int = 0
    """Those of them that came true."""


@dataclass(frozen=True)
class CacheState:
    """What is kept of texts that ended, since the engine's process began; sent after each answer."""

    hit_tokens: int = 0
    """Tokens of prompts that needed no run."""
    miss_tokens: int = 0
    """Those that were run."""
    read_tokens: int = 0
    """Those of the first that came from disk."""
    memory_bytes: int = 0
    disk_bytes: int = 0
    drafted_tokens: int = 0
    """Tokens that were run ahead of answers."""
    accepted_tokens: int = 0
    """Those that came true."""


RefusalKind = Literal["request", "context", "engine", "stopped"]


@dataclass(frozen=True)
class Refused:
    """A job ends without an answer.

    `request` and `context`: it cannot be meant so, or does not fit; `engine`: the engine failed at it; `stopped`: the
    engine's process ended before it was through.
    """

    id: int
    kind: RefusalKind
    message: str


FromEngine = Ready | CacheState | LoadFailed | Accepted | Tokenized | Piece | Finished | Refused
Event = Piece | Finished | Refused
"""What a job comes to, after it was accepted."""


def ends_job(message: object) -> TypeGuard[Refused | Tokenized | Finished]:
    """Whether a message is the last one of its job."""
    return isinstance(message, Refused | Tokenized) or (isinstance(message, Finished) and message.last)
