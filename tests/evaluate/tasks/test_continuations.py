"""Log probabilities of continuations through the KV cache, against runs of each whole text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.configs import UsageError, find_target
from phi3_onnx.evaluate.tasks.continuations import Continuation, ContinuationScorer
from phi3_onnx.export import export
from phi3_onnx.runtime import Model, TokenSequence, load
from phi3_onnx.runtime.decoding.sampling import log_softmax
from phi3_onnx.runtime.engines.session import LogitsSession

Make = Callable[..., Path]


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 500, count).tolist()


def whole(folder: Path, context: list[int], continuation: list[int]) -> Continuation:
    ids = np.array([*context, *continuation])
    # Nothing comes after the last token, so it is not a part of the run (which matters to LongRoPE).
    ((_, logits),) = LogitsSession(folder).logits(ids[:-1], chunk=len(ids))
    rows = np.arange(len(context) - 1, len(ids) - 1)
    found = log_softmax(logits.astype(np.float64))[rows, ids[rows + 1]]
    return Continuation(float(found.sum()), bool((logits[rows].argmax(axis=1) == ids[rows + 1]).all()))


def check(model: Model, texts: list[tuple[list[int], list[int]]]) -> list[int]:
    """Score texts in turn, compare each, and return how many tokens each ran."""
    scorer, ran = ContinuationScorer(model), []
    counted: list[int] = []
    run = scorer._cache._run

    def count(sequence: TokenSequence, tokens: Sequence[int]) -> None:
        counted.append(len(tokens))
        run(sequence, tokens)

    scorer._cache._run = count
    for context, continuation in texts:
        counted.clear()
        found, wanted = scorer.score(context, continuation), whole(model.package.folder, context, continuation)
        # Runs of other lengths: logits differ by 1e-5 at most, sums over some tens of tokens by 1e-4.
        assert found.log_probability == pytest.approx(wanted.log_probability, abs=1e-3)
        assert found.greedy == wanted.greedy
        ran.append(sum(counted))
    scorer.close()
    return ran


@pytest.fixture(scope="module")
def model(tiny_package: Make) -> Iterator[Model]:
    with load(tiny_package("plain"), provider="cpu") as loaded:
        yield loaded


def test_choices_of_a_question_run_only_what_is_theirs(model: Model) -> None:
    question, a, b = tokens(60), tokens(5, 1), tokens(7, 2)
    # The last token of a continuation predicts nothing more, and needs no run.
    assert check(model, [(question, a), (question, b)]) == [60 + 5 - 1, 7 - 1]


def test_choices_of_one_token_share_one_run(model: Model) -> None:
    question = tokens(60)
    assert check(model, [(question, [10]), (question, [11]), (question, [12])]) == [60, 0, 0]


def test_continuations_that_begin_alike_share_that_too(model: Model) -> None:
    question = tokens(60)
    assert check(model, [(question, [7, 8, 9, 10]), (question, [7, 8, 11, 12, 13]), (question, [7, 8])]) == [63, 2, 0]


def test_questions_share_the_examples_before_them(model: Model) -> None:
    examples = tokens(200)
    texts = [([*examples, *tokens(20, seed)], tokens(4, seed + 100)) for seed in (1, 2)]
    assert check(model, texts) == [223, 23]


def test_a_context_inside_the_last_one_is_scored_again_from_there(model: Model) -> None:
    text = tokens(100)
    # The second context ends where the first one's logits were not kept.
    ran = check(model, [(text[:80], text[80:]), (text[:40], text[40:60]), (text[:40], text[40:50])])
    assert ran[0] == 99
    assert ran[1] <= 20
    assert ran[2] == 0


def test_more_rows_than_are_kept(model: Model) -> None:
    text = tokens(200)
    check(model, [(text[:3], text[3:]), (text[:3], text[3:120]), (text[:2], text[2:120]), (text[:1], tokens(80, 5))])


def test_greedy_continuations_are_recognized(model: Model) -> None:
    question = tokens(30)
    answer = LogitsSession(model.package.folder).greedy(np.array(question), 6).tolist()
    scorer = ContinuationScorer(model)
    assert scorer.score(question, answer).greedy
    assert not scorer.score(question, [*answer[:3], answer[3] + 1, *answer[4:]]).greedy


def test_longrope_scores_under_the_factors_of_the_whole_text(tiny_package: Make) -> None:
    folder = tiny_package("longrope", original_max_position_embeddings=64, max_position_embeddings=256)
    with load(folder, provider="cpu") as model:
        question = tokens(60)
        # 64 tokens run under the short factors, 65 and more under the long ones: nothing may be shared across.
        texts = [(question, tokens(count, count)) for count in (3, 5, 6, 20, 4, 30)]
        check(model, [*texts, (question[:50], question[50:]), (question, tokens(6, 6))])


def test_a_head_on_the_last_token_only(tiny: Make, tmp_path: Path, model: Model) -> None:
    target = replace(find_target("cpu-fp32"), last_token_logits=True)
    folder = export(tiny("plain"), target, tmp_path / "package")
    question, answers = tokens(60), [tokens(5, 1), [10], tokens(7, 2), [10, 12]]
    with load(folder, provider="cpu") as last:
        one, all_rows = ContinuationScorer(last), ContinuationScorer(model)
        for answer in answers:
            found, wanted = one.score(question, answer), all_rows.score(question, answer)
            assert found.log_probability == pytest.approx(wanted.log_probability, abs=1e-3)
            assert found.greedy == wanted.greedy


def test_what_can_not_be_scored(model: Model) -> None:
    scorer = ContinuationScorer(model)
    with pytest.raises(UsageError, match="context of one token or more"):
        scorer.score([], [1])
    with pytest.raises(UsageError, match="4097 tokens do not fit"):
        scorer.score(tokens(4090), tokens(8))
    assert scorer.score([5], []) == Continuation(0.0, True)
