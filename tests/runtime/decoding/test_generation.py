import threading
from itertools import count

import numpy as np
import pytest
from phi3_onnx.configs import EngineError, UsageError
from phi3_onnx.runtime import Model
from phi3_onnx.runtime.decoding import generation
from scripted import ScriptedEngine, ScriptedSequence, scripted_model, write_scripted_package


@pytest.fixture
def folder(tmp_path):
    write_scripted_package(tmp_path / "package", context_length=400)
    return tmp_path / "package"


@pytest.fixture
def ask(folder):
    def start(*answers):
        return scripted_model(folder, answers)

    return start


def test_a_response_has_what_it_took(ask, monkeypatch):
    ticks = count()
    monkeypatch.setattr(generation, "perf_counter", lambda: next(ticks) * 0.5)
    response = ask("Hello").generate("Hi")
    assert response.text == "Hello"
    assert response.finish_reason == "stop"
    assert (response.completion_tokens, len(response.token_ids)) == (6, 6)  # five bytes and the end token
    assert response.prompt_tokens == len("\nHi\n\n") + 3
    assert (response.prefill_seconds, response.decode_seconds) == (0.5, 2.5)
    assert response.prefill_tokens_per_second == response.prompt_tokens / 0.5
    assert response.decode_tokens_per_second == 5 / 2.5


def test_the_last_token_is_not_run(ask):
    model = ask("Hello")
    model.generate("Hi")
    # Prompt of 8 tokens, then each of the five letters; the end token ends it.
    assert model.engine.runs == [(0, 8), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)]
    assert model.engine.open_count == 0


def test_max_tokens(ask):
    model = ask("Hello, this is long")
    response = model.generate("Hi", max_tokens=5)
    assert (response.text, response.finish_reason, response.completion_tokens) == ("Hello", "length", 5)
    assert model.engine.opened == [8 + 5]


def test_min_tokens_puts_the_end_off(ask):
    # Where the script would end, another token comes instead, and after it the next answer of the script.
    response = ask("Hello", "World").generate("Hi", min_tokens=8)
    assert response.text.startswith("Hello") and response.text.endswith("World")
    assert ask("Hello").generate("Hi", min_tokens=5).text == "Hello"
    with pytest.raises(UsageError, match="min_tokens 5 is more than max_tokens 4"):
        ask("Hello").generate("Hi", min_tokens=5, max_tokens=4)
    with pytest.raises(UsageError, match="prompt 8 tokens"):
        ask("Hello").generate("Hi", min_tokens=400)


def test_min_tokens_puts_stop_texts_off(ask):
    assert ask("one two one two").generate("Hi", stop="two").text == "one "
    assert ask("one two one two").generate("Hi", stop="two", min_tokens=7).text == "one two one "


def test_ignore_eos_goes_on_to_the_longest_answer(ask):
    response = ask("Hello", "World").generate("Hi", ignore_eos=True, max_tokens=9)
    assert (response.completion_tokens, response.finish_reason) == (9, "length")
    assert response.text.startswith("Hello")


def test_a_bias_on_a_token_that_is_not_there_is_refused(ask):
    with pytest.raises(UsageError, match="logit_bias names token 5000; the model has tokens 0 to"):
        ask("Hello").generate("Hi", logit_bias={5000: 1})


def test_by_default_an_answer_ends_with_the_context(ask):
    model = ask("x" * 1000)
    response = model.generate("Hi")
    assert (response.completion_tokens, response.finish_reason) == (400 - 8, "length")


@pytest.mark.parametrize("limit", [393, None])
def test_a_prompt_past_the_context_is_refused_with_numbers(ask, limit):
    prompt = "Hi" if limit else "x" * 400
    tokens = 8 if limit else 406
    with pytest.raises(UsageError, match=rf"prompt {tokens} tokens \+ {limit or 1} > context 400"):
        ask("never").generate(prompt, max_tokens=limit)


def test_a_stop_string_ends_the_answer_and_is_not_shown(ask):
    model = ask("one two three")
    chunks = list(model.stream("count", stop=[" th", "two t"]))
    assert "".join(chunk.text for chunk in chunks) == "one "
    assert chunks[-1].response.text == "one "
    assert chunks[-1].response.finish_reason == "stop"
    assert not any(chunk.response for chunk in chunks[:-1])


def test_what_may_be_a_stop_string_is_held_back_and_shown_at_the_end(ask):
    chunks = [chunk.text for chunk in ask("an en").stream("x", stop="end")]
    assert chunks == ["a", "n", " ", "", "", "en"]


def test_characters_come_whole(ask):
    text = "né 🙂!"
    chunks = [chunk.text for chunk in ask(text).stream("x")]
    assert [piece for piece in chunks if piece] == list(text)


def test_the_end_tokens_of_both_configs_end_an_answer(ask):
    assert ask("Hi<|endoftext|>there").generate("x").text == "Hi"


def test_cancelled_between_tokens(ask):
    cancel = threading.Event()
    stream = ask("Hello").stream("Hi", cancel=cancel)
    assert next(stream).text == "H"
    cancel.set()
    (last,) = stream
    assert (last.response.text, last.response.finish_reason) == ("H", "cancelled")


def test_cancelled_during_a_long_prompt(ask):
    cancel, seen = threading.Event(), []

    def report(done, total):
        seen.append((done, total))
        if done:
            cancel.set()

    model = ask("never")
    (only,) = model.stream("x" * 200, cancel=cancel, on_prefill=report)
    assert (only.response.text, only.response.finish_reason) == ("", "cancelled")
    assert seen == [(0, 206), (16, 206)]
    assert only.response.prefill_tokens_per_second == 0
    assert model.engine.open_count == 0


def test_a_stream_that_is_given_up_frees_its_cache(ask):
    model = ask("Hello")
    stream = model.stream("Hi")
    next(stream)
    assert model.engine.open_count == 1
    stream.close()
    assert model.engine.open_count == 0


def test_log_probabilities_come_with_each_token(ask):
    model = ask("ab")
    chunks = list(model.stream("x", logprobs=2))
    response = chunks[-1].response
    # A logit of 50 among zeros: a probability of 1 to within 260 * e^-50.
    assert [entry.logprob for entry in response.logprobs] == pytest.approx([0.0] * 3, abs=1e-12)
    assert [entry.token_id for entry in response.logprobs] == list(response.token_ids)
    assert all(len(entry.top) == 2 for entry in response.logprobs)
    assert [chunk.logprobs for chunk in chunks[:-1]] == list(response.logprobs[:2])
    assert ask("ab").generate("x").logprobs is None


@pytest.mark.parametrize("chooses", [False, True])
def test_logits_that_are_not_numbers_are_an_error(ask, monkeypatch, chooses):
    monkeypatch.setattr(ScriptedSequence, "logits", lambda self: np.full(261, np.nan, dtype=np.float32))
    model = ask("x")
    model.engine.chooses = chooses
    with pytest.raises(EngineError, match="the model returned a logit of nan after 8 tokens"):
        model.generate("Hi", temperature=0)


def test_raw_text_skips_the_template_and_needs_no_messages(ask):
    model = ask("more", "more")
    assert model.generate("Hi", raw=True).prompt_tokens == 2
    with pytest.raises(UsageError, match="raw prompt must be a text"):
        model.generate([{"role": "user", "content": "Hi"}], raw=True)
    with pytest.raises(UsageError, match="needs the chat template"):
        model.generate("Hi", raw=True, system="Be brief.")


def test_a_package_without_a_template_takes_text_only(folder):
    (folder / "chat_template.jinja").unlink()
    model = scripted_model(folder, ["more"])
    assert model.generate("Hi").prompt_tokens == 2
    with pytest.raises(UsageError, match="has no chat template"):
        model.generate([{"role": "user", "content": "Hi"}])


def test_a_system_message_goes_first(ask):
    model = ask()
    assert model.encode("Hi", system="Be brief.") == model.tokenizer.encode(
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n"
    )


def test_sampling_defaults_are_the_models_own(ask, folder):
    assert ask().options().sampling.greedy
    assert str(ask().options(top_p=0.5).sampling) == "temperature 1, top-k 50, top-p 0.5"
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 20}')
    assert str(ask().options().sampling) == "temperature 0.6, top-k 20, top-p 0.9"
    assert str(ask().options(temperature=0).sampling) == "greedy"
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    assert ask().options().sampling.greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be 1 or more"),
        ({"logprobs": -1}, "logprobs must be 0 or more"),
        ({"stop": ""}, "stop string must not be empty"),
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"seed": -3}, "seed must be 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(ask, options, message):
    with pytest.raises(UsageError, match=message):
        ask("x").generate("Hi", **options)


def test_an_option_that_does_not_exist_is_refused(ask):
    with pytest.raises(TypeError, match="max_new_tokens"):
        ask("x").generate("Hi", max_new_tokens=3)
    with pytest.raises(TypeError, match="max_new_tokens"):
        ask("x").stream("Hi", max_new_tokens=3)


def test_threads_share_a_model(ask):
    model = ask(*["same answer"] * 8)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(model.generate("Hi").text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["same answer"] * 8


def test_a_closed_model_says_so(ask):
    with ask("x") as model:
        assert isinstance(model, Model)
    assert isinstance(model.engine, ScriptedEngine)
    assert model.engine.closed
    with pytest.raises(UsageError, match="the model was closed"):
        model.generate("Hi")
    model.close()


def test_score_of_a_model_that_knows_nothing(ask):
    # Logits of zero: each token has a probability of 1 / vocabulary.
    score = ask().score("x" * 50)
    assert len(score.logprobs) == 49
    assert score.perplexity == pytest.approx(ask().tokenizer.vocab_size)
    with pytest.raises(UsageError, match="2 tokens or more"):
        ask().score("x")
