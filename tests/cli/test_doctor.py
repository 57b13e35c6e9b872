"""`doctor`, `--version` and `--list-devices`, in environments that are whole, empty, and in disorder."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.runtime.providers import doctor

# What phi3-onnx depends on, and what those need.
_NEEDED = (
    "click",
    "jinja2",
    "markupsafe",
    "numpy",
    "platformdirs",
    "psutil",
    "rich",
    "markdown-it-py",
    "mdurl",
    "pygments",
    "tokenizers",
    "huggingface-hub",
)
_RUNTIME = ("onnxruntime", "onnxruntime-genai", "flatbuffers", "protobuf", "packaging")


def install(extra: str) -> str:
    """Return the advice where nothing tells what the project was installed from, as in these environments."""
    return f'pip install "phi3-onnx[{extra}]"'


class Environment:
    """A Python environment of its own, whose packages are links to those of this one."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin/python"
        (self.site,) = folder.glob("lib/python*/site-packages")
        # Its folders are the project's: `phi3_onnx.cli` is the folder `cli`.
        (self.site / "phi3_onnx").symlink_to(Path(__file__).parents[2])
        for name in _NEEDED:
            self.link(name)

    def link(self, name: str) -> None:
        found = distribution(name)
        assert found.files is not None
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            target = self.site / top
            if not target.exists():
                target.symlink_to(Path(str(found.locate_file(top))))

    def pretend(self, name: str, version: str) -> None:
        """Make a package look installed that another one has overwritten."""
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-m", "phi3_onnx.cli", *arguments]
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=clean)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    if sys.platform == "win32":
        pytest.skip("links need rights there")
    return Environment(tmp_path / "environment")


def test_an_environment_without_onnx_runtime(environment: Environment, tmp_path: Path) -> None:
    result = environment.run("doctor")
    assert result.returncode == 1
    remedy = f"-> {install('cpu')} (or [cuda], or [directml])"
    assert f"error: ONNX Runtime is not installed\n  {remedy}\n" in result.stdout
    assert f"error: its GenAI library is not installed\n  {remedy}\n" in result.stdout
    assert "cpu                does not run: onnxruntime is not installed" in result.stdout
    assert result.stderr == ""


def test_an_environment_with_clashing_wheels(environment: Environment) -> None:
    for name in _RUNTIME:
        environment.link(name)
    environment.pretend("onnxruntime-gpu", "1.24.4")
    result = environment.run("doctor")
    assert result.returncode == 1
    assert " and onnxruntime-gpu 1.24.4 overwrite each other's module onnxruntime" in result.stdout
    assert "  -> pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-genai && pip install " in result.stdout
    as_json = json.loads(environment.run("doctor", "--json").stdout)
    assert not as_json["healthy"] and len(as_json["problems"]) == 1


def test_an_environment_with_the_files_of_one_wheel_gone(environment: Environment) -> None:
    for name in _RUNTIME:
        environment.link(name)
    (environment.site / "onnxruntime").unlink()
    (environment.site / "onnxruntime").mkdir()  # what pip leaves: caches, without the module
    result = environment.run("doctor")
    assert result.returncode == 1
    assert "error: onnxruntime is damaged, its files are gone" in result.stdout
    assert "pip uninstall -y onnxruntime onnxruntime-genai && pip install" in result.stdout


def test_an_environment_for_the_cpu_alone(environment: Environment) -> None:
    for name in _RUNTIME:
        environment.link(name)
    result = environment.run("doctor")
    assert result.returncode == 0, result.stdout
    assert "cpu                runs: a matrix product came out right" in result.stdout
    assert "cuda               does not run: the installed onnxruntime" in result.stdout
    assert f"[server]           not installed: {install('server')}" in result.stdout
    assert result.stdout.endswith("Nothing is wrong.\n") or "warning:" in result.stdout  # a GPU may be there
    serve = environment.run("serve", "anything")
    assert serve.returncode == 1
    assert serve.stderr.startswith(
        "phi3-onnx: this needs starlette, uvicorn, pydantic, prometheus-client, which are not"
    )
    versions = environment.run("--version").stdout
    assert "onnxruntime-genai " in versions and "torch" not in versions


class TestAnswersIn:
    """What `generate` says in each of these environments, on a package that runs on a CPU."""

    @pytest.fixture
    def generate(
        self, environment: Environment, tiny_package: Callable[..., Path]
    ) -> Callable[..., subprocess.CompletedProcess[str]]:
        def run(provider: str) -> subprocess.CompletedProcess[str]:
            folder = str(tiny_package("gqa"))
            return environment.run("generate", folder, "-p", "Hi", "-n", "3", "--provider", provider)

        return run

    def refused(self, result: subprocess.CompletedProcess[str], message: str) -> None:
        assert (result.returncode, result.stdout) == (3, "")
        assert result.stderr == f"phi3-onnx: {message}\n"

    def test_an_environment_without_onnx_runtime(self, generate: Callable[..., Any]) -> None:
        missing = "onnxruntime_genai is not installed; "
        self.refused(generate("auto"), missing + f"run: {install('cpu')} (or [cuda], or [directml])")
        self.refused(generate("cuda"), missing + f"run: {install('cuda')}")

    def test_an_environment_for_the_cpu_alone(self, environment: Environment, generate: Callable[..., Any]) -> None:
        for name in _RUNTIME:
            environment.link(name)
        versions = f"onnxruntime {version('onnxruntime')} and onnxruntime-genai {version('onnxruntime-genai')}"
        built = f"cannot run here: the installed {versions} are built without it; "
        self.refused(
            generate("cuda"),
            f"provider cuda {built}run: pip uninstall -y onnxruntime onnxruntime-genai && {install('cuda')}",
        )
        if sys.platform == "linux":
            windows = "DirectML exists on Windows only; take --provider cuda or cpu"
            self.refused(generate("dml"), f"provider dml {built}{windows}")
        answer = generate("auto")
        assert answer.returncode == 0
        assert "on cpu (cpu: chosen, the package was made for it)" in answer.stderr

    def test_an_environment_with_clashing_wheels(self, environment: Environment, generate: Callable[..., Any]) -> None:
        for name in _RUNTIME:
            environment.link(name)
        environment.pretend("onnxruntime-gpu", "1.24.4")
        clash = (
            f"onnxruntime {version('onnxruntime')} and onnxruntime-gpu 1.24.4 overwrite each other's module onnxruntime"
        )
        uninstall = "pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-genai"
        self.refused(generate("cuda"), f"{clash}; run: {uninstall} && {install('cuda')}")
        if sys.platform == "linux":
            self.refused(generate("dml"), f"{clash}; DirectML exists on Windows only; take --provider cuda or cpu")
        for provider, why in (("auto", "the package was made for it"), ("cpu", "it was asked for")):
            answer = generate(provider)
            assert answer.returncode == 0 and answer.stdout
            assert answer.stderr.splitlines()[:2] == [
                f"warning: {clash}, so the GPU's provider may be missing; run: {uninstall} && "
                f"{install('cpu')} (or [cuda], or [directml])",
                f"tiny-gqa/cpu-fp32 on cpu (cpu: chosen, {why})",
            ]
            assert answer.stderr.count("warning") == 1


def test_version_names_what_matters_and_imports_none_of_it() -> None:
    script = (
        "import sys; from phi3_onnx.cli import root\n"
        "try: root(['--version'])\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'onnxruntime', 'onnxruntime_genai', 'torch', 'transformers', 'numpy'}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *lines, imported = result.stdout.splitlines()
    assert imported == "[]"
    assert [line.split()[0] for line in lines][:1] == ["phi3-onnx"] and "onnxruntime-genai" in result.stdout


@pytest.mark.parametrize("verb", ["chat", "generate", "serve"])
def test_lists_devices(verb: str) -> None:
    result = CliRunner().invoke(root, [verb, "--list-devices"])
    assert result.exit_code == 0
    assert result.stdout.startswith("cpu 0: ") and "for --provider cpu" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"), [("phi3-onnx doc", "plain,doctor"), ("phi3-onnx serve --po", "plain,--port")]
)
def test_completes_words(words: str, expected: str) -> None:
    script = "from phi3_onnx.cli import root; root(prog_name='phi3-onnx')"
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_PHI3_ONNX_COMPLETE": "bash_complete"}
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == [expected]


def test_a_provider_that_computes_nothing_here_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3_onnx.runtime.providers.doctor.import_onnxruntime", lambda: OnlyNames())
    assert doctor._candidates() == ["cpu", "cuda", "dml", "WebGPU"]


class OnlyNames:
    def get_available_providers(self) -> list[str]:
        return ["WebGPUExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
