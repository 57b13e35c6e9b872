"""The lm-evaluation-harness on a package, with tasks made of local files."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.cli import main
from phi3_onnx.configs import UsageError
from phi3_onnx.evaluate.tasks.benchmarks import benchmarks
from phi3_onnx.runtime.decoding.sampling import log_softmax
from phi3_onnx.runtime.engines.session import LogitsSession

lm_eval = pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")

from lm_eval.tasks import TaskManager  # noqa: E402  # pyright: ignore[reportMissingImports]
from phi3_onnx.evaluate.tasks.lm_eval_model import Phi3OnnxLM  # noqa: E402  # imports lm_eval
from phi3_onnx.evaluate.tasks.run import run_tasks  # noqa: E402

Make = Callable[..., Path]

QUESTIONS = [
    {"question": "What is the capital of France?", "choices": ["Paris", "Rome", "the sea"], "answer": 0},
    {"question": "What does a dog do?", "choices": ["It speaks", "It jumps", "It adds"], "answer": 1},
    {"question": "How many days?", "choices": ["37", "329", "2"], "answer": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{target}"
metric_list:
  - metric: {metric}
    aggregation: {aggregation}
    higher_is_better: true
"""


@pytest.fixture
def ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the harness's own 14,700 tasks out: reading them takes 5 s each time."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")

    def write(name: str, kind: str, target: str, metric: str, more: str = "", text: str = "Q: {{question}}") -> None:
        aggregation = "weighted_perplexity" if "perplexity" in metric else "mean"
        values = {"name": name, "data": data, "kind": kind, "text": text, "target": target, "metric": metric}
        (folder / f"{name}.yaml").write_text(TASK.format(**values, aggregation=aggregation) + more, encoding="utf-8")

    write("choose", "multiple_choice", "{{answer}}", "acc", 'doc_to_choice: "{{choices}}"\n')
    write("say", "generate_until", "{{choices[answer]}}", "exact_match", "generation_kwargs:\n  max_gen_toks: 8\n")
    write("read", "loglikelihood_rolling", "{{question}}", "word_perplexity", text="")
    return folder


@pytest.fixture(scope="module")
def model(tiny_package: Make) -> Iterator[Phi3OnnxLM]:
    found = Phi3OnnxLM(tiny_package("plain"), provider="cpu")
    yield found
    found.model.close()


class Request:
    def __init__(self, *args: Any) -> None:
        self.args = args


def log_probability(model: Phi3OnnxLM, context: list[int], continuation: list[int]) -> float:
    ids = np.array([*context, *continuation])
    ((_, logits),) = LogitsSession(model.model.package.folder).logits(ids, chunk=len(ids))
    rows = np.arange(len(context) - 1, len(ids) - 1)
    return float(log_softmax(logits.astype(np.float64))[rows, ids[rows + 1]].sum())


@pytest.mark.usefixtures("ours_alone")
def test_every_kind_of_task_runs(tiny_package: Make, tasks: Path) -> None:
    found = run_tasks(tiny_package("plain"), ["choose", "say", "read"], provider="cpu", include_path=tasks)
    assert set(found.results) == {"choose", "say", "read"}
    assert 0 <= found.results["choose"]["acc,none"] <= 1
    assert found.results["read"]["word_perplexity,none"] > 1
    assert "|choose" in found.table


@pytest.mark.usefixtures("ours_alone")
def test_multiple_choice_takes_the_likeliest_answer(model: Phi3OnnxLM, tiny_package: Make, tasks: Path) -> None:
    right = 0
    for doc in QUESTIONS:
        context = model.tok_encode(f"Q: {doc['question']}")
        # The harness puts a space before each choice.
        scores = [log_probability(model, context, model.tok_encode(f" {choice}")) for choice in doc["choices"]]
        right += int(np.argmax(scores)) == doc["answer"]
    found = run_tasks(tiny_package("plain"), ["choose"], provider="cpu", include_path=tasks)
    assert found.results["choose"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_loglikelihoods_come_back_in_the_order_they_were_asked(model: Phi3OnnxLM) -> None:
    asked = [("The dog", " jumps"), ("In 2024", " it rained"), ("The dog", " does"), ("", "The dog")]
    found = model.loglikelihood([Request(*pair) for pair in asked], disable_tqdm=True)
    for (context, continuation), (score, _) in zip(asked, found, strict=True):
        ids = model.tok_encode(context) if context else [model.prefix_token_id]
        # float32 logits of runs of other lengths, over a few tokens.
        assert score == pytest.approx(log_probability(model, ids, model.tok_encode(continuation)), abs=1e-3)


def test_long_texts_are_read_in_windows(model: Phi3OnnxLM, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."
    ids = model.tok_encode(text)
    whole = log_probability(model, [model.prefix_token_id], ids)
    assert model.loglikelihood_rolling([Request(text)], disable_tqdm=True)[0] == pytest.approx(whole, abs=1e-3)
    monkeypatch.setattr(model, "max_length", 12)
    parts = model.loglikelihood_rolling([Request(text)], disable_tqdm=True)[0]
    # Windows of 11 tokens to predict: each token once, the first of them after the prefix, others after one token.
    first = log_probability(model, [model.prefix_token_id], ids[:11])
    assert parts < first
    assert parts != pytest.approx(whole, abs=1e-3)


def test_contexts_that_are_too_long_lose_their_beginning(model: Phi3OnnxLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "max_length", 10)
    context, continuation = "The quick brown fox jumps over the lazy dog", " and the dog"
    ids, more = model.tok_encode(context), model.tok_encode(continuation)
    assert len(ids) + len(more) > 10
    ((score, _),) = model.loglikelihood([Request(context, continuation)], disable_tqdm=True)
    assert score == pytest.approx(log_probability(model, [*ids, *more][-10 : -len(more)], more), abs=1e-3)
    with pytest.raises(ValueError, match="needs max_length"):
        model.loglikelihood([Request("a", context * 3)], disable_tqdm=True)


def test_answers_stop_where_they_are_told_to(model: Phi3OnnxLM) -> None:
    context = "The quick brown fox"
    greedy = LogitsSession(model.model.package.folder).greedy(np.array(model.tok_encode(context)), 10)
    ends = [i for i, token in enumerate(greedy) if int(token) in model.model.package.end_tokens]
    text = model.model.tokenizer.decode(greedy[: ends[0] if ends else None].tolist())
    whole, cut = model.generate_until(
        [Request(context, {"max_gen_toks": 10}), Request(context, {"max_gen_toks": 10, "until": [text[3:5]]})],
        disable_tqdm=True,
    )
    assert whole == text
    assert cut == text[: text.index(text[3:5])]


def test_chats_are_rendered_by_the_packages_template(model: Phi3OnnxLM) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    assert model.apply_chat_template(chat) == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    begun = [*chat, {"role": "assistant", "content": "The answer"}]
    assert (
        model.apply_chat_template(begun, add_generation_prompt=False) == model.apply_chat_template(chat) + "The answer"
    )
    template = model.model.template
    assert template is not None
    assert model.chat_template(True) == template.source
    assert model.chat_template(False) is None
    assert model.tokenizer_name == "tiny-plain__cpu-fp32"


def test_the_harness_knows_the_model_by_its_name(tiny_package: Make, tasks: Path) -> None:
    found = lm_eval.simple_evaluate(
        model="phi3-onnx",
        model_args={"package": str(tiny_package("plain")), "provider": "cpu"},
        tasks=["choose"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        batch_size=1,
    )
    assert found is not None
    assert found["config"]["model"] == "phi3-onnx"
    assert found["config"]["package"] == "tiny-plain/cpu-fp32"
    assert "acc,none" in found["results"]["choose"]


@pytest.mark.usefixtures("ours_alone")
def test_programs_run_only_where_that_is_allowed(tiny_package: Make, tasks: Path, tmp_path: Path) -> None:
    text = (tasks / "say.yaml").read_text().replace("task: say", "task: program") + "unsafe_code: true\n"
    (tmp_path / "program.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"of program, one runs the programs .* allow that with --run-code"):
        run_tasks(tiny_package("plain"), ["program"], include_path=tmp_path)
    found = run_tasks(tiny_package("plain"), ["program"], include_path=tmp_path, run_code=True)
    assert "exact_match,none" in found.results["program"]


def test_every_benchmark_of_the_cards_is_a_task_of_the_harness_with_that_metric() -> None:
    manager = TaskManager()
    for benchmark in benchmarks():
        for task in (benchmark.task, *benchmark.parts):
            assert manager.match_tasks([task]) == [task]
        assert benchmark.values.keys() == {"Phi-3-mini-4k-instruct", "Phi-3-mini-128k-instruct"}
        assert all(25 < value < 100 for value in benchmark.values.values())


@pytest.mark.usefixtures("ours_alone")
def test_figures_beside_the_models_card(tiny_package: Make, tasks: Path, tmp_path: Path) -> None:
    """A local task that is called as one of the harness's, on a package that is called as Microsoft's model."""
    package = Path(shutil.copytree(tiny_package("plain"), tmp_path / "package"))
    manifest = json.loads((package / "phi3_onnx.json").read_text())
    (tmp_path / "tasks").mkdir()
    text = (tasks / "choose.yaml").read_text().replace("task: choose", "task: winogrande")
    (tmp_path / "tasks" / "winogrande.yaml").write_text(text)

    def table(model: str, source: str = "a/folder") -> str | None:
        (package / "phi3_onnx.json").write_text(json.dumps({**manifest, "model": model, "source": source}))
        return run_tasks(package, ["winogrande"], include_path=tmp_path / "tasks").card

    found = table("Phi-3-mini-4k-instruct")
    assert found is not None
    right = run_tasks(package, ["winogrande"], include_path=tmp_path / "tasks").results["winogrande"]["acc,none"]
    assert found.splitlines()[2:] == [f"| WinoGrande | {100 * right:.1f} | 0 | 71.6 | 5 | 2024-06 |"]
    assert "| 71.0 | 5 |" in str(table("model", "microsoft/Phi-3-mini-128k-instruct"))
    assert table("Phi-3-mini-4k-instruct-my-lora") is None


def test_a_task_of_parts_is_their_mean_weighted_by_questions() -> None:
    anli = next(benchmark for benchmark in benchmarks() if benchmark.parts)
    results = {part: {"acc,none": 0.5, "sample_len": 100} for part in anli.parts[1:]}
    assert anli.measured(results) is None
    results[anli.parts[0]] = {"acc,none": 0.2, "sample_len": 400}
    assert anli.measured(results) == pytest.approx(30)


@pytest.mark.usefixtures("ours_alone")
def test_unknown_tasks_are_named(tiny_package: Make, tasks: Path) -> None:
    with pytest.raises(UsageError, match="no task nonsense;"):
        run_tasks(tiny_package("plain"), ["choose", "nonsense"], include_path=tasks)


def test_the_command_line_prints_the_harness_table(
    tiny_package: Make, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", tiny_package("plain"), "--tasks", "choose", "--include-path", tasks, "--limit", 2]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["phi3-onnx", *map(str, arguments), *more])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert json.loads(out)["choose"]["sample_len"] == 2 if more else "|choose|" in out
