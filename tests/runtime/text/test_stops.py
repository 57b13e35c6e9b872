from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phi3_onnx.configs import UsageError
from phi3_onnx.runtime.text.stops import StopFilter


def run(stops, pieces):
    found = StopFilter(stops)
    shown = "".join(found.push(piece) for piece in pieces)
    return shown + found.flush(), found.stopped


@given(
    text=st.text(alphabet="ab", max_size=30),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_pieces_give_what_the_whole_text_gives(text, stops, cuts):
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    shown, stopped = run(stops, pieces)
    # Token by token, the stop string that ends first is met first; of two that end together, the longer began first.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not ends:
        assert (shown, stopped) == (text, False)
    else:
        assert stopped
        assert all(stop not in shown for stop in stops)
        assert text.startswith(shown)


def test_a_stop_string_across_tokens_is_never_shown():
    found = StopFilter(["</s>"])
    assert [found.push(piece) for piece in ("Hi", "<", "/", "s", ">", " more")] == ["Hi", "", "", "", "", ""]
    assert found.stopped


def test_what_only_looked_like_a_stop_string_is_shown():
    found = StopFilter(["abc"])
    assert [found.push(piece) for piece in ("ab", "d", "ab")] == ["", "abd", ""]
    assert found.flush() == "ab"


def test_the_earliest_of_several_ends_the_text():
    assert run(["end", "stop"], ["a stop and an end"]) == ("a ", True)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="must not be empty"):
        StopFilter(["x", ""])
