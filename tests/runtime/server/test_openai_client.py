"""What the official client gets, from an engine whose answers are known to the letter."""

import json
from typing import Any

import openai
import pytest

QUESTION = [{"role": "user", "content": "say Grüße, 🌍!"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '{"tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}]}'


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(
        model="fake", messages=options.pop("messages", [{"role": "user", "content": text}]), **options
    )


def test_answers_a_chat(client: openai.OpenAI) -> None:
    answer = ask(client, "say Grüße, 🌍!")
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Grüße, 🌍!", "stop")
    assert answer.object == "chat.completion" and answer.model == "fake"
    # One token a byte, and the end token.
    assert answer.usage.completion_tokens == len("Grüße, 🌍!".encode()) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streams_whole_characters_and_the_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, "say Grüße, 🌍!", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks[:-1] if chunk.choices[0].delta.content]
    assert "".join(pieces) == "Grüße, 🌍!"
    assert pieces[0] == "G"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len("Grüße, 🌍!".encode()) + 1
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_says_nothing_of_usage_in_a_stream_unless_asked(client: openai.OpenAI) -> None:
    assert all(chunk.choices for chunk in ask(client, "say a", stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_ends_before_a_stop_string(client: openai.OpenAI, stream: bool) -> None:
    answer = ask(client, "say one two three", stop=["two", "zebra"], stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == ("one ", "stop")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_ends_at_the_longest(client: openai.OpenAI, name: str) -> None:
    answer = ask(client, "say abcdef", **{name: 3})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("abc", "length")
    assert answer.usage.completion_tokens == 3


def test_gives_several_choices_and_counts_the_prompt_once(client: openai.OpenAI) -> None:
    one, three = ask(client, "say abc"), ask(client, "say abc", n=3)
    assert [(choice.index, choice.message.content) for choice in three.choices] == [(i, "abc") for i in range(3)]
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens


def test_a_seed_gives_the_same_answer_again(client: openai.OpenAI) -> None:
    def answers(seed: int) -> list[str]:
        hot = ask(client, "say abcdefgh", temperature=2.0, top_p=1.0, n=2, seed=seed, max_tokens=30)
        return [choice.message.content for choice in hot.choices]

    assert answers(7) == answers(7)
    assert answers(7) != answers(8)
    assert answers(7)[1] == answers(8)[0]  # each choice of a prompt has a seed of its own: counting up


def test_reports_log_probabilities(client: openai.OpenAI) -> None:
    answer = ask(client, "say hi", logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert [entry.token for entry in entries] == ["h", "i"]
    assert [[other.token for other in entry.top_logprobs] for entry in entries] == [["h", "?"], ["i", "?"]]
    for entry in entries:
        assert entry.bytes == list(entry.token.encode())
        # The engine's logits are 10 and 8: their difference stays, up to float32's rounding of sums of about 10.
        assert entry.top_logprobs[0].logprob - entry.top_logprobs[1].logprob == pytest.approx(2.0, abs=1e-5)
    streamed = ask(client, "say hi", logprobs=True, top_logprobs=2, stream=True)
    chunks = [chunk.choices[0].logprobs for chunk in streamed]
    assert [entry for logprobs in chunks if logprobs for entry in logprobs.content] == entries


def test_log_probabilities_leave_out_what_a_stop_string_hides(client: openai.OpenAI) -> None:
    answer = ask(client, "say abXYc", logprobs=True, stop="XY")
    assert answer.choices[0].message.content == "ab"
    assert [entry.token for entry in answer.choices[0].logprobs.content] == ["a", "b"]


def test_parts_of_a_character_have_no_bytes(client: openai.OpenAI) -> None:
    answer = ask(client, "say ü", logprobs=True)
    assert answer.choices[0].message.content == "ü"
    assert len(answer.choices[0].logprobs.content) == 2
    assert all(entry.bytes is None for entry in answer.choices[0].logprobs.content)


def test_continues_texts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt=["uvw", "xy"], logprobs=1, n=2)
    assert [choice.text for choice in answer.choices] == ["xyz", "xyz", "z", "z"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    logprobs: Any = answer.choices[0].logprobs
    assert logprobs.tokens == ["x", "y", "z"] and logprobs.text_offset == [0, 1, 2]
    assert [set(top) for top in logprobs.top_logprobs] == [{"x"}, {"y"}, {"z"}]
    assert answer.usage and answer.usage.prompt_tokens == 5


def test_continues_token_ids_and_streams(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="fake", prompt="x", logprobs=0)
    # One token a byte, in the order of the byte-level alphabet's letters: "!" is 0.
    ids = [ord("x") - ord("!")]
    stream = client.completions.create(model="fake", prompt=ids, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text == "yz"


def test_a_forced_tool_call(client: openai.OpenAI) -> None:
    answer = ask(client, f"say {CALL}", tools=[WEATHER], tool_choice="required")
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None
    (call,) = message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_streams_a_tool_call_as_one_and_text_as_it_comes(client: openai.OpenAI) -> None:
    chunks = list(ask(client, f"say {CALL}", tools=[WEATHER], stream=True))
    assert all(not chunk.choices[0].delta.content for chunk in chunks)
    deltas = [chunk.choices[0].delta.tool_calls for chunk in chunks if chunk.choices[0].delta.tool_calls]
    ((call,),) = deltas
    assert (call.index, call.function.name, call.function.arguments) == (0, "weather", '{"city": "Paris"}')
    assert chunks[-1].choices[0].finish_reason == "tool_calls"

    text = list(ask(client, "say It is sunny.", tools=[WEATHER], stream=True))
    pieces = [chunk.choices[0].delta.content for chunk in text if chunk.choices[0].delta.content]
    assert "".join(pieces) == "It is sunny."
    assert pieces[0] == "I"
    assert text[-1].choices[0].finish_reason == "stop"


def test_takes_back_what_it_gave_and_what_the_tool_returned(client: openai.OpenAI) -> None:
    first = ask(client, f"say {CALL}", tools=[WEATHER]).choices[0].message
    messages = [
        {"role": "user", "content": "What is the weather?"},
        first.model_dump(),
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"},
    ]
    answer = ask(client, "", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "You said: weather returned: sunny"


def test_the_model_is_told_of_the_tools_only_where_it_may_call_them(client: openai.OpenAI) -> None:
    plain = ask(client, "say a")
    told = ask(client, "say a", tools=[WEATHER])
    none = ask(client, "say a", tools=[WEATHER], tool_choice="none")
    assert plain.usage.prompt_tokens == none.usage.prompt_tokens < told.usage.prompt_tokens


def test_knows_its_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")
    answer = client.chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])
    assert answer.model == "fake"


def test_parts_of_text_and_developer_messages_are_understood(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "say "}, {"type": "text", "text": "parts"}]},
    ]
    assert ask(client, "", messages=messages).choices[0].message.content == "parts"
