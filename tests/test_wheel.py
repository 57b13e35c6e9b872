"""The wheel: what is in it, and that it imports in an environment that has nothing but what it asks for."""

import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
# What the extras bring.
HEAVY = {
    *("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "gguf", "safetensors", "ml_dtypes", "huggingface_hub"),
    *("onnxruntime", "onnxruntime_genai", "starlette", "uvicorn", "pydantic", "prometheus_client"),
}

LIGHT = ("phi3_onnx.cli", "phi3_onnx.configs", "phi3_onnx.runtime")
NEEDS_AN_EXTRA = ("phi3_onnx.runtime.server.",)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Sources go to a folder of their own: a build leaves `build` and `*.egg-info` beside them.
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=FOLDER, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (FOLDER / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((FOLDER / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_folder_with_modules_is_listed() -> None:
    tops = {package.split(".")[1] for package in PACKAGES}
    folders = {
        ".".join(["phi3_onnx", *path.relative_to(FOLDER).parts])
        for top in tops
        for path in [FOLDER / top, *(FOLDER / top).rglob("*")]
        if path.is_dir() and any(path.glob("*.py"))
    }
    assert folders == set(PACKAGES)


def test_every_module_and_every_data_file_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    wanted = set()
    for package in PACKAGES:
        path = Path(*package.split(".")[1:])
        for file in (FOLDER / path).iterdir():
            if file.is_file() and file.suffix != ".md":  # notes for developers stay at home
                wanted.add(f"phi3_onnx/{(path / file.name).as_posix()}")
        for data in ("data", "targets", "static", "templates"):
            wanted |= {
                f"phi3_onnx/{file.relative_to(FOLDER).as_posix()}"
                for file in (FOLDER / path / data).rglob("*")
                if file.is_file() and "__pycache__" not in file.parts
            }
    assert wanted - inside == set()
    assert "phi3_onnx/__init__.py" not in inside  # a namespace package
    assert not {name for name in inside if name.startswith(("tests/", "phi3_onnx/tests/"))}


def modules(installed: Path) -> list[str]:
    return sorted(
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in installed.glob("phi3_onnx/**/*.py")
        if path.name != "__main__.py"
    )


def import_all(installed: Path, names: list[str], refused: set[str]) -> list[str]:
    """Import modules in a new interpreter, from the unpacked wheel alone; return a line for each that fails."""
    script = f"""
import importlib, importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ModuleNotFoundError("not in a bare environment: " + name, name=name)
sys.meta_path.insert(0, Refuse())
# An editable install may be there as well, through a finder of its own: only what the wheel holds counts.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:] = [{str(installed)!r}, *(entry for entry in sys.path if "editable" not in entry)]
for name in {names!r}:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error)
    else:
        assert (module.__file__ or "").startswith({str(installed)!r}), module.__file__
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_runs_packages_imports_without_any_extra(installed: Path) -> None:
    """Nobody needs torch for `--help`, nor ONNX Runtime: the rest imports what is heavy where it is used."""
    light = [name for name in modules(installed) if name.startswith(LIGHT) and not name.startswith(NEEDS_AN_EXTRA)]
    assert len(light) > 40
    assert import_all(installed, light, HEAVY) == []


def test_every_module_imports_with_the_extras(installed: Path) -> None:
    """Whatever is missing is an extra that is not installed here, never a part of the wheel."""
    missing = {
        line.partition("No module named ")[2].strip("'") for line in import_all(installed, modules(installed), set())
    }
    assert {name for name in missing if name.startswith("phi3_onnx") or find_spec(name.partition(".")[0])} == set()


def test_it_asks_for_no_extra_unasked(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    asked = [line for line in metadata.read_text(encoding="utf-8").splitlines() if line.startswith("Requires-Dist:")]
    plain = {line.split()[1].split(">")[0].split("=")[0] for line in asked if "extra ==" not in line}
    assert plain == {"click", "jinja2", "numpy", "platformdirs", "psutil", "rich", "tokenizers"}
