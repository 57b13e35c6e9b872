"""Tiny checkpoints written as llama.cpp's converter writes them, and read back."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import Change, permute, write_gguf
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources.checkpoint import Checkpoint
from phi3_onnx.export.sources.folder import open_folder
from phi3_onnx.export.sources.gguf.checkpoint import open_gguf, unpermute
from transformers import AutoModelForCausalLM, Phi3Config, Phi3ForCausalLM


def logits(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    model = Phi3ForCausalLM(Phi3Config(**checkpoint.config.to_phi3())).eval()
    weights = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.config.tensor_shapes()}
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("kind", ["plain", "gqa", "longrope", "partial", "tied", "ragged", "window"])
def test_phi3_comes_back_as_it_was(tiny, tmp_path: Path, kind: str) -> None:
    original = open_folder(tiny(kind))
    checkpoint = open_gguf(write_gguf(tmp_path / "x.gguf", tiny(kind)))
    assert checkpoint.config == original.config
    for name in original.config.tensor_shapes():
        np.testing.assert_array_equal(checkpoint.read(name), original.read(name))
        np.testing.assert_array_equal(checkpoint.read(name, slice(5, 11)), original.read(name)[5:11])


@pytest.mark.parametrize("overrides", [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}])
def test_the_permuted_heads_of_llama_come_back_as_they_were(tiny, tmp_path: Path, overrides: dict[str, int]) -> None:
    original = open_folder(tiny("llama", **overrides))
    checkpoint = open_gguf(write_gguf(tmp_path / "x.gguf", tiny("llama", **overrides), "llama"))
    assert checkpoint.config == original.config
    for name in original.config.tensor_shapes():
        np.testing.assert_array_equal(checkpoint.read(name), original.read(name))
    qkv = "model.layers.1.self_attn.qkv_proj.weight"
    whole = original.read(qkv)
    for start in range(0, len(whole), 7):  # cuts through heads, and across q, k and v
        np.testing.assert_array_equal(checkpoint.read(qkv, slice(start, start + 29)), whole[start : start + 29])


def test_a_llama_gguf_has_the_logits_of_its_llama(tiny, tmp_path: Path) -> None:
    folder = tiny("llama")
    ids = torch.randint(0, 512, (1, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
    got = logits(open_gguf(write_gguf(tmp_path / "x.gguf", folder, "llama")), ids)
    # Logits have a standard deviation of about 3; a fused matmul may add up in another order.
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_matrices_of_other_types_are_dequantized(tiny, tmp_path: Path, kind: str) -> None:
    original = open_folder(tiny("llama"))
    checkpoint = open_gguf(write_gguf(tmp_path / "x.gguf", tiny("llama"), "llama", kind))
    as_stored = gguf.GGMLQuantizationType[kind]
    for name in original.config.tensor_shapes():
        expected = original.read(name)
        if expected.ndim == 2:  # rows are quantized one by one, so their order makes no difference
            expected = gguf.dequantize(gguf.quantize(expected, as_stored), as_stored)
        np.testing.assert_array_equal(checkpoint.read(name), expected)


def test_unpermute_undoes_permute() -> None:
    weights = np.arange(6 * 8 * 3, dtype=np.float32).reshape(48, 3)
    for heads in (1, 2, 3, 6):
        np.testing.assert_array_equal(unpermute(permute(weights, heads), heads), weights)


def test_what_it_says_of_itself(tiny, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "Phi-3-mini-4k-instruct-q4.gguf", tiny("plain"))
    checkpoint = open_gguf(path)
    assert (checkpoint.source, checkpoint.revision, checkpoint.model) == (str(path), None, "Phi-3-mini-4k-instruct")
    # <|end|> is typed as a control token, and the chat template ends turns with it.
    assert checkpoint.generation_config == {"bos_token_id": 0, "pad_token_id": 0, "eos_token_id": [0, 4]}
    assert set(checkpoint.assets()) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_old_files_of_the_4k_models_have_their_window(tiny, tmp_path: Path) -> None:
    def forget(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        del metadata["phi3.attention.sliding_window"]

    folder = tiny("plain", num_hidden_layers=32, hidden_size=16, intermediate_size=32, num_attention_heads=2,
                  num_key_value_heads=2)  # fmt: skip
    assert open_gguf(write_gguf(tmp_path / "a.gguf", folder, change=forget)).config.sliding_window == 2047
    assert open_gguf(write_gguf(tmp_path / "b.gguf", folder)).config.sliding_window is None
    assert open_gguf(write_gguf(tmp_path / "c.gguf", tiny("plain"), change=forget)).config.sliding_window is None


def test_an_attention_factor_of_its_own_is_kept(tiny, tmp_path: Path) -> None:
    def change(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        metadata["phi3.rope.scaling.attn_factor"] = 1.5

    longrope = open_gguf(write_gguf(tmp_path / "x.gguf", tiny("longrope"), change=change)).config.longrope
    assert longrope is not None
    assert longrope.attention_factor == 1.5


def metadata_change(key: str, value: Any) -> Change:
    def change(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        metadata[key] = value

    return change


def tensor_change(name: str, values: np.ndarray | None) -> Change:
    def change(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors.pop(name, None)
        if values is not None:
            tensors[name] = values

    return change


ZEROS = np.zeros(8, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (metadata_change("general.architecture", "gemma"), "architecture 'gemma' is not supported; supported: llama"),
        (metadata_change("split.count", 3), "is one of 3 parts; join them first"),
        (metadata_change("phi3.block_count", 0), r"phi3\.block_count must be a positive whole number, got 0"),
        (metadata_change("phi3.block_count", 3), r"blk\.2\.attn_norm\.weight is missing"),
        (metadata_change("phi3.block_count", "two"), "must be a positive whole number, got 'two'"),
        (metadata_change("phi3.attention.head_count_kv", 3), "4 attention heads cannot share 3"),
        (metadata_change("phi3.embedding_length", 63), "63 is not a multiple of 4 attention heads"),
        (metadata_change("phi3.attention.value_length", 8), "key and value heads of different sizes"),
        (metadata_change("phi3.rope.dimension_count", 32), "32 does not fit heads of 16"),
        (metadata_change("phi3.expert_count", 8), "a mixture of 8 experts"),
        (metadata_change("phi3.attention.layer_norm_rms_epsilon", 0.0), "must be a positive number, got 0.0"),
        (metadata_change("phi3.rope.scaling.type", "linear"), r"rope scaling \('linear'\) is not supported"),
        (metadata_change("phi3.rope.scaling.factor", 4.0), "rope scaling"),
        (tensor_change("rope_freqs.weight", ZEROS), r"rope scaling \(Llama 3's\) is not supported"),
        (tensor_change("rope_factors_long.weight", ZEROS), r"rope_factors_short\.weight must hold 8 values, got None"),
        (tensor_change("token_embd.weight", None), r"token_embd\.weight is missing"),
        (tensor_change("output_norm.weight", None), r"output_norm\.weight is missing"),
        (tensor_change("output_norm.weight", ZEROS), r"output_norm\.weight has shape \[8\], expected \[64\]"),
        (tensor_change("blk.0.attn_qkv.bias", ZEROS), r"blk\.0\.attn_qkv\.bias has no place in Phi-3's layout"),
    ],
)
def test_what_can_not_be_exported_is_one_clear_line(tiny, tmp_path: Path, change: Change, message: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", tiny("plain"), change=change)
    with pytest.raises(SourceError, match=message) as caught:
        open_gguf(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_weights_of_whole_numbers_are_refused_with_the_types_that_work(tiny, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", tiny("plain"))
    data = path.read_bytes()
    entry = b"blk.1.ffn_down.weight" + (2).to_bytes(4, "little")
    place = data.index(entry) + len(entry) + 16  # behind the two dimensions
    path.write_bytes(data[:place] + int(gguf.GGMLQuantizationType.I32).to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(SourceError, match=r"weights of type I32 cannot be read \(supported: F32, F16, Q4_0"):
        open_gguf(path)


def test_nan_weights_are_found_when_they_are_read(tiny, tmp_path: Path) -> None:
    values = np.full((64, 128), np.nan, np.float32)
    path = write_gguf(tmp_path / "x.gguf", tiny("plain"), change=tensor_change("blk.0.ffn_down.weight", values))
    with pytest.raises(SourceError, match=r"tensor blk\.0\.ffn_down\.weight holds NaN"):
        open_gguf(path).read("model.layers.0.mlp.down_proj.weight")
