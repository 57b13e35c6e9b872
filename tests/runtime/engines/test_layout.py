"""Where each token of a packed run stands, and that a layout is bound once for all runs of its shapes."""

from typing import Any

import numpy as np
from phi3_onnx.runtime.engines.layout import Bound, RowRun, RunLayout, row_shapes


class _Binding:
    def __init__(self) -> None:
        self.bound: list[str] = []

    def bind_input(self, name: str, *_: Any) -> None:
        self.bound.append(name)


def _two_rows() -> list[RowRun]:
    """Three tokens in the first of three slots and one in the last; the slot between rests."""
    return [RowRun(4, 10, [7, 8, 9], logits=2), RowRun(6, 0, [5])]


def test_tokens_stand_one_after_another_and_attention_sees_padded_rows() -> None:
    rows = _two_rows()
    layout = RunLayout(row_shapes(rows, 4), 3, lambda count: count + count % 2)
    layout.fill(rows, None)
    found = {name: value.tolist() for name, value in layout.inputs.items()}
    assert found["input_ids"] == [[7, 8, 9, 5]]
    assert found["pad_index"][0] == [0, 1, 2] and found["pad_index"][2] == [3, 3, 3]
    assert found["unpad_index"] == [0, 1, 2, 6]
    assert found["logits_index"] == [1, 2, 3, 0]  # two of the first row, one of the second, one that fills up
    assert found["query_seqlens"] == [3, 0, 1]
    assert found["seqlens_k"] == [12, 0, 0]
    assert found["total_length"] == [13]
    assert layout.wanted == [slice(0, 2), slice(2, 3)] and layout.logits == 4


def test_beyond_the_switch_the_long_factors_are_chosen_even_for_a_short_text() -> None:
    rows = [RowRun(0, 3, [1], beyond=True)]
    layout = RunLayout(row_shapes(rows, 0), 1, lambda count: count)
    layout.fill(rows, 100)
    assert layout.inputs["total_length"].tolist() == [101]
    layout.fill([RowRun(0, 3, [1])], 100)
    assert layout.inputs["total_length"].tolist() == [4]


def test_a_layout_is_bound_once_and_filled_in_place() -> None:
    binding = _Binding()
    bound = Bound(binding)
    first = bound.lay_out(_two_rows(), 3, lambda count: count)
    assert len(binding.bound) == len(first.inputs)
    later = [RowRun(4, 13, [1, 2, 3], logits=2), RowRun(6, 1, [4])]
    again = bound.lay_out(later, 3, lambda count: count)
    assert again is first and len(binding.bound) == len(first.inputs)
    ids = again.inputs["input_ids"]
    again.fill(later, None)
    assert again.inputs["input_ids"] is ids and ids.tolist() == [[1, 2, 3, 4]]
    assert again.inputs["seqlens_k"].tolist() == [15, 0, 1]
    other = bound.lay_out(later[:1], 1, lambda count: count)
    assert other is not first and len(binding.bound) == 2 * len(first.inputs)
    assert np.array_equal(other.inputs["query_seqlens"], [3])
