"""`phi3-onnx bench`: a row for each package, and what is wrong before anything runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import PackageError, UsageError
from phi3_onnx.evaluate.sweep import Figure, Sweep
from phi3_onnx.evaluate.tables import table_of

SHORT = ["--prompt", "8", "--decode", "2", "--repeat", "1", "--threads", "1", "--provider", "cpu"]


def test_a_line_for_each_package(tiny_package: Callable[..., Path]) -> None:
    package = tiny_package("plain")
    ran = CliRunner().invoke(root, ["bench", str(package), *SHORT, "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["prompt_tokens"], found["decoded_tokens"], found["repeat"]) == (8, 2, 1)
    assert found["package"] == "tiny-plain/cpu-fp32"
    assert found["prefill_tokens_per_second"] > 0
    assert found["decode_tokens_per_second"] > 0
    assert found["peak_memory_bytes"] > 10 << 20
    assert found["first_token_seconds"] > 0 and found["read_share"] > 0


def test_a_row_for_each_package(tiny_package: Callable[..., Path]) -> None:
    packages = [str(tiny_package("plain")), str(tiny_package("gqa"))]
    ran = CliRunner().invoke(root, ["bench", *packages, *SHORT])
    assert ran.exit_code == 0, ran.output
    heading, *rows, note = ran.stdout.splitlines()
    names = re.split(r" {2,}", heading.strip())
    assert [re.split(r" {2,}", row)[0] for row in rows] == ["tiny-plain/cpu-fp32", "tiny-gqa/cpu-fp32"]
    assert all(len(re.split(r" {2,}", row)) == len(names) == 7 for row in rows)
    assert note.startswith("prefill of 8 tokens and decode of 2 in tokens/s, medians of 1")


def test_a_sweep_measures_every_combination(tiny_package: Callable[..., Path]) -> None:
    package = tiny_package("gqa", "cpu-int4-rtn")
    sweep = ["-p", "4,8", "-n", "2", "-d", "0,5", "--clients", "1,2", "--repeat", "2", "--threads", "1", "-o"]
    ran = CliRunner().invoke(root, ["bench", str(package), *sweep, "json"])
    assert ran.exit_code == 0, ran.output
    (found,) = json.loads(ran.stdout)
    assert found["package"] == "tiny-gqa/cpu-int4-rtn" and "decode.onnx" in found["engine"]
    jobs = [(entry["kind"], entry["tokens"], entry["depth"], entry["texts"]) for entry in found["figures"]]
    assert jobs == [
        *(("prefill", tokens, depth, 1) for depth in (0, 5) for tokens in (4, 8)),
        *(("decode", 2, depth, 1) for depth in (0, 5)),
        *(("together", 2, 5, texts) for texts in (1, 2)),
    ]
    for entry in found["figures"]:
        assert 0 < entry["least"] <= entry["tokens_per_second"] <= entry["most"]
        assert (entry["read_share"] is not None) == (entry["kind"] == "decode")
        assert (entry["first_token_seconds"] is not None) == (entry["kind"] == "prefill")
    assert found["cold_first_token_seconds"] > 0 and found["read_bandwidth"] > 0
    assert found["warm_up"] == "a prompt of 4 tokens, then 16 and 4 single ones"


def test_an_answer_is_timed_with_drafts_and_without(tiny_package: Callable[..., Path]) -> None:
    package = str(tiny_package("gqa", "cpu-int4-rtn"))
    short = ["-p", "4", "-n", "12", "--repeat", "1", "--threads", "1", "-o", "json"]
    ran = CliRunner().invoke(root, ["bench", package, *short, "--speculate", "4", "--draft", package])
    assert ran.exit_code == 0, ran.output
    figures = {figure["kind"]: figure for figure in json.loads(ran.stdout)[0]["figures"]}
    assert list(figures) == ["prefill", "decode", "answer", "ahead"]
    assert figures["ahead"]["tokens"] == figures["answer"]["tokens"] == 12
    assert figures["ahead"]["depth"] == figures["answer"]["depth"] > 50
    assert 0.5 < figures["ahead"]["accepted_share"] <= 1.0, "it drafts for itself"
    assert figures["answer"]["accepted_share"] is None
    ran = CliRunner().invoke(root, ["bench", package, "--draft", package])
    assert isinstance(ran.exception, UsageError) and "--draft needs --speculate" in str(ran.exception)
    ran = CliRunner().invoke(root, ["bench", str(tiny_package("plain")), *short, "--speculate", "auto"])
    assert isinstance(ran.exception, UsageError) and "runs nothing ahead in" in str(ran.exception)


def test_a_sweep_is_written_as_asked() -> None:
    figures = [
        Figure("prefill", 128, 0, 1, 300.5, 290.0, 310.0, 0.43),
        Figure("together", 48, 512, 8, 99.0, 98.0, 100.0),
    ]
    sweeps = [Sweep("a, b/cpu", "cpu", "engine", 1.0, 0.5, 300, 2e10, 10**8, "", "a prompt", figures)]
    table = table_of(sweeps)
    assert table.written("csv").splitlines() == [
        "package,kind,tokens,depth,texts,tokens_per_second,least,most,first_token_seconds,read_share,joules_per_token,"
        "accepted_share,load_seconds,cold_first_token_seconds,peak_memory_bytes",
        '"a, b/cpu",prefill,128,0,1,300.5,290.0,310.0,0.43,,,,1.0,0.5,300',
        '"a, b/cpu",together,48,512,8,99.0,98.0,100.0,,,,,1.0,0.5,300',
    ]
    markdown = table.written("md").splitlines()
    assert (
        markdown[2] == "| a, b/cpu | prefill | 128 | 0 | 1 | 300.5 | 290.0 | 310.0 | 0.43 |  |  |  | 1.0 | 0.5 | 300 |"
    )
    assert markdown[4:6] == ["", "a, b/cpu on cpu (engine); warm-up: a prompt"]
    assert json.loads(table.written("json"))[0]["figures"][0]["first_token_seconds"] == 0.43


def test_what_a_sweep_cannot_do_is_said(tiny_package: Callable[..., Path]) -> None:
    ran = CliRunner().invoke(root, ["bench", str(tiny_package("plain")), "--clients", "2", "--threads", "1"])
    assert isinstance(ran.exception, UsageError) and "does not decode texts together" in str(ran.exception)
    ran = CliRunner().invoke(root, ["bench", str(tiny_package("plain")), "-p", "128,many"])
    assert ran.exit_code == 2 and "'128,many' must be numbers of 1 or more" in ran.output


def test_a_package_that_is_not_there_stops_all_of_them(tiny_package: Callable[..., Path]) -> None:
    ran = CliRunner().invoke(root, ["bench", str(tiny_package("plain")), "nothing", *SHORT])
    assert isinstance(ran.exception, PackageError)
    assert "'nothing' is neither a folder nor a package" in str(ran.exception)
    assert ran.stdout == ""


def test_a_package_has_to_be_named() -> None:
    ran = CliRunner().invoke(root, ["bench"])
    assert ran.exit_code == 2
    assert "PACKAGES" in ran.output
