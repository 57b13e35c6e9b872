"""The command lines of the documents' blocks run, page by page and in order, or are listed with the reason why not.

Names of the documents (`./my-fine-tune`, `my-phi3`) are tiny models in a scratch folder, whose int4 packages pass their
verification. Slow lines run with PHI3_ONNX_ALL_BLOCKS=1; PHI3_ONNX_BLOCKS_OF=FOLDER puts a checkpoint of yours in the
place of the tiny one.
"""

import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
from phi3_onnx.cli import main
from phi3_onnx.export import export
from safetensors.numpy import load_file, save_file
from serving import serving

FOLDER = Path(__file__).parents[1]
PAGES = [
    *(FOLDER / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    *(page for page in sorted((FOLDER / "docs").rglob("*.md")) if page.name != "cli.md"),  # a page of help texts
]
NOT_RUN: Mapping[str, str] = {
    r"pip install|^python3 -m venv": "it installs: CI and tests/test_wheel.py do that",
    r"^\. \.venv/bin/activate": "it enters an environment",
    r"^pre-commit ": "another program",
    r"^serve run |ray_data|load_and_kill": "needs Ray: tests/deploy/run",
    r"_PHI3_ONNX_COMPLETE=": "lines of a shell's start file",
    r"^phi3-onnx demo$": "fetches the small model: tests/test_readme.py runs it",
    r"^OTEL_": "needs the extra otel: tests/runtime/server/test_observed.py has it",
    r"train_lora\.py|langchain_client\.py": "tests/test_examples.py runs it",
    r"--provider (cuda|webgpu)|--require cuda": "needs a GPU",
    r"--provider dml": "needs Windows: tests/windows/run",
    r"^phi3-onnx (pull|push) (?!.*--dry-run)": "needs the hub: tests/cli/test_pull_and_push.py has a double",
}
"""What is not run here: a pattern of the line, and the reason."""
SLOW = r"--draft|phi3-onnx (serve|matrix)\b|bench .*(--clients|other-package)|awq|gptq|imatrix|--budget"
STANDS_FOR: Mapping[str, str] = {
    r"microsoft/Phi-3-mini-4k-instruct\b": "./Phi-3-mini-4k-instruct",
    r"~/\.cache/phi3-onnx/SmolLM2-135M-Instruct\.Q4_1\.gguf": "./SmolLM2-135M-Instruct",
    r"elsewhere\.jsonl": "my-package/phi3_onnx.intoto.jsonl",
    r"--port \d+ ?": "",  # a free one
    r"--budget 6\.0bpw": "--budget 7.0bpw",  # the tiny model's embedding, in 8 bits, is nearly half of it
    r"--against phi3\.Q4_0\.gguf --against phi3-openvino ": "",  # in llama.cpp and OpenVINO, which are not installed
}
"""What is typed in place of a name of the documents."""
CHECKPOINTS = ("my-fine-tune", "merged", "Phi-3-mini-4k-instruct", "SmolLM2-135M-Instruct")
PACKAGES = {
    "my-phi3": "cpu-int4-rtn",
    "my-package": "cpu-int4-rtn",
    "my-small-phi3": "cpu-int4-rtn",
    "other-package": "cpu-fp32",
    "my-phi3-fp32": "cpu-fp32",
}
PROSE = "The harbour was quiet that morning, and nobody had expected the ships to leave so early. " * 12
FILES = {
    "question.txt": "Why is the sky blue?",
    "form.json": '{"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}',
    "prompts.jsonl": '{"prompt": "Hi", "max_tokens": 4}\n{"id": 7, "prompt": "Ho", "max_tokens": 4}\n',
    "train.jsonl": '{"text": "' + PROSE + '"}\n',
    "my-domain.jsonl": '{"text": "' + PROSE + '"}\n',
    "book.txt": PROSE,
    "held-out.txt": PROSE,
}
TYPED = {"chat": "Hi\n/bye\n", "rm": "y\n"}
"""What a verb's user types."""


def lines(page: Path) -> list[str]:
    """Return the command lines of a page's blocks, without comments."""
    found: list[str] = []
    fence = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fence = None if fence is not None else line[3:]
        elif line.startswith("    ") if fence is None else fence in ("", "bash", "sh"):
            found.append(re.sub(r"\s+# .*", "", line).strip())
    if page.name == "python.md" and page.parent.name == "reference":
        return []  # its blocks are options of mkdocstrings
    return [line for line in found if line]


def reason(line: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), None)


def test_every_line_is_run_or_has_a_reason_and_every_reason_a_line() -> None:
    every = [line for page in PAGES for line in lines(page)]
    assert len(every) > 80
    for line in every:
        assert reason(line) or re.match(r"(echo .* \| |\w+=\S+ )?phi3-onnx ", line), f"nothing runs this line: {line}"
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in every), f"no line has {pattern}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """Return a tiny model that int4 hurts little: what its layers add to the embedding is small."""
    if given := os.environ.get("PHI3_ONNX_BLOCKS_OF"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("calm") / "my-fine-tune"
    shutil.copytree(tiny("plain"), folder)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = tensors[name] * 0.05
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def packages(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Return target -> a package of the checkpoint; it is copied before it is used."""
    folder = tmp_path_factory.mktemp("packages")
    return {target: export(checkpoint, target, folder / target) for target in dict.fromkeys(PACKAGES.values())}


@pytest.fixture
def scratch(
    checkpoint: Path,
    packages: Mapping[str, Path],
    adapter_of: Callable[..., Path],
    isolated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Enter a folder that has what the documents name."""
    for name in CHECKPOINTS:
        (tmp_path / name).symlink_to(checkpoint)
    for name, target in PACKAGES.items():
        shutil.copytree(packages[target], tmp_path / name)
    for name in ("SmolLM2-135M-Instruct", "Phi-3-mini-4k-instruct"):
        shutil.copytree(packages["cpu-int4-rtn"], isolated / "packages" / name / "cpu-int4-rtn")
    shutil.copytree(adapter_of(checkpoint, target_modules="all-linear"), tmp_path / "my-lora")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(page: Path) -> str:
    return page.relative_to(FOLDER).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if not all(map(reason, lines(page)))], ids=shown)
def test_the_lines_of_a_page_run(
    page: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = bool(os.environ.get("PHI3_ONNX_ALL_BLOCKS"))
    for line in lines(page):
        if reason(line) or (re.search(SLOW, line) and not everything):
            continue
        typed = line
        for pattern, stand_in in STANDS_FOR.items():
            typed = re.sub(pattern, stand_in, typed)
        said, _, command = typed.rpartition(" | ")
        words = shlex.split(command)
        if "=" in words[0]:
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        words.pop(0)  # phi3-onnx
        if words[0] == "serve":
            with serving(*words[1:]) as address:
                assert httpx.get(f"{address}/v1/models").json()["data"], line
            continue
        if "-o" in words and words[0] != "bench":  # each line makes it anew
            shutil.rmtree(scratch / words[words.index("-o") + 1], ignore_errors=True)
        elif words[0] in ("export", "quantize"):
            words.append("--force")
        text = said.removeprefix("echo ").strip('"') or TYPED.get(words[0], "")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        monkeypatch.setattr(sys, "argv", ["phi3-onnx", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert not ended.value.code, f"{shown(page)}: {line}: {printed.err[-2000:]}"
        assert printed.out.strip() or words[0] in ("rm", "sign", "alias", "push"), f"{shown(page)}: {line}: no output"
