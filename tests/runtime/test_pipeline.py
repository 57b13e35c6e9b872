import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime import pipeline
from scripted import scripted_model, write_scripted_package

CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
CARD = {"max_new_tokens": 500, "return_full_text": False, "temperature": 0.0, "do_sample": False}
"""The generation_args of Phi-3's model card."""


@pytest.fixture
def pipe(tmp_path):
    write_scripted_package(tmp_path / "package")

    def make(*answers):
        return pipeline("text-generation", model=scripted_model(tmp_path / "package", answers))

    return make


def test_the_model_cards_sample(pipe):
    assert pipe("Hello")(CHAT, **CARD) == [{"generated_text": "Hello"}]


def test_full_text_of_a_chat_is_the_chat_with_the_answer(pipe):
    answer = {"role": "assistant", "content": "Hello"}
    assert pipe("Hello")(CHAT, do_sample=False) == [{"generated_text": [*CHAT, answer]}]


def test_full_text_of_a_text_begins_with_it(pipe):
    assert pipe("tom")("Bot", do_sample=False) == [{"generated_text": "Bottom"}]
    assert pipe("tom")("Bot", return_full_text=False, do_sample=False) == [{"generated_text": "tom"}]


def test_several_inputs_give_a_list_each(pipe):
    assert pipe("a", "b")(["x", "y"], **CARD) == [[{"generated_text": "a"}], [{"generated_text": "b"}]]
    assert pipe("a", "b")([CHAT, CHAT], **CARD) == [[{"generated_text": "a"}], [{"generated_text": "b"}]]


def test_several_answers(pipe):
    results = pipe("a", "b")("x", num_return_sequences=2, do_sample=True, return_full_text=False)
    assert results == [{"generated_text": "a"}, {"generated_text": "b"}]
    with pytest.raises(UsageError, match="num_return_sequences=2 needs sampling"):
        pipe()("x", num_return_sequences=2, do_sample=False)


def test_a_chat_that_ends_with_the_assistant_is_continued(pipe):
    made = pipe("lo")
    begun = [*CHAT, {"role": "assistant", "content": "Hel"}]
    assert made(begun, **{**CARD, "return_full_text": True}) == [
        {"generated_text": [*CHAT, {"role": "assistant", "content": "Hello"}]}
    ]
    rendered = "<|system|>\nS<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHel"
    assert made.model.engine.runs[0] == (0, len(made.model.tokenizer.encode(rendered, special=False)))


def test_max_new_tokens_is_256_by_default(pipe):
    assert pipe("x" * 300)("y", do_sample=False, return_full_text=False) == [{"generated_text": "x" * 256}]


def test_an_option_it_does_not_have_is_not_ignored(pipe):
    with pytest.raises(TypeError, match="num_beams"):
        pipe()("x", num_beams=4)


def test_another_task_is_refused():
    with pytest.raises(UsageError, match="task must be 'text-generation', got 'translation'"):
        pipeline("translation", model="x")
    with pytest.raises(UsageError, match="name a model"):
        pipeline("text-generation")
