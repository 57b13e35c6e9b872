"""A loaded package: the one object behind `generate`, `chat`, the pipeline and a server."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..configs import Phi3OnnxError, UsageError
from .batch import DEFAULT_BATCH, Job, answer_all
from .decoding.engine import Engine, Guidance
from .decoding.generation import Generation, Options, room_for
from .decoding.kvcache import KvCache
from .decoding.response import Chunk, Response
from .decoding.score import Score, score_tokens
from .package import Package, open_package
from .providers.choice import Candidate, ProviderChoice
from .providers.devices import free_memory
from .text.template import ChatTemplate, Message, read_template
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .chat import ChatSession, Overflow
    from .engines.ort import OrtEngine

Prompt = str | Sequence[Message]


EngineName = Literal["genai", "onnxruntime"]


def load(
    package: str | Path,
    *,
    provider: str = "auto",
    threads: int | None = None,
    device: int | None = None,
    engine: EngineName = "genai",
) -> "Model":
    """Load a package: one of this project, of Microsoft's published folders, or of the GenAI model builder.

    Args:
        package: its folder, or its name in the store.
        provider: `cpu`, `cuda`, `dml`, another that ONNX Runtime knows by name, or `auto`: the first that really runs
            it, beginning with the one it was made for (`model.choice` has the reasons).
        threads: threads of one operator on the CPU; by default `$PHI3_ONNX_THREADS`, or the physical cores.
        device: number of the GPU, for CUDA and DirectML.
        engine: `genai` is ONNX Runtime GenAI. `onnxruntime` is without it: `generate_many` then needs no second copy of
            the weights in memory; it has no guidance, and runs on the CPU and CUDA.

    Raises:
        PackageError: there is no such package, or it is damaged.
        ProviderError: the provider can not run here; the message has the command that mends it.
        UsageError: the package's or the provider's name fits nothing.

    """
    from .engines.genai import load_engine
    from .engines.ort import load_ort_engine

    opened = open_package(package)
    loader = load_ort_engine if engine == "onnxruntime" else load_engine
    loaded, choice = loader(opened, provider, threads=threads, device=device)
    tokenizer = Tokenizer(opened.folder)
    template = read_template(opened.folder, tokenizer.config, tokenizer.special_tokens)
    return Model(opened, loaded, tokenizer, template, choice, threads=threads, device=device)


class Model:
    """A loaded package. Use it as a context manager, or call `close()`.

    Several threads may use one model: calls into the engine take turns, so their answers grow token by token side by
    side, each with a KV cache of its own. A `ChatSession` serves one answer at a time, and says so when asked for two.
    """

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

    def generate(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        guidance: Guidance | None = None,
    ) -> Response:
        """Answer a prompt.

        Args:
            prompt: a conversation (messages with `role` and `content`), or a text, which stands for one user message.
                A package without a chat template continues a text as it is.
            raw: continue a text as it is, without the chat template.
            system: a system message to put first.
            max_tokens: tokens of the answer at most; by default 1024, or fewer where the context ends.
            temperature: 0 takes the most likely token always. This and the next three are by default what the model's
                `generation_config.json` says, which is greedy where it does not ask for sampling; naming any of
                temperature, top_p and top_k asks for it (with temperature 1 and top_k 50 if unnamed).
            top_p: draw from the fewest tokens that have this probability together.
            top_k: draw from this many tokens at most; 0 from all.
            repetition_penalty: divides the logits of tokens that are in the text already.
            seed: the same seed gives the same text.
            stop: texts that end the answer and are not part of it.
            logprobs: report the log probability of each token and of this many most likely ones.
            guidance: a form that the answer must have.

        Raises:
            UsageError: prompt and answer do not fit into the context or the memory, or an option makes no sense.
            EngineError: the engine failed.

        """
        options = self.options(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            logprobs=logprobs,
            guidance=guidance,
        )
        return last_response(self.run(self.encode(prompt, raw=raw, system=system), options))

    def stream(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        system: str | None = None,
        cancel: threading.Event | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Iterator[Chunk]:
        """Answer a prompt piece by piece: a chunk for each token, and a last one whose `response` is set.

        Args:
            prompt: as for `generate`.
            raw: as for `generate`.
            system: as for `generate`.
            cancel: set it, from any thread, to end the answer before its next token.
            on_prefill: called with the prompt's tokens run so far and in all.
            options: as for `generate`.

        Raises:
            UsageError: as for `generate`, at the call, before anything runs.
            EngineError: the engine failed.

        """
        return self.run(
            self.encode(prompt, raw=raw, system=system), self.options(**options), cancel=cancel, on_prefill=on_prefill
        )

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        *,
        batch: int = DEFAULT_BATCH,
        raw: bool = False,
        system: str | None = None,
        cancel: threading.Event | None = None,
        notify: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Iterator[Response]:
        """Answer prompts, several side by side; a row of the batch goes on with the next when it is through.

        Each answer is the one that `generate` gives, but for rounding. Prompts with guidance, and packages that can not
        be batched, are answered one after another. A model that was not loaded with `engine="onnxruntime"` loads its
        weights a second time for this, and keeps them until it is closed.

        Args:
            prompts: each as for `generate`.
            batch: how many to answer side by side; each has a KV cache for the longest prompt and answer of all.
            raw: as for `generate`.
            system: as for `generate`.
            cancel: set it, from any thread, to end the answers under way before their next token and begin no others.
            notify: called with a line for what is not done as was asked for and why, and for the memory that is taken.
            options: as for `generate`, for all prompts.

        Yields:
            The answers in the order of the prompts, each as soon as it and those before it are there.

        Raises:
            UsageError: an option makes no sense, or a prompt can not be rendered: before anything runs. Or prompt and
                answer do not fit into the context or the memory, when it is this prompt's turn.
            EngineError: the engine failed.

        """
        common = self.options(**options)
        jobs = [Job(self.encode(prompt, raw=raw, system=system), common) for prompt in prompts]
        return _raising(answer_all(self, jobs, batch=batch, cancel=cancel, notify=notify))

    def chat(self, *, system: str | None = None, on_overflow: "Overflow" = "stop", **options: Any) -> "ChatSession":
        """Return a conversation that keeps its KV cache between turns.

        Args:
            system: the system message.
            on_overflow: what to do at the context's end; see `ChatSession`.
            options: defaults of its answers, as for `generate`.

        Raises:
            UsageError: the package has no chat template, or an option makes no sense.

        """
        from .chat import ChatSession

        return ChatSession(self, system=system, on_overflow=on_overflow, options=options)

    def score(self, text: str) -> Score:
        """Return the log probability of a text's tokens, each after those before it.

        Raises:
            UsageError: the text has fewer than two tokens, or does not fit into the context or the memory.
            EngineError: the engine failed.

        """
        tokens = self.tokenizer.encode(text)
        cache = self.new_cache()
        try:
            return score_tokens(cache, tokens)
        finally:
            cache.close()

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

    def batching_engine(self) -> "OrtEngine":
        """Return the engine that decodes several texts together: the model's own, or a second one, loaded once.

        Raises:
            PackageError: the package can not be batched.
            ProviderError: plain ONNX Runtime does not run the model's provider.
            UsageError: the model was closed.

        """
        from .engines.ort import OrtEngine, load_ort_engine

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

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def last_response(chunks: Iterator[Chunk]) -> Response:
    """Return the response at the end of a stream."""
    for chunk in chunks:
        if chunk.response:
            return chunk.response
    raise RuntimeError("a stream of chunks ended without a response")


def _raising(results: Iterator[Response | Phi3OnnxError]) -> Iterator[Response]:
    for result in results:
        if isinstance(result, Phi3OnnxError):
            raise result
        yield result


def _closing(generation: Generation, cache: KvCache) -> Iterator[Chunk]:
    try:
        yield from generation
    finally:
        cache.close()
