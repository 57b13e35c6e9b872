"""Packages as a model of EleutherAI's lm-evaluation-harness, for the benchmarks of model cards.

The harness has no hook for models of other projects, so its own command line is started here, with `phi3-onnx` among
its models:

    python -m phi3_onnx.evaluate.tasks.lm_eval_model --model phi3-onnx --model_args package=DIR --tasks hellaswag

`phi3-onnx evaluate --tasks` does the same with fewer words. Tested with lm_eval 0.4.13.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]  # of the extra `eval`
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from ...configs.options import SAMPLING
from ...runtime import Model, load
from ...runtime.decoding.response import last_response
from .continuations import ContinuationScorer

MAX_LENGTH = 4096
"""Tokens of context used at most unless more is asked for: a KV cache of 128k tokens takes 51 GB in float16."""


@register_model("phi3-onnx")
class Phi3OnnxLM(TemplateLM):
    """A package, run by this project's runtime, one request after the other."""

    def __init__(
        self,
        package: str | Path | Model,
        *,
        provider: str = "auto",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool = False,
        **ignored: Any,
    ) -> None:
        """Load a package.

        Args:
            package: its folder, its name in the store, or a loaded model.
            provider: where it runs: `auto`, `cpu`, `cuda`, `dml`.
            max_length: tokens of context and answer together at most; what is longer loses its beginning.
            max_gen_toks: tokens of an answer at most, where the task does not say.
            add_bos_token: begin texts as the tokenizer does by itself.
            ignored: what the harness hands to every model (batch size, device), which has no meaning here.

        Raises:
            PackageError: there is no such package, or it is damaged.
            ProviderError: the provider cannot run here.

        """
        super().__init__()
        self.model = package if isinstance(package, Model) else load(package, provider=provider)
        context = self.model.context_length
        self.max_length = min(int(max_length), context) if max_length else min(MAX_LENGTH, context)
        self.max_gen_toks = int(max_gen_toks)
        self._special = add_bos_token
        self._cache = self.model.new_cache()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.model.package.contract.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: the tokenizer's beginning of text, or else its end of text."""
        bos = self.model.package.contract.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """A name for the harness's caches of requests."""
        return self.model.package.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text."""
        special = self._special if add_special_tokens is None else add_special_tokens
        return self.model.tokenizer.encode(string, special=special)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the text of the package's chat template, where one is asked for."""
        return self.model.template.source if chat_template and self.model.template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the prompt for a conversation.

        Without `add_generation_prompt` its last message is the beginning of the answer, and left open.
        """
        if add_generation_prompt:
            return self.model.render(chat_history)
        return self.model.render(chat_history[:-1]) + chat_history[-1]["content"]

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes next to its results."""
        manifest = self.model.package.manifest
        about = {"package": self.model.package.name, "provider": self.model.provider}
        if manifest:
            about |= {"package_source": manifest.source, "package_revision": manifest.revision}
        return about

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        # Sorted by their tokens, neighbours share the most of the KV cache.
        order = sorted(range(len(requests)), key=lambda i: [*requests[i][1], *requests[i][2]])
        scorer = ContinuationScorer(self.model)
        try:
            for i in tqdm(order, desc="log-likelihoods", disable=disable_tqdm):
                text, context, continuation = requests[i]
                room = self.max_length - len(continuation)
                if room < 1:
                    raise ValueError(
                        f"a continuation of {len(continuation)} tokens needs max_length={len(continuation) + 1} or more"
                    )
                score = scorer.score(context[-room:], continuation)
                found[i] = (score.log_probability, score.greedy)
                if text is not None:
                    self.cache_hook.add_partial("loglikelihood", text, found[i])
        finally:
            scorer.close()
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log probability of each text, in windows of `max_length` tokens where it is longer."""
        found: list[float] = []
        for (string,) in tqdm([request.args for request in requests], desc="texts", disable=disable_tqdm):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(string),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            found.append(sum(score for score, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (string,), found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return each answer, without the text that ended it."""
        found = [""] * len(requests)
        contexts = [self.tok_encode(request.args[0]) for request in requests]
        for i in tqdm(sorted(range(len(requests)), key=contexts.__getitem__), desc="answers", disable=disable_tqdm):
            asked = dict(requests[i].args[1])
            found[i] = self._generate(contexts[i], asked)
            self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
        self._cache.close()
        return found

    def _generate(self, context: list[int], asked: dict[str, Any]) -> str:
        most = min(int(asked.get("max_gen_toks", self.max_gen_toks)), self.max_length - 1)
        until = asked.get("until") or []
        stop = [until] if isinstance(until, str) else list(until)
        sampling: dict[str, Any] = {"temperature": 0.0}
        if asked.get("do_sample"):
            sampling = {name: asked[name] for name in SAMPLING if asked.get(name) is not None}
            sampling.setdefault("temperature", 1.0)
        options = self.model.options(max_tokens=most, stop=[text for text in stop if text], **sampling)
        prompt = context[-(self.max_length - most) :]
        return last_response(self.model.run(prompt, options, cache=self._cache, spare=256)).text


def main() -> None:
    """Run the harness's own command line."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()
