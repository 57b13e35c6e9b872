import threading

import pytest
from phi3_onnx.configs import UsageError
from scripted import scripted_model, write_scripted_package

# `<|user|>\n` + text + `<|end|>\n` is 4 tokens and the text; so is an answer; `<|assistant|>\n` is 2.
TURN, OPENING = 4, 2


@pytest.fixture
def start(tmp_path):
    def make(*answers, context=4096, **options):
        write_scripted_package(tmp_path / "package", context_length=context)
        model = scripted_model(tmp_path / "package", answers)
        return model, model.chat(**options)

    return make


def test_each_turn_runs_only_what_is_new(start):
    model, chat = start("Hello", "Fine")
    first = chat.ask("Hi")
    assert (first.text, first.cached_tokens, first.prompt_tokens) == ("Hello", 0, TURN + 2 + OPENING)
    model.engine.runs.clear()
    second = chat.ask("Well?")
    # Cached: the first prompt and the answer's five letters; its end token was drawn but never run.
    assert second.cached_tokens == first.prompt_tokens + 5
    assert second.prompt_tokens == first.prompt_tokens + 5 + 2 + TURN + 5 + OPENING
    assert model.engine.runs[0] == (13, 13)
    assert len(model.engine.opened) == 1
    assert [message["content"] for message in chat.messages] == ["Hi", "Hello", "Well?", "Fine"]


def test_an_answer_that_the_template_changes_is_run_again_from_there(start):
    model, chat = start("  Hello", "Fine")
    model.template.source = model.template.source.replace("message['content']", "message['content'] | trim")
    first = chat.ask("Hi")
    second = chat.ask("Well?")
    assert first.text == "  Hello"
    assert second.cached_tokens == first.prompt_tokens


def test_a_system_message_stays_first_and_can_change(start):
    _, chat = start("a", "b", system="Be brief.")
    chat.ask("Hi")
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}
    chat.system = "Be long."
    response = chat.ask("Again")
    assert response.cached_tokens == len("s\nBe ")
    chat.clear()
    assert chat.messages == ({"role": "system", "content": "Be long."},)


def test_regenerate_answers_the_last_message_again(start):
    model, chat = start("one", "two")
    first = chat.ask("Hi")
    model.engine.runs.clear()
    again = list(chat.regenerate())[-1].response
    assert (again.text, again.cached_tokens) == ("two", first.prompt_tokens - 1)
    assert [message["content"] for message in chat.messages] == ["Hi", "two"]


def test_regenerate_with_a_seed_draws_anew(start, monkeypatch):
    model, chat = start("one", "two", "three", "four", seed=5)
    seeds = []
    options = model.options
    monkeypatch.setattr(model, "options", lambda **named: (seeds.append(named.get("seed")), options(**named))[1])
    chat.ask("Hi")
    list(chat.regenerate())
    list(chat.regenerate())
    chat.ask("Hi")
    assert seeds == [5, 6, 7, 5]


def test_undo_and_clear(start):
    _, chat = start("one", "two")
    chat.ask("Hi")
    chat.ask("Well?")
    assert chat.undo()
    assert [message["content"] for message in chat.messages] == ["Hi", "one"]
    assert chat.undo()
    assert not chat.undo()
    assert chat.messages == ()
    with pytest.raises(UsageError, match="nothing to answer"):
        chat.regenerate()


def test_a_cancelled_answer_is_kept_as_far_as_it_came(start):
    _, chat = start("Hello", "Fine")
    cancel = threading.Event()
    stream = chat.send("Hi", cancel=cancel)
    next(stream)
    next(stream)
    cancel.set()
    (last,) = stream
    assert last.response.finish_reason == "cancelled"
    assert chat.messages[-1]["content"] == "He"
    assert chat.ask("Well?").text == "Fine"


def test_a_stream_that_is_given_up_leaves_the_conversation_as_it_was(start):
    _, chat = start("Hello", "Fine")
    stream = chat.send("Hi")
    next(stream)
    stream.close()
    assert chat.messages == ()
    assert chat.ask("Hi").text == "Fine"


def test_one_answer_at_a_time(start):
    _, chat = start("Hello", "Fine")
    stream = chat.send("Hi")
    next(stream)
    with pytest.raises(UsageError, match="answering already"):
        chat.ask("Well?")
    stream.close()
    assert chat.ask("Well?").text == "Fine"


class TestAtTheContextsEnd:
    def test_stop_cuts_the_answer_and_refuses_the_next_turn(self, start):
        _, chat = start("x" * 100, context=60)
        response = chat.ask("y" * 20, max_tokens=50)
        assert (response.finish_reason, response.completion_tokens) == ("length", 60 - 20 - TURN - OPENING)
        with pytest.raises(UsageError, match="fills the context of 60"):
            chat.ask("more")
        assert len(chat.messages) == 2

    def test_error_refuses_a_turn_that_may_not_fit(self, start):
        _, chat = start("x", context=60, on_overflow="error")
        with pytest.raises(UsageError, match=r"conversation 26 tokens \+ 50 > context 60"):
            chat.ask("y" * 20, max_tokens=50)
        assert chat.messages == ()
        assert chat.ask("y" * 20, max_tokens=30).text == "x"

    def test_slide_forgets_the_oldest_turns_but_not_the_system_message(self, start):
        answers = ["a" * 10, "b" * 10, "c" * 10, "d" * 10]
        _, chat = start(*answers, context=100, on_overflow="slide", system="S", max_tokens=12)
        for text in ("1" * 10, "2" * 10, "3" * 10):
            chat.ask(text)
        assert chat.forgotten == 0
        chat.ask("4" * 10)
        # System 5, then 14 a message, then 2: of 105 tokens of prompt, four messages go, for 49 and 12 to come are less
        # than three quarters of the context and 77 and 12 are not.
        assert chat.forgotten == 4
        assert [message["content"][0] for message in chat.messages] == ["S", "3", "c", "4", "d"]

    def test_slide_refuses_a_message_that_does_not_fit_alone(self, start):
        _, chat = start("x", context=60, on_overflow="slide")
        with pytest.raises(UsageError, match=r"the last message alone, 66 tokens \+ 15, is past context 60"):
            chat.ask("y" * 60)

    def test_room_is_reserved_for_turns_to_come(self, start):
        model, chat = start(*["x" * 30] * 8, max_tokens=40)
        for _ in range(8):
            chat.ask("y" * 20)
        assert len(model.engine.opened) == 1


def test_a_conversation_can_be_put_in(start):
    _, chat = start("Bob")
    chat.messages = (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "I am Bob"},
        {"role": "assistant", "content": "Hi"},
    )
    assert chat.system == "S"
    assert chat.ask("Who am I?").text == "Bob"
    assert len(chat.messages) == 5


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "robot", "content": "x"}], "message 1 must have a role"),
        ([{"role": "user"}], "message 1 must have a text as content"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}], "message 2 is a system message"),
        (["x"], "message 1 must have a role"),
    ],
)
def test_what_is_no_conversation_is_refused(start, messages, message):
    _, chat = start()
    with pytest.raises(UsageError, match=message):
        chat.messages = messages


def test_a_chat_needs_a_template_and_sensible_options(start, tmp_path):
    model, _ = start()
    with pytest.raises(UsageError, match="on_overflow must be one of stop, slide, error"):
        model.chat(on_overflow="explode")
    with pytest.raises(UsageError, match="temperature"):
        model.chat(temperature=-1)
    model.template = None
    with pytest.raises(UsageError, match="has no chat template"):
        model.chat()
