"""The small real model, from its GGUF file to an answer in PyTorch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from phi3_onnx.export.sources.checkpoint import Checkpoint
from phi3_onnx.export.sources.open import open_checkpoint
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def checkpoint(small_gguf: Path) -> Checkpoint:
    return open_checkpoint(small_gguf)


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    for name, data in checkpoint.assets().items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps(checkpoint.config.to_phi3()))
    return folder


def test_its_architecture(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    assert (config.vocab_size, config.hidden_size, config.num_layers) == (49152, 576, 30)
    assert (config.num_heads, config.num_kv_heads, config.rope_theta, config.rms_norm_eps) == (9, 3, 100000.0, 1e-5)
    assert config.tie_embeddings
    assert config.num_parameters == 134_515_008
    assert checkpoint.model == "SmolLM2-135M-Instruct"
    assert checkpoint.generation_config["eos_token_id"] == [2, 0]  # <|im_end|>, <|endoftext|>


def test_it_answers(checkpoint: Checkpoint, folder: Path) -> None:
    weights = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.config.tensor_shapes()}
    config = Phi3Config(**checkpoint.config.to_phi3())
    model: Any = Phi3ForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(
        **prompt, max_new_tokens=20, do_sample=False, eos_token_id=checkpoint.generation_config["eos_token_id"]
    )
    answer = out[0][prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
        "def f(x):\n    return x**2 + 10000  # 12345\n",
        "  Ünïcödé 日本語 😀👩\u200d👩\u200d👧 ²³½ ١٢٣\r\n\n\n\tend  ",
    ],
)
def test_text_comes_back_from_its_ids(folder: Path, text: str) -> None:
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).encode(text)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_are_tokens_of_their_own(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("in 2024").tokens == ["in", "Ġ", "2", "0", "2", "4"]
