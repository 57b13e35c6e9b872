"""How fast a package runs here, through the runtime that users run it with."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from ..runtime import Model, load
from . import corpus

PROMPT, ANSWER = 256, 64
_WARM_UP = 16


@dataclass(frozen=True)
class Speed:
    """Tokens per second, of one run after a short one that warms up."""

    prefill: float
    decode: float
    prompt_tokens: int
    answer_tokens: int
    engine: str
    """What ran it, such as `onnxruntime-genai 0.18.0`."""


def measure_speed(package: Path, provider: str, *, prompt: int = PROMPT, answer: int = ANSWER) -> Speed:
    """Time a prompt and the tokens after it, greedily and past end tokens.

    Args:
        package: its folder.
        provider: where it runs.
        prompt: tokens of the prompt, fewer where the context is too short.
        answer: tokens generated.

    Raises:
        PackageError: the package can not be loaded.
        ProviderError: the provider can not run here.
        EngineError: the engine failed.

    """
    with load(package, provider=provider) as model:
        prompt = max(1, min(prompt, model.context_length - answer))
        text = model.tokenizer.encode(corpus.text())
        tokens = [text[i % len(text)] for i in range(prompt)]
        _run(model, tokens[:_WARM_UP], 2)
        prefill, decode = _run(model, tokens, answer)
        return Speed(round(prompt / prefill, 1), round((answer - 1) / decode, 1), prompt, answer, model.engine.name)


def _run(model: Model, tokens: list[int], answer: int) -> tuple[float, float]:
    """Return the seconds to the first token, and from there to the last."""
    cache = model.new_cache()
    try:
        cache.reserve(len(tokens) + answer)
        started = perf_counter()
        for _ in cache.prefill(tokens):
            pass
        token = int(cache.logits().argmax())
        first = perf_counter()
        for _ in range(answer - 1):
            cache.append(token)
            token = int(cache.logits().argmax())
        return first - started, perf_counter() - first
    finally:
        cache.close()
