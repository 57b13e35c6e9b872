"""Extras, versions and what is said of them: `pyproject.toml`, the tables, the guide and the doctor agree."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import requirements
from phi3_onnx.configs.extras import (
    ADDITIONS,
    EXTRAS,
    GENAI,
    ONNXRUNTIME,
    WHEELS,
    all_extras,
    cuda_library,
    cuda_of,
    least_driver,
    with_extras,
)
from phi3_onnx.configs.origin import install_command
from phi3_onnx.configs.releases import GROUPS, RANGES, VersionError, check_versions, release

FOLDER = Path(__file__).parents[1]
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
TOPS = ("cli", "configs", "evaluate", "export", "quantize", "runtime")
# Versions that are known to be unsafe, or not to work: no floor may be one of them, or lower.
KNOWN_BAD = {
    "jinja2": "3.1.5",  # CVE-2025-27516
    "onnx": "1.20.1",  # CVE-2026-27489, CVE-2026-34445
    "onnx-ir": "0.1.14",  # has no schemas, which torch.onnx asks for
    "onnxruntime-gpu": "1.24.3",  # nothing older has been through the dry run (tests/cuda)
    "onnxscript": "0.5.7",  # has nothing for torch 2.11
    "starlette": "1.0.0",  # CVE-2026-48710
    "torch": "2.5.1",  # CVE-2025-32434, and CVE-2026-1839 of transformers needs it
    "transformers": "4.57.0",  # was taken back
}
FAKE = Callable[[str, str], None]


def floors() -> dict[str, set[str]]:
    """Return the lowest versions that pyproject.toml names for each package, of the extras that users install."""
    found: dict[str, set[str]] = {}
    lines = [*PROJECT["dependencies"], *(line for name in OPTIONAL if name != "test" for line in OPTIONAL[name])]
    for line in lines:
        match = re.match(r"([\w-]+)(?:\[[\w,]+\])?[>=]=([\d.]+)", line)
        assert match, f"{line} has no lowest version"
        found.setdefault(match.group(1), set()).add(match.group(2))
    return found


class TestExtras:
    def test_the_table_has_every_extra_of_pyproject(self) -> None:
        assert sorted(all_extras()) == sorted(OPTIONAL)

    @pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra.name)
    def test_each_installs_the_wheels_of_the_table(self, extra: Any) -> None:
        lines = OPTIONAL[extra.name]
        names = {re.match(r"[\w-]+", line).group() for line in lines}  # pyright: ignore[reportOptionalMemberAccess]
        assert extra.wheels <= names
        assert {extra.runtime} <= set(WHEELS[ONNXRUNTIME]) and {extra.genai} <= set(WHEELS[GENAI])
        if extra.platforms == ("win32",):
            assert all("sys_platform == 'win32'" in line for line in lines)
        elif "darwin" not in extra.platforms:
            assert all("sys_platform != 'darwin'" in line for line in lines)

    @pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra.cuda], ids=lambda extra: extra.name)
    def test_a_pair_is_linked_to_one_cuda(self, extra: Any) -> None:
        for line in OPTIONAL[extra.name]:
            name, lowest = re.match(r"([\w-]+).*?>=([\d.]+)", line).groups()  # pyright: ignore[reportOptionalMemberAccess]
            if name not in extra.wheels:
                continue
            assert cuda_of(name, lowest) == extra.cuda
            if below := re.search(r"<([\d.]+)", line):
                numbers = release(below.group(1))
                assert cuda_of(name, f"{numbers[0]}.{numbers[1] - 1}.99") == extra.cuda
            if name == extra.runtime:
                assert line.startswith(f"{name}[cuda,cudnn]")

    def test_the_guide_lists_those_that_bring_onnx_runtime(self) -> None:
        guide = (FOLDER / "docs" / "guides" / "install.md").read_text(encoding="utf-8")
        listed = dict(re.findall(r'^ +pip install .*-e "\.\[([\w,]+)\]" +# (.+)$', guide, re.MULTILINE))
        assert {extra.name: extra.about for extra in EXTRAS}.items() <= listed.items()
        assert listed["optimum"] == ADDITIONS["optimum"] and listed["cpu,export"] == ADDITIONS["export"]

    def test_what_each_says_of_drivers(self) -> None:
        for extra in EXTRAS:
            if extra.cuda:
                assert f"CUDA {extra.cuda}: driver {least_driver(extra.cuda, 'linux')} or later" in extra.about

    def test_names_of_the_libraries(self) -> None:
        assert cuda_library(13, "linux") == "libcudart.so.13" and cuda_library(12, "win32") == "cudart64_12.dll"
        assert [cuda_of("onnxruntime-gpu", version) for version in ("1.26.0", "1.27.0")] == [12, 13]
        assert [cuda_of("onnxruntime-genai-cuda", version) for version in ("0.14.1", "0.15.0")] == [12, 13]
        assert cuda_of("onnxruntime", "1.32.0") is None

    def test_advice_overwrites_no_wheel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert with_extras(["onnxruntime-directml"], "export") == install_command("export")
        assert with_extras([], "export") == install_command("export", "cpu")
        here = {"onnxruntime-directml", "onnxruntime-genai-directml"}
        monkeypatch.setattr(requirements, "_installed", here.__contains__)
        with pytest.raises(requirements.MissingExtraError, match=f"run: {re.escape(install_command('export'))}$"):
            requirements.require_export()

    @pytest.mark.registry
    @pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra.name)
    def test_pip_resolves_each(self, extra: Any) -> None:
        """Asks the package registry, and is skipped where there is none."""
        resolve = _script("resolve").resolve
        try:
            found = resolve(extra.name)
        except RuntimeError as error:
            if re.search(r"(from versions: none)|connection|resolve host", str(error)) and not _reaches_a_registry():
                pytest.skip("no registry")
            raise
        assert extra.wheels <= set(found)
        assert {cuda_of(name, found[name]) for name in extra.wheels} == {extra.cuda}


def _script(name: str) -> Any:
    spec = spec_from_file_location(name, FOLDER / "tests/versions" / f"{name}.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reaches_a_registry() -> bool:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", "/dev/null", "idna"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return "No matching distribution" not in done.stderr


class TestFloors:
    def test_the_table_has_those_of_pyproject(self) -> None:
        asked = floors()
        assert set(RANGES) <= set(asked) | {"numpy"}
        for name, known in RANGES.items():
            lowest = min(asked[name], key=release)
            assert release(known.lowest) == release(lowest), name

    @pytest.mark.parametrize("name", KNOWN_BAD)
    def test_none_is_known_to_be_bad(self, name: str) -> None:
        assert all(release(lowest) > release(KNOWN_BAD[name]) for lowest in floors()[name])

    def test_every_dependency_is_imported_by_production_code(self) -> None:
        imported = {
            name.partition(".")[0]
            for top in TOPS
            for path in (FOLDER / top).rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
        }
        known = packages_distributions()
        used = {each.lower().replace("_", "-") for name in imported for each in known.get(name, ())}
        asked = {
            re.match(r"[\w-]+", line).group()  # pyright: ignore[reportOptionalMemberAccess]
            for line in (*PROJECT["dependencies"], *OPTIONAL["export"], *OPTIONAL["server"], *OPTIONAL["hub"])
        }
        # uvicorn takes these two where they are there; torch.onnx asks for onnxscript.
        assert asked - used <= {"httptools", "uvloop", "onnxscript"}

    def test_nothing_here_does_what_old_versions_of_transformers_do_unsafely(self) -> None:
        """What the floor of transformers rests on; see configs/releases.py."""
        text = "\n".join(path.read_text(encoding="utf-8") for top in TOPS for path in (FOLDER / top).rglob("*.py"))
        loads = re.findall(r"(\w+)\.from_pretrained\(", text)
        assert set(loads) <= {"AutoTokenizer"} and not re.search(r"import Trainer|torch\.load\(", text)


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FAKE:
    """Return a function that makes a package look installed in a version."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, version: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return make


class TestGate:
    def test_what_is_installed_here_passes(self) -> None:
        check_versions(RANGES)

    @pytest.mark.parametrize(
        ("name", "version", "message"),
        [
            (
                "transformers",
                "6.0.0",
                "transformers 6.0.0 is newer than this release of phi3-onnx knows; "
                'run: pip install "transformers>=4.57.6,<6"',
            ),
            (
                "starlette",
                "0.52.1",
                "starlette 0.52.1 is older than 1.0.1, the first version that works here (CVE-2026-48710: a Host "
                'header passes for another path); run: pip install "starlette>=1.0.1,<2"',
            ),
            (
                "onnx-ir",
                "0.1.9",
                "onnx-ir 0.1.9 is older than 0.1.16, the first version that works here (torch.onnx uses its "
                'schemas); run: pip install "onnx-ir>=0.1.16,<2"',
            ),
        ],
    )
    def test_a_version_that_cannot_work_is_refused_by_name(
        self, pretend: FAKE, name: str, version: str, message: str
    ) -> None:
        pretend(name, version)
        with pytest.raises(VersionError) as caught:
            check_versions([name])
        assert str(caught.value) == message

    def test_an_export_says_the_same_from_python_and_from_the_command_line(self, pretend: FAKE, tmp_path: Path) -> None:
        pytest.importorskip("torch", reason="the export extra is not installed")
        from phi3_onnx.export import export

        pretend("transformers", "6.0.0")
        with pytest.raises(VersionError) as caught:
            export(tmp_path / "checkpoint")
        done = CliRunner().invoke(root, ["export", str(tmp_path / "checkpoint")])
        assert str(done.exception) == str(caught.value)
        assert str(caught.value).startswith("transformers 6.0.0 is newer than this release of phi3-onnx knows; run: ")

    @pytest.mark.parametrize("version", ["4.57.6", "5.0.0", "5.24.0", "5.99.1", "5.25.0.dev0"])
    def test_a_newer_minor_version_is_not(self, pretend: FAKE, version: str) -> None:
        pretend("transformers", version)
        check_versions(["transformers"])

    def test_numbers(self) -> None:
        assert release("2.13.0+cpu") == (2, 13, 0) and release("6.0.0rc1") == (6, 0, 0) and release("none") == ()

    def test_the_command_line_says_it_without_a_traceback(self, pretend: FAKE, tmp_path: Path) -> None:
        pretend("transformers", "6.0.0")
        script = "import sys; from phi3_onnx.cli import main; sys.argv = ['phi3-onnx', 'export', 'nowhere']; "
        script += f"sys.path.insert(0, {str(tmp_path)!r}); "
        script += (
            "import atexit; atexit.register(lambda: print(sorted({'torch', 'transformers'} & set(sys.modules)))); "
        )
        done = subprocess.run([sys.executable, "-c", script + "main()"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr == (
            "phi3-onnx: transformers 6.0.0 is newer than this release of phi3-onnx knows; "
            'run: pip install "transformers>=4.57.6,<6"\n'
        )
        assert done.stdout == "[]\n"  # and nothing heavy was imported to find out

    def test_onnx_runtime_is_checked_where_it_is_imported(self, pretend: FAKE) -> None:
        from phi3_onnx.configs import ProviderError
        from phi3_onnx.runtime.providers.imports import import_genai

        pretend("onnxruntime-genai", "0.9.2")
        with pytest.raises(
            ProviderError, match=r"^onnxruntime-genai 0\.9\.2 is older than 0\.13, .*; run: pip install"
        ):
            import_genai()

    def test_every_group_is_in_the_table(self) -> None:
        assert {name for names in GROUPS.values() for name in names} <= set(RANGES)


def test_a_renamed_upstream_name_fails_the_leg(tmp_path: Path) -> None:
    """What the weekly leg is for: a name that production code takes from a package is gone from it."""
    package = tmp_path / "onnx_ir"
    source = Path(str(import_module("onnx_ir").__file__)).parent
    package.mkdir()
    for path in source.iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    text = (source / "__init__.py").read_text(encoding="utf-8")
    # `ir.Model` is what every pass takes.
    (package / "__init__.py").write_text(f"{text}\nModel_renamed = Model\ndel Model\n", encoding="utf-8")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pytest; "
    script += f"sys.exit(pytest.main({_LEG!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "has no attribute 'Model'" in done.stdout


_LEG = ["-p", "no:cacheprovider", "-m", "smoke", "--no-header", "-q", "-x", "tests/versions"]
"""What `tests/versions/run` hands pytest."""
