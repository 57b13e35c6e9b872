"""The small real model answers eight prompts of unequal lengths side by side as it answers each alone."""

from pathlib import Path

import pytest
from phi3_onnx.runtime import load

pytestmark = pytest.mark.real

_TALE = "A fox met a crow that had stolen some cheese, and praised her voice until she sang. "
PROMPTS = (
    "Hi!",
    "What is the capital of France?",
    _TALE * 20 + "What did the fox want?",
    "Count from one to ten.",
    "Write a short poem about rain.",
    _TALE * 6 + "Who lost the cheese?",
    "def add(a, b):",
    "Name three colours, " * 12 + "please.",
)


def test_answers_are_those_of_each_prompt_alone(small_package: Path) -> None:
    with load(small_package) as model:
        alone = [model.generate(prompt, max_tokens=24, temperature=0) for prompt in PROMPTS]
    with load(small_package, engine="onnxruntime") as model:
        # Five rows: three prompts begin while others are under way.
        together = list(model.generate_many(PROMPTS, batch=5, max_tokens=24, temperature=0))
    lengths = [answer.prompt_tokens for answer in together]
    assert max(lengths) > 10 * min(lengths)
    assert together[1].text == "The capital of France is Paris."
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
