"""A LoRA of the small real model, merged out of its GGUF file, against PEFT on transformers' own model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from phi3_onnx.export import open_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore::UserWarning")]

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_the_merged_model_is_pefts(small_gguf: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(small_gguf)
    shapes, config = checkpoint.config, checkpoint.config.to_phi3()
    sizes = {name: config[name] for name in LlamaConfig().to_dict() if name in config and name != "rope_scaling"}
    state: dict[str, torch.Tensor] = {}
    for name in shapes.tensor_shapes():
        tensor = torch.from_numpy(checkpoint.read(name))
        if name.endswith("qkv_proj.weight"):
            rows = [shapes.num_heads * shapes.head_dim, *[shapes.num_kv_heads * shapes.head_dim] * 2]
            parts = zip(("q_proj", "k_proj", "v_proj"), tensor.split(rows), strict=True)
            state |= {name.replace("qkv_proj", part): value for part, value in parts}
        elif name.endswith("gate_up_proj.weight"):
            parts = zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True)
            state |= {name.replace("gate_up_proj", part): value for part, value in parts}
        else:
            state[name] = tensor
    llama = LlamaConfig(**{**sizes, "model_type": "llama"})
    base: Any = LlamaForCausalLM.from_pretrained(None, config=llama, state_dict=state, dtype=torch.float32)
    torch.manual_seed(0)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=MODULES, use_rslora=True, task_type="CAUSAL_LM")
    trained: Any = get_peft_model(base, settings)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    trained.save_pretrained(tmp_path)
    merged = open_checkpoint(small_gguf, adapter=tmp_path)
    assert isinstance(trained, PeftModel)
    expected = trained.merge_and_unload().state_dict()
    for name in shapes.tensor_shapes():
        module = name.removesuffix(".weight").rpartition(".")[2]
        split = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}.get(module)
        wanted = torch.cat([expected[name.replace(module, part)] for part in split or (module,)])
        # float32 sums of 8 products in another order.
        np.testing.assert_allclose(merged.read(name), wanted.numpy(), rtol=0, atol=2e-6, err_msg=name)
