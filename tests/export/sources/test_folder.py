import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources.folder import INDEX, open_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

KINDS = ["plain", "gqa", "longrope", "partial", "tied", "ragged", "window", "sharded"]


@pytest.fixture
def copied(tiny, tmp_path: Path) -> Callable[..., Path]:
    """Return `copied(kind, **overrides)`: a tiny checkpoint that a test may change."""

    def copy(kind: str = "plain", **overrides: Any) -> Path:
        return Path(shutil.copytree(tiny(kind, **overrides), tmp_path / "model"))

    return copy


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a value of None takes the key out."""
    table = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_reads_as_transformers_loads_it(tiny, kind: str, dtype: str) -> None:
    folder = tiny(kind, dtype=dtype)
    checkpoint = open_folder(folder)
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, shape in checkpoint.config.tensor_shapes().items():
        got = checkpoint.read(name)
        assert (got.shape, got.dtype) == (shape, np.float32)
        np.testing.assert_array_equal(got, weights[name].numpy())
        np.testing.assert_array_equal(checkpoint.read(name, slice(3, 7)), got[3:7])


def test_what_it_says_of_itself(tiny) -> None:
    folder = tiny("window")
    checkpoint = open_folder(folder)
    assert (checkpoint.source, checkpoint.revision, checkpoint.model) == (str(folder), None, "tiny-window")
    assert checkpoint.config.sliding_window == 31
    # The complete list of end tokens is generation_config.json's; config.json names the end of a document only.
    assert checkpoint.config.eos_token_ids == (0,)
    assert checkpoint.generation_config["eos_token_id"] == [0, 4]


def test_end_tokens_come_from_the_config_where_there_is_nothing_else(copied) -> None:
    folder = copied()
    (folder / "generation_config.json").unlink()
    assert open_folder(folder).generation_config == {"eos_token_id": [0], "bos_token_id": 0, "pad_token_id": 0}


def test_a_read_is_new_memory(tiny) -> None:
    checkpoint = open_folder(tiny("plain"))
    checkpoint.read("model.norm.weight")[:] = 7
    assert not (checkpoint.read("model.norm.weight") == 7).any()


def test_a_head_beside_tied_embeddings_is_left_out(copied) -> None:
    folder = copied("tied")
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(512, 64)}))
    assert "lm_head.weight" not in open_folder(folder).config.tensor_shapes()


def test_rotary_buffers_of_old_checkpoints_are_left_out(copied) -> None:
    folder = copied()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(8)}))
    open_folder(folder)


def test_a_single_file_of_another_name_needs_its_index(copied) -> None:
    folder = copied()
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(SourceError, match=r"has no weights: neither model\.safetensors nor"):
        open_folder(folder)
    names = load_file(folder / "weights.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "weights.safetensors")}))
    open_folder(folder)


def message_of(folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        open_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert "is not a checkpoint: it has no config.json" in message_of(tmp_path)
    (tmp_path / "x.gguf").touch()
    assert f"name that: {tmp_path / 'x.gguf'}" in message_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    message = message_of(tmp_path)
    assert "holds an adapter (PEFT) without its model" in message
    assert f"phi3-onnx export MODEL --adapter {tmp_path}" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not valid JSON"), ("[]", "must hold a JSON object, got list"), ('{"model_type": "bert"}', "'bert'")],
)
def test_a_config_that_can_not_be_used(copied, text: str, message: str) -> None:
    folder = copied()
    (folder / "config.json").write_text(text)
    assert message in message_of(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickles_are_never_loaded(copied, name: str) -> None:
    folder = copied()
    (folder / "model.safetensors").rename(folder / name)
    message = message_of(folder)
    assert name in message
    assert "convert it to safetensors" in message


def test_missing_shards_are_named(copied) -> None:
    folder = copied("sharded")
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].unlink()
    shards[3].unlink()
    message = message_of(folder)
    assert f"2 of {len(shards)} weight files are missing: {shards[1].name}, {shards[3].name}" in message


def test_every_damaged_shard_is_named(copied) -> None:
    folder = copied("sharded")
    shards = sorted(folder.glob("model-*.safetensors"))
    for shard in shards[:2]:
        shard.write_bytes(shard.read_bytes()[:-10])
    message = message_of(folder)
    assert all(f"{shard} is truncated: expected" in message for shard in shards[:2])


def test_a_damaged_index(copied) -> None:
    folder = copied("sharded")
    (folder / INDEX).write_text("{}")
    assert "has no weight_map" in message_of(folder)


def test_every_tensor_that_does_not_fit_is_named_once(copied) -> None:
    folder = copied()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.embed_tokens.weight"] = torch.zeros(512, 65)
        for i in range(2):
            tensors[f"model.layers.{i}.self_attn.o_proj.bias"] = torch.zeros(64)
            tensors[f"model.layers.{i}.mlp.down_proj.lora_A.weight"] = torch.zeros(4, 128)

    edit_weights(folder, spoil)
    message = message_of(folder)
    assert "model.norm.weight is missing" in message
    assert "model.embed_tokens.weight has shape [512, 65], expected [512, 64]" in message
    assert "has no place in Phi-3's layout" in message
    assert "and 1 more problems" in message


def test_an_untied_model_needs_its_head(copied) -> None:
    folder = copied()
    edit_weights(folder, lambda tensors: tensors.__delitem__("lm_head.weight"))
    message = message_of(folder)
    assert "lm_head.weight is missing" in message
    assert "tie_word_embeddings=false" in message


def test_quantized_checkpoints_are_refused(copied) -> None:
    folder = copied()
    edit_weights(folder, lambda t: t.update({"model.norm.weight": torch.zeros(64, dtype=torch.int8)}))
    assert "model.norm.weight is stored as I8 (quantized checkpoints cannot be exported" in message_of(folder)
    edit_weights(folder, lambda t: t.update({"model.layers.0.mlp.down_proj.qweight": torch.zeros(4)}))
    assert "is quantized already (it has model.layers.0.mlp.down_proj.qweight)" in message_of(folder)
    edit_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    assert "is quantized already (awq)" in message_of(folder)


def test_nan_weights_are_found_when_they_are_read(copied) -> None:
    folder = copied("llama")
    name = "model.layers.1.self_attn.k_proj.weight"
    edit_weights(folder, lambda tensors: tensors[name].__setitem__((3, 5), float("nan")))
    checkpoint = open_folder(folder)
    checkpoint.read("model.layers.0.self_attn.qkv_proj.weight")
    with pytest.raises(SourceError, match=r"tensor model\.layers\.1\.self_attn\.k_proj\.weight holds NaN"):
        checkpoint.read("model.layers.1.self_attn.qkv_proj.weight")


@pytest.mark.parametrize("ends", [[512], ["x"], -1])
def test_end_tokens_must_be_tokens(copied, ends: Any) -> None:
    folder = copied()
    edit_json(folder / "generation_config.json", eos_token_id=ends)
    assert "eos_token_id must be token ids below 512" in message_of(folder)


def test_a_tokenizer_of_another_model_is_refused(copied, tiny) -> None:
    folder = copied()
    shutil.copy(tiny("plain", vocab_size=520) / "tokenizer.json", folder)
    assert "has token ids up to 519, but the model has 512 rows" in message_of(folder)


def test_a_mistral_checkpoint_is_fused_like_a_llama(copied) -> None:
    folder = copied("llama")
    plain = open_folder(folder)
    edit_json(folder / "config.json", model_type="mistral", sliding_window=64)
    mistral = open_folder(folder)
    assert mistral.config.sliding_window == 64
    for name in plain.config.tensor_shapes():
        np.testing.assert_array_equal(mistral.read(name), plain.read(name))
