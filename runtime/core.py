"""What a loaded package can do at its simplest: encode a prompt, make a KV cache, run the model on it.

`batch`, `chat` and the facade `model` stand on this.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

from ..configs import UsageError
from ..configs.options import SAMPLING, Sampling, biases, spelled
from .decoding.draft_model import DraftModel
from .decoding.engine import Engine, Guidance, GuidedDraws, Prove
from .decoding.generation import GenerateOptions, Generation, Options, TextCache, room_for
from .decoding.guide import Guide, Guides
from .decoding.kvcache import KvCache
from .decoding.lookup import LookupDrafter
from .decoding.response import Chunk
from .decoding.speculation import AUTO, Drafter, Speculation
from .engines.ort import OrtEngine, load_ort_engine
from .engines.packed_engine import PackedEngine
from .engines.together import Together
from .package import Package
from .providers.choice import Candidate, ProviderChoice
from .providers.devices import free_memory
from .text.template import ChatTemplate, Message, is_open
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
        prove: Prove | None = None,
        speculation: Speculation = AUTO,
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
        self._prove = prove
        self.speculation = speculation
        """How far answers run ahead, on the engine that decodes together."""
        self.draft: ModelCore | None = None
        """Another model that writes drafts; closed with this one. None looks them up in the text."""
        self._drafting = dict[bool, DraftModel]()
        self.cache_memory: int | None = None
        """Bytes that texts of a server may keep in memory after their end; None is a quarter of what is free."""
        self.cache_folder: tuple[Path, int] | None = None
        """Where `together` keeps them over restarts, and the bytes that they may take there."""
        self._batching: OrtEngine | None = None
        self._closed = False
        self.turns_because: str | None = None
        """Why several answers are not decoded together, where that was wanted."""
        self.guides = Guides(tokenizer, package.contract.vocab_size, package.end_tokens)
        """Makes masks of guidance, for engines that have none of their own."""
        self.masks_guidance = False
        """Whether guidance masks logits even where the engine could follow it: any thread can compile it then."""
        self._lock = threading.Lock()

    @property
    def provider(self) -> str:
        """The provider it runs on."""
        return self.choice.provider

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.package.context_length

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes in this engine."""
        return self.engine.bytes_per_token if isinstance(self.engine, PackedEngine) else self.package.kv_bytes_per_token

    def encode(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        system: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a prompt, rendered by the chat template unless it is raw; see `generate`.

        Raises:
            UsageError: the package has no chat template for a conversation, or the template refuses it.

        """
        if isinstance(prompt, str):
            if raw or self.template is None:
                if system is not None:
                    raise UsageError("a system message needs the chat template, which is not used here")
                if template_variables:
                    raise UsageError("variables need the chat template, which is not used here")
                return self.tokenizer.encode(prompt)
            prompt = [{"role": "user", "content": prompt}]
        elif raw:
            raise UsageError("a raw prompt must be a text, got messages")
        first = [{"role": "system", "content": system}] if system is not None else []
        text = self.render([*first, *prompt], continue_final_message=is_open(prompt), variables=template_variables)
        return self.tokenizer.encode(text, special=False)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt that the chat template makes of a conversation; see `ChatTemplate.render`.

        Raises:
            UsageError: the package has no chat template, or it refuses the conversation.

        """
        if self.template is None:
            raise UsageError(f"{self.package.name} has no chat template; give it a raw text (--raw)")
        return self.template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )

    def options(self, **named: Unpack[GenerateOptions]) -> Options:
        """Return the options of a generation: the model's defaults, and over them what was named.

        Raises:
            UsageError: a value is out of range, or guidance is malformed.

        """
        given = spelled({name: value for name, value in named.items() if value is not None})
        drawing = {name: given.pop(name) for name in SAMPLING if name in given}
        sampling = self.package.sampling
        if sampling.greedy and any(SAMPLING[name].draws for name in drawing):
            drawing.setdefault("temperature", 1.0)
        stop = given.pop("stop", ())
        options = Options(replace(sampling, **drawing), stop=(stop,) if isinstance(stop, str) else tuple(stop), **given)
        self._check_tokens(options.sampling)
        return options

    def _check_tokens(self, sampling: Sampling) -> None:
        size = self.package.contract.vocab_size
        for token, _ in biases(sampling.logit_bias):
            if not 0 <= token < size:
                raise UsageError(f"logit_bias names token {token}; the model has tokens 0 to {size - 1}")

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
            bytes_per_token=self.kv_bytes_per_token,
            switch=self.package.longrope_switch,
            free_memory=self.free_memory,
            on_reserve=self.on_reserve,
            runs_ahead=self.engine.runs_ahead(self.speculation) if isinstance(self.engine, PackedEngine) else None,
            drafter=self._drafter(self.speculation),
        )

    def _drafter(self, speculation: Speculation) -> Callable[[], Drafter]:
        """Return what makes the drafter of a text."""
        if (draft := self.draft) is None:
            return LookupDrafter
        if (found := self._drafting.get(speculation.always)) is None:
            vocabulary = min(draft.package.contract.vocab_size, self.package.contract.vocab_size)
            found = DraftModel(draft.new_cache, draft.context_length, vocabulary, always=speculation.always)
            self._drafting[speculation.always] = found
        return found.drafter

    def free_memory(self) -> int | None:
        """Return the bytes that a KV cache can take where the model runs; None where that is not known."""
        return free_memory(self.provider, self._device or 0)

    def batching_engine(self) -> OrtEngine:
        """Return the engine that decodes several texts together: the model's own, or a second one, loaded once.

        Raises:
            PackageError: the package cannot be batched.
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
                    self.package, self.provider, threads=self._threads, device=self._device, prove=self._prove
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
            cache: a cache to continue with; by default a new one, which is closed at the end.
            spare: tokens to reserve beyond this answer, for those to come in the same cache.
            cancel: ends the answer when it is set.
            on_prefill: called with the prompt's tokens run so far and in all.

        Raises:
            UsageError: prompt and answer do not fit into the context or the memory; at the call.
            EngineError: the engine failed.

        """
        self._check_tokens(options.sampling)
        room = self.room(prompt, options)
        used = cache or self.new_cache()
        used.reserve(len(prompt) + room, spare, self.opened_under(options))
        generation = self.generation(prompt, options, used, cancel=cancel, on_prefill=on_prefill)
        return _closing(generation, used) if cache is None else iter(generation)

    def room(self, prompt: Sequence[int], options: Options) -> int:
        """Return how many tokens the answer to a prompt may have.

        Raises:
            UsageError: prompt and answer do not fit into the context.

        """
        return room_for(len(prompt), options, self.context_length)

    def opened_under(self, options: Options) -> GuidedDraws | None:
        """Return the guidance that the engine itself has to follow; None where there is none, or logits are masked."""
        follows = self.engine.guides and not self.masks_guidance and options.searchable
        return options.guided if follows else None

    def masked_under(self, options: Options) -> Guidance | None:
        """Return the guidance that masks logits; None where there is none, or the engine follows it by itself."""
        return options.guidance if self.opened_under(options) is None else None

    def generation(
        self,
        prompt: Sequence[int],
        options: Options,
        cache: TextCache,
        *,
        guide: Guide | None = None,
        cancel: threading.Event | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> Generation:
        """Return an answer in the making; nothing runs before its iteration begins.

        Args:
            prompt: token ids.
            options: how.
            cache: with room reserved for the prompt and the answer, see `room`.
            guide: through this answer, where its guidance is compiled already.
            cancel: ends the answer when it is set.
            on_prefill: called with the prompt's tokens run so far and in all.

        Raises:
            UsageError: prompt and answer do not fit into the context, or the guidance is not understood.

        """
        masked = None if guide else self.masked_under(options)
        return Generation(
            cache,
            prompt,
            options,
            room=self.room(prompt, options),
            end_tokens=self.package.end_tokens,
            decoder=self.tokenizer.stream(),
            guide=self.guides.guide(masked) if masked else guide,
            cancel=cancel,
            on_prefill=on_prefill,
        )

    def together(self, texts: int, cache_bytes: int = 0, speculation: Speculation | None = None) -> Together | None:
        """Return what decodes several texts together with the same logits as each alone; None where nothing can.

        Args:
            texts: how many at a time.
            cache_bytes: bytes that texts may keep after their end.
            speculation: how far answers run ahead; by default as far as the model's.

        """
        if not isinstance(self.engine, PackedEngine):
            return None
        files = self.engine.files(*self.cache_folder) if self.cache_folder else None
        ahead = speculation or self.speculation
        return self.engine.together(texts, cache_bytes, ahead, files, self._drafter(ahead))

    def joined(
        self,
        together: Together,
        prompt: Sequence[int],
        options: Options,
        *,
        guide: Callable[[], Generator[None, None, Guide | None]] | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[Chunk | None, None, None]:
        """Answer a prompt beside others: yields its chunks, and None wherever it waits for `together.step()`.

        Args:
            together: what runs them.
            prompt: token ids.
            options: how.
            guide: returns the guide through this answer, and yields where it waits for it; called when the answer's
                turn comes. By default the guidance is compiled then.
            cancel: ends the answer when it is set.

        Raises:
            UsageError: prompt and answer do not fit into the context or the memory, or the guidance is not understood.
            EngineError: the engine failed.

        """
        needed = len(prompt) + self.room(prompt, options)
        while (cache := together.open(prompt, needed)) is None:
            if cancel and cancel.is_set():
                return
            yield None
        try:
            made = (yield from guide()) if guide else None
            for chunk in self.generation(prompt, options, cache, guide=made, cancel=cancel).steps():
                if chunk or cache.waiting:
                    yield chunk
        finally:
            cache.close()

    def close(self) -> None:
        """Give the model's memory back; it cannot be used after that."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.engine.close()
                if self.draft:
                    self.draft.close()
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
