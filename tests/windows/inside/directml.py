"""Runs in Windows: DirectML against the CPU provider.    python directml.py RESULTS FOLDER CASE...

For each case: all nodes of the package are on DirectML with graph capture; each operator agrees with the CPU. For the
cases `cut` and `small` in addition: greedy tokens through plain ONNX Runtime and through GenAI, and what `generate`
prints. `doctor` replays the self-test of a package that has one, and `verify` holds that package against the CPU.
DirectML's attention has no sliding window: for models with one, the context is the window, and only tokens within it
are compared.
"""

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from phi3_onnx.runtime import load
from phi3_onnx.runtime.providers.known_faults import unseen_window
from report import Report, Skipped

TARGET = "dml-int4-awq"
DML = ("DmlExecutionProvider", {"device_id": "0"})
CPU = "CPUExecutionProvider"
PROMPT = [11, 402, 33, 204, 75, 306, 17, 118, 289, 40, 161, 92, 450]
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
LONGEST = 1800
"""Seconds that a command may take: `verify` runs 2,300 tokens on a GPU made of the CPU."""
STEPS = {"cut": 12, "small": 4}
SHAPE_NODES = Counter({"Squeeze": 1, "Cast": 1})
"""The total length that GroupQueryAttention reads on the CPU; graph capture allows these."""
# float16 has 11 bits: sums over K in another order, and another exponential, differ by some units of the last place.
TOLERANCE = 0.01
"""Largest difference, as a share of the largest value of the output."""


def session(path: Path, provider: Any, **entries: str) -> Any:
    """Open a graph; DirectML wants no memory pattern."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, value in entries.items():
        options.add_session_config_entry(name.replace("__", "."), value)
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


def nodes(opened: Any) -> Counter[tuple[str, str]]:
    """Return how many nodes of each provider and operator there are."""
    found: Counter[tuple[str, str]] = Counter()
    for part in opened.get_provider_graph_assignment_info():
        found.update((part.ep_name, node.op_type) for node in part.get_nodes())
    return found


def placement(package: Path) -> str:
    """Check that every node is on DirectML, but for the arithmetic on a shape that ONNX Runtime keeps on the CPU."""
    try:
        opened = session(package / "model.onnx", DML, ep__dml__enable_graph_capture="1")
    except Exception as error:
        found = nodes(session(package / "model.onnx", DML))
        elsewhere = {op: count for (provider, op), count in found.items() if provider != DML[0]}
        raise AssertionError(f"not on DirectML: {elsewhere}; {' '.join(str(error).split())[-160:]}") from error
    found = nodes(opened)
    elsewhere = Counter({op: count for (provider, op), count in found.items() if provider != DML[0]})
    assert not elsewhere - SHAPE_NODES, f"not on DirectML: {dict(elsewhere)}"
    there = {op: count for (provider, op), count in found.items() if provider == DML[0]}
    return f"{sum(there.values())} of {found.total()} nodes, {dict(elsewhere)} of shapes on the CPU: {there}"


def operator(path: Path) -> str:
    """Check a model of one node against the outputs that the CPU gave; of attention, as far as the window goes."""
    window = unseen_window(path, "dml")
    stored = np.load(path.with_suffix(".npz"))
    feeds = {name[3:]: stored[name] for name in stored.files if name.startswith("in:")}
    opened = session(path, DML)
    names = [output.name for output in opened.get_outputs()]
    worst, where, beyond = 0.0, "equal", ""
    for number, (name, found) in enumerate(zip(names, opened.run(names, feeds), strict=True)):
        wanted = stored[f"out:{name}"].astype(np.float64)
        assert np.isfinite(found).all() or not np.isfinite(wanted).all(), f"{name} has NaN or infinity"
        scale = np.abs(wanted).max() or 1.0
        difference = np.abs(found.astype(np.float64) - wanted) / scale
        # The first output is [1, tokens, width]; the others are keys and values, which no window changes.
        if window and number == 0 and window < wanted.shape[1]:
            outside = float(difference[:, window:].max())
            assert outside > TOLERANCE, "DirectML computes the sliding window here: `unseen_window` is out of date"
            beyond = f"; the first {window} of {wanted.shape[1]} tokens, after them {outside:.2g} for want of a window"
            difference = difference[:, :window]
        share = float(difference.max()) if difference.size else 0.0
        if share > worst:
            worst, where = share, f"{share:.2g} of the largest value {scale:.4g}"
    # A node that went to the CPU would be equal trivially.
    on_cpu = [op for (provider, op), _ in nodes(opened).items() if provider != DML[0]]
    assert worst <= TOLERANCE, where
    return f"{where}{beyond}{'; on the CPU' if on_cpu else ''}"


def context(package: Path) -> str:
    """Check that a model with a window has that for its context, and that loading it says so."""
    window = unseen_window(package / "model.onnx", "dml")
    said: list[str] = []
    with load(package, provider="dml", self_test=False, notify=said.append) as model:
        found = model.context_length
    assert found == window, f"{found} tokens of context, and a window of {window}"
    told = [line for line in said if "sliding window" in line]
    assert told, f"no word of it: {said}"
    return told[0]


def command_line(*arguments: str | Path) -> tuple[int, Any]:
    """Run a verb with `--json`, and return its exit code and what it prints."""
    command = [sys.executable, "-m", "phi3_onnx.cli", *map(str, arguments), "--json"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, timeout=LONGEST, env=environment, check=False)
    assert done.stdout, done.stderr.decode("utf-8", "replace").replace("\0", "").strip()[-400:]
    # GenAI's library says on stdout, as it ends, that it cannot take the Direct3D that it came with.
    found, _ = json.JSONDecoder().raw_decode(done.stdout.decode("utf-8", "replace"))
    return done.returncode, found


def generate(package: Path) -> str:
    """Check that `generate --provider dml` prints what it prints on the CPU."""
    options = ("-p", "What is the capital of France?", "-n", "12", "--temperature", "0", "--provider")
    (code, found), (_, wanted) = (command_line("generate", package, *options, name) for name in ("dml", "cpu"))
    assert code == 0 and found["text"] == wanted["text"], f"exit code {code}; {found['text']!r}, CPU {wanted['text']!r}"
    return repr(found["text"])


def verify(package: Path) -> str:
    """Check that `verify` holds DirectML against the CPU where neither torch nor the checkpoint is there."""
    code, found = command_line("verify", package, "--provider", "dml", "--reference", package, "--steps", "16")
    rows = {row["name"]: row["value"] for row in found["rows"]}
    assert found["provider"] == DML[0], f"it ran on {found['provider']}"
    assert code == 0 and found["passed"], f"exit code {code}: {rows}"
    names = ("mean_kl", "p99_kl", "top1_agreement", "greedy_agreement")
    return f"{found['metrics']['positions']} positions: " + ", ".join(f"{name} {rows[name]:.3g}" for name in names)


def doctor(package: Path) -> str:
    """Check that `doctor PACKAGE` proves a package on DirectML and on the CPU, each in a process of its own."""
    code, report = command_line("doctor", package)
    rows = {(row["provider"], row["engine"]): row for row in report["package"]["trials"]}
    failed = [f"{provider}, {engine}: {row['reason']}" for (provider, engine), row in rows.items() if not row["passed"]]
    wanted = {("cpu", "genai"), ("dml", "genai")}
    assert wanted <= rows.keys() and not failed and code == 0, f"exit code {code}; {failed}"
    return f"dml: {rows['dml', 'genai']['reason']}"


def ids_of(package: Path) -> list[int]:
    """Return the prompt: a chat for the whole model, which then has something to say."""
    if package.name.startswith("small"):
        from phi3_onnx.runtime.text.tokenizer import Tokenizer

        return list(Tokenizer(package).encode(QUESTION))
    return PROMPT


class Decoder:
    """Greedy tokens with past and present in one buffer, as DirectML's GroupQueryAttention wants them."""

    def __init__(self, package: Path, provider: Any, capacity: int) -> None:
        """Open a package with room for `capacity` tokens."""
        self.opened = session(package / "model.onnx", provider)
        self.capacity, self.device = capacity, "cpu" if provider == CPU else "dml"
        self.buffers = {}
        for value in self.opened.get_inputs():
            if value.name.startswith("past_key_values"):
                shape = (1, value.shape[1], capacity, value.shape[3])
                zeros = np.zeros(shape, np.float16 if "16" in value.type else np.float32)
                self.buffers[value.name] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self.device, 0)
        self.names = {value.name for value in self.opened.get_inputs()}

    def run(self, ids: list[int], start: int) -> np.ndarray:
        """Run tokens after `start` others, and return their logits."""
        stop, binding = start + len(ids), self.opened.io_binding()
        feeds = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
        }
        for name in self.names & feeds.keys():
            binding.bind_cpu_input(name, feeds[name])
        binding.bind_output("logits", "cpu")
        for name, buffer in self.buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        self.opened.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()[0].astype(np.float32)

    def greedy(self, ids: list[int], steps: int) -> list[int]:
        """Return the most likely tokens after a prompt."""
        found: list[int] = []
        start, run = 0, list(ids)
        for _ in range(steps):
            token = int(self.run(run, start)[-1].argmax())
            start, run = start + len(run), [token]
            found.append(token)
        return found


def plain(package: Path, steps: int) -> str:
    """Compare greedy tokens of plain ONNX Runtime."""
    ids = ids_of(package)
    wanted = Decoder(package, CPU, len(ids) + steps).greedy(ids, steps)
    found = Decoder(package, DML, len(ids) + steps).greedy(ids, steps)
    assert found == wanted, f"DirectML {found}, CPU {wanted}"
    return f"{len(found)} of {len(wanted)} tokens: {found}"


def genai(package: Path, steps: int) -> str:
    """Compare greedy tokens of GenAI on DirectML, the package as it lies, with plain ONNX Runtime's on the CPU."""
    og: Any = importlib.import_module("onnxruntime_genai")

    ids = ids_of(package)
    wanted = Decoder(package, CPU, len(ids) + steps).greedy(ids, steps)
    model = og.Model(str(package))
    if model.device_type.lower() not in ("dml", "directml"):
        raise AssertionError(f"GenAI took {model.device_type}")
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + steps, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    found: list[int] = []
    while not generator.is_done() and len(found) < steps:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found and found == wanted[: len(found)], f"GenAI on DirectML {found}, CPU {wanted}"
    return f"{len(found)} of {len(wanted)} tokens: {found}"


def main() -> None:
    """Check each case."""
    results, folder, *cases = sys.argv[1:]
    report = Report(results, "directml")
    if DML[0] not in onnxruntime.get_available_providers():
        report.check("provider", "", lambda: (_ for _ in ()).throw(Skipped("no DirectML in this ONNX Runtime")))
        return
    for case in cases:
        package = Path(folder) / f"{case}-{TARGET}"
        if case in STEPS:
            report.check("tokens, GenAI", case, lambda: genai(package, STEPS[case]))  # noqa: B023
            report.check("tokens, ONNX Runtime", case, lambda: plain(package, STEPS[case]))  # noqa: B023
            report.check("generate", case, lambda: generate(package))  # noqa: B023
        if (package / "selftest.json").is_file():
            report.check("doctor PACKAGE", case, lambda: doctor(package))  # noqa: B023
            report.check("verify against the CPU", case, lambda: verify(package))  # noqa: B023
        if unseen_window(package / "model.onnx", "dml"):
            report.check("context", case, lambda: context(package))  # noqa: B023
        report.check("placement", case, lambda: placement(package))  # noqa: B023  # run at once
        for path in sorted((Path(folder) / f"{case}-operators").glob("*.onnx")):
            report.check(f"operator {path.stem[3:]}", case, lambda: operator(path))  # noqa: B023


if __name__ == "__main__":
    main()
