"""What trying packages' second graphs out showed on this machine, kept in the cache folder for their next loads.

It takes dozens of steps: with large models, longer than loading the weights. What it shows of bits depends on the
package, the versions and the processor; what it shows of time, on the threads as well.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...configs import Phi3OnnxError
from ...configs.files import read_json
from ..engines.packed import DECODE_NAME
from ..engines.padding import PADDINGS, Padding, Trial
from .record import Key, keep, key_of, path_of

_LOG = logging.getLogger(__name__)
_FOLDER = "trials"


def kept_trial(folder: Path, threads: int, *, int8: bool = False) -> Trial | None:
    """Return what was kept of a package; None where nothing was, or where it is damaged.

    Args:
        folder: the package's.
        threads: of one operator.
        int8: of its copy that multiplies integers.

    """
    key = _key(folder, threads, int8=int8)
    try:
        table = read_json(path_of(_FOLDER, key), optional=True)
        return _trial(table) if table and Key(**table["key"]) == key else None
    except (Phi3OnnxError, AttributeError, KeyError, TypeError, ValueError) as error:
        _LOG.debug("trial: %s", error)
        return None


def keep_trial(folder: Path, threads: int, trial: Trial, *, int8: bool = False) -> None:
    """Keep a trial, where the cache folder can be written to; see `kept_trial`."""
    key = _key(folder, threads, int8=int8)
    keep(path_of(_FOLDER, key), {"key": asdict(key), "padding": trial.padding, "seconds": dict(trial.seconds)})


def _key(folder: Path, threads: int, *, int8: bool) -> Key:
    kind = " in int8" if int8 else ""
    return key_of(folder, f"{DECODE_NAME}{kind}, {threads} threads, paddings {[*map(tuple, PADDINGS)]}", "cpu", None)


def _trial(table: Any) -> Trial:
    padding = None if table["padding"] is None else Padding(*table["padding"])
    seconds = {int(tokens): float(taken) for tokens, taken in table["seconds"].items()}
    if padding not in (None, *PADDINGS) or not seconds:
        raise ValueError("it is no trial of this version")
    if not all(tokens > 0 and 0 < taken < 1e6 for tokens, taken in seconds.items()):
        raise ValueError("a figure is out of range")
    return Trial(padding, seconds)
