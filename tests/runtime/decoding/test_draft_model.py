"""A draft model changes no token, however good or bad it is; what does not fit together is refused by name."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt, answer_all
from phi3_onnx.runtime.decoding import draft_model
from phi3_onnx.runtime.decoding.draft_model import Agreement, DraftModel
from phi3_onnx.runtime.decoding.response import last_response
from phi3_onnx.runtime.decoding.speculation import NO_DRAFT

PROMPTS = ([5, 6, 7, 8], [9, 8, 7], [1, 2, 3, 4, 5, 6])


@pytest.fixture(scope="module")
def package(tiny_package: Callable[..., Path]) -> Path:
    return tiny_package("gqa", "cpu-int4-rtn")


@pytest.fixture(scope="module")
def other(tiny_package: Callable[..., Path]) -> Path:
    """Return a model of other weights with the same tokenizer."""
    return tiny_package("gqa", "cpu-int4-rtn", seed=7)


def answers(model: Model, **options: float) -> list[Response]:
    jobs = [
        BatchPrompt(prompt, model.options(max_tokens=20, logprobs=0, ignore_eos=True, **options))  # pyright: ignore[reportArgumentType]
        for prompt in PROMPTS
    ]
    alone = [last_response(model.run(job.prompt, job.options)) for job in jobs]
    beside = [result for result in answer_all(model, jobs, batch=3) if isinstance(result, Response)]
    return [*alone, *beside]


def tokens(found: list[Response]) -> list[object]:
    return [(response.token_ids, response.logprobs) for response in found]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}])
def test_a_model_that_drafts_changes_no_token(package: Path, other: Path, options: dict[str, float]) -> None:
    with load(package, speculate="off") as model:
        plain = tokens(answers(model, **options))
    for draft, speculate in ((package, "4"), (other, "4"), (package, "auto")):
        with load(package, draft=draft, speculate=speculate) as model:
            found = answers(model, **options)
        assert tokens(found) == plain
        if speculate != "auto":
            assert all(response.drafted_tokens for response in found)
        if draft == package and speculate != "auto" and "seed" not in options:
            # Of itself, all that it drafts comes true, but for the tokens of the last draft past the end.
            assert all(response.accepted_tokens == response.drafted_tokens >= 14 for response in found)


def test_another_tokenizer_is_refused_by_name(package: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(package, changed)
    path = changed / "tokenizer.json"
    table = json.loads(path.read_text())
    table["added_tokens"][-1]["content"] += "!"
    text = json.dumps(table)
    path.write_text(text)
    manifest = changed / "phi3_onnx.json"
    known = json.loads(manifest.read_text())
    known["files"]["tokenizer.json"]["size"] = len(text)
    manifest.write_text(json.dumps(known))
    with pytest.raises(
        UsageError, match=r"the draft model .* has another tokenizer than .*tokenizer\.json is the same"
    ):
        load(package, draft=changed)


def test_what_a_draft_model_needs_is_said(package: Path, tiny_package: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="nothing to do with speculate off"):
        load(package, draft=package, speculate="off")
    with pytest.raises(UsageError, match=r"a draft model needs decode\.onnx on the CPU"):
        load(tiny_package("plain"), draft=package)
    asked = ["generate", str(package), "-p", "a", "--speculate", "off", "--draft", str(package)]
    ran = CliRunner().invoke(root, asked)
    assert isinstance(ran.exception, UsageError) and "nothing to do with speculate off" in str(ran.exception)


def test_a_draft_without_memory_is_none_and_the_text_goes_on(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(package, speculate="off") as model:
        plain = answers(model, temperature=0)
    with load(package, draft=package, speculate="4") as model:
        assert model.draft is not None
        monkeypatch.setattr(model.draft, "free_memory", lambda: 1)
        found = answers(model, temperature=0)
    assert tokens(found) == tokens(plain)
    assert not any(response.drafted_tokens for response in found)


def test_a_token_is_drafted_where_its_chance_is_worth_the_time(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(package, speculate="off") as model:
        cheap = DraftModel(model.new_cache, model.context_length, 50, always=True).drafter()
        cheap.extend([5, 6, 7])
        draft = cheap.draft(6)
        assert len(draft.tokens) == 6 and max(draft.tokens) < 50
        assert list(draft.chances) == sorted(draft.chances, reverse=True)
        dear = DraftModel(model.new_cache, model.context_length, 50, always=False).drafter()
        dear.extend([5, 6, 7])
        dear._model.token_seconds = dear._model.step_seconds = 1.0  # known, so that more than a try is written
        monkeypatch.setattr(dear, "_worth", lambda: (draft.chances[1] + draft.chances[2]) / 2)
        assert dear.draft(6) == replace(draft.cut(2))
        small = DraftModel(model.new_cache, 4, 50, always=True).drafter()
        small.extend([5, 6, 7])
        assert small.draft(6) == NO_DRAFT, "its context is full"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time, in place of the machine's."""
    now = [0.0]
    monkeypatch.setattr(draft_model, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


@pytest.mark.parametrize(("each", "drafts"), [(0.05, True), (0.9, False), (2.0, False)])
def test_a_model_that_takes_as_long_as_the_larger_one_is_given_up(
    package: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch, each: float, drafts: bool
) -> None:
    with load(package, speculate="off") as model:
        drafter = DraftModel(model.new_cache, model.context_length, 50, always=False).drafter()
        real_append, real_prefill = drafter._cache.append, drafter._cache.prefill

        def append(token: int) -> None:
            clock[0] += each
            real_append(token)

        def prefill(prompt: Sequence[int]) -> Iterator[object]:
            clock[0] += each if drafter._cache.tokens else 100 * each
            yield from real_prefill(prompt)

        monkeypatch.setattr(drafter._cache, "append", append)
        monkeypatch.setattr(drafter._cache, "prefill", prefill)
        monkeypatch.setattr(draft_model, "log_softmax", lambda logits: np.where(np.arange(50) == 7, -0.01, -9.0)[None])
        drafter.extend([5, 6, 7])
        lengths = list[int]()
        for _ in range(12):
            draft = drafter.draft(4)
            lengths.append(len(draft.tokens))
            clock[0] += 1.0  # the larger model's step
            if draft.tokens:
                drafter.learn(len(draft.tokens), len(draft.tokens))
            drafter.extend([*draft.tokens, 7])
        assert drafter._model.token_seconds == pytest.approx(each, rel=0.3), (
            "the prompt's run is none of a token's time"
        )
        assert lengths[0] == 2, "what it takes is not known before"
        again = drafter._model.drafter()
        again.extend([5, 6, 7])
        assert bool(again.draft(4).tokens) == drafts, "the next text knows"
        assert (lengths[-5:] == [4] * 5) if drafts else (lengths[-5:] == [0] * 5), lengths


def test_what_never_comes_true_is_given_up_and_tried_again_ever_later(
    package: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(package, speculate="off") as model:
        drafter = DraftModel(model.new_cache, model.context_length, 50, always=False).drafter()
        real_append, real_prefill, asked = drafter._cache.append, drafter._cache.prefill, list[int]()

        def append(token: int) -> None:
            clock[0] += 0.1
            real_append(token)

        def prefill(prompt: Sequence[int]) -> Iterator[object]:
            clock[0] += 0.1
            yield from real_prefill(prompt)

        monkeypatch.setattr(drafter._cache, "append", append)
        monkeypatch.setattr(drafter._cache, "prefill", prefill)
        monkeypatch.setattr(draft_model, "log_softmax", lambda logits: np.where(np.arange(50) == 7, -0.01, -9.0)[None])
        drafter.extend([5, 6, 7])
        for place in range(150):
            before = clock[0]
            if drafter.draft(4).tokens:
                drafter.learn(4, 0)
            if clock[0] > before:
                asked.append(place)
            clock[0] += 1.0  # the larger model's step
            drafter.extend([9])
        pauses = [after - place for place, after in itertools.pairwise(asked) if after - place > 1]
        assert pauses == [17, 33, 65] and len(asked) < 45, asked


@pytest.mark.parametrize("comes", [True, False])
def test_how_often_guesses_come_true_is_learnt_from_what_was_not_run_ahead_too(
    package: Path, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    own = 0.4 if comes else 0.9
    row = np.log(np.where(np.arange(50) == 7, own, (1 - own) / 49))[None]
    monkeypatch.setattr(draft_model, "log_softmax", lambda logits: row)
    with load(package, speculate="off") as model:
        pair = DraftModel(model.new_cache, model.context_length, 50, always=False)
        pair.token_seconds, pair.step_seconds = 1e-3, 1e3  # whether drafts pay is no matter here
        monkeypatch.setattr(draft_model.ModelDrafter, "_worth", lambda drafter: 0.6)

        def lengths() -> list[int]:
            drafter, found = pair.drafter(), list[int]()
            drafter.extend([5, 6])
            for _ in range(12):
                found.append(len(drafter.draft(4).tokens))
                drafter.extend([7 if comes else 9])
            return found

        first, next_text = lengths(), lengths()
    assert first[0] == (0 if comes else 4)
    assert all((length > 0) == comes for length in (first[-1], *next_text)), (first, next_text)


def test_chances_are_learnt_by_how_sure_the_smaller_model_is() -> None:
    agreement = Agreement()
    assert agreement.chance(0.5) == 0.5
    for _ in range(50):
        agreement.note(0.95, came=True)
        agreement.note(0.3, came=False)
    assert agreement.chance(0.95) > 0.97 and agreement.chance(0.3) < 0.1 and agreement.chance(0.5) == 0.5
    assert agreement.chance(1.0) > 0.97 and agreement.chance(0.0) == 0.0
