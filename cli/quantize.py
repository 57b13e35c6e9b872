"""`phi3-onnx quantize`."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from .export import make
from .quantization_options import quantization_options


@click.command()
@click.argument("source")
@click.option("-t", "--target", default="cpu-int4-awq", show_default=True, help="What to make; see: phi3-onnx targets.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.  [default: in the store]")
@click.option("--adapter", metavar="DIR", help="PEFT adapter (LoRA, DoRA) to merge into it: a folder or a hub id.")
@click.option("--force", is_flag=True, help="Replace the package that is already there.")
@click.option("--verify/--no-verify", default=True, help="Compare the package with its source.  [default: verify]")
@click.option("--strict-clients", is_flag=True, help="Fail where another client's tokenizer differs too.")
@click.option("--dry-run", is_flag=True, help="Check and plan only: graph, sizes, memory.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan or the manifest as JSON.")
@quantization_options
def command(source: str, target: str, output: Path | None, **values: Any) -> None:
    """Quantize an unquantized package or a checkpoint.

    SOURCE is a cpu-fp32 or cuda-fp16 package (a folder or a name in the store), a Hugging Face folder, a hub id, or a
    .gguf file. The result is the same as that of `export` from the checkpoint, from a cpu-fp32 package to the bit.
    """
    from ..configs import PackageError, find_package

    if not Path(source).expanduser().exists():
        with suppress(PackageError):  # then it is a hub id, or nothing: opening it says which
            source = str(find_package(source))
    make(source, target, output, revision=None, **values)
