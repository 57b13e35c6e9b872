"""How far quantized models are from the float32 model that all were made of, ours and other tools', on one text.

    python tests/bench/quality_against_peers.py REFERENCE CANDIDATE... --text FILE [--tokens 4096] [--context 512]

REFERENCE is a package in float32. A CANDIDATE is a package's folder, ours or the GenAI model builder's, or a `.gguf`
file, which llama.cpp runs (`pip install llama-cpp-python`). All get the same token ids, cut into stretches that are
each run by themselves, and are scored by the same lines in float64. Sizes are those of the weights' files; the
tokenizer that a `.gguf` file holds counts with it. Prints a JSON line for each, and a table at the end.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from phi3_onnx.evaluate.evaluate import stretches
from phi3_onnx.evaluate.parity.corpus import Passage
from phi3_onnx.evaluate.parity.metrics import Comparison, Metrics
from phi3_onnx.runtime.engines.session import open_session
from phi3_onnx.runtime.package import open_package
from rich.console import Console
from rich.table import Table


def package_logits(folder: Path, passages: list[Passage]) -> Iterator[np.ndarray]:
    """Yield a package's logits of each passage, [positions, vocabulary], as the CPU provider gives them."""
    session = open_session(folder, "cpu")[0]
    for passage in passages:
        length = len(passage.ids)
        yield np.concatenate([logits for _, logits in session.logits(passage.ids, chunk=length, first=length)])


def gguf_logits(file: Path, passages: list[Passage]) -> Iterator[np.ndarray]:
    """Yield llama.cpp's logits of each passage, [positions, vocabulary]."""
    from llama_cpp import Llama, llama_cpp  # pyright: ignore[reportMissingImports]

    # Its AMX kernels crash on the small model's 576 columns (0.3.36); without repacked weights others run, and slower.
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False
    llama_cpp.llama_model_default_params = lambda: params
    longest = max(len(passage.ids) for passage in passages)
    llama = Llama(str(file), n_ctx=longest, n_batch=longest, logits_all=True, verbose=False)
    for passage in passages:
        llama.reset()
        llama.eval(passage.ids.tolist())
        yield llama.scores[: len(passage.ids)]


def logits_of(candidate: Path, passages: list[Passage]) -> Iterator[np.ndarray]:
    """Yield the logits of a package or a `.gguf` file."""
    return (gguf_logits if candidate.suffix == ".gguf" else package_logits)(candidate, passages)


def score(candidate: Path, passages: list[Passage], wanted: list[np.ndarray]) -> Metrics:
    """Compare a candidate with the reference's logits."""
    comparison = Comparison()
    for passage, reference, found in zip(passages, wanted, logits_of(candidate, passages), strict=True):
        comparison.add(reference, found, passage.ids[1:])
    return comparison.result()


def weight_bytes(candidate: Path) -> int:
    """Return the bytes of a `.gguf` file, or of a package's ONNX files."""
    files = [candidate] if candidate.is_file() else candidate.glob("*.onnx*")
    return sum(file.stat().st_size for file in files)


def main() -> None:
    """Score all candidates in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("candidates", type=Path, nargs="+", metavar="candidate")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    passages = stretches(open_package(args.reference), text, args.tokens, args.context)
    wanted = list(package_logits(args.reference, passages))
    table = Table("candidate", "MB", "mean KL", "p99 KL", "top-1", "perplexity ratio")
    for candidate in args.candidates:
        metrics = score(candidate, passages, wanted)
        size = weight_bytes(candidate) / 1e6
        line = {"candidate": candidate.name, "mb": round(size, 1), "mean_kl": round(metrics.mean_kl, 4)}
        line |= {"p99_kl": round(metrics.p99_kl, 3), "top1": round(metrics.top1_agreement, 4)}
        line |= {"perplexity_ratio": round(metrics.perplexity_ratio, 4)}
        print(json.dumps(line), flush=True)
        table.add_row(*(str(value) for value in line.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
