"""The second graph of a package: what it computes, and that the first is left as it was."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from phi3_onnx.configs import OutputError, read_manifest
from phi3_onnx.export import open_checkpoint
from phi3_onnx.export.graph import decode
from phi3_onnx.export.graph.passes.kv_cache import cache_scales
from phi3_onnx.runtime.engines.arena import Arena
from phi3_onnx.runtime.engines.layout import RowRun
from phi3_onnx.runtime.engines.packed import DECODE_NAME, PackedGraph
from phi3_onnx.runtime.engines.padding import Padding
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.package import open_package

Make = Callable[..., Path]

TARGET = "cpu-int4-rtn"
SHAPES = {
    "gqa": {},
    "tied": {},
    "window": {},
    "longrope": {"original_max_position_embeddings": 40, "max_position_embeddings": 300},
}


@pytest.fixture(params=SHAPES)
def package(request: pytest.FixtureRequest, tiny_package: Make) -> Path:
    return tiny_package(request.param, TARGET, **SHAPES[request.param])


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 512, count).tolist()


def divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean KL of theirs from ours, in nats."""
    first, second = (x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) for x in (ours, theirs))
    first, second = first - ours.max(1, keepdims=True), second - theirs.max(1, keepdims=True)
    return float((np.exp(first) * (first - second)).sum(1).mean())


def test_logits_are_those_of_the_first_graph_but_for_the_cache_in_int8(package: Path) -> None:
    opened = open_package(package)
    graph = PackedGraph(opened)
    for count in (30, 100):
        text = tokens(count)
        expected = np.concatenate([rows for _, rows in LogitsSession(package).logits(np.array(text), chunk=count)])
        arena = Arena(graph.shape, 1, 128)
        beyond = opened.longrope_switch is not None and count > opened.longrope_switch
        found = [
            graph.run(arena, [RowRun(0, start, text[start : start + 20], min(20, count - start), beyond)])[0]
            for start in range(0, count, 20)
        ]
        # These models' logits spread by 3 and their attention is random: an int8 cache makes it 0.02 to 0.07, and what
        # is wrong (a position, the window, LongRoPE's factors) far more, as the next test has it.
        assert divergence(expected, np.concatenate(found)) < 0.15


def test_a_graph_that_cannot_be_read_back_is_one_line(
    tiny: Make, tiny_package: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "package"
    shutil.copytree(tiny_package("gqa", TARGET), copy)
    (copy / DECODE_NAME).unlink()
    monkeypatch.setattr(decode, "_write_caches_only", lambda _model, path: path.write_bytes(b"\xff damaged"))
    with pytest.raises(OutputError, match=r"caches-only\.onnx cannot be read back: .*INVALID_PROTOBUF"):
        decode.write_decode_graph(copy, open_checkpoint(tiny("gqa")).config, np.zeros((1, 4), np.int64))
    assert not {"caches-only.onnx", DECODE_NAME} & {path.name for path in copy.iterdir()}


def test_longropes_other_factors_would_show(tiny_package: Make) -> None:
    package = tiny_package("longrope", TARGET, **SHAPES["longrope"])
    graph, text = PackedGraph(open_package(package)), tokens(100)
    (expected,) = (rows for _, rows in LogitsSession(package).logits(np.array(text), chunk=100))
    (found,) = graph.run(Arena(graph.shape, 1, 128), [RowRun(0, 0, text[:40], 40, beyond=False)])
    assert divergence(expected[:40], found) > 0.5


@pytest.mark.parametrize("target", [TARGET, "cpu-int4-awq"])
@pytest.mark.parametrize("kind", ["gqa", "ragged", "window"])
def test_a_text_gets_the_same_logits_in_any_company(tiny_package: Make, kind: str, target: str) -> None:
    graph = PackedGraph(open_package(tiny_package(kind, target)))
    assert graph.padding is not None
    text, random = tokens(300), np.random.default_rng(1)
    whole = graph.run(Arena(graph.shape, 1, 512), [RowRun(0, 0, text, len(text))])[0]
    for trial in range(6):
        arena, start = Arena(graph.shape, 5, 400), 0
        others = dict.fromkeys((0, 1, 3, 4), 0)
        while start < len(text):
            count = int(random.choice([1, 1, 2, 3, 7, 40, 129]))
            piece = text[start : start + count]
            rows = [RowRun(2, start, piece, len(piece))]
            for slot, length in others.items():
                more = int(random.choice([0, 0, 1, 1, 2, 9]))
                if trial and more and length + more < 400:
                    rows.append(RowRun(slot, length, tokens(more, slot), int(random.integers(0, 2))))
                    others[slot] += more
            random.shuffle(rows)  # pyright: ignore[reportArgumentType]
            logits = graph.run(arena, rows)
            mine = next(values for row, values in zip(rows, logits, strict=True) if row.slot == 2)
            assert np.array_equal(mine, whole[start : start + len(piece)]), (start, len(piece), graph.padding)
            start += len(piece)


@pytest.mark.parametrize("target", [TARGET, "cpu-int4-awq"])
def test_lengths_about_a_stripe_of_the_kernels_are_no_exception(tiny_package: Make, target: str) -> None:
    graph, text = PackedGraph(open_package(tiny_package("gqa", target))), tokens(260)
    whole = graph.run(Arena(graph.shape, 1, 260), [RowRun(0, 0, text, 260)])[0]
    for count in (1, 2, 3, 127, 128, 129, 130, 131, 255, 256, 257, 258, 259):
        (found,) = graph.run(Arena(graph.shape, 1, 260), [RowRun(0, 0, text[:count], count)])
        assert np.array_equal(found, whole[:count]), (count, graph.padding)
        (last,) = graph.run(Arena(graph.shape, 1, 260), [RowRun(0, 0, text[:count])])
        assert np.array_equal(last[0], whole[count - 1]), count


@pytest.mark.parametrize(
    ("padding", "filled"),
    [
        (Padding(1, 1), {1: 1, 3: 3, 129: 129}),
        (Padding(2, 1), {1: 2, 3: 3, 128: 128, 129: 130, 257: 258}),
        (Padding(2, 2), {1: 2, 3: 4, 128: 128, 129: 130, 131: 132}),
        (Padding(4, 4), {1: 4, 5: 8, 126: 128}),
    ],
)
def test_runs_are_filled_up_by_stripes(padding: Padding, filled: dict[int, int]) -> None:
    assert {count: count + padding.missing(count) for count in filled} == filled


def test_packages_for_the_cpu_have_it_over_the_same_data(tiny_package: Make) -> None:
    folder = tiny_package("gqa", TARGET)
    graphs = {name: onnx.load(folder / name, load_external_data=False).graph for name in ("model.onnx", DECODE_NAME)}
    places = [
        {entry.name: [(item.key, item.value) for item in entry.external_data] for entry in graph.initializer}
        for graph in graphs.values()
    ]
    assert {name: place for name, place in places[1].items() if place} == {
        name: place for name, place in places[0].items() if place
    }
    assert DECODE_NAME in read_manifest(folder).files
    operators = Counter(node.op_type for node in graphs[DECODE_NAME].node)
    assert operators["GroupQueryAttention"] == 2
    assert operators["ReduceSum"] == 0
    assert "attention_mask" not in {value.name for value in graphs[DECODE_NAME].input}
    assert not list(folder.glob("caches-only*"))


@pytest.mark.parametrize(("kind", "target"), [("gqa", "cpu-fp32"), ("gqa", "cuda-fp16"), ("partial", TARGET)])
def test_others_have_none(tiny_package: Make, kind: str, target: str) -> None:
    assert not (tiny_package(kind, target) / DECODE_NAME).exists()


def test_the_channels_of_a_rotary_pair_share_a_scale() -> None:
    keys, values = np.array([[1, 2, 8, 3, 127, 0]], np.float32), np.array([[127, 1, 1, 1, 1, 0]], np.float32)
    scales = cache_scales(keys, values, rotary_dim=4)
    # A fifth more than was seen: other texts have larger values.
    assert scales[0][0] * 127 / 1.2 == pytest.approx([8, 3, 8, 3, 127, 127e-8 / 1.2])
    assert scales[1][0] * 127 / 1.2 == pytest.approx([127, 1, 1, 1, 1, 127e-8 / 1.2])
