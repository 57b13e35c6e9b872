"""Write any source that phi3-onnx reads (a GGUF file, a Llama-like folder) as a Phi-3 folder that other tools read.

python tests/bench/save_folder.py SOURCE FOLDER [--dtype float32|float16|bfloat16] [--ungrouped] [--times N]

With --ungrouped, each key and value head is repeated for all the heads that share it: the same model, for tools that
know no grouped heads. With --times, N - 1 layers that add nothing follow each layer: a model that takes N times as long
and gives the same answers, to time a draft model beside it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from phi3_onnx.configs import ModelConfig
from phi3_onnx.export import Checkpoint, open_checkpoint
from safetensors.torch import save_file


def main() -> None:
    """Write one safetensors file a layer, so that memory stays that of a layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--ungrouped", action="store_true")
    parser.add_argument("--times", type=int, default=1)
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.source)
    config = checkpoint.config
    if args.ungrouped:
        config = replace(config, num_kv_heads=config.num_heads)
    config = replace(config, num_layers=config.num_layers * args.times)
    args.folder.mkdir(parents=True)
    groups: dict[str, list[str]] = {}
    for name in config.tensor_shapes():
        parts = name.split(".")
        groups.setdefault(parts[2] if parts[1] == "layers" else "rest", []).append(name)
    weight_map: dict[str, str] = {}
    dtype = getattr(torch, args.dtype)
    for group, names in groups.items():
        file = f"model-{group}.safetensors"
        tensors = {name: torch.from_numpy(read(checkpoint, config, name)).to(dtype) for name in names}
        save_file(tensors, args.folder / file)
        weight_map |= dict.fromkeys(names, file)
    (args.folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    table = {**config.to_phi3(), "torch_dtype": args.dtype}
    (args.folder / "config.json").write_text(json.dumps(table, indent=1))
    (args.folder / "generation_config.json").write_text(json.dumps(dict(checkpoint.generation_config), indent=1))
    for name, content in checkpoint.assets().items():
        (args.folder / name).write_bytes(content)


def read(checkpoint: Checkpoint, config: ModelConfig, name: str) -> np.ndarray:
    """Return a tensor, float32, of a model that has as many layers, and key and value heads, as `config` says."""
    own = checkpoint.config
    times = config.num_layers // own.num_layers
    parts = name.split(".")
    adds_nothing = False
    if parts[1] == "layers":
        layer, place = divmod(int(parts[2]), times)
        name = ".".join([*parts[:2], str(layer), *parts[3:]])
        adds_nothing = place > 0 and name.endswith(("o_proj.weight", "down_proj.weight"))
    tensor = checkpoint.read(name)
    if adds_nothing:
        return np.zeros_like(tensor)
    if not name.endswith("qkv_proj.weight") or config.num_kv_heads == own.num_kv_heads:
        return tensor
    heads = tensor.reshape(-1, own.head_dim, own.hidden_size)
    queries, keys, values = np.split(heads, [own.num_heads, own.num_heads + own.num_kv_heads])
    groups = config.num_kv_heads // own.num_kv_heads
    shared = [queries, np.repeat(keys, groups, axis=0), np.repeat(values, groups, axis=0)]
    return np.concatenate(shared).reshape(config.qkv_size, own.hidden_size)


if __name__ == "__main__":
    main()
