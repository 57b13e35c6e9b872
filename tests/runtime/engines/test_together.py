"""Texts that are decoded together: each has the very logits that it has alone, and takes over what others have run."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import EngineError, UsageError
from phi3_onnx.runtime import Guidance, Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt, answer_all, answer_together
from phi3_onnx.runtime.decoding.kvcache import common_length
from phi3_onnx.runtime.decoding.response import last_response
from phi3_onnx.runtime.decoding.score import score_tokens
from phi3_onnx.runtime.decoding.speculation import AUTO, OFF, Speculation
from phi3_onnx.runtime.engines import together as module
from phi3_onnx.runtime.engines.layout import RowRun
from phi3_onnx.runtime.engines.packed import PackedGraph
from phi3_onnx.runtime.engines.together import LiveText, Together

Make = Callable[..., Path]

LONGROPE = {"original_max_position_embeddings": 40, "max_position_embeddings": 300}
MANY = 2**30


@pytest.fixture(scope="module", params=["gqa", "window", "longrope"])
def model(request: pytest.FixtureRequest, tiny_package: Make) -> Iterator[Model]:
    folder = tiny_package(request.param, "cpu-int4-rtn", **(LONGROPE if request.param == "longrope" else {}))
    with load(folder, engine="together") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def plain(tiny_package: Make) -> Iterator[Model]:
    with load(tiny_package("gqa", "cpu-int4-rtn"), engine="together") as loaded:
        yield loaded


def text(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 300, count).tolist()


def core(model: Model, slots: int = 4, cache_bytes: int = MANY, speculation: Speculation = AUTO) -> Together:
    found = model.together(slots, cache_bytes, speculation)
    assert found is not None
    return found


def answer(model: Model, together: Together, *jobs: BatchPrompt) -> list[Response]:
    """Answer jobs beside each other; all begin at once."""
    found = dict(answer_together(model, together, jobs))
    if errors := [result for result in found.values() if not isinstance(result, Response)]:
        raise errors[0]
    return [result for _, result in sorted(found.items()) if isinstance(result, Response)]


def exact(response: Response) -> tuple[Any, ...]:
    """Everything of an answer that has to be the same, log probabilities to the last bit."""
    return response.token_ids, response.text, response.finish_reason, response.logprobs


def make_jobs(model: Model) -> list[BatchPrompt]:
    ways: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": 3},
        {"temperature": 0.9, "seed": 5, "top_p": 0.9, "logprobs": 0},
        {"temperature": 0, "repetition_penalty": 1.4, "logprobs": 1},
        {"temperature": 1.0, "seed": 6, "guidance": Guidance("regex", "[a-z]{3,30}"), "logprobs": 2},
    ]
    shared = text(25, 7)
    prompts = [text(3), shared + text(20, 1), text(38, 2), shared + text(90, 3), text(1, 4), shared, text(41, 5)]
    return [
        BatchPrompt(prompt, model.options(max_tokens=5 + 4 * (number % 3), **ways[number % 4]))
        for number, prompt in enumerate(prompts * 2)
    ]


def test_an_answer_is_the_same_alone_in_a_crowd_and_with_any_cache(model: Model) -> None:
    jobs = make_jobs(model)
    expected = [exact(answer(model, core(model), job)[0]) for job in jobs]
    crowd = core(model)
    assert [exact(response) for response in answer(model, crowd, *jobs)] == expected
    assert max(rows for rows, _ in crowd.steps) >= 3  # texts beyond LongRoPE's switch run apart from the others
    # Again, with what the first round left in slots and in the store, in another order and one at a time.
    assert [exact(response) for response in answer(model, crowd, *jobs[::-1])] == expected[::-1]
    assert [exact(answer(model, crowd, job)[0]) for job in jobs] == expected
    assert crowd.hit_tokens > 0
    # And through the engine's other door, one cache for each.
    assert [exact(last_response(model.run(job.prompt, job.options))) for job in jobs] == expected
    # And in a batch.
    answers = [result for result in answer_all(model, jobs, batch=3) if isinstance(result, Response)]
    assert [exact(response) for response in answers] == expected


@pytest.mark.parametrize("speculation", ["auto", "1", "6", "64"])
def test_an_answer_is_the_same_with_speculation_and_without(model: Model, speculation: str) -> None:
    loop = [*text(30, 11), *text(30, 11), *text(9, 11)]  # a prompt that repeats itself, so that there are drafts
    jobs = [
        BatchPrompt([*loop, *text(2, seed)] if seed % 2 else loop, job.options)
        for seed, job in enumerate(make_jobs(model))
    ]
    jobs = [BatchPrompt(job.prompt, replace(job.options, max_tokens=40)) for job in jobs]
    refrain = model.options(temperature=0.8, seed=2, guidance=Guidance("regex", "(over and over, ){9}"), logprobs=1)
    jobs.append(BatchPrompt(text(5), replace(refrain, max_tokens=100)))
    expected = [exact(answer(model, core(model, speculation=OFF), job)[0]) for job in jobs]
    crowd = core(model, speculation=Speculation.parse(speculation))
    assert [exact(response) for response in answer(model, crowd, *jobs)] == expected
    assert [exact(answer(model, crowd, job)[0]) for job in jobs] == expected  # what was left in slots is right, too
    if speculation != "auto":  # which depends on what this machine's steps cost
        assert 0 < crowd.accepted < crowd.drafted


def test_speculation_takes_fewer_steps(plain: Model) -> None:
    options = plain.options(max_tokens=120, temperature=0)
    steps, responses = [], []
    for speculation in (OFF, Speculation(8, always=True)):
        together = core(plain, slots=1, speculation=speculation)
        responses += answer(plain, together, BatchPrompt([7, 8, 9] * 5, options))
        steps.append(len(together.steps))
        assert responses[-1].drafted_tokens == together.drafted
        assert responses[-1].accepted_tokens == together.accepted
    assert exact(responses[0]) == exact(responses[1])
    assert responses[1].accepted_tokens > 10
    assert steps[1] == steps[0] - responses[1].accepted_tokens


def test_drafts_do_not_pass_the_room_of_an_answer(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[int] = []
    run = PackedGraph.run

    def noted(self: PackedGraph, arena: Any, rows: Sequence[RowRun]) -> list[np.ndarray]:
        stops.extend(row.stop for row in rows)
        return run(self, arena, rows)

    monkeypatch.setattr(PackedGraph, "run", noted)
    together = core(plain, slots=1, speculation=Speculation(64, always=True))
    (response,) = answer(plain, together, BatchPrompt([7, 8, 9] * 5, plain.options(max_tokens=30, temperature=0)))
    assert response.drafted_tokens > 0
    assert max(stops) < 15 + 30


def test_a_text_takes_the_longest_beginning_of_any_by_copy(plain: Model) -> None:
    together, system = core(plain, slots=3), text(60, 8)
    options = plain.options(max_tokens=4, temperature=0)
    first, second = system + text(10, 1), system + text(10, 2)
    for prompt, cached in ((first, 0), (second, 60), (first, 69), (second, 69), (system + text(5, 3), 60)):
        (response,) = answer(plain, together, BatchPrompt(prompt, options))
        assert response.cached_tokens == cached
    # A conversation goes on in its own cache, all of the answer but its last token included.
    (response,) = answer(plain, together, BatchPrompt(first, options))
    longer = [*first, *response.token_ids, *text(3, 4)]
    cached = len(first) + response.completion_tokens - 1
    (response,) = answer(plain, together, BatchPrompt(longer, options))
    assert response.cached_tokens == cached


def test_texts_that_begin_alike_run_the_beginning_once(plain: Model) -> None:
    together, system = core(plain), text(200, 9)
    options = plain.options(max_tokens=3, temperature=0)
    answer(plain, together, *(BatchPrompt([*system, number], options) for number in range(5, 9)))
    assert together.miss_tokens == 200 + 4
    assert together.hit_tokens == 3 * 200


def test_the_store_gives_up_the_longest_unused_within_its_bound(plain: Model) -> None:
    size = core(plain).graph.shape.bytes_per_token
    together = core(plain, slots=1, cache_bytes=100 * size)
    options = plain.options(max_tokens=1, temperature=0)
    for seed in (1, 2, 3, 1):  # of 40 tokens each: one in the slot, two in the store
        answer(plain, together, BatchPrompt(text(40, seed), options))
    assert together.store.num_bytes <= 100 * size
    assert together.hit_tokens == 39
    answer(plain, together, BatchPrompt(text(40, 2), options))
    assert together.hit_tokens == 39  # it had to go for the others


class Steps:
    """Made-up costs of the runs of a graph, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fixed: float, token: float, look: float) -> None:
        self.now = 1.0
        self.costs = fixed, token, look
        self.runs: list[list[RowRun]] = []
        self.seconds: list[float] = []
        run = PackedGraph.run

        def noted(graph: PackedGraph, arena: Any, rows: Sequence[RowRun]) -> list[np.ndarray]:
            self.runs.append(list(rows))
            self.seconds.append(fixed + sum(token + look * place for row in rows for place in places(row)))
            self.now += self.seconds[-1]
            return run(graph, arena, rows)

        monkeypatch.setattr(PackedGraph, "run", noted)
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def trial(self) -> dict[int, float]:
        """What trying a graph with these costs out would have shown."""
        return {tokens: self.costs[0] + self.costs[1] * tokens for tokens in (1, 2, 3, 5, 7, 8)}


def places(row: RowRun) -> range:
    return range(row.start + 1, row.stop + 1)


def stream(model: Model, together: Together, seed: int = 0) -> Iterator[Any]:
    """Return an answer that goes on for long, with its first tokens made: no letter is an end token."""
    guided = model.options(max_tokens=400, seed=1, temperature=1.0, guidance=Guidance("regex", "[a-z]{900}"))
    chunks = model.joined(together, text(5, seed), guided)
    for _ in range(3):
        drain(chunks)
        together.step()
    return chunks


def drain(chunks: Iterator[Any]) -> None:
    """Take what an answer has until it waits for a step."""
    while next(chunks) is not None:
        pass


# Fixed, a token's, and a look's: as with 135 M parameters, but depth ten times as dear in a short text; where
# answers alone take half of the budget; and where depth costs next to nothing.
@pytest.mark.parametrize("costs", [(0.006, 0.0015, 2e-5), (0.03, 0.005, 2e-5), (0.006, 0.0015, 1e-9)])
@pytest.mark.parametrize("known", [True, False])
def test_pieces_of_a_prompt_keep_the_budget_at_every_depth(
    plain: Model, monkeypatch: pytest.MonkeyPatch, costs: tuple[float, float, float], known: bool
) -> None:
    steps = Steps(monkeypatch, *costs)
    graph = core(plain).graph
    monkeypatch.setattr(graph, "trial_seconds", steps.trial() if known else {1: 0.002, 8: 0.004})
    together = Together(graph, 3, context_length=plain.context_length, cache_bytes=0)
    answers = stream(plain, together)
    long = plain.joined(together, text(900, 1), plain.options(max_tokens=2))
    steps.runs.clear()
    steps.seconds.clear()
    while not any(chunk and chunk.token_id is not None for chunk in iter(lambda: next(long), None)):
        drain(answers)
        together.step()
    # Steps may take a little more while costs are learnt; what was told of short texts may be wrong by far.
    assert max(steps.seconds[:8]) < 1.6 * module.STEP_SECONDS
    learnt = steps.seconds[8:-1]
    assert max(learnt) < 1.15 * module.STEP_SECONDS
    assert sum(learnt) / len(learnt) > 0.75 * module.STEP_SECONDS  # nor is the time left unused
    assert all(any(row.slot == 0 for row in rows) for rows in steps.runs)


def test_what_is_done_between_steps_counts_against_the_budget(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, 0.006, 0.0015, 2e-5)
    graph = core(plain).graph
    monkeypatch.setattr(graph, "trial_seconds", steps.trial())
    together = Together(graph, 2, context_length=plain.context_length, cache_bytes=0)
    answers = stream(plain, together)
    long = plain.joined(together, text(700, 1), plain.options(max_tokens=2))
    next(long)
    took: list[float] = []
    for pause in (0.0, 0.0, 0.0, 0.0, 0.06, 0.2, 0.2, 0.0):
        drain(answers)
        before = steps.now
        steps.now += pause
        together.step()
        took.append(steps.now - before - pause)
        if pause == 0.06:
            assert pause + took[-1] < 1.15 * module.STEP_SECONDS
    assert took[5] < 0.02  # an answer's token alone
    assert took[6] > took[5]  # prompts are not put off for ever
    assert took[7] > 0.07


def test_a_prompt_beyond_the_switch_keeps_the_budget_of_answers_before_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch, 0.006, 0.0015, 2e-5)
    graph = core(model).graph
    monkeypatch.setattr(graph, "trial_seconds", steps.trial())
    together = Together(graph, 2, context_length=model.context_length, cache_bytes=0)
    options = model.options(max_tokens=30, seed=1, temperature=1.0, guidance=Guidance("regex", "[a-z]{90}"))
    answers = model.joined(together, text(5), options)
    for _ in range(3):
        drain(answers)
        together.step()
    long = model.joined(together, text(250, 1), model.options(max_tokens=2))
    next(long)
    for _ in range(4):
        drain(answers)
        before = steps.now
        together.step()
        assert steps.now - before < 1.15 * module.STEP_SECONDS


def test_a_run_that_fails_ends_its_texts_and_no_others(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    together, options = core(plain), plain.options(max_tokens=3, temperature=0)
    (expected,) = answer(plain, together, BatchPrompt(text(20), options))

    def broken(self: PackedGraph, arena: Any, rows: Any) -> list[np.ndarray]:
        raise EngineError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(PackedGraph, "run", broken)
        for prompt in (text(20), text(30, 1)):
            chunks = plain.joined(together, prompt, options)
            assert next(chunks) is None
            together.step()
            with pytest.raises(EngineError, match="out of order"):
                next(chunks)
    assert together.live == []
    assert exact(answer(plain, together, BatchPrompt(text(20), options))[0]) == exact(expected)


def test_a_text_waits_for_memory_and_is_refused_where_it_never_comes(
    plain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = core(plain)
    free = 200 * together.graph.shape.bytes_per_token
    monkeypatch.setattr(module, "available_memory", lambda: free)
    with pytest.raises(UsageError, match="300 tokens takes"):
        together.open(text(10), 300)
    together.step()
    first = together.open(text(10), 150)
    assert first is not None
    assert together.open(text(10, 1), 100) is None  # 50 are left
    assert together.open(text(10, 2), 20) is None  # it would pass the one that waits
    together.step()
    assert together.open(text(10, 2), 20) is not None
    first.close()
    together.step()
    assert together.open(text(10, 1), 100) is not None


def test_a_cancelled_text_leaves_its_slot_to_the_next(plain: Model) -> None:
    together, cancel = core(plain, slots=1), threading.Event()
    chunks = plain.joined(together, text(300), plain.options(max_tokens=2), cancel=cancel)
    next(chunks)
    together.step()
    waiting = plain.joined(together, text(3, 1), plain.options(max_tokens=2, temperature=0))
    assert next(waiting) is None
    cancel.set()
    last = list(chunks)[-1]
    assert last is not None
    assert last.response is not None
    assert last.response.finish_reason == "cancelled"
    response = None
    for chunk in waiting:
        if chunk is None:
            together.step()
        else:
            response = chunk.response
    assert response is not None
    assert response.completion_tokens


@pytest.mark.parametrize("capacity", [256, None], ids=["of its memory", "of the context"])
def test_a_text_at_the_end_runs_beside_a_long_prompt(model: Model, capacity: int | None) -> None:
    most = min(capacity or model.context_length, 400)
    together, first, second = core(model, speculation=OFF), text(most - 6, 1), text(most - 6, 2)

    def logits(prompt: list[int]) -> list[np.ndarray]:
        """Return the logits of a prompt's end and of five more tokens, of the text alone."""
        alone = core(model, 1, speculation=OFF)
        live = alone.open(prompt, most)
        assert live is not None
        return run(live, alone, prompt)

    def run(live: LiveText, core: Together, prompt: list[int]) -> list[np.ndarray]:
        for _ in live.prefill(prompt):
            if live.waiting:
                core.step()
        found = [live.logits()]
        for token in range(5, 10):
            live.append(token)
            found.append(live.logits())
        return found

    live, other = together.open(first, most), together.open(second, most)
    assert live is not None and other is not None
    for _ in live.prefill(first):
        while live.waiting:
            together.step()
    found, prefill = [live.logits()], other.prefill(second)
    next(prefill)
    for token in range(5, 10):
        next(prefill, None)
        live.append(token)
        together.step()  # one token of a text that is nearly full, beside a piece of a prompt
        found.append(live.logits())
    assert max(tokens for _, tokens in together.steps) > 20 and any(texts == 2 for texts, _ in together.steps)
    for got, expected in zip(found, logits(first), strict=True):
        assert np.array_equal(got, expected)
    for _ in prefill:
        if other.waiting:
            together.step()
    assert np.array_equal(other.logits(), logits(second)[0])


def test_what_does_not_fit_into_the_context_is_refused(plain: Model) -> None:
    with pytest.raises(UsageError, match="context"):
        core(plain).open(text(3), plain.context_length + 1)
    with pytest.raises(UsageError, match="no tokens"):
        core(plain).open([], 5)


def test_a_score_has_the_log_probabilities_of_the_answer(plain: Model) -> None:
    prompt = "What is the capital"
    response = plain.generate(prompt, raw=True, max_tokens=1, temperature=0, logprobs=0)
    assert response.logprobs is not None
    entry = response.logprobs[0]
    longer = prompt + plain.tokenizer.decode([entry.token_id], skip_special=False)
    assert plain.tokenizer.encode(longer) == [*plain.tokenizer.encode(prompt), entry.token_id]
    assert plain.score(longer).logprobs[-1] == entry.logprob


def test_a_score_runs_a_text_once(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    run = PackedGraph.run

    def count(graph: PackedGraph, arena: Any, rows: Sequence[RowRun]) -> Any:
        ran.extend(len(row.tokens) for row in rows)
        return run(graph, arena, rows)

    monkeypatch.setattr(PackedGraph, "run", count)
    cache = plain.new_cache()
    chunk = plain.engine.prefill_chunk
    score_tokens(cache, text(2 * chunk + 10))
    cache.close()
    assert ran == [chunk, chunk, chunk, 10]  # the first one again, when it shows that all of its logits are read


def test_common_lengths() -> None:
    assert common_length([], [1]) == 0
    assert common_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_length((1, 2), [1, 2, 3]) == 2


def test_a_question_asked_again_and_again_is_kept_once(plain: Model) -> None:
    together = core(plain, slots=1)
    options = plain.options(max_tokens=6, temperature=0)
    for _ in range(5):
        for seed in (1, 2):
            answer(plain, together, BatchPrompt(text(20, seed), options))
    assert len(list(together.store)) == 2
    longer = BatchPrompt(text(60, 3), options)
    answer(plain, together, longer)
    answer(plain, together, replace(longer, prompt=[*longer.prompt[:50], 7]), longer)
    assert len(list(together.store)) == 4, "two questions, and two longer texts that part"
