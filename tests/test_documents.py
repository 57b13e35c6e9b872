"""The documents: links lead somewhere, commands exist with their options, and examples run."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
import write_cli
from phi3_onnx.cli import VERBS, root
from phi3_onnx.configs import Manifest
from phi3_onnx.evaluate.tasks.benchmarks import benchmarks

FOLDER = Path(__file__).parents[1]
PAGES = [
    *(FOLDER / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    *sorted((FOLDER / "docs").rglob("*.md")),
]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def _without_code(text: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1$|^    [^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ +(.+?)\s*$", _without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(FOLDER)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_without_code(page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), f"{page}: {link}"
        assert not anchor or anchor in _anchors(file), f"{page}: {link}, of {sorted(_anchors(file))}"


def _commands(page: Path) -> Iterator[str]:
    """Yield the command lines that a page shows, in code blocks and between backticks."""
    text = re.sub(r"^```text\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    inside = [*re.findall(r"^    .*$", text, re.MULTILINE), *re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.DOTALL)]
    inside += re.findall(r"`(phi3-onnx [^`]+)`", text.replace("\n", " "))
    for line in "\n".join(inside).splitlines():
        yield from re.findall(r"(?:^|[\s&|$(])phi3-onnx ([a-z-].*?)(?= && | \| |$)", line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(FOLDER)))
def test_commands_exist_with_their_options(page: Path) -> None:
    for line in _commands(page):
        words = [word for word in shlex.split(line.replace("...", ""), comments=True) if word]
        while words and words[0].startswith("-"):
            assert words[0] in _options(root), f"{page}: phi3-onnx {line}"
            words.pop(0)
        if not words or words[0].isupper():  # COMMAND, VERB
            continue
        verb, *rest = words
        assert verb in VERBS, f"{page}: phi3-onnx {line}"
        command = root.get_command(click.Context(root), verb)
        assert command is not None
        for word in rest:
            if word.startswith("-") and word != "-" and not re.match(r"-\d", word):
                option = word.partition("=")[0]
                assert option in _options(command), f"{page}: phi3-onnx {line}: {verb} has no {option}"


def _options(command: click.Command) -> set[str]:
    shared = {"-h", "--help"}
    return shared | {name for entry in command.params for name in (*entry.opts, *entry.secondary_opts)}


def test_the_table_of_the_model_cards() -> None:
    page = (FOLDER / "docs" / "explanation" / "model-card.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+?) \| `(\w+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert [
        (name.rstrip("*"), task, int(shots), float(short), float(long)) for name, task, shots, short, long in rows
    ] == [(entry.name, entry.task, entry.shots, *entry.values.values()) for entry in benchmarks()]
    assert [name.endswith("*") for name, *_ in rows] == [entry.card == "2024-04" for entry in benchmarks()]


RUNS = re.compile(r"<!-- tests/test_documents\.py runs this -->\n```python\n(.*?)```", re.DOTALL)


def test_the_python_examples(
    tiny: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, *more = RUNS.findall((FOLDER / "docs" / "guides" / "python.md").read_text(encoding="utf-8"))
    assert len(more) == 3
    # Random weights are no trained model: RTN on them misses the thresholds, which are not what this test is about.
    assert '"cpu-int4-rtn"' in first
    (tmp_path / "checkpoint").symlink_to(tiny("plain"))
    monkeypatch.chdir(tmp_path)
    exec(compile(first.replace('"cpu-int4-rtn"', '"cpu-fp32"'), "python.md", "exec"), {})
    assert (tmp_path / "package" / "phi3_onnx.json").is_file()
    assert re.search(r" (stop|length)$", capsys.readouterr().out, re.MULTILINE)
    for example in more:
        exec(compile(example, "python.md", "exec"), {})
        assert capsys.readouterr().out.strip()


PYTHON = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=lambda value: value.name if isinstance(value, Path) else "")
def test_python_blocks_are_run_or_an_example_that_is(page: Path, block: str) -> None:
    """A block is run here, or it is a file of `examples/`, which its own test runs."""
    text = page.read_text(encoding="utf-8")
    assert block in RUNS.findall(text) or any(
        block.strip() in example.read_text(encoding="utf-8") for example in (FOLDER / "examples").glob("*.py")
    ), f"{page}: a Python block that nothing runs:\n{block}"


def test_the_command_line_page_is_up_to_date() -> None:
    assert write_cli.PAGE.read_text(encoding="utf-8") == write_cli.page(), "run: python docs/write_cli.py"


def test_the_manifest_page_has_every_field() -> None:
    page = (FOLDER / "docs" / "reference" / "package.md").read_text(encoding="utf-8")
    listed = {name for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE) for name in row.split("`")}
    assert {field.name for field in fields(Manifest)} <= listed


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"([\w/-]+\.md)$", (FOLDER / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {page.relative_to(FOLDER / "docs").as_posix() for page in (FOLDER / "docs").rglob("*.md")}


def test_the_site_builds_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert "Load a package" in page and "max_new_tokens" in page
    for file in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?(https?:[^\"' >]+)", file.read_text("utf-8")
        )
        assert not loaded, f"{file.name} loads {loaded}"
