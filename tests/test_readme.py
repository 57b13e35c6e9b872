"""What the README says works: its Python example, its targets, its verbs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from phi3_onnx.cli import VERBS, root
from phi3_onnx.configs import targets
from phi3_onnx.evaluate.tasks.benchmarks import benchmarks

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example(
    tiny: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    # Random weights are no trained model: RTN on them misses the thresholds, which are not what this test is about.
    assert '"cpu-int4-rtn"' in example
    example = example.replace('"cpu-int4-rtn"', '"cpu-fp32"')
    (tmp_path / "checkpoint").symlink_to(tiny("plain"))
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "package" / "phi3_onnx.json").is_file()
    assert re.search(r" (stop|length)$", capsys.readouterr().out, re.MULTILINE)


def test_every_target_is_listed() -> None:
    listed = re.findall(r"^\| `([\w-]+)`", README, re.MULTILINE)
    assert sorted(listed) == sorted(targets())


def test_the_table_of_the_model_cards() -> None:
    rows = re.findall(r"^\| ([^|`]+?) \| `(\w+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    assert [
        (name.rstrip("*"), task, int(shots), float(short), float(long)) for name, task, shots, short, long in rows
    ] == [(entry.name, entry.task, entry.shots, *entry.values.values()) for entry in benchmarks()]
    assert [name.endswith("*") for name, *_ in rows] == [entry.card == "2024-04" for entry in benchmarks()]


def test_every_command_exists() -> None:
    named = set(re.findall(r"phi3-onnx ([a-z]+)\b", README))
    assert named <= set(VERBS), named - set(VERBS)


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_a_help_page(verb: str) -> None:
    result = CliRunner().invoke(root, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
