"""A worker process that ends when the process that started it does, even one that was killed and could not say so."""

import os
import sys
import threading
import time
from contextlib import suppress

import psutil

_POLL_SECONDS = 0.2
_EXIT_CODE = 1


def end_with(parent: int) -> None:
    """Have this process end as soon as its parent, whose process number is given, has ended.

    A thread watches: Linux's parent-death signal comes with the end of the *thread* that started a process.
    """
    threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def _watch(parent: int) -> None:
    if sys.platform == "win32":  # a process there keeps the number of its parent, dead or not
        with suppress(psutil.NoSuchProcess):
            psutil.Process(parent).wait()
    else:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
    # At once: there is nobody to report to, and what this process was writing is nobody's now.
    os._exit(_EXIT_CODE)
