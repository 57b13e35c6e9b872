"""How many tokens of prompts steps run: within a budget of made-up seconds at every depth, and learnt from steps."""

from itertools import pairwise

import pytest
from phi3_onnx.runtime.engines.piece_costs import PieceCosts, Work
from phi3_onnx.runtime.engines.pieces import PiecePlanner

BUDGET, LONGEST = 0.1, 256


class MadeUp:
    def __init__(self, run: float, token: float, look: float) -> None:
        self.run, self.token, self.look = run, token, look

    def note(self, work: Work, seconds: float) -> None:
        """It knows all."""

    def seconds(self, work: Work) -> float:
        return self.run * work.runs + self.token * work.tokens + self.look * work.looks

    def trial(self) -> dict[int, float]:
        return {tokens: self.run + self.token * tokens for tokens in (1, 2, 3, 5, 7, 8)}


SMALL, EIGHT_LAYERS = MadeUp(0.005, 0.0015, 1.7e-6), MadeUp(0.04, 0.009, 1.4e-6)


def planner(costs: MadeUp) -> PiecePlanner:
    made = PiecePlanner(costs, BUDGET, LONGEST)
    made.note(Work(1, LONGEST, 0), costs.seconds(Work(1, LONGEST, 0)), prompts=True)
    return made


def work_of(answers: Work, prompts: list[tuple[int, int]], counts: list[int]) -> Work:
    return sum((Work.of_row(start, count) for (start, _), count in zip(prompts, counts, strict=True)), answers)


@pytest.mark.parametrize("costs", [SMALL, EIGHT_LAYERS])
@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_the_budget_is_kept_at_every_depth_and_used(costs: MadeUp, prompts: int) -> None:
    answers = Work(1) + Work.of_row(300, 1)
    for depth in range(0, 40_000, 333):
        asked = [(depth + 50 * number, 3000) for number in range(prompts)]
        counts = planner(costs).tokens(answers, asked)
        taken = costs.seconds(work_of(answers, asked, counts))
        assert taken <= BUDGET + 1e-9 or counts == [1] + [0] * (prompts - 1)
        more = [count + (not number) for number, count in enumerate(counts)]
        assert costs.seconds(work_of(answers, asked, more)) > BUDGET


def test_prompts_get_as_long_as_answers_where_these_take_the_budget_themselves() -> None:
    slow = MadeUp(0.18, 0.03, 5e-6)  # 3.8 B parameters
    answers = Work(1) + Work.of_row(300, 1)
    alone = slow.seconds(answers)
    counts = planner(slow).tokens(answers, [(1000, 3000)])
    assert counts[0] > 1
    assert alone < slow.seconds(work_of(answers, [(1000, 3000)], counts)) <= 2 * alone


def test_shares_are_of_time_and_what_is_left_goes_to_the_first_come() -> None:
    answers = Work(1) + Work.of_row(300, 1)
    deep, shallow = planner(SMALL).tokens(answers, [(6000, 3000), (0, 3000)])
    assert shallow > 3 * deep > 0
    first, short = planner(SMALL).tokens(answers, [(0, 3000), (0, 2)])
    assert short == 2
    assert first > planner(SMALL).tokens(answers, [(0, 3000), (0, 3000)])[0]


def test_without_answers_time_does_not_matter() -> None:
    assert planner(EIGHT_LAYERS).tokens(None, [(9000, 3000)]) == [LONGEST]
    assert planner(SMALL).tokens(None, [(0, 3000), (9000, 10)]) == [LONGEST - 10, 10]


def test_a_first_piece_is_small_and_grows_by_twice_at_most() -> None:
    costs = MadeUp(0.001, 1e-5, 1e-9)  # all would fit
    made, answers, sizes = PiecePlanner(costs, BUDGET, LONGEST), Work(1) + Work.of_row(20, 1), [8]
    for _ in range(8):
        sizes += made.tokens(answers, [(0, 3000)])
        work = work_of(answers, [(0, 3000)], sizes[-1:])
        made.note(work, costs.seconds(work), prompts=True)
    assert sizes[1] == 8
    assert sizes[-1] == LONGEST
    assert all(after <= 2 * (before + 1) for before, after in pairwise(sizes))


@pytest.mark.parametrize("true", [SMALL, EIGHT_LAYERS])
@pytest.mark.parametrize("wrong", [1.0, 0.3, 3.0])
def test_costs_are_learnt_within_a_prompt(true: MadeUp, wrong: float) -> None:
    costs = PieceCosts({tokens: wrong * seconds for tokens, seconds in true.trial().items()})
    made, depth, answer = PiecePlanner(costs, BUDGET, LONGEST), 0, 40
    alone = Work(1) + Work.of_row(answer, 1)
    made.note(alone, true.seconds(alone), prompts=False)
    taken: list[float] = []
    while depth < 6000:
        answers = Work(1) + Work.of_row(answer, 1)
        counts = made.tokens(answers, [(depth, 6000 - depth)])
        work = work_of(answers, [(depth, 0)], counts)
        taken.append(true.seconds(work))
        made.note(work, taken[-1], prompts=True)
        depth, answer = depth + counts[0], answer + 1
    assert max(taken) < 1.25 * BUDGET  # a first piece of eight tokens costs more than was told
    assert sum(taken[10:-1]) / len(taken[10:-1]) > 0.8 * BUDGET


def test_one_disturbed_step_changes_little_and_a_slower_machine_is_known_soon() -> None:
    costs = PieceCosts(SMALL.trial())
    work = Work(1, 14, 40_000)
    for _ in range(50):
        costs.note(work, SMALL.seconds(work))
    before = costs.seconds(work)
    costs.note(work, 100 * before)
    assert costs.seconds(work) < 3 * before
    for _ in range(8):
        costs.note(work, SMALL.seconds(work))
    assert costs.seconds(work) == pytest.approx(before, rel=0.1)
    for _ in range(5):
        costs.note(work, 2 * SMALL.seconds(work))
    assert costs.seconds(work) == pytest.approx(2 * before, rel=0.15)
