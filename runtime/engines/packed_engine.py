"""The packed graph as an `Engine`: every text by itself, or many together, each with the logits that it gets alone."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...configs import EngineError, ProviderError, UsageError
from ..decoding.engine import GuidedDraws, Prove, TokenSequence
from ..decoding.lookup import LookupDrafter
from ..decoding.speculation import AUTO, NO_DRAFT, Draft, Drafter, Speculation
from ..package import Package
from ..providers.choice import Candidate, ProviderChoice
from ..providers.names import canonical
from .arena import Arena
from .layout import RowRun
from .packed import DECODE_NAME, PackedGraph
from .padding import Trial
from .planner import Planner
from .prefix_files import PrefixFiles
from .prepacked import MachineCopy
from .together import LONGEST_PIECE, Together


class PackedEngine:
    """The packed graph as an `Engine`: every text by itself, with the logits that it gets in any company."""

    continuous = True
    chooses = False
    guides = False
    prefill_chunk = 128
    longest_piece = LONGEST_PIECE
    """Of prompts' tokens that several texts run in a step together."""

    def __init__(self, graph: PackedGraph, context_length: int) -> None:
        """Take a loaded graph."""
        rounding = "" if graph.padding else ", where answers may differ by rounding"
        kind = " in int8" if graph.int8 else ""
        self.name = f"{graph.name}, {DECODE_NAME}{kind}{rounding}"
        self.bytes_per_token = graph.shape.bytes_per_token
        """Bytes of KV cache for one token."""
        self._context = context_length
        self._graph: PackedGraph | None = graph

    @property
    def graph(self) -> PackedGraph:
        """The loaded graph.

        Raises:
            EngineError: the engine was closed.

        """
        if self._graph is None:
            raise EngineError("the model was closed")
        return self._graph

    def runs_ahead(self, speculation: Speculation) -> "PackedAhead | None":
        """Return what runs drafts of one text at a time; None where none are to be run."""
        planner = Planner(self.graph, speculation)
        return PackedAhead(planner) if planner.speculation.most else None

    def open(self, capacity: int, guided: GuidedDraws | None = None) -> "PackedSequence":
        """Start a sequence in a cache of its own; see `Engine.open`."""
        if guided:
            raise UsageError(f"{self.name} takes guidance as a mask, not when a sequence is opened")
        return PackedSequence(self, capacity)

    def together(
        self,
        slots: int,
        cache_bytes: int,
        speculation: Speculation = AUTO,
        files: PrefixFiles | None = None,
        drafter: Callable[[], Drafter] = LookupDrafter,
    ) -> Together:
        """Return what decodes several texts together."""
        return Together(
            self.graph,
            slots,
            context_length=self._context,
            cache_bytes=cache_bytes,
            speculation=speculation,
            files=files,
            drafter=drafter,
            longest_piece=self.longest_piece,
        )

    def files(self, folder: Path, limit: int) -> PrefixFiles:
        """Return what a folder keeps of texts on disk, for what computes these bits and no others."""
        return PrefixFiles(folder, self.graph.identity, self.graph.shape, limit)

    def close(self) -> None:
        """Give the model's memory back."""
        self._graph = None


def load_packed_engine(
    package: Package,
    provider: str,
    *,
    threads: int | None = None,
    prove: Prove | None = None,
    copy: MachineCopy | None = None,
    trial: Trial | None = None,
    takes_turns: bool = False,
) -> tuple[PackedEngine, ProviderChoice]:
    """Load a package's second graph on the CPU.

    Args:
        package: the package.
        provider: `auto`, which has to mean the CPU for this package, or `cpu`.
        threads: threads of one operator; by default the physical cores.
        prove: tries the engine before it is taken.
        copy: one of the graph that was made for this machine; see `PackedGraph`.
        trial: what trying it out showed here before; see `PackedGraph`.
        takes_turns: whether another graph runs in between; see `PackedGraph`.

    Raises:
        UsageError: there is no such provider.
        ProviderError: another provider was asked for, or `prove` refuses this one.
        PackageError: the package has no such graph, or it does not run here.

    """
    wanted = canonical(provider)
    if (package.made_for if wanted == "auto" else wanted) != "cpu":
        raise ProviderError(f"{DECODE_NAME} runs on the CPU, not on {package.made_for if wanted == 'auto' else wanted}")
    graph = PackedGraph(package, threads=threads, copy=copy, trial=trial, takes_turns=takes_turns)
    why = "it was asked for" if wanted == "cpu" else "the package was made for it"
    engine = PackedEngine(graph, package.context_length)
    if prove:
        prove(engine, "cpu")
    return engine, ProviderChoice("cpu", (Candidate("cpu", True, why),))


class PackedAhead:
    """Runs drafts of one text at a time; see `RunsAhead`."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self.most = planner.speculation.most

    def chosen(self, draft: Draft) -> Draft:
        """Return how much of a draft is worth its time; see `RunsAhead.chosen`."""
        return self._planner.plan({"": draft}, 1).get("", NO_DRAFT) if draft.tokens else NO_DRAFT

    def run(self, sequence: TokenSequence, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens, and return the logits of each; see `RunsAhead.run`."""
        assert isinstance(sequence, PackedSequence)
        begun = time.perf_counter()
        logits = sequence.run(tokens, len(tokens))
        self._planner.note(len(tokens), time.perf_counter() - begun)
        return logits


class PackedSequence:
    """One text in an arena of its own; see `TokenSequence`."""

    waiting = False

    def __init__(self, engine: PackedEngine, capacity: int) -> None:
        self._engine = engine
        self._arena: Arena | None = Arena(engine.graph.shape, 1, capacity)
        self._tokens: list[int] = []
        self._logits = np.empty((0, 0), np.float32)
        self._last: RowRun | None = None
        self._scoring = False
        self.capacity = capacity

    def append(self, tokens: Sequence[int]) -> None:
        """Run the graph on more tokens; see `TokenSequence.append`."""
        self.run(tokens, len(tokens) if self._scoring else 1)

    def run(self, tokens: Sequence[int], logits: int) -> np.ndarray:
        """Run the graph on more tokens; return the logits of the last so many, float32 [logits, vocabulary].

        Raises:
            EngineError: the run failed.

        """
        start, graph = len(self._tokens), self._engine.graph
        if self._arena is None or not 0 < len(tokens) <= self.capacity - start:
            raise EngineError(f"{len(tokens)} tokens after {start} do not fit into {self.capacity}")
        beyond = graph.switch is not None and start + len(tokens) > graph.switch
        self._last = RowRun(0, start, list(tokens), logits, beyond)
        (self._logits,) = graph.run(self._arena, [self._last])
        self._tokens += tokens
        return self._logits

    def logits(self) -> np.ndarray:
        """Return the last token's logits; see `TokenSequence.logits`."""
        return self._logits[-1]

    def run_logits(self) -> np.ndarray:
        """Return the last run's logits, by running it again: seldom is more than the last token's read.

        Who reads them once is scoring a text, and reads the next run's, too: those are computed at once.
        """
        if self._arena is None or self._last is None:
            raise EngineError("there was no run")
        self._scoring = True
        if self._last.logits == len(self._last.tokens):
            return self._logits
        run = replace(self._last, logits=len(self._last.tokens))
        return self._engine.graph.run(self._arena, [run])[0]

    def choose_token(self) -> int:
        """Refuse: tokens are chosen by the caller."""
        raise EngineError(f"{self._engine.name} chooses no tokens")

    def rewind(self, length: int) -> None:
        """Forget all but the first tokens; see `TokenSequence.rewind`."""
        del self._tokens[length:]

    def close(self) -> None:
        """Give the cache's memory back."""
        self._arena = None
