"""Several prompts side by side: every answer is the one that its prompt gets alone, whatever lies beside it."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import EngineError, Phi3OnnxError, UsageError, find_target
from phi3_onnx.export import export
from phi3_onnx.runtime import Guidance, Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt, answer_all
from phi3_onnx.runtime.decoding.response import last_response
from phi3_onnx.runtime.engines.genai import GenAiEngine
from phi3_onnx.runtime.engines.ort import OrtEngine, check_rows
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.engines.slots import SlotPool
from phi3_onnx.runtime.model import load_to_batch
from scripted import scripted_model, write_scripted_package

Make = Callable[..., Path]

# Of lengths that share nothing, around LongRoPE's switch at 40, over a window of 31, over a chunk of 128.
LENGTHS = (3, 38, 200, 39, 40, 41, 60, 1, 130, 20)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[SlotPool]:
    """Every pool of slots that is made."""
    made: list[SlotPool] = []
    begin = SlotPool.__init__

    def init(self: SlotPool, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        made.append(self)

    monkeypatch.setattr(SlotPool, "__init__", init)
    return made


def make_prompts(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(5, 300, length).tolist() for length in lengths]


def make_jobs(model: Model, **options: Any) -> list[BatchPrompt]:
    # Answers of unequal lengths, so that rows are taken over while others are under way.
    return [
        BatchPrompt(prompt, model.options(max_tokens=6 + 5 * (number % 4), **options))
        for number, prompt in enumerate(make_prompts())
    ]


def alone(model: Model, jobs: Sequence[BatchPrompt]) -> list[Response]:
    return [last_response(model.run(job.prompt, job.options)) for job in jobs]


def rights(results: Iterator[Response | Phi3OnnxError]) -> list[Response]:
    found = list(results)
    assert all(isinstance(result, Response) for result in found), found
    return [result for result in found if isinstance(result, Response)]


@pytest.fixture(scope="module")
def separate(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of DirectML's kind, with positions as an input, in float32."""
    target = replace(find_target("cpu-fp32"), attention="separate", position_ids=True)
    return export(tiny("gqa"), target, tmp_path_factory.mktemp("separate") / "package")


@pytest.fixture(params=["gqa", "window", "longrope", "partial", "tied", "separate", "cuda-fp16"])
def package(request: pytest.FixtureRequest, tiny_package: Make) -> Path:
    if request.param == "separate":
        return request.getfixturevalue("separate")
    if request.param == "cuda-fp16":
        return tiny_package("gqa", "cuda-fp16")
    rope = {"original_max_position_embeddings": 40, "max_position_embeddings": 300}
    return tiny_package(request.param, **(rope if request.param == "longrope" else {}))


@pytest.fixture
def model(tiny_package: Make) -> Iterator[Model]:
    with load(tiny_package("gqa"), engine="onnxruntime") as loaded:
        yield loaded


def test_greedy_answers_are_those_of_each_prompt_alone(package: Path, pools: list[SlotPool]) -> None:
    with load(package) as genai, load(package, engine="onnxruntime") as model:
        assert isinstance(genai.engine, GenAiEngine)
        assert isinstance(model.engine, OrtEngine)
        jobs = make_jobs(model, temperature=0)
        expected = alone(genai, jobs)
        answers = rights(answer_all(model, jobs, batch=4))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    assert [answer.finish_reason for answer in answers] == [answer.finish_reason for answer in expected]
    rows = Counter(pools[-1].runs)
    assert max(rows) == 4
    assert sum(rows.values()) < sum(answer.completion_tokens for answer in answers)


def test_each_prompt_has_its_own_sampling_seed_stops_and_logprobs(model: Model, tiny_package: Make) -> None:
    ways: list[dict[str, Any]] = [
        {"temperature": 0.9, "seed": 5, "top_k": 0, "top_p": 0.95},
        {"temperature": 0, "repetition_penalty": 1.3, "logprobs": 2},
        {"temperature": 1.5, "seed": 6, "stop": ("e", "a")},
        {"temperature": 0, "logprobs": 0},
    ]
    jobs = [
        BatchPrompt(prompt, model.options(max_tokens=20, **ways[number % 4]))
        for number, prompt in enumerate(make_prompts())
    ]
    with load(tiny_package("gqa")) as genai:
        expected = alone(genai, jobs)
    answers = rights(answer_all(model, jobs, batch=3))
    for answer, right in zip(answers, expected, strict=True):
        assert (answer.text, answer.token_ids, answer.finish_reason) == (
            right.text,
            right.token_ids,
            right.finish_reason,
        )
        assert (answer.logprobs is None) == (right.logprobs is None)
        for ours, theirs in zip(answer.logprobs or (), right.logprobs or (), strict=True):
            # Another order of float32 sums; see test_session.py.
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}


def test_rows_go_on_with_the_next_prompt(model: Model, pools: list[SlotPool]) -> None:
    lengths = [2, 30, 2, 2, 2, 2]
    jobs = [BatchPrompt([9, 8, 7], model.options(max_tokens=length, temperature=1.0, seed=3)) for length in lengths]
    answers = rights(answer_all(model, jobs, batch=2))
    # All are cut from one sequence of draws, so each begins the next longer one.
    longest = max(answers, key=lambda answer: answer.completion_tokens).token_ids
    assert all(answer.token_ids == longest[: answer.completion_tokens] for answer in answers)
    # The five short answers came and went beside the long one.
    assert Counter(pools[-1].runs)[2] >= 5


def test_a_common_beginning_is_run_once_in_a_row(model: Model) -> None:
    common = make_prompts([100])[0]
    jobs = [BatchPrompt([*common, number], model.options(max_tokens=3, temperature=0)) for number in range(20, 26)]
    answers = rights(answer_all(model, jobs, batch=2))
    assert [answer.cached_tokens for answer in answers] == [0, 0, 100, 100, 100, 100]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone(model, jobs)]


def test_sequences_close_up_when_a_slot_before_them_is_free(model: Model, pools: list[SlotPool]) -> None:
    jobs = [
        BatchPrompt(prompt, model.options(max_tokens=length, temperature=0))
        for prompt, length in zip(make_prompts([5, 9, 30, 12]), [3, 20, 3, 20], strict=True)
    ]
    expected = alone(model, jobs)
    pools.clear()
    answers = rights(answer_all(model, jobs, batch=4))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    # Four prompts, two steps of four; after that the second and the fourth are neighbours.
    assert pools[-1].runs == [1, 1, 1, 1, 4, 4, *[2] * 17]


def test_what_is_wrong_with_one_prompt_is_its_own_result(model: Model) -> None:
    long = [7] * 4090
    options = model.options(max_tokens=4, temperature=0)
    jobs = [
        BatchPrompt([5, 6], options),
        BatchPrompt(long, model.options(max_tokens=100)),
        BatchPrompt([], options),
        BatchPrompt([8], options),
    ]
    results = list(answer_all(model, jobs, batch=4))
    assert [type(result) for result in results] == [Response, UsageError, UsageError, Response]
    assert str(results[1]).startswith("prompt 4090 tokens + 100 > context 4096")
    with pytest.raises(UsageError, match="4090 tokens"):
        list(model.generate_many(["x", "y" * 4090], raw=True, max_tokens=50))


def test_answers_come_in_the_order_of_the_prompts_as_soon_as_they_can(
    model: Model, monkeypatch: pytest.MonkeyPatch, pools: list[SlotPool]
) -> None:
    monkeypatch.setitem(model.package.__dict__, "end_tokens", frozenset())
    jobs = [BatchPrompt([5, 6, number], model.options(max_tokens=10 * number, temperature=0)) for number in (1, 4, 2)]
    answers = answer_all(model, jobs, batch=3)
    runs = [(next(answers), len(pools[-1].runs))[1] for _ in jobs]
    assert runs[0] == 3 + 9
    assert runs[1] == runs[2]  # the third was through before the second


def test_cancel_ends_what_runs_and_begins_nothing_else(model: Model) -> None:
    cancel = threading.Event()
    lengths = [3, 400, 400, 400]
    jobs = [BatchPrompt([5, 6], model.options(max_tokens=length, temperature=0)) for length in lengths]
    answers = answer_all(model, jobs, batch=2, cancel=cancel)
    assert isinstance(first := next(answers), Response)
    assert first.finish_reason == "length"
    cancel.set()
    (second,) = rights(answers)
    assert second.finish_reason == "cancelled"
    assert 0 < second.completion_tokens < 400
    with load(model.package.folder) as genai:
        assert list(answer_all(genai, jobs, batch=1, cancel=cancel)) == []


def test_a_stream_that_is_given_up_gives_its_slots_back(model: Model, pools: list[SlotPool]) -> None:
    jobs = [BatchPrompt([5, 6, number], model.options(max_tokens=5 * number, temperature=0)) for number in (1, 2, 3, 4)]
    answers = answer_all(model, jobs, batch=4)
    next(answers)
    answers.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert len([pools[-1].open(1) for _ in range(4)]) == 4


def test_the_memory_of_all_rows_is_stated_and_kept_within_what_is_free(
    model: Model, monkeypatch: pytest.MonkeyPatch, pools: list[SlotPool]
) -> None:
    size = model.package.kv_bytes_per_token
    jobs = [BatchPrompt([5] * 10, model.options(max_tokens=90, temperature=0)) for _ in range(3)]
    jobs.append(BatchPrompt([5] * 10, model.options(max_tokens=400)))
    monkeypatch.setattr(model, "free_memory", lambda: 250 * size)
    said: list[str] = []
    results = list(answer_all(model, jobs, batch=8, notify=said.append))
    assert [type(result) for result in results] == [Response] * 3 + [UsageError]
    assert "the KV cache of 410 tokens takes 210 kB and 128 kB of memory are free" in str(results[3])
    assert said == [
        "3 KV caches of 100 tokens take 154 kB and 128 kB of memory are free; 2 at a time",
        "KV cache: 102 kB for 2 times 100 tokens",
    ]
    assert max(pools[-1].runs) == 2


def test_prompts_with_guidance_are_answered_one_at_a_time(tiny_package: Make, pools: list[SlotPool]) -> None:
    said: list[str] = []
    with load(tiny_package("gqa")) as model:
        guidance = Guidance("regex", "[0-9]{4}")
        free = model.options(max_tokens=8, temperature=0)
        jobs = [
            BatchPrompt([5, 6], free),
            BatchPrompt([5, 6], replace(free, guidance=guidance)),
            BatchPrompt([7, 8, 9], free),
        ]
        expected = alone(model, jobs)
        answers = rights(answer_all(model, jobs, batch=4, notify=said.append))
        assert model.batching_engine() is model.batching_engine()
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    assert answers[1].text.isdecimal()
    assert said[0] == "1 of 3 prompts have guidance and are answered one at a time"
    assert max(pools[-1].runs) == 2
    with pytest.raises(UsageError, match="closed"):
        model.batching_engine()


def test_an_engine_without_guidance_of_its_own_has_its_logits_masked(model: Model) -> None:
    guidance = Guidance("regex", "[0-9]{3,5}")
    response = model.generate("x", guidance=guidance, max_tokens=20, temperature=1.0, seed=2)
    assert response.finish_reason == "stop"
    assert response.text.isdecimal()
    assert 3 <= len(response.text) <= 5


class TestWhereThereIsNoBatch:
    def test_a_package_without_a_graph_is_answered_in_turn(self, tmp_path: Path) -> None:
        write_scripted_package(tmp_path / "pkg")
        said: list[str] = []
        model = scripted_model(tmp_path / "pkg", ["one", "two"])
        answers = list(model.generate_many(["a", "b"], notify=said.append))
        assert [answer.text for answer in answers] == ["one", "two"]
        assert len(said) == 1
        assert said[0].startswith("prompts are answered one at a time: ")
        assert "cannot be loaded by onnxruntime" in said[0]

    def test_rows_that_come_out_wrong_are_noticed(
        self, tiny_package: Make, monkeypatch: pytest.MonkeyPatch, pools: list[SlotPool]
    ) -> None:
        right = LogitsSession.feeds

        def padded(self: LogitsSession, ids: np.ndarray, starts: Sequence[int]) -> dict[str, np.ndarray]:
            # The shorter row is taken to be as long as the longer one, which is how padding goes wrong.
            return right(self, ids, [max(starts)] * len(starts))

        monkeypatch.setattr(LogitsSession, "feeds", padded)
        said: list[str] = []
        with load_to_batch(tiny_package("gqa"), notify=said.append) as model:
            assert isinstance(model.engine, GenAiEngine)
        assert len(said) == 1
        assert "computes several texts at a time wrongly: logits differ by" in said[0]

    def test_graphs_that_only_take_one_row_are_noticed(
        self, tiny_package: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = OrtEngine(LogitsSession(tiny_package("gqa")))
        monkeypatch.setattr(LogitsSession, "feeds", lambda *_: {"input_ids": np.zeros((3, 1), dtype=np.int64)})
        with pytest.raises(
            Phi3OnnxError, match=r"does not run on several texts at a time: onnxruntime .* failed while"
        ):
            check_rows(engine)

    def test_providers_whose_cache_python_can_not_share(self, tiny_package: Make) -> None:
        with pytest.raises(Phi3OnnxError, match="runs texts on cpu and cuda only, not on dml"):
            load(tiny_package("gqa"), provider="dml", engine="onnxruntime")

    def test_one_prompt_needs_no_second_engine(self, tiny_package: Make, pools: list[SlotPool]) -> None:
        with load(tiny_package("gqa")) as model:
            assert len(list(model.generate_many(["x"], max_tokens=2))) == 1
        assert pools == []

    def test_a_batch_of_none_is_refused(self, model: Model) -> None:
        with pytest.raises(UsageError, match="batch must be 1 or more, got 0"):
            list(model.generate_many(["x", "y"], batch=0))


def test_a_run_that_fails_ends_the_answers_in_it_and_no_others(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = LogitsSession.feeds, Counter[str]()

    def failing(self: LogitsSession, ids: np.ndarray, starts: Sequence[int]) -> dict[str, np.ndarray]:
        calls["together"] += len(starts) > 1
        if calls["together"] == 3 and len(starts) > 1:
            calls["together"] += 1
            return {"input_ids": np.zeros((7, 1), dtype=np.int64)}
        return right(self, ids, starts)

    monkeypatch.setattr(LogitsSession, "feeds", failing)
    jobs = [BatchPrompt([5, 6, number], model.options(max_tokens=6, temperature=0)) for number in range(10, 16)]
    results = list(answer_all(model, jobs, batch=2))
    assert [isinstance(result, Response) for result in results] == [False, False, True, True, True, True]
    assert "failed while running 1 tokens after" in str(results[0])
    monkeypatch.undo()
    right_ones = [result.token_ids for result in results[2:] if isinstance(result, Response)]
    assert right_ones == [answer.token_ids for answer in alone(model, jobs[2:])]


class TestAPool:
    @pytest.fixture
    def pool(self, model: Model) -> SlotPool:
        assert isinstance(model.engine, OrtEngine)
        return model.engine.pool(2, 10)

    def test_it_has_so_many_slots(self, pool: SlotPool) -> None:
        first, _ = pool.open(10), pool.open(3)
        with pytest.raises(EngineError, match="no room for a sequence of 4 tokens: 0 slots of 10 tokens are free"):
            pool.open(4)
        first.close()
        with pytest.raises(EngineError, match="no room for a sequence of 11 tokens: 1 slots"):
            pool.open(11)
        pool.open(10)
        first.close()  # it is another's slot by now
        with pytest.raises(EngineError, match="0 slots"):
            pool.open(1)

    def test_a_slot_has_so_many_tokens(self, pool: SlotPool) -> None:
        sequence = pool.open(10)
        sequence.append(range(1, 10))
        sequence.append([3])
        with pytest.raises(EngineError, match="1 tokens after 10 do not fit into 10"):
            sequence.append([4])
        with pytest.raises(EngineError, match="cannot rewind 10 tokens to 11"):
            sequence.rewind(11)

    def test_tokens_that_wait_are_run_by_whoever_asks(self, pool: SlotPool) -> None:
        first, second = pool.open(10), pool.open(10)
        first.append([5, 6])
        second.append([7])
        first.append([8])
        second.append([9])
        assert (first.waiting, second.waiting) == (True, True)
        logits = second.logits()
        assert (first.waiting, second.waiting) == (False, False)
        assert pool.runs == [1, 1, 2]
        first.append([10])
        # What waits now is no business of the second's.
        assert np.array_equal(second.logits(), logits)
        assert pool.runs == [1, 1, 2]

    def test_a_rewound_sequence_is_that_of_the_tokens_left(self, pool: SlotPool) -> None:
        first, second = pool.open(10), pool.open(10)
        first.append([5, 6, 7])
        first.append([8])
        first.rewind(2)
        first.append([9])
        second.append([5, 6])
        second.append([9])
        assert np.allclose(first.logits(), second.logits(), atol=1e-4)
