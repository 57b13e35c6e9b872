"""Prompt lookup: the longest end that came before, its latest place, and how much of what followed is worth a try."""

import random

import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.decoding.lookup import Lookup, LookupDrafter
from phi3_onnx.runtime.decoding.speculation import AUTO, NO_DRAFT, OFF, Draft, Speculation, choose


def looked_up(tokens: list[int], most: int = 4) -> tuple[list[int], int]:
    lookup = Lookup()
    lookup.extend(tokens[: len(tokens) // 2])
    lookup.extend(tokens[len(tokens) // 2 :])
    return lookup.find(most)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 1], [1, 2, 3, 2, 1]])
def test_nothing_is_found_where_no_pair_came_before(tokens: list[int]) -> None:
    assert looked_up(tokens) == ([], 0)


def test_the_longest_end_counts_and_of_equal_ones_the_latest() -> None:
    assert looked_up([1, 2, 3, 9, 2, 3, 8, 8, 8, 1, 2, 3], 1) == ([9], 3)
    assert looked_up([5, 2, 3, 9, 6, 2, 3, 8, 7, 2, 3], 1) == ([8], 2)


def test_what_followed_is_repeated_where_it_comes_to_the_end() -> None:
    assert looked_up([4, 1, 2, 3, 1, 2], 7) == ([3, 1, 2, 3, 1, 2, 3], 2)
    assert looked_up([6, 6, 6], 3) == ([6, 6, 6], 2)


def test_a_lookup_finds_what_a_search_of_the_whole_text_does() -> None:
    numbers = random.Random(3)
    for _ in range(300):
        tokens = [numbers.randrange(4) for _ in range(numbers.randrange(2, 30))]
        best = (0, 0)
        for place in range(1, len(tokens) - 1):
            length = 0
            while length <= place and tokens[place - length] == tokens[-1 - length]:
                length += 1
            best = max(best, (length, place)) if length >= 2 else best
        following, length = looked_up(tokens, 1)
        assert (following, length) == (([tokens[best[1] + 1]], best[0]) if best[0] else ([], 0))


def test_a_draft_is_worth_less_the_more_of_them_failed_and_is_tried_again_later() -> None:
    drafter = LookupDrafter()
    drafter.extend([1, 2, 3, 4, 5, 1, 2])
    first = drafter.draft(3)
    assert list(first.tokens) == [3, 4, 5]
    assert 1 > first.chances[0] > first.chances[1] > first.chances[2] > 0
    for _ in range(8):
        drafter.learn(3, 0)
    failed = drafter.draft(3)
    assert failed.chances[0] < first.chances[0] / 2
    drafter.extend([1, 2] * 100)
    assert drafter.draft(1).chances[0] > failed.chances[0]
    for _ in range(30):
        drafter.draft(3)
        drafter.learn(3, 3)
    assert drafter.draft(1).chances[0] > first.chances[0]


def test_drafts_are_taken_as_far_as_they_pay() -> None:
    drafts = {"likely": Draft([1, 2, 3, 4], [0.9, 0.8, 0.7, 0.1]), "unlikely": Draft([5, 6], [0.3, 0.2])}
    assert choose(drafts, 2, lambda tokens: 1.0)["unlikely"].tokens == [5, 6]  # where tokens cost nothing
    assert choose(drafts, 2, lambda tokens: float(tokens)) == {}
    found = choose(drafts, 2, lambda tokens: 1 + 0.2 * tokens)
    assert {text: list(draft.tokens) for text, draft in found.items()} == {"likely": [1, 2, 3]}
    # A token beside a single one that is filled up to two anyway is free, a second one is not.
    only = {"unlikely": drafts["unlikely"]}
    assert list(choose(only, 1, lambda tokens: float(tokens + tokens % 2))["unlikely"].tokens) == [5]
    assert choose(drafts, 2, float, always=True) == drafts
    assert choose({}, 3, float) == {}


def test_what_a_user_may_ask_for() -> None:
    assert Speculation.parse("auto") == AUTO
    assert Speculation.parse("off") == OFF
    assert Speculation.parse("4") == Speculation(4, always=True)
    assert [str(Speculation.parse(text)) for text in ("auto", "off", "4")] == ["auto", "off", "4"]
    for wrong in ("", "0", "-1", "65", "much", "1.5"):
        with pytest.raises(UsageError, match="auto, off"):
            Speculation.parse(wrong)
    assert NO_DRAFT.cut(3) == NO_DRAFT
