"""Write any source that phi3-onnx reads (a GGUF file, a Llama-like folder) as a Phi-3 folder that other tools read.

python tests/bench/save_folder.py SOURCE FOLDER [--dtype float32|float16|bfloat16]
"""

import argparse
import json
from pathlib import Path

import torch
from phi3_onnx.export import open_checkpoint
from safetensors.torch import save_file


def main() -> None:
    """Write one safetensors file a layer, so that memory stays that of a layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.source)
    args.folder.mkdir(parents=True)
    groups: dict[str, list[str]] = {}
    for name in checkpoint.config.tensor_shapes():
        parts = name.split(".")
        groups.setdefault(parts[2] if parts[1] == "layers" else "rest", []).append(name)
    weight_map: dict[str, str] = {}
    dtype = getattr(torch, args.dtype)
    for group, names in groups.items():
        file = f"model-{group}.safetensors"
        save_file({name: torch.from_numpy(checkpoint.read(name)).to(dtype) for name in names}, args.folder / file)
        weight_map |= dict.fromkeys(names, file)
    (args.folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {**checkpoint.config.to_phi3(), "torch_dtype": args.dtype}
    (args.folder / "config.json").write_text(json.dumps(config, indent=1))
    (args.folder / "generation_config.json").write_text(json.dumps(dict(checkpoint.generation_config), indent=1))
    for name, content in checkpoint.assets().items():
        (args.folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
