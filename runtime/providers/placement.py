"""Where the nodes of a graph landed: an execution provider leaves what it has no kernel for to the CPU's."""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs import Phi3OnnxError
from ...configs.files import read_json, replacing
from ...configs.store import cache_folder
from .imports import import_onnxruntime

_LOG = logging.getLogger(__name__)
# ONNX Runtime 1.24 and later; earlier ones pass the entry over.
_RECORD = "session.record_ep_graph_assignment_info"
_CACHE = "placements.json"


@dataclass(frozen=True)
class Placement:
    """How many nodes of a graph each execution provider runs, as the graph is divided between them."""

    wanted: str
    """The provider that was asked for, by ONNX Runtime's name."""
    nodes: Mapping[str, int]
    """Nodes by provider, by ONNX Runtime's names."""

    @property
    def total(self) -> int:
        """Nodes in all."""
        return sum(self.nodes.values())

    @property
    def elsewhere(self) -> int:
        """Nodes on another provider than the one that was asked for."""
        return self.total - self.nodes.get(self.wanted, 0)

    def __str__(self) -> str:
        others = (f"{count} on {name}" for name, count in sorted(self.nodes.items()) if name != self.wanted)
        return f"{self.elsewhere} of {self.total} nodes are not on {self.wanted}: {', '.join(others)}"


def ask_for_placement(options: Any) -> None:
    """Let a session that is made with these `onnxruntime.SessionOptions` note where its nodes land."""
    options.add_session_config_entry(_RECORD, "1")


def read_placement(session: Any, wanted: str) -> Placement | None:
    """Return where the nodes of an `onnxruntime.InferenceSession` landed; None where it has not noted it."""
    read = getattr(session, "get_provider_graph_assignment_info", None)
    nodes: Counter[str] = Counter()
    try:
        for part in read() if read else ():
            nodes[part.ep_name] += len(part.get_nodes())
    except Exception as error:  # onnxruntime's own errors have no common base but this
        _LOG.debug("placement: %s", error)
    return Placement(wanted, dict(nodes)) if nodes else None


def check_placement(placement: Placement | None) -> None:
    """Refuse a provider that left the whole graph to others.

    Raises:
        RuntimeError: it did; what `choose` takes for a reason against it.

    """
    if placement and placement.elsewhere == placement.total:
        raise RuntimeError(f"it runs none of the graph's {placement.total} nodes")


def cached_placement(graph: Path, wanted: str) -> Placement | None:
    """Return what `keep_placement` kept of this graph file, provider and version of ONNX Runtime."""
    nodes = _cached().get(_key(graph, wanted))
    return Placement(wanted, nodes) if nodes else None


def keep_placement(graph: Path, placement: Placement) -> None:
    """Note a placement in the cache folder, since it takes loading the graph to find out."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        table = {**_cached(), _key(graph, placement.wanted): dict(placement.nodes)}
        with replacing(folder / _CACHE) as beside:
            beside.write_text(json.dumps(table), encoding="utf-8")
    except OSError as error:
        _LOG.debug("placement: %s", error)


def _cached() -> dict[str, dict[str, int]]:
    try:
        return read_json(cache_folder() / _CACHE, optional=True)
    except Phi3OnnxError:
        return {}


def _key(graph: Path, wanted: str) -> str:
    state = graph.stat()
    return f"{graph.resolve()} {state.st_size} {state.st_mtime_ns} {wanted} {import_onnxruntime().__version__}"
