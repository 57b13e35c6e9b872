"""Plain completions that begin with their prompt, and streams that count as they go."""

from typing import Any

import openai
import pytest
from phi3_onnx.runtime import load
from phi3_onnx.runtime.server.settings import Settings
from phi3_onnx.runtime.server.worker import PackageLoader

from .conftest import RunningServer

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": "fake", "prompt": "abc", "max_tokens": 3, **options})


def test_an_answer_begins_with_its_prompt(client: openai.OpenAI) -> None:
    assert complete(client).choices[0].text == "def"
    answer = complete(client, echo=True, prompt=["abc", "xy"], n=2)
    assert [choice.text for choice in answer.choices] == ["abcdef", "abcdef", "xyz", "xyz"]
    assert answer.usage.prompt_tokens == 5 and answer.choices[0].logprobs is None
    streamed = list(complete(client, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == "abcdef"


def test_the_prompt_has_log_probabilities_where_the_answer_does(client: openai.OpenAI) -> None:
    found = complete(client, echo=True, logprobs=2).choices[0].logprobs
    assert found.tokens == list("abcdef") and found.text_offset == list(range(6))
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    # The fake model continues the alphabet: what comes next is the likeliest of all.
    for token, logprob, top in list(zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True))[1:]:
        assert logprob == max(top.values()) == top[token]
    streamed = [chunk.choices[0] for chunk in complete(client, echo=True, logprobs=2, stream=True)]
    parts = [part.logprobs for part in streamed if part.logprobs]
    assert [entry for part in parts for entry in part.token_logprobs] == found.token_logprobs
    assert [entry for part in parts for entry in part.text_offset] == found.text_offset


@pytest.mark.parametrize(("prompt", "stop"), [("xyz", None), ("xy", None), ("abc", "d"), ("abc", None)])
def test_each_token_generated_has_an_entry_the_one_that_ends_it_too(
    client: openai.OpenAI, prompt: str, stop: str | None
) -> None:
    options: dict[str, Any] = {"prompt": prompt, "echo": True, "logprobs": 1, "stop": stop}
    answer = complete(client, **options)
    found, text = answer.choices[0].logprobs, answer.choices[0].text
    ended = prompt.startswith("x")  # the alphabet's end is the answer's
    assert found.tokens == [*text, ""] if ended else found.tokens == list(text)
    assert found.text_offset == list(range(len(found.tokens)))
    if stop is None:
        assert len(found.token_logprobs) == len(prompt) + answer.usage.completion_tokens
    parts = [chunk.choices[0].logprobs for chunk in complete(client, **options, stream=True)]
    assert [token for part in parts if part for token in part.tokens] == found.tokens


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_alone(client: openai.OpenAI, stream: bool) -> None:
    answer = complete(client, echo=True, logprobs=1, max_tokens=0, n=2, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert sorted(choice.index for choice in choices) == [0, 1]
    for choice in choices:
        assert (choice.text, choice.finish_reason) == ("abc", "length")
        assert choice.logprobs.tokens == list("abc")
    if not stream:
        assert answer.usage.completion_tokens == 0


def test_it_is_as_the_library_scores_it(tiny_package: Any) -> None:
    package, prompt = tiny_package("gqa"), "What is the capital of France? I do not know."
    with load(package) as model:
        score = model.score(prompt)
    running = RunningServer(PackageLoader(str(package)), Settings(model_name="tiny"))
    try:
        client = running.client()
        options: dict[str, Any] = {"model": "tiny", "echo": True, "logprobs": 1, "temperature": 0}
        text = complete(client, **options, prompt=prompt).choices[0]
        ids = complete(client, **options, prompt=list(score.token_ids), max_tokens=0).choices[0]
    finally:
        running.close()
    count = len(score.token_ids)
    assert text.logprobs.token_logprobs[1:count] == pytest.approx(score.logprobs, abs=1e-5)  # kernels of other widths
    assert ids.logprobs.token_logprobs[1:] == text.logprobs.token_logprobs[1:count]
    assert "".join(text.logprobs.tokens) == text.text and text.text.startswith(prompt)
    assert len(text.logprobs.tokens) == count + 3


@pytest.mark.parametrize("include", [False, True])
def test_a_stream_counts_as_it_goes(client: openai.OpenAI, include: bool) -> None:
    options = {"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": include}}
    chat: Any = client.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "say hello"}], **options
    )
    for chunks, tokens in ((list(chat), len("hello") + 1), (list(complete(client, **options)), 3)):
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        assert counts == sorted(counts) and counts[-1] == tokens
        assert len({chunk.usage.prompt_tokens for chunk in chunks}) == 1 and chunks[0].usage.prompt_tokens > 0
        assert bool(chunks[-1].choices) != include


def test_what_asks_for_nothing_at_all_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens: 0 asks for nothing"):
        complete(client, max_tokens=0)
