"""Transcripts of `generate`, to the byte, with an engine that answers from a script."""

import json
import os
import signal
import subprocess
import sys
from itertools import count

import pytest
from click.testing import CliRunner
from phi3_onnx.cli.generate import command
from phi3_onnx.configs import EngineError, PackageError, ProviderError, UsageError
from phi3_onnx.runtime.decoding import generation
from phi3_onnx.runtime.engines import load as engines_load
from phi3_onnx.runtime.providers.choice import Candidate, ProviderChoice
from phi3_onnx.runtime.text.tokenizer import Tokenizer
from scripted import ScriptedSequence, scripted_engine, write_scripted_package

CHOICE = ProviderChoice("cpu", (Candidate("cpu", True, "the package was made for it"),))
LOADED = "pkg on cpu (cpu: chosen, the package was made for it)\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return `run(answers, *arguments)`: the result of the command on a scripted package, and its engine."""
    folder = tmp_path / "pkg"
    write_scripted_package(folder, context_length=2000)
    ticks = count()
    monkeypatch.setattr(generation, "perf_counter", lambda: next(ticks) * 0.25)

    def invoke(answers, *arguments, stdin=None):
        engine = scripted_engine(Tokenizer(folder), answers)
        monkeypatch.setattr(engines_load, "load_engine", lambda package, provider, **_: (engine, CHOICE))
        result = CliRunner().invoke(command, [str(folder), *arguments], input=stdin)
        result.engine = engine  # pyright: ignore[reportAttributeAccessIssue]
        return result

    return invoke


def test_the_answer_is_on_stdout_and_all_else_on_stderr(run):
    result = run(["Hello!"], "-p", "Hi", "-n", "50")
    assert result.exit_code == 0
    assert result.stdout == "Hello!\n"
    assert result.stderr == (
        LOADED + "KV cache: 29.7 kB for 58 tokens\nprompt 8 tokens, 32.0 tok/s; answer 7 tokens, 4.0 tok/s\n"
    )
    assert result.engine.closed
    assert result.engine.open_count == 0


def test_an_answer_that_is_cut_says_so(run):
    result = run(["Hello!"], "-p", "Hi", "-n", "4")
    assert result.stdout == "Hell\n"
    assert result.stderr.endswith("answer 4 tokens, 4.0 tok/s; cut at its longest\n")


def test_a_final_newline_is_not_doubled(run):
    assert run(["Hello\n"], "-p", "Hi").stdout == "Hello\n"


@pytest.mark.parametrize("arguments", [("-p", "-"), ("-f", "-"), ()])
def test_a_prompt_from_stdin(run, arguments):
    result = run(["Hello"], *arguments, stdin="naïve 🙂\n")
    assert result.stdout == "Hello\n"
    assert result.stderr.splitlines()[-1].startswith(f"prompt {6 + len('naïve 🙂'.encode())} tokens")


def test_a_prompt_from_a_file(run, tmp_path):
    (tmp_path / "prompt.txt").write_text("x" * 94)
    assert "prompt 100 tokens" in run(["y"], "-f", str(tmp_path / "prompt.txt")).stderr


def test_several_prompts_are_answered_one_by_one_and_share_what_they_begin_with(run):
    result = run(["one", "two"], "-p", "aaaa1", "-p", "aaaa2", "--system", "S", "-n", "9")
    assert result.stdout == "one\n\ntwo\n"
    # `<|system|>\nS<|end|>\n<|user|>\naaaa` is 11 tokens.
    assert "prompt 16 tokens (11 cached)" in result.stderr


def test_stop_strings_end_the_answer_unseen(run):
    result = run(["one END two"], "-p", "Hi", "--stop", "END", "--stop", "two")
    assert result.stdout == "one \n"


def test_raw_text_is_continued(run):
    result = run(["bc"], "-p", "a", "--raw")
    assert result.stdout == "bc\n"
    assert "prompt 1 tokens" in result.stderr


def test_json(run):
    result = run(["Hé"], "-p", "Hi", "--json", "--logprobs", "1")
    table = json.loads(result.stdout)
    logprobs = table.pop("logprobs")
    assert table == {
        "text": "Hé",
        "finish_reason": "stop",
        "prompt_tokens": 8,
        "cached_tokens": 0,
        "completion_tokens": 4,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
        "prefill_seconds": 0.25,
        "decode_seconds": 0.75,
        "prefill_tokens_per_second": 32.0,
        "decode_tokens_per_second": 4.0,
        "model": "pkg",
        "provider": "cpu",
    }
    assert [entry["token"] for entry in logprobs] == ["H", "\ufffd", "\ufffd", "<|end|>"]
    assert logprobs[0]["logprob"] == 0
    assert logprobs[0]["top"] == [{"token_id": logprobs[0]["token_id"], "token": "H", "logprob": 0.0}]


def test_jsonl(run, tmp_path):
    requests = [
        {"id": 7, "prompt": "Hi", "max_tokens": 3},
        {"messages": [{"role": "user", "content": "Hi"}], "stop": "l"},
        {"id": "long", "prompt": "x" * 3000},
        {"prompt": "Hi", "raw": True, "temperature": 0, "system": None},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n\n".join(map(json.dumps, requests)))
    result = run(["one", "tool", "four"], "--jsonl", str(path), "-n", "20")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line.get("id") for line in lines] == [7, None, "long", None]
    assert [line.get("text") for line in lines] == ["one", "too", None, "four"]
    assert lines[0]["finish_reason"] == "length"
    assert lines[2]["error"].startswith("prompt 3006 tokens + 20 > context 2000")
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not valid JSON"),
        ("[]", "line 2: must be a JSON object"),
        ("{}", "line 2: must have either prompt or messages"),
        ('{"prompt": 3}', "line 2: prompt must be a text, got 3"),
        ('{"prompt": "x", "temprature": 1}', "line 2: unknown key 'temprature'; known: id, prompt"),
        ('{"prompt": "x", "max_tokens": "many"}', "line 2: max_tokens must be a whole number, got 'many'"),
        ('{"prompt": "x", "temperature": true}', "line 2: temperature must be a number, got True"),
        ('{"prompt": "x", "stop": [1]}', "line 2: stop must be a text or a list of texts"),
        ('{"prompt": "x", "response_format": {"type": "xml"}}', "line 2: response_format must be "),
        ('{"prompt": "x", "response_format": {"type": "json_schema"}}', "line 2: response_format must be "),
        ('{"prompt": "x", "response_format": "json"}', "line 2: response_format must be "),
        ('{"messages": [{"role": "robot"}]}', "line 2: message 1 must have a role"),
    ],
)
def test_malformed_requests_are_named_before_anything_is_loaded(run, tmp_path, line, message):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line)
    result = run([], "--jsonl", str(path))
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert result.stderr == ""


@pytest.fixture
def seen(monkeypatch):
    """Return a list that gets what guides each answer."""
    from scripted import ScriptedEngine

    found = []
    opened = ScriptedEngine.open
    monkeypatch.setattr(
        ScriptedEngine, "open", lambda self, capacity, guided=None: (found.append(guided), opened(self, capacity))[1]
    )
    return found


def test_each_line_of_jsonl_has_a_form_of_its_own(run, seen):
    schema = {"type": "object", "properties": {"a": {"const": 1}}}
    forms = [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        {"type": "json_object"},
        {"type": "text"},
        None,
    ]
    lines = "\n".join(json.dumps({"prompt": "Hi", "response_format": form}) for form in forms)
    result = run(['{"a": 1}', "{}", "a", "1"], "--jsonl", "-", "--batch", "1", "--regex", "[0-9]", stdin=lines)
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ['{"a": 1}', "{}", "a", "1"]
    guided = [entry and (entry.guidance.kind, entry.guidance.text) for entry in seen]
    assert guided == [
        ("json_schema", json.dumps(schema)),
        ("json_schema", '{"type": "object"}'),
        None,
        ("regex", "[0-9]"),
    ]


def test_guidance_reaches_the_engine(run, tmp_path, seen):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert run(["{}"], "-p", "Hi", "--json-schema", str(schema)).stdout == "{}\n"
    assert run(["12"], "-p", "Hi", "--regex", "[0-9]+").stdout == "12\n"
    assert run(["no"], "-p", "Hi", "--choice", "yes", "--choice", "no").stdout == "no\n"
    assert [guided.guidance.kind for guided in seen] == ["json_schema", "regex", "regex"]
    assert [guided.guidance.text for guided in seen] == ['{"type": "object"}', "[0-9]+", "(?:yes|no)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "x", "--logprobs", "2"), "--logprobs needs --json"),
        (("-p", "x", "--regex", "a", "--grammar", "-"), "take one of --json-schema, --regex, --grammar and --choice"),
        (("-p", "-", "-f", "-"), r"stdin (-) can be read once only"),
        (("-p", "x" * 1995), "prompt 2001 tokens + 1 > context 2000"),
        (("-p", "x", "--raw", "--prefill", "y"), "leave out --raw"),
        (("--jsonl", "-", "--prefill", "y"), "leave out --prompt, --file, --prefill"),
        (("-p", "x", "--template-variable", "mood"), "must be NAME=VALUE, got 'mood'"),
        (("-p", "x", "--template-variable", "messages=5"), "messages is not a variable of chat templates"),
        (("-p", "x", "-n", "2000"), "prompt 7 tokens + 2000 > context 2000"),
    ],
)
def test_what_makes_no_sense_is_refused(run, arguments, message):
    result = run(["never"], *arguments, stdin="x")
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("-n", "0"),
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-p", "1.1"),
        ("--top-k", "-1"),
        ("--seed", "-1"),
        ("--threads", "0"),
        ("--device", "-1"),
        ("--logprobs", "21"),
        ("-f", "no-such-file"),
    ],
)
def test_flags_out_of_range_are_clicks_own_errors(run, arguments):
    result = run([], "-p", "x", *arguments)
    assert result.exit_code == 2
    assert "Invalid value for" in result.stderr


def test_an_answer_that_has_begun_is_continued(run):
    result = run(["lo"], "-p", "Hi", "--prefill", "Hel")
    assert result.stdout == "lo\n"
    # `<|user|>\nHi<|end|>\n<|assistant|>\nHel`
    assert result.engine.runs[0] == (0, 11)
    line = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hel"}]}
    result = run(["lo"], "--jsonl", "-", stdin=json.dumps(line))
    assert json.loads(result.stdout)["prompt_tokens"] == 11


def test_a_chat_template_reads_variables(run, tmp_path):
    (tmp_path / "pkg" / "chat_template.jinja").write_text("{{ mood }}{{ messages[0].content }}{{ size + 1 }}")
    given = ("--template-variable", "mood=good", "--template-variable", "size=9")
    assert run(["x"], "-p", "Hi", *given).engine.runs[0] == (0, len("goodHi10"))
    line = {"prompt": "Hi", "template_variables": {"mood": "", "size": 1}}
    assert json.loads(run(["x"], "--jsonl", "-", stdin=json.dumps(line)).stdout)["prompt_tokens"] == len("Hi2")


def test_an_interrupt_ends_the_answer(run, monkeypatch):
    logits, calls = ScriptedSequence.logits, count()

    def interrupted(self):
        if next(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return logits(self)

    monkeypatch.setattr(ScriptedSequence, "logits", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = run(["Hello"], "-p", "Hi", "-p", "never asked")
    assert result.exit_code == 130
    assert result.stdout == "Hell\n"
    assert result.stderr.endswith("cancelled\n")
    assert signal.getsignal(signal.SIGINT) == before
    assert result.engine.open_count == 0


def test_a_failing_engine_is_an_error(run):
    result = run([], "-p", "Hi")
    assert isinstance(result.exception, EngineError)
    assert result.engine.closed


class TestWithoutAPackage:
    def test_there_is_none(self):
        result = CliRunner().invoke(command, ["-p", "Hi"])
        assert isinstance(result.exception, PackageError)
        assert "no package in the store; make one: phi3-onnx export --target cpu-int4-rtn" in str(result.exception)

    @pytest.mark.parametrize(("provider", "target"), [("dml", "dml-int4-awq"), ("cudaexecutionprovider", "cuda-fp16")])
    def test_there_is_none_for_the_provider(self, provider, target):
        result = CliRunner().invoke(command, ["-p", "Hi", "--provider", provider])
        assert isinstance(result.exception, PackageError)
        assert str(result.exception).endswith(f"make one: phi3-onnx export --target {target}")


def test_on_a_real_package(tiny_package):
    folder = str(tiny_package("gqa"))
    arguments = [folder, "-p", "Hi", "-n", "5", "--temperature", "0.8", "--seed", "4"]
    first, again = CliRunner().invoke(command, arguments), CliRunner().invoke(command, arguments)
    assert first.exit_code == 0, first.exception
    assert first.stdout == again.stdout
    for provider in ("cuda", "dml"):
        refused = CliRunner().invoke(command, [folder, "-p", "Hi", "--provider", provider])
        assert isinstance(refused.exception, ProviderError)
        assert refused.stdout == ""


class TestBatches:
    @pytest.fixture
    def requests(self, tmp_path):
        path = tmp_path / "requests.jsonl"
        lines = [{"id": n, "prompt": "x" * length, "max_tokens": 4 + n} for n, length in enumerate([3, 90, 9, 200, 30])]
        lines[2] |= {"temperature": 0.7, "seed": 5, "logprobs": 2}
        lines[3]["prompt"] *= 100
        path.write_text("\n".join(map(json.dumps, lines)))
        return path

    def invoke(self, tiny_package, requests, *arguments):
        folder = str(tiny_package("gqa"))
        return CliRunner().invoke(command, [folder, "--jsonl", str(requests), "--temperature", "0", *arguments])

    def test_lines_are_those_of_requests_in_turn(self, tiny_package, requests):
        results = [self.invoke(tiny_package, requests, *more) for more in ((), ("--batch", "3"), ("--batch", "1"))]
        assert [result.exit_code for result in results] == [1, 1, 1]  # the fourth is too long
        tables = [[json.loads(line) for line in result.stdout.splitlines()] for result in results]
        for number, lines in enumerate(zip(*tables, strict=True)):
            assert [line["id"] for line in lines] == [number] * 3
            assert len({line.get("text") for line in lines}) == 1
            assert len({line.get("error") for line in lines}) == 1
        assert "> context" in tables[0][3]["error"]
        assert "KV cache: " in results[0].stderr and " for 4 times " in results[0].stderr
        assert " for 3 times " in results[1].stderr
        assert " times " not in results[2].stderr

    def test_guided_requests_are_answered_too(self, tiny_package, requests):
        result = self.invoke(tiny_package, requests, "--regex", "[0-9]{3}", "-n", "20")
        texts = [json.loads(line).get("text") for line in result.stdout.splitlines()]
        assert [bool(text and text.isdecimal()) for text in texts] == [True, True, True, False, True]
        assert "one at a time" not in result.stderr

    def test_genai_answers_one_at_a_time(self, tiny_package, requests):
        result = self.invoke(tiny_package, requests, "--engine", "genai")
        assert result.exit_code == 1  # the fourth is too long
        assert "requests are answered one at a time: engine genai was asked for\n" in result.stderr

    def test_speculation_that_makes_no_sense_is_refused(self, tiny_package, requests):
        result = self.invoke(tiny_package, requests, "--speculate", "0")
        assert result.exit_code == 2
        assert "must be auto, off, or a number of tokens from 1 to 64, got '0'" in result.stderr

    def test_a_package_that_can_not_be_batched_says_why(self, run, requests):
        result = run(["a", "b", "c", "d"], "--jsonl", str(requests))
        assert [json.loads(line).get("text") for line in result.stdout.splitlines()] == ["a", "b", "c", None, "d"]
        first = result.stderr.splitlines()[0]
        assert first.startswith("prompts are answered one at a time: ") and "cannot be loaded" in first

    def test_a_batch_is_for_lines(self, run):
        result = run(["a"], "-p", "Hi", "--batch", "4")
        assert isinstance(result.exception, UsageError)
        assert str(result.exception) == "--batch needs --jsonl"

    def test_the_help_names_the_librarys_default(self):
        from phi3_onnx.runtime.batch import DEFAULT_BATCH

        assert f"[default: {DEFAULT_BATCH}]" in " ".join(CliRunner().invoke(command, ["--help"]).stdout.split())

    @pytest.mark.skipif(sys.platform == "win32", reason="no signals there")
    def test_an_interrupt_ends_those_under_way_and_begins_no_others(self, tiny_package, tmp_path, monkeypatch):
        path = tmp_path / "requests.jsonl"
        path.write_text("\n".join(json.dumps({"id": n, "prompt": "x", "max_tokens": 2000}) for n in range(6)))
        from phi3_onnx.runtime.engines.slots import SlotPool

        together, calls = SlotPool.run_waiting, count()

        def interrupted(self):
            if next(calls) == 12:
                signal.raise_signal(signal.SIGINT)
            together(self)

        monkeypatch.setattr(SlotPool, "run_waiting", interrupted)
        result = self.invoke(tiny_package, path, "--batch", "2")
        assert result.exit_code == 130
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["finish_reason"] for line in lines][-2:] == ["cancelled"] * 2
        assert len(lines) < 6


def test_a_terminal_without_unicode_gets_the_answer_too(tiny_package):
    # The tiny model writes any bytes; what matters is that none of them is an error.
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    arguments = ["generate", str(tiny_package("gqa")), "-p", "é", "-n", "40", "--temperature", "2", "--seed", "1"]
    run = subprocess.run([sys.executable, "-m", "phi3_onnx.cli", *arguments], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert b"?" in run.stdout


def test_json_keeps_every_character_where_stdout_has_an_old_code_page(tiny_package):
    arguments = ["generate", str(tiny_package("gqa")), "-p", "é", "-n", "40", "--temperature", "2", "--seed", "1"]
    texts = list[str]()
    for encoding in ("utf-8", "cp1252"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        command = [sys.executable, "-m", "phi3_onnx.cli", *arguments, "--json"]
        run = subprocess.run(command, env=environment, capture_output=True)
        assert run.returncode == 0, run.stderr
        texts.append(json.loads(run.stdout.decode())["text"])
    assert texts[0] == texts[1]
    assert not texts[0].isascii()
