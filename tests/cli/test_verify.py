"""`phi3-onnx verify` and `phi3-onnx evaluate`: what they print, and where a failure goes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.configs import read_manifest
from phi3_onnx.evaluate.parity import corpus

from .conftest import Run

Make = Callable[..., Path]


@pytest.fixture
def package(tiny_package: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpus, "TOKENS", 300)
    return Path(shutil.copytree(tiny_package("plain"), tmp_path / "package"))


def spoil(package: Path) -> None:
    """Swap two end tokens: the file keeps its size."""
    path = package / "genai_config.json"
    text = path.read_text(encoding="utf-8")
    table = json.loads(text)
    assert table["model"]["eos_token_id"] == [0, 4]
    head, tail = text.split('"eos_token_id"')
    path.write_text(head + '"eos_token_id"' + tail.replace("4", "5", 1), encoding="utf-8")


def test_verify_prints_a_table_and_records_it(run: Run, package: Path) -> None:
    ran = run("verify", package, "--steps", 4)
    assert ran.code == 0, ran
    rows = [line.split() for line in ran.out.splitlines()]
    assert [row[0] for row in rows[1:12]] == [
        "token_ids",
        "chat_template",
        "end_tokens",
        "genai_token_ids",
        "reference_error",
        "max_abs_diff",
        "mean_kl",
        "p99_kl",
        "top1_agreement",
        "perplexity_ratio",
        "greedy_agreement",
    ]
    assert all("ok" in row for row in rows[1:12] if row[0] != "genai_token_ids")
    assert "on CPUExecutionProvider, against " in ran.out
    assert read_manifest(package).verified is True


class OtherGenAi:
    """ONNX Runtime GenAI with a tokenizer that reads one text as no other does, as its own does Fraktur."""

    __version__ = "0.0"

    def __init__(self, package: Path) -> None:
        from phi3_onnx.runtime.text.tokenizer import Tokenizer

        self._tokenizer = Tokenizer(package)

    def Tokenizer(self, _folder: str) -> "OtherGenAi":  # noqa: N802  # GenAI's own name
        return self

    def encode(self, text: str) -> np.ndarray:
        ids = self._tokenizer.encode(text, special=False)
        return np.array(ids[:-1] if text == corpus.snippets()[1] else ids)


def test_another_clients_tokenizer_is_a_warning_and_a_failure_only_where_asked(
    run: Run, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3_onnx.evaluate.parity.tokens.import_genai", lambda: OtherGenAi(package))
    ran = run("verify", package, "--steps", 4)
    assert ran.code == 0, ran
    assert "warning: another client differs: genai_token_ids: 1 of " in ran.err
    assert "onnxruntime-genai 0.0 gives" in ran.err
    assert read_manifest(package).verified is True
    shown = run("show", package).out
    assert any(line.split()[0] == "genai_token_ids" and line.split()[-1] == "differs" for line in shown.splitlines())
    strict = run("verify", package, "--steps", 4, "--strict-clients")
    assert strict.code == 1
    assert "genai_token_ids is 0.9792, must be at least 1 (1 of 48 differ" in strict.err
    assert read_manifest(package).verified is False


def test_a_failed_row_is_one_line_on_stderr_and_exit_code_1(run: Run, package: Path) -> None:
    spoil(package)
    ran = run("verify", package, "--steps", 4)
    assert ran.code == 1
    assert (
        ran.err.strip()
        .splitlines()[-1]
        .startswith(
            "phi3-onnx: tiny-plain/cpu-fp32 failed its verification: "
            "end_tokens is 0.5, must be at least 1 (1 of 2 differ"
        )
    )
    assert "FAILED" in next(line for line in ran.out.splitlines() if line.startswith("end_tokens"))
    assert read_manifest(package).verified is False


def test_json_is_all_of_stdout(run: Run, package: Path) -> None:
    ran = run("verify", package, "--steps", 4, "--json", "--no-record")
    table = json.loads(ran.out)
    assert table["passed"] is True
    assert table["rows"][-1]["name"] == "greedy_agreement"
    assert read_manifest(package).verification is None


def test_hashes_find_a_changed_byte_that_sizes_do_not(run: Run, package: Path) -> None:
    spoil(package)
    ran = run("verify", package, "--hashes", "--steps", 4)
    assert (ran.code, ran.out) == (1, "")
    assert "genai_config.json has another sha256 than when it was made" in ran.err


def test_the_reference_is_what_the_package_was_made_of_or_what_is_named(run: Run, package: Path, tiny: Make) -> None:
    moved = package.parent / "moved"
    shutil.copytree(tiny("plain"), moved)
    manifest = package / "phi3_onnx.json"
    manifest.write_text(manifest.read_text().replace(json.dumps(str(tiny("plain"))), json.dumps("/nowhere/at-all")))
    ran = run("verify", package)
    assert (ran.code, ran.out) == (1, "")
    assert "/nowhere/at-all" in ran.err
    assert "--reference" in ran.err
    assert run("verify", package, "--reference", moved, "--steps", 4).code == 0


def test_packages_of_others_need_a_reference_and_can_be_given_a_target(run: Run, package: Path, tiny: Make) -> None:
    (package / "phi3_onnx.json").unlink()
    ran = run("verify", package)
    assert ran.code == 2
    assert "name its checkpoint with --reference" in ran.err
    ran = run("verify", package, "--reference", tiny("plain"), "--steps", 4)
    assert ran.code == 0
    assert "judged by nothing" in ran.out
    ran = run("verify", package, "--reference", tiny("plain", seed=1), "--steps", 4, "--target", "cpu-fp32")
    assert ran.code == 1
    assert "mean_kl is" in ran.err


def test_verify_takes_store_names_and_refuses_others(run: Run, tiny: Make, isolated: Path) -> None:
    assert run("verify", "nothing-here").code == 1
    assert run("export", tiny("plain"), "--target", "cpu-fp32", "--no-verify").code == 0
    ran = run("verify", "tiny-plain/cpu-fp32", "--steps", 2)
    assert ran.code == 0, ran
    ran = run("verify", "tiny-plain", "--provider", "warp")
    assert ran.code == 2
    assert "unknown provider 'warp'" in ran.err


def test_evaluate_prints_figures_on_a_text(run: Run, package: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 8, encoding="utf-8")
    ran = run("evaluate", package, "--text", text, "--context", 64)
    assert ran.code == 0, ran
    lines = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert "±" in lines["perplexity"]
    assert lines["same"] == "top token    100.00%"
    ran = run("evaluate", package, "--text", text, "--json", "--reference", package)
    table = json.loads(ran.out)
    assert table["reference"] == "tiny-plain/cpu-fp32 (CPUExecutionProvider)"
    assert table["metrics"]["mean_kl"] == 0


def test_evaluate_takes_its_own_text_and_no_reference(run: Run, package: Path) -> None:
    ran = run("evaluate", package, "--no-reference", "--max-tokens", 50)
    assert ran.code == 0, ran
    assert "50 tokens, 2048 at a time" in ran.out
    assert "KL" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reference", "x", "--no-reference"], "exclude each other"),
        (["--text", "missing.txt"], "missing.txt"),
        (["--max-tokens", "1"], "1 is not in the range"),
    ],
)
def test_evaluate_says_what_is_wrong(run: Run, package: Path, arguments: list[str], words: str) -> None:
    ran = run("evaluate", package, *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert ran.out == ""


def test_text_that_is_no_text_is_named(run: Run, package: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    ran = run("evaluate", package, "--text", path)
    assert ran.code == 2
    assert "picture.png is not UTF-8 text" in ran.err


def test_a_package_as_reference_needs_no_torch_and_records_nothing(
    run: Run, package: Path, tiny_package: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = tiny_package("plain", "cpu-int4-rtn")
    monkeypatch.setattr("phi3_onnx.configs.requirements._installed", lambda name: name not in ("torch", "transformers"))
    before = read_manifest(quantized).verification
    ran = run("verify", quantized, "--reference", package, "--steps", 4)
    assert ran.code == 0, ran
    assert "on CPUExecutionProvider, against tiny-plain/cpu-fp32 on CPUExecutionProvider, " in ran.out
    assert read_manifest(quantized).verification == before
    refused = run("verify", quantized, "--reference", package, "--adapter", "x")
    assert refused.code == 2 and "go with a checkpoint" in refused.err
    evaluated = run("evaluate", quantized, "--reference", package, "--max-tokens", 50)
    assert evaluated.code == 0, evaluated


def test_without_torch_the_way_that_needs_none_is_named(
    run: Run, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3_onnx.configs.requirements._installed", lambda name: name != "torch")
    ran = run("verify", package, "--provider", "dml")
    assert ran.code == 1
    assert f"phi3-onnx verify {package} --provider dml --reference {package}" in ran.err
    assert "--reference" not in run("verify", package, "--provider", "cpu").err
