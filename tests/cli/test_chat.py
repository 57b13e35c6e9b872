"""Transcripts of `chat`, to the byte, with an engine that answers from a script."""

import builtins
import json
import signal
import sys
from itertools import count

import pytest
from click.testing import CliRunner
from phi3_onnx.cli.chat import command
from phi3_onnx.cli.chat_commands import GROUPS, ChatCommands
from phi3_onnx.cli.line_editor import LineEditor
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.decoding import generation
from phi3_onnx.runtime.engines import load as engines_load
from phi3_onnx.runtime.providers.choice import Candidate, ProviderChoice
from phi3_onnx.runtime.text.tokenizer import Tokenizer
from scripted import ScriptedSequence, scripted_engine, write_scripted_package

CHOICE = ProviderChoice("cpu", (Candidate("cpu", True, "the package was made for it"),))
OPENING = (
    "pkg on cpu (cpu: chosen, the package was made for it)\n"
    "2000 tokens of context; sampling: greedy; system message: none\n"
)


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """Return `scripted(answers)`: the folder of a package whose engine gives these answers."""
    folder = tmp_path / "pkg"
    write_scripted_package(folder, context_length=2000)
    ticks = count()
    monkeypatch.setattr(generation, "perf_counter", lambda: next(ticks) * 0.25)
    monkeypatch.chdir(tmp_path)
    engines = []

    def install(answers):
        engine = scripted_engine(Tokenizer(folder), answers)
        engines.append(engine)
        monkeypatch.setattr(engines_load, "load_engine", lambda package, provider, **_: (engine, CHOICE))
        return folder

    yield install
    for engine in engines:
        assert engine.closed
        assert engine.open_count == 0


@pytest.fixture
def chat(scripted):
    """Return `chat(answers, typed, *arguments)`: the result of a chat with a scripted package."""

    def talk(answers, typed, *arguments):
        return CliRunner().invoke(command, [str(scripted(answers)), "-n", "50", *arguments], input=typed)

    return talk


def test_a_conversation(chat):
    result = chat(["Hello!", "Fine."], "Hi\n\nHow are you?\n")
    assert result.exit_code == 0
    assert result.stdout == "Hello!\nFine.\n"
    assert result.stderr == (
        OPENING + "KV cache: 554 kB for 1082 tokens\n"
        "prompt 8 tokens, 32.0 tok/s; answer 7 tokens, 4.0 tok/s\n"
        "prompt 34 tokens (14 cached), 80.0 tok/s; answer 6 tokens, 4.0 tok/s\n"
    )


def test_several_lines_between_triple_quotes(chat):
    result = chat(["Yes"], '"""\none\n\ntwo\n"""\n/save c.json\n')
    assert result.stdout == "Yes\n"
    assert "saved 2 messages to c.json" in result.stderr


def test_the_end_of_the_input_closes_the_quotes(chat, tmp_path):
    assert chat(["Yes"], '"""one\ntwo').stdout == "Yes\n"


def messages(path):
    return [(message["role"], message["content"]) for message in json.loads(path.read_text())["messages"]]


def test_commands(chat, tmp_path):
    typed = "Hi\n/regen\nMore\n/undo\n/system Be brief.\n/save c.json\n/bye\nnever said\n"
    result = chat(["one", "two", "three"], typed)
    assert result.exit_code == 0
    assert result.stdout == "one\ntwo\nthree\n"
    assert messages(tmp_path / "c.json") == [("system", "Be brief."), ("user", "Hi"), ("assistant", "two")]
    assert "undone\nsystem message: Be brief.\nsaved 3 messages to c.json\n" in result.stderr


def test_save_and_load(chat, tmp_path):
    chat(["one"], "Hi\n/save c.json\n", "--system", "S")
    result = chat(["two"], "/load c.json\nMore\n/save d.json\n")
    assert "loaded 3 messages from c.json" in result.stderr
    assert messages(tmp_path / "d.json") == [*messages(tmp_path / "c.json"), ("user", "More"), ("assistant", "two")]


def test_clear_and_undo_of_nothing(chat):
    result = chat(["one"], "Hi\n/clear\n/undo\n/system\n")
    assert result.stderr.endswith("the conversation is empty\nthere is nothing to undo\nsystem message: none\n")


def test_settings_of_every_kind(chat):
    typed = "/set logit_bias 5=-100 6=2.5\n/set ignore_eos on\n/set repeat_penalty 1.1\n/set min_tokens 3\n/show\n"
    result = chat([], typed, "--logit-bias", "7=1", "--typical-p", "0.5")
    assert result.exit_code == 0, result.output
    assert "logit_bias: {5: -100.0, 6: 2.5}" in result.stderr and "ignore_eos: True" in result.stderr
    assert "repetition_penalty: 1.1" in result.stderr and "logit-bias of 2 tokens" in result.stderr
    refused = CliRunner().invoke(command, ["pkg", "--logit-bias", "7"])
    assert refused.exit_code == 2 and "'7' must be a token's id and a number, such as 15043=-100" in refused.output


def test_set_and_show(chat):
    result = chat([], "/set temperature 0.5\n/set stop 'a b' c\n/set top-k 3\n/set temperature default\n/set\n")
    assert result.stderr == (
        OPENING + "temperature: 0.5\nstop: ['a b', 'c']\ntop_k: 3\ntemperature: default\n"
        "model: pkg on cpu\nsystem message: none\nsampling: temperature 1, top-k 3, top-p 1\n"
        "longest answer: 50 tokens\nstop: 'a b', 'c'\nat the context's end (2000 tokens): stop\n"
    )


def test_stats(chat):
    result = chat(["Hello"], "/stats\nHi\n/stats\n")
    assert result.stderr == (
        OPENING + "0 answers, 0 messages, forgotten 0\nin the KV cache: 0 of 2000 tokens\n"
        "prompts: 0 tokens, 0 of them cached, no speed yet\nanswers: 0 tokens, no speed yet\n"
        "KV cache: 554 kB for 1082 tokens\n"
        "prompt 8 tokens, 32.0 tok/s; answer 6 tokens, 4.0 tok/s\n"
        "1 answers, 2 messages, forgotten 0\nin the KV cache: 13 of 2000 tokens\n"
        "prompts: 8 tokens, 0 of them cached, 32.0 tok/s\nanswers: 6 tokens, 4.0 tok/s\n"
    )


def test_a_file_goes_with_the_next_message(chat, tmp_path):
    (tmp_path / "notes.txt").write_text("some notes\n")
    result = chat(["ok"], "/read notes.txt\nSum up\n/save c.json\n")
    assert "11 characters of notes.txt go with your next message" in result.stderr
    assert messages(tmp_path / "c.json")[0] == ("user", "some notes\n\nSum up")


def test_help_lists_every_command(chat):
    text = chat([], "/help\n").stderr
    names = ["help", "bye", "clear", "regen", "undo", "system", "set", "show", "save", "load", "read", "stats"]
    for name in names:
        assert f"/{name} " in text
    assert sorted(names) == sorted(name for group in GROUPS.values() for name in group)
    assert sorted(names) == sorted(name.removeprefix("do_") for name in dir(ChatCommands) if name.startswith("do_"))


def test_two_slashes_begin_a_message_with_one(chat, tmp_path):
    chat(["ok"], "//etc is a folder\n/save c.json\n")
    assert messages(tmp_path / "c.json")[0] == ("user", "/etc is a folder")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("/nope\n", "unknown command /nope; /help lists them"),
        ("/set tempo 3\n", "say /set NAME VALUE with a name of temperature"),
        ("/set temperature hot\n", "temperature cannot be 'hot'"),
        ("/set logit-bias 5\n", "logit_bias cannot be '5'"),
        ("/set logit-bias 5=200\n", "logit_bias of token 5 must be -100 to 100"),
        ("/set temperature -1\n", "temperature must be 0 or more"),
        ("/load nowhere.json\n", "nowhere.json cannot be read"),
        ("/read nowhere.txt\n", "nowhere.txt cannot be read"),
        ("/save\n", "name a file"),
        ("/regen\n", "there is nothing to answer yet"),
        ("x" * 2000 + "\n", "the conversation has 2006 tokens and fills the context of 2000"),
    ],
)
def test_in_a_pipe_an_error_ends_the_chat(chat, typed, message):
    result = chat([], typed + "never said\n")
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_overflow_slides(chat):
    answers = ["a" * 40] * 40
    result = chat(answers, ("q" * 40 + "\n") * 30, "--on-overflow", "slide")
    assert result.stdout == ("a" * 40 + "\n") * 30
    assert "the context was full: " in result.stderr
    assert "old messages are forgotten" in result.stderr


def interrupt_at(monkeypatch, *steps):
    logits, calls = ScriptedSequence.logits, count()

    def interrupted(self):
        step = next(calls)
        for _ in range(steps.count(step)):
            signal.raise_signal(signal.SIGINT)
        return logits(self)

    monkeypatch.setattr(ScriptedSequence, "logits", interrupted)


def test_an_interrupt_ends_the_answer_and_not_the_chat(chat, monkeypatch, tmp_path):
    interrupt_at(monkeypatch, 2)
    result = chat(["Hello", "Fine"], "Hi\nWell?\n/save c.json\n")
    assert result.exit_code == 0
    assert result.stdout == "Hel\nFine\n"
    assert "answer 3 tokens, 4.0 tok/s; cancelled\n" in result.stderr
    assert messages(tmp_path / "c.json")[1] == ("assistant", "Hel")


def test_two_interrupts_of_one_answer_end_the_chat(chat, monkeypatch):
    interrupt_at(monkeypatch, 2, 2)
    result = chat(["Hello"], "Hi\nnever said\n")
    assert result.stdout.startswith("He")
    assert result.exit_code == 1  # click's own, outside of `phi3-onnx`, whose main() makes it 130
    assert result.stderr.endswith("Aborted!\n")


class TestAtATerminal:
    @pytest.fixture
    def typed(self, monkeypatch):
        """Return `typed(*lines)`: what `input` gives, exceptions raised; and the prompts it was called with."""
        prompts: list[str] = []

        def feed(*lines):
            rest = iter([*lines, EOFError()])

            def read(prompt=""):
                prompts.append(prompt)
                line = next(rest)
                if isinstance(line, BaseException):
                    raise line
                return line

            monkeypatch.setattr(builtins, "input", read)
            return prompts

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        return feed

    def test_prompts_and_lines(self, typed):
        prompts = typed("one", '"""two', 'three"""', "  ", "four")
        editor = LineEditor()
        assert list(editor.messages(lambda: None)) == ["one", "two\nthree", "four"]
        assert prompts == [">>> ", ">>> ", "... ", ">>> ", ">>> ", ">>> "]

    def test_an_interrupt_at_the_prompt_is_told_of(self, typed):
        typed("one", KeyboardInterrupt(), "two")
        told = []
        editor = LineEditor()
        assert list(editor.messages(lambda: told.append(1))) == ["one", "two"]
        assert told == [1]

    @pytest.mark.parametrize(
        ("lines", "code", "said"),
        [
            (["Hi", KeyboardInterrupt(), KeyboardInterrupt(), "never said"], 130, "one\n"),
            (["Hi", KeyboardInterrupt(), "More", KeyboardInterrupt()], None, "one\ntwo\n"),
            (["/nope", "Hi"], None, "one\n"),
        ],
        ids=["twice", "once each", "an error"],
    )
    def test_what_ends_a_chat_and_what_does_not(self, typed, scripted, capsys, lines, code, said):
        typed(*lines)
        assert command.main([str(scripted(["one", "two"]))], standalone_mode=False) == code
        assert capsys.readouterr().out == said

    def test_history_is_kept(self, typed, tmp_path):
        readline = pytest.importorskip("readline")
        typed("one")
        editor = LineEditor(tmp_path / "home" / "history")
        readline.add_history("a line typed")
        editor.close()
        assert "a line typed" in (tmp_path / "home" / "history").read_text()

    def test_a_prompt_does_not_go_down_the_pipe(self, typed, monkeypatch, capsys):
        prompts = typed("one")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
        assert list(LineEditor().messages(lambda: None)) == ["one"]
        assert prompts == ["", ""]
        assert capsys.readouterr().out == ""


def test_on_a_real_package(tiny_package):
    result = CliRunner().invoke(command, [str(tiny_package("gqa")), "-n", "6"], input="Hi\nMore\n/stats\n")
    assert result.exit_code == 0, result.exception
    assert "2 answers, 4 messages" in result.stderr
    assert " cached), " in result.stderr
