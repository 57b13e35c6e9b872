"""Write a random checkpoint of Phi-3-mini's shape, to time exports on: speed and memory do not depend on the values.

python tests/bench/random_checkpoint.py FOLDER [--layers 32] --tokenizer FOLDER

32 layers are 3.8 B parameters and 7.6 GB. The tokenizer's files are copied from another checkpoint folder.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from phi3_onnx.configs import ModelConfig
from safetensors.torch import save_file


def main() -> None:
    """Write one safetensors file a layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    config = ModelConfig(
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        num_layers=args.layers,
        num_heads=32,
        num_kv_heads=32,
        head_dim=96,
        max_position=4096,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        rotary_dim=96,
        longrope=None,
        sliding_window=2047,
        tie_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(32000,),
        pad_token_id=32000,
    )
    args.folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def values(shape: tuple[int, ...]) -> torch.Tensor:
        filled = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
        return filled.to(torch.bfloat16)

    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in config.tensor_shapes().items():
        parts = name.split(".")
        groups.setdefault(f"model-{parts[2] if parts[1] == 'layers' else 'rest'}.safetensors", {})[name] = shape
    weight_map = {name: file for file, shapes in groups.items() for name in shapes}
    for file, shapes in groups.items():
        save_file({name: values(shape) for name, shape in shapes.items()}, args.folder / file)
    (args.folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (args.folder / "config.json").write_text(json.dumps({**config.to_phi3(), "torch_dtype": "bfloat16"}, indent=1))
    for path in args.tokenizer.iterdir():
        if path.name.startswith(("tokenizer", "chat_template", "special_tokens", "generation_config")):
            shutil.copy(path, args.folder)


if __name__ == "__main__":
    main()
