"""Verification of tiny packages: what is right passes, what is planted fails in the row that it belongs to."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from phi3_onnx.configs import PackageError, ProviderError, Thresholds, VerificationError, find_target, read_manifest
from phi3_onnx.evaluate.parity import corpus
from phi3_onnx.evaluate.parity.result import Verification
from phi3_onnx.evaluate.parity.verify import checked, verify
from phi3_onnx.export import export, open_checkpoint

Make = Callable[..., Path]

STEPS = 16
NAMES = [
    "token_ids",
    "chat_template",
    "end_tokens",
    "genai_token_ids",
    "reference_error",
    "max_abs_diff",
    "mean_kl",
    "p99_kl",
    "top1_agreement",
    "perplexity_ratio",
    "greedy_agreement",
]
LOGITS = set(NAMES[5:])


@pytest.fixture
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take 300 tokens of the text: enough to see an error, and faster."""
    monkeypatch.setattr(corpus, "TOKENS", 300)


def failures(found: Verification) -> set[str]:
    return {row.name for row in found.failures}


@pytest.mark.parametrize("kind", ["gqa", "partial", "window", "tied", "longrope", "llama", "ragged"])
def test_float32_packages_are_their_models(kind: str, tiny: Make, tiny_package: Make) -> None:
    found = verify(tiny_package(kind), open_checkpoint(tiny(kind)), steps=STEPS)
    assert [row.name for row in found.rows] == NAMES
    assert found.failures == ()
    assert found.passed
    assert found.target == "cpu-fp32"
    assert found.provider == "CPUExecutionProvider"
    assert found.metrics.positions >= 2048
    assert ("4224 tokens: beyond 4096 tokens (LongRoPE)" in found.passages) == (kind == "longrope")
    # float32 rounding alone: logits of size 10 differ by 1e-5 as a rule, KL is 1e-12, and was seen at 1e-8 once.
    assert found.metrics.mean_kl < 1e-7
    assert found.rows[-1].value == 1


@pytest.mark.usefixtures("little_text")
@pytest.mark.parametrize("target", ["cuda-fp16", "cpu-int4-rtn", "cuda-int4-rtn"])
def test_other_targets_are_judged_by_their_own_thresholds(target: str, tiny: Make, tiny_package: Make) -> None:
    found = verify(tiny_package("gqa", target), open_checkpoint(tiny("gqa")), steps=STEPS)
    assert found.failures == ()
    thresholds = find_target(target).thresholds
    assert {row.name: row.threshold for row in found.rows if row.name in LOGITS} == vars(thresholds)
    assert found.metrics.mean_kl > 1e-7  # no float32 package was taken for it


@pytest.mark.usefixtures("little_text")
def test_what_was_tried_is_told(tiny: Make, tiny_package: Make) -> None:
    told: list[tuple[str, int, int, str]] = []
    checkpoint = open_checkpoint(tiny("window"))
    found = verify(tiny_package("window"), checkpoint, steps=STEPS, progress=lambda *report: told.append(report))
    assert found.passages[0] == "287 tokens: beyond the sliding window of 31"
    assert found.reference == checkpoint.source
    assert {"torch", "transformers", "onnxruntime"} <= set(found.versions)
    assert ("reference", 1, 2, "layers") in told
    assert ("package: greedy answers", 5 * STEPS, 5 * STEPS, "tokens") in told
    _, done, total, unit = [report for report in told if report[0] == "package: text"][-1]
    assert done == total > 0 and unit == "tokens"  # no more and no less than there are
    assert f"{5 * STEPS} of {5 * STEPS} tokens" in found.rows[-1].detail


@pytest.fixture
def planted(tiny_package: Make, tmp_path: Path, little_text: None) -> Callable[..., Path]:
    """Return a function that copies a package, without its manifest's sizes, for a test to spoil."""

    def copy(kind: str, target: str = "cpu-fp32", **overrides: int) -> Path:
        folder = tmp_path / f"{kind}-{target}"
        shutil.copytree(tiny_package(kind, target, **overrides), folder)
        manifest = read_manifest(folder)
        (folder / "phi3_onnx.json").write_text(replace(manifest, files={}).to_json(), encoding="utf-8")
        return folder

    return copy


def spoil_tensor(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    values = np.memmap(folder / place["location"], dtype, "r+", int(place["offset"]), tuple(tensor.dims))
    values[:] = change(values.copy())
    values.flush()


def spoil_json(path: Path, change: Callable[[dict], object]) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    change(table)
    path.write_text(json.dumps(table), encoding="utf-8")


def test_one_changed_row_of_a_weight_fails_the_logits(planted: Make, tiny: Make) -> None:
    folder = planted("plain")

    def negate(values: np.ndarray) -> np.ndarray:
        values[7] *= -1
        return values

    spoil_tensor(folder, "model.layers.1.mlp.down_proj.weight", negate)
    found = verify(folder, open_checkpoint(tiny("plain")), steps=STEPS)
    assert {"max_abs_diff", "mean_kl", "p99_kl"} <= failures(found) <= LOGITS


def test_wrong_scales_fail_the_logits_of_an_int4_package(planted: Make, tiny: Make) -> None:
    folder = planted("plain", "cpu-int4-rtn")
    checkpoint = open_checkpoint(tiny("plain"))
    sound = verify(folder, checkpoint, steps=STEPS)
    spoil_tensor(folder, "model.layers.0.self_attn.qkv_proj.scales", lambda scales: scales * 2)
    strict = replace(find_target("cpu-int4-rtn"), thresholds=Thresholds(mean_kl=1.5 * sound.metrics.mean_kl))
    found = verify(folder, checkpoint, target=strict, steps=STEPS)
    assert failures(found) == {"mean_kl", "decode_mean_kl"}, "both graphs have these weights"


def test_weights_that_are_not_finite_fail(planted: Make, tiny: Make) -> None:
    folder = planted("plain")
    spoil_tensor(folder, "model.norm.weight", lambda values: values * np.float32("nan"))
    found = verify(folder, open_checkpoint(tiny("plain")), steps=STEPS)
    assert {"max_abs_diff", "mean_kl", "p99_kl", "perplexity_ratio"} <= failures(found) <= LOGITS
    assert found.to_dict()["rows"][NAMES.index("max_abs_diff")]["value"] is None


@pytest.mark.parametrize("window", [-1, 30, 32])
def test_another_sliding_window_fails_the_logits(window: int, planted: Make, tiny: Make) -> None:
    folder = planted("window")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size":
                assert attribute.i == 31
                attribute.i = window
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert {"max_abs_diff", "mean_kl"} <= failures(verify(folder, open_checkpoint(tiny("window")), steps=STEPS))


def test_the_short_longrope_factors_everywhere_fail_the_logits(planted: Make, tiny: Make) -> None:
    sizes = {"original_max_position_embeddings": 64, "max_position_embeddings": 256}
    folder, checkpoint = planted("longrope", **sizes), open_checkpoint(tiny("longrope", **sizes))
    assert verify(folder, checkpoint, steps=STEPS).failures == ()

    def repeat(table: np.ndarray) -> np.ndarray:
        assert len(table) == 64 + 256  # the short factors' positions, then the long ones'
        table[64:128] = table[:64]
        return table

    spoil_tensor(folder, "rope.cos", repeat)
    spoil_tensor(folder, "rope.sin", repeat)
    assert {"max_abs_diff", "mean_kl"} <= failures(verify(folder, checkpoint, steps=STEPS))


def test_a_wrong_end_token_fails_its_row_alone(planted: Make, tiny: Make) -> None:
    folder = planted("plain")
    spoil_json(folder / "genai_config.json", lambda table: table["model"].update(eos_token_id=0))
    found = verify(folder, open_checkpoint(tiny("plain")), steps=STEPS)
    assert failures(found) == {"end_tokens"}
    assert "genai_config.json has [0], the checkpoint [0, 4]" in found.failures[0].detail


def test_changed_merges_fail_the_token_ids_alone(planted: Make, tiny: Make) -> None:
    folder = planted("plain")

    def swap(table: dict) -> None:
        merges = table["model"]["merges"]
        merges[0], merges[-1] = merges[-1], merges[0]

    spoil_json(folder / "tokenizer.json", swap)
    assert failures(verify(folder, open_checkpoint(tiny("plain")), steps=STEPS)) == {"token_ids"}


def test_a_changed_template_fails_its_row_alone(planted: Make, tiny: Make) -> None:
    folder = planted("plain")
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|assistant|>\\n", "<|assistant|>"))
    assert failures(verify(folder, open_checkpoint(tiny("plain")), steps=STEPS)) == {"chat_template"}


@pytest.mark.usefixtures("little_text")
def test_another_models_weights_fail(tiny: Make, tiny_package: Make) -> None:
    found = verify(tiny_package("plain"), open_checkpoint(tiny("plain", seed=1)), steps=STEPS)
    assert failures(found) >= {"mean_kl", "top1_agreement", "greedy_agreement"}


def test_a_changed_byte_count_is_told_before_any_work(tiny: Make, tiny_package: Make, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(tiny_package("plain"), folder)
    with (folder / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(PackageError, match=r"tokenizer\.json has \d+ bytes, expected \d+"):
        verify(folder, open_checkpoint(tiny("plain")))


def test_packages_of_others_are_judged_by_their_tokens(planted: Make, tiny: Make) -> None:
    folder = planted("plain")
    for name in ("phi3_onnx.json", "config.json", "generation_config.json"):
        (folder / name).unlink()
    found = verify(folder, open_checkpoint(tiny("plain")), steps=STEPS)
    assert found.passed
    assert found.target is None
    # Another client's tokenizer is not judged, and nothing else is without a target's thresholds.
    assert [row.passed for row in found.rows] == [True] * 3 + [None] + [True] + [None] * 6
    assert verify(folder, open_checkpoint(tiny("plain")), target=find_target("cpu-fp32"), steps=STEPS).passed


def test_last_token_heads_are_measured_token_by_token(tiny: Make, tmp_path: Path, little_text: None) -> None:
    target = replace(find_target("cpu-fp32"), last_token_logits=True)
    folder = export(tiny("plain"), target, tmp_path / "package")
    found = verify(folder, open_checkpoint(tiny("plain")), target=target, steps=STEPS)
    assert found.failures == ()
    assert found.metrics.positions == 300


def test_another_vocabulary_is_another_model(tiny: Make, tiny_package: Make) -> None:
    with pytest.raises(PackageError, match=r"has 512 tokens, .* 600: it was made from another model"):
        verify(tiny_package("plain"), open_checkpoint(tiny("plain", vocab_size=600)))


def test_a_provider_that_is_named_must_run(tiny: Make, tiny_package: Make) -> None:
    with pytest.raises(ProviderError, match="dml"):
        verify(tiny_package("plain"), open_checkpoint(tiny("plain")), provider="dml")


def test_checked_records_and_raises(planted: Make, tiny: Make) -> None:
    folder, checkpoint = planted("plain"), open_checkpoint(tiny("plain"))
    checked(folder, checkpoint, find_target("cpu-fp32"))
    assert read_manifest(folder).verified is True
    impossible = replace(find_target("cpu-fp32"), thresholds=Thresholds(top1_agreement=1.1))
    with pytest.raises(VerificationError, match=r"tiny-plain/cpu-fp32 .*top1_agreement is 1, must be at least 1\.1"):
        checked(folder, checkpoint, impossible)
    assert read_manifest(folder).verified is False
