"""Prompts into tokens: short ones at once, long ones in a thread beside the engine's, so that nobody waits for them."""

from concurrent.futures import ThreadPoolExecutor

from ...configs import UsageError
from ..model import Model
from .beside import Pending
from .messages import Conversation, Job, Prompt

Tokens = tuple[tuple[int, ...], ...]
"""The prompts of a job, each as token ids."""

_LONG_CHARACTERS = 16 * 1024
"""About what is tokenized in the time of one step of the engine."""


class ContextError(UsageError):
    """Prompt and answer are longer than the model's context."""


class Prompts:
    """Turns the prompts of jobs into tokens. For use by one thread; `tokenizers` lets others run meanwhile."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1, "prompts")
        self.pending: Pending[Job, Tokens] = Pending()
        """Jobs that wait for their tokens."""

    def start(self, job: Job) -> bool:
        """Begin to tokenize a job in the background where its prompts are long; return whether they are."""
        if sum(map(_characters, job.prompts)) <= _LONG_CHARACTERS:
            return False
        self.pending.add(job.id, job, self._thread.submit(self.encode, job))
        return True

    def encode(self, job: Job) -> Tokens:
        """Return the tokens of a job's prompts.

        Raises:
            UsageError: a prompt is empty, holds unknown tokens, or the chat template refuses it.
            ContextError: it is longer than any text that fits into the context.

        """
        found = tuple(self._encode(prompt) for prompt in job.prompts)
        if not all(found) and not job.tokens_only:
            raise UsageError("the prompt holds no tokens")
        return found

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        tokenizer = self._model.tokenizer
        if isinstance(prompt, Conversation):
            if self._model.template is None:
                raise UsageError(f"{self._model.package.name} has no chat template; use /v1/completions")
            text = self._model.template.render(
                prompt.messages,
                tools=prompt.tools,
                variables=prompt.variables,
                add_generation_prompt=prompt.opens,
                continue_final_message=prompt.continues,
            )
            self._check_length(text)
            tokens = tokenizer.encode(text, special=False)
        elif isinstance(prompt, str):
            self._check_length(prompt)
            tokens = tokenizer.encode(prompt)
        else:
            tokens = list(prompt)
            if unknown := [token for token in tokens if not 0 <= token < tokenizer.vocab_size]:
                raise UsageError(f"token ids must be 0 to {tokenizer.vocab_size - 1}, got {unknown[0]}")
        return tuple(tokens)

    def _check_length(self, text: str) -> None:
        """Refuse what cannot fit even in the longest tokens there are, before time is spent on it."""
        context, size = self._model.context_length, len(text)
        if size > _LONG_CHARACTERS and size > context * self._model.tokenizer.longest_token:
            raise ContextError(
                f"the prompt of {size} characters is longer than the context of {context} tokens can hold"
            )


def _characters(prompt: Prompt) -> int:
    if isinstance(prompt, Conversation):
        return sum(len(str(value)) for message in prompt.messages for value in message.values())
    return len(prompt)
