"""`pipeline("text-generation", model=folder)`: the transformers call of Phi-3's model card, on a package."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from ..configs import UsageError
from ..configs.options import SAMPLING, Sampling, SamplingOptions
from .chat import check_messages
from .decoding.generation import Options
from .decoding.response import last_response
from .model import Model, load

# What transformers' text-generation pipeline takes where neither the call nor generation_config.json says otherwise.
_DEFAULT_NEW_TOKENS = 256
_DEFAULT_TEMPERATURE = 0.7


def pipeline(
    task: str = "text-generation",
    model: str | Path | Model | None = None,
    *,
    provider: str = "auto",
    threads: int | None = None,
    device: int | None = None,
) -> "TextGenerationPipeline":
    """Return a callable that takes and returns what transformers' pipeline does.

    Args:
        task: `text-generation`, the only one.
        model: a package's folder or store name, or a loaded model.
        provider: as for `load`.
        threads: as for `load`.
        device: as for `load`.

    Raises:
        UsageError: another task, or no model.
        PackageError: as for `load`.
        ProviderError: as for `load`.

    """
    if task != "text-generation":
        raise UsageError(f"task must be 'text-generation', got {task!r}")
    if model is None:
        raise UsageError("name a model: pipeline('text-generation', model='a package folder')")
    if not isinstance(model, Model):
        model = load(model, provider=provider, threads=threads, device=device)
    return TextGenerationPipeline(model)


class TextGenerationPipeline:
    """Continues texts and conversations; returns `[{"generated_text": ...}]` for one, a list of such for several."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(
        self,
        text_inputs: str | Sequence[Any],
        *,
        max_new_tokens: int | None = None,
        return_full_text: bool = True,
        do_sample: bool | None = None,
        num_return_sequences: int = 1,
        seed: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Any]:
        """Generate.

        Args:
            text_inputs: a text, a conversation (a list of messages), or a list of either.
            max_new_tokens: tokens of each answer at most; 256 by default.
            return_full_text: whether what is returned begins with the input: the text, or the list of messages with
                the answer as another.
            do_sample: False takes the most likely token always, whatever `temperature` says. By default as the
                model's `generation_config.json` says, and sampling at temperature 0.7 where it says nothing.
            num_return_sequences: answers to each input; more than one needs sampling.
            seed: the same seed gives the same text. transformers has `set_seed` for this.
            sampling: temperature, top_p, top_k and so on, as for `Model.generate`.

        Raises:
            UsageError: an option makes no sense, or the input does not fit.
            EngineError: the engine failed.
            TypeError: an option that this pipeline does not have; none is ignored.

        """
        drawn = self._sampling(do_sample, sampling)
        if num_return_sequences < 1 or (num_return_sequences > 1 and drawn.greedy):
            raise UsageError(f"num_return_sequences={num_return_sequences} needs sampling (do_sample=True)")
        limit = max_new_tokens or int(self._model_setting("max_new_tokens") or _DEFAULT_NEW_TOKENS)
        many = not isinstance(text_inputs, str) and not _is_chat(text_inputs)
        results = []
        for given in text_inputs if many else [text_inputs]:
            prompt = self._encode(given)
            answers = []
            for i in range(num_return_sequences):
                options = Options(drawn, limit, seed=None if seed is None else seed + i)
                answer = last_response(self.model.run(prompt, options)).text
                answers.append({"generated_text": _joined(given, answer) if return_full_text else answer})
            results.append(answers)
        return results if many else results[0]

    def _encode(self, given: Any) -> list[int]:
        if isinstance(given, str):
            return self.model.encode(given, raw=True)
        check_messages(given)
        return self.model.encode(given)

    def _sampling(self, do_sample: bool | None, named: SamplingOptions) -> Sampling:
        draws = _first(do_sample, self._model_setting("do_sample"), True)
        values: dict[str, Any] = {"temperature": _DEFAULT_TEMPERATURE}
        values |= {name: stated for name in SAMPLING if (stated := self._model_setting(name)) is not None}
        values |= {name: value for name, value in named.items() if value is not None}
        if not draws:
            values = {name: value for name, value in values.items() if not (name in SAMPLING and SAMPLING[name].draws)}
            values["temperature"] = 0.0
        return Sampling(**values)

    def _model_setting(self, name: str) -> Any:
        return self.model.package.generation.table.get(name)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _is_chat(given: Sequence[Any]) -> bool:
    return bool(given) and isinstance(given[0], Mapping)


def _joined(given: Any, answer: str) -> Any:
    if isinstance(given, str):
        return given + answer
    if given[-1]["role"] == "assistant":
        return [*given[:-1], {**given[-1], "content": given[-1]["content"] + answer}]
    return [*given, {"role": "assistant", "content": answer}]
