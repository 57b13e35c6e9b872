"""Logits and greedy tokens from a package in plain ONNX Runtime."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from phi3_onnx.configs import PackageError, ProviderError, UsageError, find_target
from phi3_onnx.export import export
from phi3_onnx.runtime.engines.session import SHARED_CACHES, LogitsSession, open_session
from phi3_onnx.runtime.package import longrope_switch, read_contract

Make = Callable[..., Path]

# Whole runs and chunks add up the same float32 products in another order: logits of size 10 differ by about 1e-5.
ORDER = 1e-4


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 512, count)


def gather(session: LogitsSession, ids: np.ndarray, **options: int) -> np.ndarray:
    pieces, position = [], 0
    for start, logits in session.logits(ids, **options):
        assert start == position
        pieces.append(logits)
        position += len(logits)
    return np.concatenate(pieces)


def naive_greedy(session: LogitsSession, ids: np.ndarray, steps: int) -> list[int]:
    """Run everything anew for each token."""
    sequence = list(ids)
    for _ in range(steps):
        sequence.append(int(gather(session, np.array(sequence), chunk=10_000)[-1].argmax()))
    return sequence[len(ids) :]


@pytest.fixture(scope="module")
def plain(tiny_package: Make) -> LogitsSession:
    return LogitsSession(tiny_package("plain"))


@pytest.mark.parametrize(("chunk", "first"), [(1, 1), (7, 30), (64, 64), (100, 1)])
def test_chunks_through_the_cache_give_the_logits_of_one_run(plain: LogitsSession, chunk: int, first: int) -> None:
    ids = tokens(100)
    whole = gather(plain, ids, chunk=100)
    assert (whole.shape, whole.dtype) == ((100, 512), np.float32)
    assert np.abs(gather(plain, ids, chunk=chunk, first=first) - whole).max() < ORDER


def test_greedy_takes_the_most_likely_token_each_time(plain: LogitsSession) -> None:
    seen: list[int] = []
    found = plain.greedy(tokens(20), 12, notify=seen.append)
    assert list(found) == naive_greedy(plain, tokens(20), 12)
    assert seen == list(range(1, 13))


def test_float16_packages_take_float16_caches_and_give_float32_logits(tiny_package: Make) -> None:
    session = LogitsSession(tiny_package("gqa", "cuda-fp16"))
    assert session.io_dtype == np.float16
    assert gather(session, tokens(20), chunk=8).dtype == np.float32
    assert len(session.greedy(tokens(20), 3)) == 3


def test_window_holds_across_chunks(tiny_package: Make) -> None:
    session = LogitsSession(tiny_package("window"))
    ids = tokens(120)
    assert np.abs(gather(session, ids, chunk=16) - gather(session, ids, chunk=120)).max() < ORDER
    # Of two texts that end in the same 100 tokens, two layers of window 31 see no difference at the end.
    other = np.concatenate([tokens(20, seed=1), ids[20:]])
    assert np.abs(gather(session, ids)[-1] - gather(session, other)[-1]).max() < ORDER


@pytest.fixture(scope="module")
def rope(tiny_package: Make) -> LogitsSession:
    """A LongRoPE package whose factors change after 40 tokens."""
    folder = tiny_package("longrope", original_max_position_embeddings=40, max_position_embeddings=128)
    return LogitsSession(folder)


def test_longrope_keys_are_never_mixed(rope: LogitsSession) -> None:
    assert rope.longrope == 40
    for count in (40, 41, 60):
        ids = tokens(count)
        assert np.abs(gather(rope, ids, chunk=4) - gather(rope, ids, chunk=count)).max() < ORDER
    # Which is only so because the first run is longer than asked for.
    assert [len(logits) for _, logits in rope.logits(tokens(50), chunk=4)] == [41, 4, 4, 1]
    assert [len(logits) for _, logits in rope.logits(tokens(8), chunk=4)] == [4, 4]


@pytest.mark.parametrize("start", [30, 39, 40, 41])
def test_greedy_starts_anew_where_longrope_changes_factors(rope: LogitsSession, start: int) -> None:
    assert list(rope.greedy(tokens(start), 14)) == naive_greedy(rope, tokens(start), 14)


def test_a_mixed_cache_would_be_wrong(rope: LogitsSession, tiny_package: Make) -> None:
    folder = tiny_package("longrope", original_max_position_embeddings=40, max_position_embeddings=128)
    unaware = LogitsSession(folder, longrope=0)
    difference = gather(unaware, tokens(60), chunk=4) - gather(rope, tokens(60), chunk=4)
    assert np.abs(difference).max() > 0.1


@pytest.fixture(scope="module")
def last_only(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> LogitsSession:
    target = replace(find_target("cpu-fp32"), last_token_logits=True)
    folder = export(tiny("plain"), target, tmp_path_factory.mktemp("last") / "package")
    return LogitsSession(folder)


def test_a_head_on_the_last_token_only_is_run_token_by_token(plain: LogitsSession, last_only: LogitsSession) -> None:
    assert last_only.last_token_only
    ids = tokens(30)
    assert np.abs(gather(last_only, ids) - gather(plain, ids)).max() < ORDER
    assert list(last_only.greedy(ids, 8)) == list(plain.greedy(ids, 8))


def test_a_hidden_last_token_head_shows_in_the_first_run(
    plain: LogitsSession, last_only: LogitsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_only, "last_token_only", False)
    assert np.abs(gather(last_only, tokens(30)) - gather(plain, tokens(30))).max() < ORDER
    assert last_only.last_token_only


def test_last_token_heads_can_not_be_compared_beyond_longropes_switch(
    last_only: LogitsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_only, "longrope", 20)
    assert len(gather(last_only, tokens(20))) == 20
    with pytest.raises(PackageError, match=r"more than 20 tokens.*last_token_logits"):
        gather(last_only, tokens(21))


def test_position_ids_are_fed_where_the_graph_takes_them(plain: LogitsSession, tiny: Make, tmp_path: Path) -> None:
    target = replace(find_target("cpu-fp32"), attention="separate", position_ids=True)
    session = LogitsSession(export(tiny("plain"), target, tmp_path / "package"))
    assert session.contract.inputs["position_ids"] == "position_ids"
    assert np.abs(gather(session, tokens(40), chunk=8) - gather(plain, tokens(40))).max() < ORDER


@pytest.fixture
def foreign(tiny_package: Make, tmp_path: Path) -> Path:
    """A package as others make them: another file name, no manifest, no config.json."""
    folder = tmp_path / "foreign"
    shutil.copytree(tiny_package("plain"), folder)
    (folder / "model.onnx").rename(folder / "other.onnx")
    for name in ("phi3_onnx.json", "config.json", "generation_config.json"):
        (folder / name).unlink()
    edit(folder, lambda model: model["decoder"].update(filename="other.onnx"))
    return folder


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "genai_config.json"
    table = json.loads(path.read_text())
    change(table["model"])
    path.write_text(json.dumps(table))


def test_foreign_packages_load(foreign: Path, plain: LogitsSession) -> None:
    session = LogitsSession(foreign)
    assert session.longrope is None
    assert np.array_equal(gather(session, tokens(20)), gather(plain, tokens(20)))


def test_contract_says_what_genai_config_says(foreign: Path) -> None:
    contract = read_contract(foreign)
    assert (contract.num_layers, contract.num_kv_heads, contract.head_dim) == (2, 4, 16)
    assert contract.past_names() == [f"past_key_values.{i}.{part}" for i in (0, 1) for part in ("key", "value")]
    edit(foreign, lambda model: model.update(eos_token_id=7))
    assert read_contract(foreign).eos_token_ids == (7,)


def test_longrope_switch_is_read_from_config_json_of_any_age(tmp_path: Path) -> None:
    for config, switch in (
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 1024}}, 1024),
        ({"rope_scaling": None, "original_max_position_embeddings": 4096}, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert longrope_switch(tmp_path) == switch
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PackageError, match=r"config\.json is not valid JSON"):
        longrope_switch(tmp_path)


def test_bad_packages_are_named(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no genai_config\.json"):
        LogitsSession(tmp_path)
    edit(foreign, lambda model: model["decoder"]["inputs"].update(past_key_names="past.%d"))
    with pytest.raises(PackageError, match=r"other\.onnx has no input or output 'past\.0'.*2 such"):
        LogitsSession(foreign)
    edit(foreign, lambda model: model["decoder"]["inputs"].pop("past_key_names"))
    with pytest.raises(PackageError, match="does not describe a KV cache: 'past_key_names' is missing"):
        LogitsSession(foreign)
    (foreign / "genai_config.json").write_text("{")
    with pytest.raises(PackageError, match="is not valid JSON"):
        LogitsSession(foreign)


def test_a_damaged_graph_is_one_line(foreign: Path) -> None:
    (foreign / "other.onnx").write_bytes(b"not a graph")
    with pytest.raises(PackageError, match=rf"cannot be loaded by onnxruntime {onnxruntime.__version__}") as caught:
        LogitsSession(foreign)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 4097])
def test_sequences_must_fit_the_context(plain: LogitsSession, count: int) -> None:
    with pytest.raises(UsageError, match="1 to 4096 token ids"):
        gather(plain, tokens(count))


def test_greedy_steps_must_fit_the_context(plain: LogitsSession) -> None:
    with pytest.raises(UsageError, match="1 to 4096 token ids"):
        plain.greedy(tokens(4096), 1)


@pytest.mark.parametrize("kind", ["gqa", "longrope"])
def test_a_cache_that_runs_share_gives_the_same(tiny_package: Make, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As DirectML has it, here in the CPU's memory: one buffer, the prompt in one run, then a token a run."""
    session, ids = LogitsSession(tiny_package(kind)), tokens(30)
    wanted, answer = gather(session, ids), session.greedy(ids, 6).tolist()
    monkeypatch.setitem(SHARED_CACHES, session.provider, "cpu")
    lengths: list[int] = []
    real = session.feeds
    monkeypatch.setattr(session, "feeds", lambda ids, starts: (lengths.append(ids.shape[1]), real(ids, starts))[1])
    np.testing.assert_allclose(gather(session, ids, chunk=8, first=4), wanted, atol=ORDER)
    assert session.greedy(ids, 6).tolist() == answer
    assert lengths == [30, 30, 1, 1, 1, 1, 1]


def test_a_provider_that_is_not_there_is_named(tiny_package: Make) -> None:
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider cannot run here: onnxruntime .* has .*CPU"):
        LogitsSession(tiny_package("plain"), providers=("CUDAExecutionProvider",))
    with pytest.raises(ProviderError, match="cuda"):
        open_session(tiny_package("plain"), "cuda")


def test_auto_falls_back_to_the_cpu_and_says_why(tiny_package: Make) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    session, choice = open_session(tiny_package("plain", "cuda-fp16"), "auto", made_for="cuda")
    assert session.provider == "CPUExecutionProvider"
    assert str(choice).startswith("cuda: not chosen, ")
    assert choice.provider == "cpu"


def test_threads_reach_the_session(tiny_package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = onnxruntime.InferenceSession

    def spy(path: str, options: onnxruntime.SessionOptions, **rest: Any) -> object:
        seen.append(options.intra_op_num_threads)
        return original(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    monkeypatch.setenv("PHI3_ONNX_THREADS", "3")
    LogitsSession(tiny_package("plain"))
    LogitsSession(tiny_package("plain"), threads=1)
    assert seen == [3, 1]


def test_neither_torch_nor_onnx_nor_transformers_is_imported() -> None:
    heavy = "{'torch', 'onnx', 'transformers'}"
    code = f"import sys, phi3_onnx.runtime.engines.session; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
