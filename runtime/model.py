"""A loaded package: the one object behind `generate`, `chat`, the pipeline and a server."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ..configs import PackageError, Phi3OnnxError, ProviderError, SelfTestError, UsageError, find_package
from .batch import DEFAULT_BATCH, BatchPrompt, Notify, answer_all
from .chat import ChatSession, Overflow
from .core import ModelCore, Prompt
from .decoding.generation import GenerateOptions
from .decoding.guide import can_mask
from .decoding.response import Chunk, Response, last_response
from .decoding.score import Score, score_tokens
from .decoding.speculation import OFF, Speculation
from .engines.load import EngineChoice, EngineName, load_named
from .engines.packed_engine import PackedEngine
from .package import open_package
from .proof.prove import Prover
from .proof.tuning import Tuned
from .providers.known_faults import unseen_window
from .text.template import read_template
from .text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)


def load(
    package: str | Path,
    *,
    provider: str = "auto",
    threads: int | None = None,
    device: int | None = None,
    engine: EngineName = "auto",
    speculate: str | int = "auto",
    draft: str | Path | None = None,
    self_test: bool = True,
    tuned: bool = True,
    notify: Notify | None = None,
) -> "Model":
    """Load a package: one of this project, of Microsoft's published folders, or of the GenAI model builder.

    Args:
        package: its folder, or its name in the store.
        provider: `cpu`, `cuda`, `dml`, another that ONNX Runtime knows by name, or `auto`: the first that really runs
            it, beginning with the one it was made for (`model.choice` has the reasons).
        threads: threads of one operator on the CPU; by default `$PHI3_ONNX_THREADS`, or the physical cores.
        device: number of the GPU, for CUDA and DirectML.
        engine: `ort` is ONNX Runtime by itself, on the CPU and CUDA: with the package's `decode.onnx` where it has
            one (`together`, on the CPU: an answer has the same tokens and log probabilities whatever is decoded
            beside it), else with `model.onnx` (`onnxruntime`: `generate_many` then needs no second copy of the weights
            in memory). `genai` is ONNX Runtime GenAI. `auto` is `together` where it can be, else `genai`, else, where
            GenAI is not installed, `onnxruntime`.
        speculate: how far answers run ahead of themselves where they repeat what their prompt says, which changes no
            token and needs `decode.onnx`: `auto`, as far as it is likely to be worth its time; `off`; or a number of
            tokens, from 1 to 64.
        draft: another package, of a smaller model with the same tokenizer, that writes what answers run ahead with; it
            needs `decode.onnx` on the CPU, changes no token, and takes memory of its own.
        self_test: replay the package's self-test, where it has one, before its first use on this engine, provider,
            device and version; `auto` passes over a provider that computes wrongly.
        tuned: take what `phi3-onnx tune` found for this package and machine, where nothing else is asked for.
        notify: called with a line for each replay; by default it goes to the log.

    Raises:
        PackageError: there is no such package, or it is damaged.
        ProviderError: the provider cannot run here, or computes wrongly; the message says what to do.
        UsageError: the package's or the provider's name fits nothing, the engine cannot run answers ahead, or the
            draft's tokenizer is another.

    """
    speculation = Speculation.parse(str(speculate))
    if draft is not None and speculation == OFF:
        raise UsageError("a draft model has nothing to do with speculate off; leave one of the two out")
    model = _load(
        package,
        provider,
        threads=threads,
        device=device,
        engine=engine,
        speculation=speculation,
        takes_turns=draft is not None,
        self_test=self_test,
        tuned=tuned,
        notify=notify,
    )
    if draft is not None:
        try:
            # Not tuned as a package of its own: both share the threads.
            model.draft = _load_draft(draft, model, threads=threads, self_test=self_test, notify=notify)
        except BaseException:
            model.close()
            raise
        model.speculation = speculation  # what tuning says is of drafts that cost nothing
    return model


def _load(
    package: str | Path,
    provider: str,
    *,
    threads: int | None,
    device: int | None = None,
    engine: EngineName = "auto",
    speculation: Speculation,
    takes_turns: bool,
    self_test: bool,
    tuned: bool = True,
    notify: Notify | None,
) -> "Model":
    """Load one package; see `load`, and `load_named` for `takes_turns`."""
    opened = open_package(package)
    prove = Prover(opened, device=device, notify=notify) if self_test else None
    known = Tuned(opened, speculation, threads)
    loaded, choice = load_named(
        opened,
        provider,
        engine,
        threads=threads,
        device=device,
        prove=prove,
        speculation=speculation,
        takes_turns=takes_turns,
        **({"suits": known.suits} if tuned else {}),
        notify=notify or _LOG.warning,
    )
    if tuned:
        known.learn(loaded)
    window = unseen_window(opened.folder / opened.contract.filename, choice.provider)
    if window and window < opened.context_length:
        (notify or _LOG.warning)(
            f"warning: {choice.provider} computes no sliding window, so {opened.name} has {window} tokens of context "
            f"there, not {opened.context_length}"
        )
        opened = opened.bounded(window)
    tokenizer = Tokenizer(opened.folder)
    template = read_template(opened.folder, tokenizer.config, tokenizer.special_tokens)
    return Model(
        opened,
        loaded,
        tokenizer,
        template,
        choice,
        threads=threads,
        device=device,
        prove=prove,
        speculation=known.speculation,
    )


def _load_draft(
    package: str | Path, model: "Model", *, threads: int | None, self_test: bool, notify: Notify | None
) -> "Model":
    """Load what writes a model's drafts.

    Raises:
        UsageError: the model cannot run drafts, or the tokenizers differ.
        Phi3OnnxError: it cannot be loaded.

    """
    if not isinstance(model.engine, PackedEngine):
        raise UsageError(
            f"a draft model needs decode.onnx on the CPU, engine ort; {model.package.name} runs in {model.engine.name}"
        )
    draft = _load(
        package, "cpu", threads=threads, speculation=OFF, takes_turns=True, self_test=self_test, notify=notify
    )
    if draft.tokenizer.to_json() != model.tokenizer.to_json():
        draft.close()
        raise UsageError(
            f"the draft model {draft.package.name} has another tokenizer than {model.package.name}; take a package "
            "whose tokenizer.json is the same"
        )
    return draft


class Model(ModelCore):
    """A loaded package. Use it as a context manager, or call `close()`.

    Several threads may use one model: calls into the engine take turns, so their answers grow token by token side by
    side, each with a KV cache of its own. A `ChatSession` serves one answer at a time, and says so when asked for two.
    """

    def generate(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        system: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Response:
        """Answer a prompt.

        Args:
            prompt: a conversation (messages with `role` and `content`), or a text, which stands for one user message.
                Where a conversation ends in words of the assistant, the answer continues them. A package without a chat
                template continues a text as it is.
            raw: continue a text as it is, without the chat template.
            system: a system message to put first.
            template_variables: further names that the chat template reads, such as `enable_thinking`.
            options: those of `configs.options.AnswerOptions`; with `logprobs`, the log probability of each token and of
                this many most likely ones is reported; `guidance` is a form that the answer must have.

        Raises:
            UsageError: prompt and answer do not fit into the context or the memory, or an option makes no sense.
            EngineError: the engine failed.

        """
        return last_response(
            self.stream(prompt, raw=raw, system=system, template_variables=template_variables, **options)
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        system: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        cancel: threading.Event | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Chunk]:
        """Answer a prompt piece by piece: a chunk for each token, and a last one whose `response` is set.

        Args:
            prompt: as for `generate`.
            raw: as for `generate`.
            system: as for `generate`.
            template_variables: as for `generate`.
            cancel: set it, from any thread, to end the answer before its next token.
            on_prefill: called with the prompt's tokens run so far and in all.
            options: as for `generate`.

        Raises:
            UsageError: as for `generate`, at the call, before anything runs.
            EngineError: the engine failed.

        """
        tokens = self.encode(prompt, raw=raw, system=system, template_variables=template_variables)
        return self.run(tokens, self.options(**options), cancel=cancel, on_prefill=on_prefill)

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        *,
        batch: int = DEFAULT_BATCH,
        raw: bool = False,
        system: str | None = None,
        cancel: threading.Event | None = None,
        notify: Callable[[str], None] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Response]:
        """Answer prompts, several side by side; when a row of the batch is done, it continues with the next prompt.

        With `engine="together"` each answer is exactly the one that `generate` gives. Else it is so but for rounding,
        prompts with guidance, and packages that cannot be batched, are answered one after another, and a model of
        GenAI's loads its weights a second time for this, and keeps them until it is closed.

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
            UsageError: an option makes no sense, or a prompt cannot be rendered: before anything runs. Or prompt and
                answer do not fit into the context or the memory, when it is this prompt's turn.
            EngineError: the engine failed.

        """
        common = self.options(**options)
        jobs = [BatchPrompt(self.encode(prompt, raw=raw, system=system), common) for prompt in prompts]
        return _raising(answer_all(self, jobs, batch=batch, cancel=cancel, notify=notify))

    def chat(
        self, *, system: str | None = None, on_overflow: Overflow = "stop", **options: Unpack[GenerateOptions]
    ) -> ChatSession:
        """Return a conversation that keeps its KV cache between turns.

        Args:
            system: the system message.
            on_overflow: what to do at the context's end; see `ChatSession`.
            options: defaults of its answers, as for `generate`.

        Raises:
            UsageError: the package has no chat template, or an option makes no sense.

        """
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


class LoadOptions(TypedDict, total=False):
    """Options of `load` that every other way to load passes on."""

    provider: str
    threads: int | None
    speculate: str
    draft: str | Path | None
    self_test: bool


def load_to_batch(
    package: str | Path,
    *,
    device: int | None = None,
    engine: EngineChoice = "auto",
    notify: Notify,
    **options: Unpack[LoadOptions],
) -> Model:
    """Load a package for `answer_all`: in plain ONNX Runtime, or with `auto` in GenAI where it cannot be batched.

    Raises:
        Phi3OnnxError: as `load`.

    """
    find_package(str(package))  # where there is none, that is the error, once
    load_here = partial(load, package, notify=notify, **options)
    try:
        return load_here(engine="together")
    except SelfTestError as error:
        notify(f"warning: {error}")
    except (PackageError, ProviderError):
        pass
    try:
        return load_here(device=device, engine="onnxruntime")
    except (PackageError, ProviderError) as error:
        model = load_here(device=device, engine=engine)
        notify(f"prompts are answered one at a time: {error}")
        return model


def load_to_serve(
    package: str | Path,
    *,
    device: int | None = None,
    engine: EngineChoice = "auto",
    notify: Notify | None = None,
    **options: Unpack[LoadOptions],
) -> Model:
    """Load a package for a server: in the engine that decodes together, or in another (`turns_because` says why).

    Raises:
        Phi3OnnxError: as `load`.

    """
    find_package(str(package))
    load_here = partial(load, package, notify=notify, **options)
    because = "engine genai was asked for"
    if engine != "genai":
        try:
            return load_here(engine="together")
        except (PackageError, ProviderError) as error:
            because = str(error)
    model = load_here(device=device, engine=engine)
    model.turns_because = because
    model.masks_guidance = can_mask()  # GenAI compiles while all answers wait
    return model


def _raising(results: Iterator[Response | Phi3OnnxError]) -> Iterator[Response]:
    for result in results:
        if isinstance(result, Phi3OnnxError):
            raise result
        yield result
