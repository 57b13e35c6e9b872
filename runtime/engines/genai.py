"""The engine on ONNX Runtime GenAI, 0.13 and later."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ...configs import EngineError, PackageError, ProviderError, UsageError
from ...configs.errors import first_line
from ...configs.options import SAMPLING
from ..decoding.engine import GuidedDraws, Prove
from ..decoding.schemas import tight_schema
from ..package import Package
from ..providers import plugins
from ..providers.choice import ProviderChoice, choose, refusals, resolve_ort_providers
from ..providers.hardware import default_threads, spinning_option
from ..providers.imports import import_genai, load_libraries
from ..providers.known_faults import refuse_known_faults
from ..providers.names import canonical, ort_name
from ..providers.placement import Placement, cached_placement, check_placement, keep_placement
from .session import LogitsSession

# Where GenAI says which GPU to take: src/cuda/session_options.cpp, src/dml/session_options.cpp.
_DEVICE_OPTIONS = {"cuda": "device_id", "dml": "device_index"}
_CAPTURE = "enable_cuda_graph"
_DEVICE_TYPES = {"cuda": "CUDA", "dml": "DirectML"}
# Measured on 2 CPU cores: 128 tokens at a time prefill as fast as 512 and as a whole prompt, 32 take up to 1.5 times
# as long. A GPU needs more to be busy.
_CPU_CHUNK, _GPU_CHUNK = 128, 512
# "Continuous decoding" is GenAI's word for appending tokens to a sequence that has some; not every device can.
_RESTARTING_DEVICES = ("DirectML",)
# llguidance's words in GenAI's errors: where a grammar is compiled, and where its parser meets a limit at a token.
_GUIDANCE_WORDS = ("grammar", "Parser Error", "Lexer Error", "lexer", "committing tokens", "computing mask")


def load_engine(
    package: Package,
    provider: str,
    *,
    threads: int | None = None,
    device: int | None = None,
    prove: Prove | None = None,
) -> tuple["GenAiEngine", ProviderChoice]:
    """Load a package with ONNX Runtime GenAI on the provider named, or with `auto` on the first that runs it.

    Args:
        package: the package.
        provider: `auto`, `cpu`, `cuda`, `dml`, or another that ONNX Runtime knows by name.
        threads: threads of one operator on the CPU; by default the physical cores.
        device: number of the GPU, for CUDA and DirectML.
        prove: tries each engine before it is taken; `auto` goes on to the next provider where it raises.

    Raises:
        UsageError: there is no such provider, or GenAI cannot be told the number of its device.
        ProviderError: the provider cannot run here, or `prove` refuses it; the message has the remedy.
        PackageError: the CPU, which is always there, cannot load the package.

    """
    named = provider.lower()  # `canonical` asks ONNX Runtime, which may be missing, for names it does not know itself
    og, provider = import_genai(named), canonical(provider)

    placements: dict[str, Placement | None] = {}

    def attempt(name: str) -> GenAiEngine:
        _check_device(name, device)
        with refusals(goes_on=provider == "auto"):
            refuse_known_faults(package.folder / package.contract.filename, name)
            _refuse_capture(package, name)
        load_libraries(name)
        placements[name] = None if name == "cpu" else _placement(package, name, threads, device)
        check_placement(placements[name])
        try:
            engine = GenAiEngine(og, package, name, threads=threads, device=device)
        except RuntimeError as error:
            if name == "cpu" and (package.made_for == "cpu" or provider != "auto"):
                raise _load_error(package, og, error) from error  # the CPU is always there: it is the package
            raise
        if name != "cpu":
            engine.try_out()
        if prove:
            with refusals(goes_on=provider == "auto" and name != "cpu"):
                prove(engine, name)
        return engine

    engine, choice = choose(provider, package.made_for, attempt)
    return engine, replace(choice, placement=placements[choice.provider])


def _check_device(provider: str, device: int | None) -> None:
    """Refuse the number of a device that GenAI cannot be told: of a plug-in it takes the kind and the maker at most.

    Raises:
        UsageError: there is a number, and it would have no effect.

    """
    if device is None or provider in ("cpu", *_DEVICE_OPTIONS):
        return
    other = ", or take --engine ort" if ort_name(provider) in plugins.providers() else ""
    raise UsageError(
        f"ONNX Runtime GenAI takes --device for {' and '.join(_DEVICE_OPTIONS)}, not for {provider}; "
        f"leave --device out{other}"
    )


def _placement(package: Package, provider: str, threads: int | None, device: int | None) -> Placement | None:
    """Return where the graph's nodes land, which GenAI does not tell: plain ONNX Runtime loads it once for this."""
    graph = package.folder / package.contract.filename
    try:
        names = resolve_ort_providers(provider)
        if kept := cached_placement(graph, names[0]):
            return kept
        found = LogitsSession(package.folder, providers=names, threads=threads, device=device).placement
    except (PackageError, ProviderError):  # what is wrong, GenAI says next
        return None
    if found:
        keep_placement(graph, found)
    return found


def _refuse_capture(package: Package, provider: str) -> None:
    """Refuse CUDA graphs for a package whose rotary factors depend on the length (LongRoPE).

    The graph chooses them by the width of its attention mask, and GenAI gives a mask of the whole capacity while it
    captures: long factors for a short text, without a word.

    Raises:
        ProviderError: the package's genai_config.json asks for them.

    """
    if provider != "cuda" or package.manifest is None:  # other makers' graphs may choose otherwise
        return
    switch = package.longrope_switch
    if switch is None or package.context_length <= switch:
        return
    options = [options for name, options in package.contract.provider_options if name.lower() == "cuda"]
    if any(str(option.get(_CAPTURE, "0")).lower() not in ("0", "false") for option in options):
        raise ProviderError(
            f"{package.folder} has {_CAPTURE} in its genai_config.json, and rotary factors that change after "
            f"{switch} tokens, which CUDA graphs would mix up; remove {_CAPTURE} there"
        )


def _load_error(package: Package, og: Any, error: BaseException) -> PackageError:
    return PackageError(f"{package.folder} cannot be loaded by onnxruntime-genai {og.__version__}: {first_line(error)}")


class GenAiEngine:
    """A package loaded by `onnxruntime_genai`, on one provider."""

    chooses = True
    guides = True

    def __init__(
        self, og: Any, package: Package, provider: str, *, threads: int | None = None, device: int | None = None
    ) -> None:
        """Load the package.

        Raises:
            RuntimeError: GenAI's own, where the provider or the package fails.

        """
        self._og = og
        self._lock = threading.RLock()
        self._model = og.Model(_config(og, package, provider, threads, device))
        self.provider = provider
        self.pad_token = package.contract.pad_token_id
        self.end_tokens = frozenset(package.contract.eos_token_ids)
        self.name = f"onnxruntime-genai {og.__version__}"
        self.device_type = str(self._model.device_type)
        self.continuous = self.device_type not in _RESTARTING_DEVICES
        self.prefill_chunk = _CPU_CHUNK if self.device_type == "CPU" else _GPU_CHUNK
        expected = _DEVICE_TYPES.get(provider, self.device_type)
        if self.device_type.lower() != expected.lower():
            raise RuntimeError(f"the model landed on {self.device_type} instead of {expected}")

    def try_out(self) -> None:
        """Run the model on one token: a provider can load a graph and yet fail in it.

        Raises:
            RuntimeError: it fails.

        """
        try:
            sequence = self.open(2)
            sequence.append([0])
            sequence.logits()
            sequence.close()
        except EngineError as error:
            raise RuntimeError(str(error)) from error

    def open(self, capacity: int, guided: GuidedDraws | None = None) -> "GenAiSequence":
        """Start a sequence with room for `capacity` tokens; see `Engine.open`."""
        return GenAiSequence(self, capacity, guided)

    def close(self) -> None:
        """Give the model's memory back."""
        self._model = None

    @contextmanager
    def turn(self, doing: str) -> Iterator[None]:
        """Hold the engine for one call, and name in our own error what failed.

        Raises:
            EngineError: GenAI raised its own.

        """
        with self._lock:
            if self._model is None:
                raise EngineError(f"the model was closed before {doing}")
            try:
                yield
            except RuntimeError as error:
                raise EngineError(f"{self.name} failed while {doing}: {first_line(error)}") from error

    def generator(self, capacity: int, guided: GuidedDraws | None) -> Any:
        """Return a new `onnxruntime_genai.Generator`; to be called within `turn`."""
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=capacity, **_search_options(guided))
        if guided:
            params.set_guidance(guided.guidance.kind, _guidance_text(guided))
        return self._og.Generator(self._model, params)


class GenAiSequence:
    """One `onnxruntime_genai.Generator`. Tokens are chosen by the caller and appended, or by `choose_token`.

    Appending a chosen token is what `generate_next_token` does, without its re-prefill at token 4097 (which has its
    place in `KvCache`, for every length) and with sampling settings that can change within a chat.
    """

    waiting = False

    def __init__(self, engine: GenAiEngine, capacity: int, guided: GuidedDraws | None) -> None:
        """Reserve the KV cache.

        Raises:
            EngineError: GenAI cannot.
            UsageError: GenAI does not understand the guidance.

        """
        self._engine = engine
        self._guided = guided
        self._tokens: list[int] = []
        self._unrun = False  # the last token was chosen, and GenAI would not run it by itself
        self.capacity = capacity
        try:
            with engine.turn(f"reserving a KV cache of {capacity} tokens"):
                self._generator: Any = engine.generator(capacity, guided)
        except EngineError as error:
            raise _of_guidance(guided, error) or error from error.__cause__

    def append(self, tokens: Sequence[int]) -> None:
        """Run the model on more tokens; see `TokenSequence.append`."""
        with self._engine.turn(f"running {len(tokens)} tokens after {len(self._tokens)}"):
            if self._engine.continuous or not self._tokens:
                self._generator.append_tokens(np.asarray(tokens, dtype=np.int32))
            elif len(tokens) > 1 or not self._step(tokens[0]):
                self._generator = self._engine.generator(self.capacity, self._guided)
                self._generator.append_tokens(np.asarray([*self._tokens, *tokens], dtype=np.int32))
            self._tokens += tokens

    def _step(self, token: int) -> bool:
        # A device without continuous decoding takes a further token from GenAI's own search alone: give that search
        # logits with one way out. It takes another where GenAI runs the prompt again first (at token 4097).
        # After an end token that search takes the text for finished, and computes nothing more.
        if token in self._engine.end_tokens:
            return False
        self._leave_only(token)
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0]) == token

    def _leave_only(self, token: int) -> None:
        logits = np.full_like(self._generator.get_logits(), -1e9)
        logits[..., token] = 0
        self._generator.set_logits(logits)

    def logits(self) -> np.ndarray:
        """Return the last token's logits; see `TokenSequence.logits`."""
        self._run_chosen()
        if self._padded:
            # GenAI would give those of the last token that is no padding, and padding may be an end token too.
            return self.run_logits()[-1]
        with self._engine.turn("reading logits"):
            return np.asarray(self._generator.get_logits(), dtype=np.float32).reshape(-1)

    @property
    def _padded(self) -> bool:
        return bool(self._tokens) and self._tokens[-1] == self._engine.pad_token

    def run_logits(self) -> np.ndarray:
        """Return the last run's logits; see `TokenSequence.run_logits`."""
        with self._engine.turn("reading logits"):
            logits = np.asarray(self._generator.get_output("logits"), dtype=np.float32)
        return logits.reshape(-1, logits.shape[-1])

    def choose_token(self) -> int:
        """Let GenAI's own search choose; see `TokenSequence.choose_token`."""
        self._run_chosen()
        best = int(self.logits().argmax()) if self._padded and not self._guided else None
        try:
            with self._engine.turn(f"choosing a token after {len(self._tokens)}"):
                if best is not None:
                    self._leave_only(best)
                self._generator.generate_next_token()
                token = int(self._generator.get_next_tokens()[0])
        except EngineError as error:
            raise _of_guidance(self._guided, error) or error from error.__cause__
        self._tokens.append(token)
        self._unrun = self._guided is None and token in (*self._engine.end_tokens, self._engine.pad_token)
        return token

    def _run_chosen(self) -> None:
        # After an end token GenAI's search computes nothing more, and padding has to be seen as the last token run.
        if self._unrun:
            tokens = self._tokens.copy()
            self.rewind(len(tokens) - 1 if self._engine.continuous else 0)
            self.append(tokens[len(self._tokens) :])

    def rewind(self, length: int) -> None:
        """Forget all but the first tokens; see `TokenSequence.rewind`."""
        with self._engine.turn(f"rewinding to {length} tokens"):
            if self._engine.continuous:
                self._generator.rewind_to(length)
            elif length:
                raise EngineError(f"{self._engine.device_type} cannot rewind to {length} tokens, only to none")
            else:
                self._generator = self._engine.generator(self.capacity, self._guided)
            del self._tokens[length:]
            self._unrun = False

    def close(self) -> None:
        """Give the KV cache's memory back."""
        self._generator = None


def _of_guidance(guided: GuidedDraws | None, error: EngineError) -> UsageError | None:
    """Return what guidance did wrong where that is what GenAI failed at, and not the engine itself."""
    problem = first_line(error.__cause__ or error)
    if guided is None or not any(word in problem for word in _GUIDANCE_WORDS):
        return None
    return UsageError(f"the {guided.guidance.kind} is not understood, or too complex: {problem}")


def _config(og: Any, package: Package, provider: str, threads: int | None, device: int | None) -> Any:
    config = og.Config(str(package.folder))
    # A package's own options for its provider (such as CUDA graphs) stay, unless another provider is wanted.
    if provider != package.made_for:
        config.clear_providers()
        if provider != "cpu":  # the CPU needs no naming, and 0.13 knows no such name
            # GenAI has short names of its own for the providers it was built for, and the full ones of plug-ins.
            name = ort_name(provider)
            config.append_provider(name if name in plugins.providers() else provider)
    if device is not None and provider in _DEVICE_OPTIONS:
        config.set_provider_option(provider, _DEVICE_OPTIONS[provider], str(device))
    # GenAI's default is half as fast on the CPU as one thread a physical core.
    session = {"intra_op_num_threads": threads or default_threads(), **spinning_option(package.layer_bytes)}
    decoder: dict[str, Any] = {"session_options": session}
    window = package.contract.sliding_window
    if window and window.get("slide_key_value_cache") is False:
        # The model builder's. GenAI 0.18 then reserves no more than the window, and a longer prompt fails in the graph,
        # which bounds its attention by itself where it does. The section cannot be taken away, only be made too large.
        decoder["sliding_window"] = {**window, "window_size": package.context_length}
    config.overlay(json.dumps({"model": {"decoder": decoder}}))
    return config


def _search_options(guided: GuidedDraws | None) -> dict[str, Any]:
    if guided is None:  # the most likely token, whatever the package's own settings are
        return {"do_sample": False, "repetition_penalty": 1.0, "min_length": 0}
    sampling = guided.sampling
    options: dict[str, Any] = {
        name: option.kind(getattr(sampling, name))
        for name, option in SAMPLING.items()
        if option.guided and not (sampling.greedy and option.draws)
    }
    options["do_sample"] = not sampling.greedy
    if guided.seed is not None and not sampling.greedy:
        options["random_seed"] = guided.seed % 2**31
    return options


def _guidance_text(guided: GuidedDraws) -> str:
    if guided.guidance.kind != "json_schema":
        return guided.guidance.text
    return tight_schema(guided.guidance.text)
