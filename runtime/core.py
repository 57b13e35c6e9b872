"""What a loaded package can do at its simplest: encode a prompt, make a KV cache, run the model on it.

`batch`, `chat` and the facade `model` stand on this.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

from ..configs import UsageError
from .decoding.engine import Engine
from .decoding.generation import Generation, Options, room_for
from .decoding.kvcache import KvCache
from .decoding.response import Chunk
from .engines.ort import OrtEngine, load_ort_engine
from .package import Package
from .providers.choice import Candidate, ProviderChoice
from .providers.devices import free_memory
from .text.template import ChatTemplate, Message
from .text.tokenizer import Tokenizer

Prompt = str | Sequence[Message]


class ModelCore:
    """A loaded package: its engine, its tokenizer, its chat template, and the provider that it runs on."""

    def __init__(
        self,
        package: Package,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        choice: ProviderChoice | None = None,
        *,
        threads: int | None = None,
        device: int | None = None,
    ) -> None:
        """Put a model together from its parts; `load` does this for a package on disk."""
        self.package = package
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = template
        self.choice = choice or ProviderChoice("cpu", (Candidate("cpu", True, "it was asked for"),))
        """The provider it runs on, and why."""
        self.on_reserve: Callable[[int, int], None] | None = None
        """Called with tokens and bytes before a KV cache is reserved."""
        self._threads = threads
        self._device = device
        self._batching: OrtEngine | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def provider(self) -> str:
        """The provider it runs on."""
        return self.choice.provider

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.package.context_length

    def encode(self, prompt: Prompt, *, raw: bool = False, system: str | None = None) -> list[int]:
        """Return the token ids of a prompt, rendered by the chat template unless it is raw; see `generate`.

        Raises:
            UsageError: the package has no chat template for a conversation, or the template refuses it.

        """
        if isinstance(prompt, str):
            if raw or self.template is None:
                if system is not None:
                    raise UsageError("a system message needs the chat template, which is not used here")
                return self.tokenizer.encode(prompt)
            prompt = [{"role": "user", "content": prompt}]
        elif raw:
            raise UsageError("a raw prompt must be a text, got messages")
        first = [{"role": "system", "content": system}] if system is not None else []
        return self.tokenizer.encode(self.render([*first, *prompt]), special=False)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt that the chat template makes of a conversation.

        Raises:
            UsageError: the package has no chat template, or it refuses the conversation.

        """
        if self.template is None:
            raise UsageError(f"{self.package.name} has no chat template; give it a raw text (--raw)")
        return self.template.render(messages, add_generation_prompt=add_generation_prompt)

    def options(
        self,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] = (),
        **others: Any,
    ) -> Options:
        """Return the options of a generation: the model's defaults, and over them what was named.

        Raises:
            UsageError: a value is out of range, or guidance is malformed.

        """
        sampling = self.package.sampling
        if sampling.greedy and temperature is None and (top_p is not None or top_k is not None):
            temperature = 1.0
        named = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
        }
        sampling = replace(sampling, **{key: value for key, value in named.items() if value is not None})
        return Options(sampling=sampling, stop=(stop,) if isinstance(stop, str) else tuple(stop), **others)

    def new_cache(self) -> KvCache:
        """Return an empty KV cache for one text, which reserves nothing yet.

        Raises:
            UsageError: the model was closed.

        """
        if self._closed:
            raise UsageError("the model was closed")
        return KvCache(
            self.engine,
            context_length=self.context_length,
            bytes_per_token=self.package.kv_bytes_per_token,
            switch=self.package.longrope_switch,
            free_memory=self.free_memory,
            on_reserve=self.on_reserve,
        )

    def free_memory(self) -> int | None:
        """Return the bytes that a KV cache can take where the model runs; None where that is not known."""
        return free_memory(self.provider, self._device or 0)

    def batching_engine(self) -> OrtEngine:
        """Return the engine that decodes several texts together: the model's own, or a second one, loaded once.

        Raises:
            PackageError: the package can not be batched.
            ProviderError: plain ONNX Runtime does not run the model's provider.
            UsageError: the model was closed.

        """
        with self._lock:
            if self._closed:
                raise UsageError("the model was closed")
            if isinstance(self.engine, OrtEngine):
                return self.engine
            if self._batching is None:
                self._batching, _ = load_ort_engine(
                    self.package, self.provider, threads=self._threads, device=self._device
                )
            return self._batching

    def run(
        self,
        prompt: Sequence[int],
        options: Options,
        *,
        cache: KvCache | None = None,
        spare: int = 0,
        cancel: threading.Event | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Iterator[Chunk]:
        """Generate from token ids.

        Args:
            prompt: token ids.
            options: how.
            cache: a cache to go on with; by default a new one, which is closed at the end.
            spare: tokens to reserve beyond this answer, for those to come in the same cache.
            cancel: ends the answer when it is set.
            on_prefill: called with the prompt's tokens run so far and in all.

        Raises:
            UsageError: prompt and answer do not fit into the context or the memory; at the call.
            EngineError: the engine failed.

        """
        room = room_for(len(prompt), options.max_tokens, self.context_length)
        used = cache or self.new_cache()
        used.reserve(len(prompt) + room, spare, options.guided)
        generation = Generation(
            used,
            prompt,
            options,
            room=room,
            end_tokens=self.package.end_tokens,
            decoder=self.tokenizer.stream(),
            cancel=cancel,
            on_prefill=on_prefill,
        )
        return _closing(generation, used) if cache is None else iter(generation)

    def close(self) -> None:
        """Give the model's memory back; it can not be used after that."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.engine.close()
                if self._batching:
                    self._batching.close()
                    self._batching = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _closing(generation: Generation, cache: KvCache) -> Iterator[Chunk]:
    try:
        yield from generation
    finally:
        cache.close()
