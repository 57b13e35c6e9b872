"""The preloaded library that injects faults into file operations: building it, arming it in a process."""

import ctypes
import enum
import os
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")


class Fault(enum.IntEnum):
    """What happens at the operation that is named; the values are those of `shim.c`."""

    COUNT = 1
    """Nothing; operations are counted."""
    KILL_BEFORE = 2
    """The process is killed before its n-th change of a file or folder."""
    KILL_AFTER = 3
    """The same, after it."""
    FULL = 4
    """The disk takes so many bytes and no more."""
    UNREADABLE = 5
    """The n-th read and all that follow fail with EIO."""


def build(folder: Path) -> Path:
    """Compile the library into a folder, and return its path."""
    library = folder / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ["LD_PRELOAD"])


def arm(folder: Path, fault: Fault, at: int) -> None:
    """Have the fault happen in this process, and in those that it starts, below a folder."""
    _library().fault_arm(os.fsencode(folder), int(fault), ctypes.c_long(at))
    os.environ |= {"FAULT_ROOT": str(folder), "FAULT_KIND": str(int(fault)), "FAULT_AT": str(at)}


def counted() -> dict[Fault, int]:
    """Return how many changes, bytes and reads this process has made since it was armed, by the fault they are for."""
    library, found = _library(), {}
    names = {Fault.KILL_BEFORE: "changes", Fault.KILL_AFTER: "changes", Fault.FULL: "bytes", Fault.UNREADABLE: "reads"}
    for fault, name in names.items():
        function = getattr(library, f"fault_{name}")
        function.restype = ctypes.c_long
        found[fault] = function()
    return found
