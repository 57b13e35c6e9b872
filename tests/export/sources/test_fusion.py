from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from phi3_onnx.export.sources.folder import open_folder
from phi3_onnx.export.sources.fusion import Part, check_parts, fused_parts, read_rows, split_parts
from transformers import LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

STORED = {
    name: np.random.default_rng(i).random((rows, 3), np.float32)
    for i, (name, rows) in enumerate([("q", 8), ("k", 4), ("v", 4)])
}
PARTS = tuple(Part(name, values.shape) for name, values in STORED.items())
WHOLE = np.concatenate(list(STORED.values()))
ROWS = st.one_of(st.none(), st.integers(-20, 20))


def read_into(name: str, start: int, out: np.ndarray) -> None:
    assert start >= 0
    assert start + len(out) <= len(STORED[name])
    out[:] = STORED[name][start : start + len(out)]


@given(start=ROWS, stop=ROWS)
def test_any_rows_of_joined_tensors(start: int | None, stop: int | None) -> None:
    np.testing.assert_array_equal(read_rows(PARTS, slice(start, stop), read_into), WHOLE[start:stop])


def test_only_the_parts_that_hold_the_rows_are_read() -> None:
    seen: list[tuple[str, int, int]] = []

    def noting(name: str, start: int, out: np.ndarray) -> None:
        seen.append((name, start, len(out)))
        read_into(name, start, out)

    read_rows(PARTS, slice(6, 10), noting)
    assert seen == [("q", 6, 2), ("k", 0, 2)]


def test_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step 1"):
        read_rows(PARTS, slice(0, 8, 2), read_into)


def test_every_problem_is_named() -> None:
    parts = {"x": (Part("a", (2,)), Part("b", (3,))), "y": (Part("c", (4,)),)}
    assert check_parts(parts, {"a": (2,), "b": (5,)}) == ["b has shape [5], expected [3]", "c is missing"]


def test_both_layouts_describe_the_same_tensors(tiny) -> None:
    config = open_folder(tiny("llama")).config
    shapes = config.tensor_shapes()
    for parts in (fused_parts(config), split_parts(config)):
        assert list(parts) == list(shapes)
        for name, group in parts.items():
            rows = sum(part.shape[0] for part in group)
            assert (rows, *group[0].shape[1:]) == shapes[name]


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}, {"head_dim": 24}])
def test_a_fused_llama_is_the_same_model(tiny, overrides: dict[str, object]) -> None:
    """LlamaForCausalLM and Phi3ForCausalLM with the fused weights differ in the order of sums only."""
    folder: Path = tiny("llama", **overrides)
    checkpoint = open_folder(folder)
    model = Phi3ForCausalLM(Phi3Config(**checkpoint.config.to_phi3())).eval()
    weights = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.config.tensor_shapes()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if checkpoint.config.tie_embeddings else set())
    model.tie_weights()
    ids = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
        got = model(ids).logits
    # Logits have a standard deviation of about 3; a fused matmul may add up in another order.
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
